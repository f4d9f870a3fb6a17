"""The folder of a completion store: its segments and parquet files, listed and read alike."""

from collections.abc import Iterable, Iterator
from pathlib import Path

from cosmopedia.store.parquet_files import keys_of, open_parquet, rows_of
from cosmopedia.store.segments import decode, in_use, open_file, read_frames


def files_in(folder: Path) -> list[Path]:
    """The segments and parquet files of a folder, sorted by name."""
    return sorted(path for path in folder.glob("*") if path.suffix in (".seg", ".parquet"))


def closed(paths: Iterable[Path]) -> list[Path]:
    """Those that no writer appends to any more."""
    return [path for path in paths if path.suffix == ".parquet" or not in_use(path)]


def read_file(path: Path) -> Iterator[tuple[bytes, list]]:
    """(key, row) of every completion in a file; every checksum is tested. `DataError` names a damaged file."""
    if path.suffix == ".seg":
        with open_file(path) as stream:
            for frame in read_frames(path):
                yield from zip(split_keys(frame.keys), decode(stream, path, frame), strict=True)
        return
    file = open_parquet(path)
    for group in range(file.metadata.num_row_groups):
        yield from zip(split_keys(keys_of(path, file, group)), rows_of(path, file, group), strict=True)


def keys_in(path: Path) -> Iterator[bytes]:
    """The keys of a file, 16 bytes each and one after the other, a frame or row group at a time."""
    if path.suffix == ".seg":
        yield from (frame.keys for frame in read_frames(path))
        return
    file = open_parquet(path)
    for group in range(file.metadata.num_row_groups):
        yield keys_of(path, file, group)


def split_keys(keys: bytes) -> Iterator[bytes]:
    """Each of the keys that follow one another."""
    return (keys[start : start + 16] for start in range(0, len(keys), 16))
