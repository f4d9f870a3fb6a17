"""The completion store in a bucket: COSMO_STORE=s3://bucket/prefix, mirrored to a local folder.

Completions are durable on this machine's disk within half a second and in the bucket within half a minute: a writer's
segment grows in `spool/` and is uploaded, whole and never changed again, every 30 s or 64 MB. Look-ups read the local
mirror. A segment that a killed process left in the spool is uploaded by the next one. Credentials and the endpoint are
those of the AWS tools (AWS_PROFILE, AWS_ACCESS_KEY_ID, AWS_ENDPOINT_URL, ...); any fsspec address works.
"""

import contextlib
import hashlib
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from cosmopedia.errors import ClusterError
from cosmopedia.store.parquet_files import closed, files_in

UPLOAD_SECONDS = 30.0  # what the loss of this machine can cost
UPLOAD_BYTES = 64 << 20
SETTLE_SECONDS = 60.0  # a local file this young is not judged by a listing that may be older


class Mirror:
    """A bucket's prefix and its local copy: `folder` holds what is in the bucket, `spool` what is not yet."""

    def __init__(self, address: str, root: Path):
        self.address = address.rstrip("/")
        self.folder = root / "mirror" / hashlib.sha256(self.address.encode()).hexdigest()[:16]
        self.spool = self.folder / "spool"
        self._uploading: threading.Thread | None = None
        with self._blamed("opened"):
            from fsspec.core import url_to_fs

            self._files, self._prefix = url_to_fs(f"{self.address}/completions")

    @contextlib.contextmanager
    def _blamed(self, what: str) -> Iterator[None]:
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            self.spool.mkdir(exist_ok=True)
            yield
        except (OSError, ValueError, ImportError) as error:
            reason = " ".join(str(error).split())[:300] or type(error).__name__
            raise ClusterError(
                f"the completion store at {self.address} cannot be {what}: {reason}; look at the address, the"
                f" credentials and the network. What was completed is in {self.folder}; `cosmo"
                " store push` uploads it"
            ) from None
        except Exception as error:
            if type(error).__module__.split(".")[0] not in ("botocore", "aiobotocore", "aiohttp", "s3fs"):
                raise
            raise ClusterError(
                f"the completion store at {self.address} cannot be {what}: {type(error).__name__}:"
                f" {' '.join(str(error).split())[:300]}; look at AWS_PROFILE or the keys, and at AWS_ENDPOINT_URL"
            ) from None

    def listing(self) -> dict[str, int]:
        """Name -> bytes of what the bucket holds."""
        with self._blamed("listed"):
            self._files.invalidate_cache()
            try:
                found: list[Any] = self._files.ls(self._prefix, detail=True)
            except FileNotFoundError:
                bucket = self._prefix.split("/")[0]
                if self.address.startswith("s3") and not self._files.exists(bucket):
                    raise OSError(f"there is no bucket {bucket}") from None
                return {}
        return {Path(item["name"]).name: item["size"] for item in found if item["type"] == "file"}

    def pull(self) -> int:
        """Bring the local copy up to date; returns how many files were fetched."""
        began = time.time()
        there, here = self.listing(), {path.name: path for path in files_in(self.folder)}
        missing = [name for name in sorted(there) if name not in here and name.endswith((".seg", ".parquet"))]
        for name in missing:
            draft = self.folder / f"{name}.{began}.draft"
            with self._blamed("fetched"):
                self._files.get_file(f"{self._prefix}/{name}", str(draft))
                if draft.stat().st_size != there[name]:
                    raise OSError(f"{name}: expected {there[name]} bytes, got {draft.stat().st_size}")
                draft.rename(self.folder / name)
        for name, path in here.items():  # compacted elsewhere
            if name not in there and path.stat().st_mtime < began - SETTLE_SECONDS:
                path.unlink(missing_ok=True)
        return len(missing)

    def wants(self, size: int, since: float) -> bool:
        """Whether a segment of `size` bytes, begun at `since` (monotonic seconds), should be uploaded now."""
        return size >= UPLOAD_BYTES or time.monotonic() - since >= UPLOAD_SECONDS

    def push_later(self, path: Path) -> None:
        """Upload a closed segment in the background, one at a time; what fails stays in the spool for `push`."""

        def upload() -> None:
            try:
                self._upload(path)
            except ClusterError as error:
                print(f"warning: {error}", file=sys.stderr, flush=True)

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
        target = f"{self._prefix}/{path.name}"
        with self._blamed("written to"):
            size = path.stat().st_size
            self._files.put_file(str(path), target)
            found = self._files.info(target)["size"]
            if found != size:
                raise OSError(f"{path.name}: sent {size} bytes, {found} arrived")
            with contextlib.suppress(FileNotFoundError):
                path.rename(self.folder / path.name)

    def replace(self, new: list[Path], old: list[Path]) -> None:
        """Upload new packs (which lie in `folder` already), then remove from the bucket what they replace."""
        with self._blamed("written to"):
            for path in new:
                self._files.put_file(str(path), f"{self._prefix}/{path.name}")
            for path in old:
                with contextlib.suppress(FileNotFoundError):
                    self._files.rm_file(f"{self._prefix}/{path.name}")
