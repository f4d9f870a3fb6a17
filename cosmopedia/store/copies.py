"""Copies of a completion store's folder in a bucket: `cosmo store push s3://...` and `cosmo store pull s3://...`.

A file of the store never changes once nobody appends to it, and no other has its name. So a copy sends the names that
the other side lacks: killed, it goes on with the next file; a second time, it sends nothing. Nothing is removed on
either side.
"""

from pathlib import Path
from typing import NamedTuple

from cosmopedia.store.bucket import BucketFiles
from cosmopedia.store.folder import closed, files_in
from cosmopedia.store.segments import fsync


class Copied(NamedTuple):
    """What a copy did: files and bytes that it sent or fetched, files that were there already."""

    files: int
    bytes: int = 0
    there: int = 0
    in_use: int = 0  # segments left alone because a writer still appends to them


def copy_to_bucket(folder: Path, bucket: BucketFiles) -> Copied:
    """Send what the bucket lacks, or has in another size, of the files that no writer appends to."""
    sizes = bucket.sizes()
    everything = files_in(folder)
    files = closed(everything)
    missing = [path for path in files if sizes.get(path.name) != path.stat().st_size]
    for path in missing:
        bucket.send(path)
    size = sum(path.stat().st_size for path in missing)
    return Copied(len(missing), size, len(files) - len(missing), len(everything) - len(files))


def copy_from_bucket(bucket: BucketFiles, folder: Path) -> Copied:
    """Fetch what the folder lacks. A segment that was compacted here is fetched again; compaction drops repeats."""
    sizes = {name: size for name, size in bucket.sizes().items() if name.endswith((".seg", ".parquet"))}
    missing = sorted(sizes.keys() - {path.name for path in files_in(folder)})
    folder.mkdir(parents=True, exist_ok=True)
    for name in missing:
        bucket.fetch(name, sizes[name], folder)
    fsync(folder)
    return Copied(len(missing), sum(sizes[name] for name in missing), len(sizes) - len(missing))
