"""The completion store in a bucket: COSMO_STORE=s3://bucket/prefix, copied to a local folder.

Completions are durable on this machine's disk within half a second and in the bucket within half a minute: a writer's
segment grows in `spool/` and is uploaded, whole and never changed again, every 30 s or 64 MB. Look-ups read the local
copy. A segment that a killed process left in the spool is uploaded by the next one. Credentials and the endpoint are
those of the AWS tools (AWS_PROFILE, AWS_ACCESS_KEY_ID, AWS_ENDPOINT_URL, ...); any fsspec address works.
"""

import contextlib
import hashlib
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from cosmopedia.core.errors import ClusterError
from cosmopedia.core.files import replacing
from cosmopedia.execution.redaction import say
from cosmopedia.store.folder import closed, files_in
from cosmopedia.store.segments import fsync

UPLOAD_SECONDS = 30.0  # what the loss of this machine can cost
UPLOAD_BYTES = 64 << 20
SETTLE_SECONDS = 60.0  # a local file this young may be missing from a listing that was made before


class BucketFiles:
    """The files of a completion store in a bucket; any fsspec address works."""

    if_it_fails = ""  # a sentence at the end of an error

    def __init__(self, address: str):
        self.address = address.rstrip("/")
        with self._errors_named("opened"):
            from fsspec.core import url_to_fs

            self._files, self._prefix = url_to_fs(f"{self.address}/completions")

    @contextlib.contextmanager
    def _errors_named(self, action: str) -> Iterator[None]:
        """Turns what goes wrong into a `ClusterError`: "the completion store at ... cannot be <action>"."""
        try:
            self._make_folders()
            yield
        except (OSError, ValueError, ImportError) as error:
            reason = " ".join(str(error).split())[:300] or type(error).__name__
            raise ClusterError(
                f"the completion store at {self.address} cannot be {action}: {reason}; check the address, the"
                f" credentials and the network{self.if_it_fails}"
            ) from None
        except Exception as error:
            if type(error).__module__.split(".")[0] not in ("botocore", "aiobotocore", "aiohttp", "s3fs"):
                raise
            raise ClusterError(
                f"the completion store at {self.address} cannot be {action}: {type(error).__name__}:"
                f" {' '.join(str(error).split())[:300]}; check AWS_PROFILE or the keys, and AWS_ENDPOINT_URL"
            ) from None

    def _make_folders(self) -> None:
        """What must be on this machine's disk before anything else."""

    def sizes(self) -> dict[str, int]:
        """Name -> bytes of each file in the bucket."""
        with self._errors_named("listed"):
            self._files.invalidate_cache()
            try:
                entries: list[Any] = self._files.ls(self._prefix, detail=True)
            except FileNotFoundError:
                bucket = self._prefix.split("/")[0]
                if self.address.startswith("s3") and not self._files.exists(bucket):
                    raise OSError(f"there is no bucket {bucket}") from None
                return {}
        return {Path(entry["name"]).name: entry["size"] for entry in entries if entry["type"] == "file"}

    def fetch(self, name: str, size: int, folder: Path) -> None:
        """Copy a file of `size` bytes into a folder."""
        with self._errors_named("fetched"), replacing(folder / name) as draft:
            self._files.get_file(f"{self._prefix}/{name}", str(draft))
            if draft.stat().st_size != size:
                raise OSError(f"{name}: expected {size} bytes, got {draft.stat().st_size}")
            fsync(draft)

    def send(self, path: Path) -> None:
        """Copy a file into the bucket."""
        target = f"{self._prefix}/{path.name}"
        with self._errors_named("written to"):
            size = path.stat().st_size
            self._files.put_file(str(path), target)
            arrived = self._files.info(target)["size"]
            if arrived != size:
                raise OSError(f"{path.name}: sent {size} bytes, {arrived} arrived")


class Bucket(BucketFiles):
    """A prefix of a bucket and its local copy: `folder` holds what is in the bucket, `spool` what is not yet."""

    def __init__(self, address: str, root: Path):
        self.folder = root / "mirror" / hashlib.sha256(address.rstrip("/").encode()).hexdigest()[:16]
        self.spool = self.folder / "spool"
        self.if_it_fails = f". What was completed is in {self.folder}; `cosmo store push` uploads it"
        self._uploading: threading.Thread | None = None
        super().__init__(address)

    def _make_folders(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        self.spool.mkdir(exist_ok=True)

    def pull(self) -> int:
        """Bring the local copy up to date; returns how many files were fetched."""
        began = time.time()
        sizes = self.sizes()
        local = {path.name: path for path in files_in(self.folder)}
        missing = [name for name in sorted(sizes) if name not in local and name.endswith((".seg", ".parquet"))]
        for name in missing:
            self.fetch(name, sizes[name], self.folder)
        for name, path in local.items():  # compacted elsewhere
            if name not in sizes and path.stat().st_mtime < began - SETTLE_SECONDS:
                path.unlink(missing_ok=True)
        return len(missing)

    def upload_is_due(self, size: int, since: float) -> bool:
        """Whether to upload a segment of `size` bytes, begun at `since` (monotonic seconds), now."""
        return size >= UPLOAD_BYTES or time.monotonic() - since >= UPLOAD_SECONDS

    def push_later(self, path: Path) -> None:
        """Upload a closed segment in the background, one at a time; what fails stays in the spool for `push`."""

        def upload() -> None:
            try:
                self._upload(path)
            except ClusterError as error:
                say(f"warning: {error}")

        if self._uploading is None or not self._uploading.is_alive():
            self._uploading = threading.Thread(target=upload, daemon=True)
            self._uploading.start()

    def push(self) -> int:
        """Upload every closed segment of the spool; returns how many."""
        if self._uploading is not None:
            self._uploading.join()
        waiting = closed(files_in(self.spool))
        for path in waiting:
            self._upload(path)
        return len(waiting)

    def _upload(self, path: Path) -> None:
        self.send(path)
        with self._errors_named("written to"), contextlib.suppress(FileNotFoundError):
            path.rename(self.folder / path.name)

    def replace(self, new: list[Path], old: list[Path]) -> None:
        """Upload new files of `folder`, then remove from the bucket what they replace."""
        with self._errors_named("written to"):
            for path in new:
                self._files.put_file(str(path), f"{self._prefix}/{path.name}")
            for path in old:
                with contextlib.suppress(FileNotFoundError):
                    self._files.rm_file(f"{self._prefix}/{path.name}")
