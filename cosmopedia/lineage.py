"""Where a result came from: content hashes, the main checkout."""

import hashlib
import os
from collections.abc import Iterable
from pathlib import Path


def hash_file(path: Path) -> str:
    """SHA-256 of a file's bytes; 64 hex characters."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def hash_files(paths: Iterable[Path]) -> str:
    """SHA-256 over names and bytes of files, in the order of their names; 64 hex characters."""
    return _hash_in_order(sorted(paths, key=lambda path: path.name))


def content_revision(files: Iterable[Path]) -> str:
    """ "sha256:" and 16 digits over the files' names and bytes, in the order given."""
    return f"sha256:{_hash_in_order(files)[:16]}"


def _hash_in_order(paths: Iterable[Path]) -> str:
    digest = hashlib.sha256()
    for path in paths:
        digest.update(path.name.encode())
        digest.update(bytes.fromhex(hash_file(path)))
    return digest.hexdigest()


def main_checkout() -> Path:
    """The main checkout, also inside a queued experiment (DVC sets DVC_ROOT to it there)."""
    return Path(os.environ.get("DVC_ROOT") or Path.cwd()).resolve()


def store_root() -> Path:
    """Where work outlives DVC's outs: `$COSMO_STORE` if that is a folder, else `.store/` in the main checkout."""
    store = os.environ.get("COSMO_STORE") or ""
    return Path(store) if store and "://" not in store else main_checkout() / ".store"
