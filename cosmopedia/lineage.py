"""Where a result came from: git revision, content hashes, the main checkout."""

import hashlib
import os
import subprocess
from pathlib import Path


def git_revision() -> str:
    """The checkout's commit, with "-dirty" when tracked files differ from it; "unknown" outside a git repository."""
    try:
        command = ["git", "describe", "--always", "--abbrev=40", "--dirty", "--match", ""]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def hash_files(paths: list[Path]) -> str:
    """SHA-256 over names and bytes of files, in the order of their names; 64 hex characters."""
    digest = hashlib.sha256()
    for path in sorted(paths, key=lambda p: p.name):
        digest.update(path.name.encode())
        with path.open("rb") as stream:
            digest.update(hashlib.file_digest(stream, "sha256").digest())
    return digest.hexdigest()


def main_checkout() -> Path:
    """The main checkout, also inside a queued experiment (DVC sets DVC_ROOT to it there)."""
    return Path(os.environ.get("DVC_ROOT") or Path.cwd()).resolve()


def store_root() -> Path:
    """Where work outlives DVC's outs: `$COSMO_STORE` if that is a folder, else `.store/` in the main checkout."""
    chosen = os.environ.get("COSMO_STORE") or ""
    return Path(chosen) if chosen and "://" not in chosen else main_checkout() / ".store"
