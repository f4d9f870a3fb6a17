"""Where a result came from: content hashes, the main checkout."""

import hashlib
import os
from collections.abc import Callable, Iterable
from pathlib import Path

from cosmopedia.core.errors import ConfigError


def hash_file(path: Path) -> str:
    """SHA-256 of a file's bytes; 64 hex characters."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def hash_files(paths: Iterable[Path]) -> str:
    """SHA-256 over names and bytes of files, in the order of their names; 64 hex characters."""
    return _hash_in_order(sorted(paths, key=lambda path: path.name))


def content_revision(files: Iterable[Path], hash_of: Callable[[Path], str] = hash_file) -> str:
    """ "sha256:" and 16 digits over the files' names and bytes, in the order given."""
    return f"sha256:{_hash_in_order(files, hash_of)[:16]}"


def _hash_in_order(paths: Iterable[Path], hash_of: Callable[[Path], str] = hash_file) -> str:
    digest = hashlib.sha256()
    for path in paths:
        digest.update(path.name.encode())
        digest.update(bytes.fromhex(hash_of(path)))
    return digest.hexdigest()


def main_checkout() -> Path:
    """The main checkout, also inside a queued experiment (DVC sets DVC_ROOT to it there) and inside a git worktree."""
    root = Path(os.environ.get("DVC_ROOT") or Path.cwd()).resolve()
    pointer = root / ".git"
    if pointer.is_file():  # of a worktree: "gitdir: <main checkout>/.git/worktrees/<name>"
        folder = root / pointer.read_text(encoding="utf-8").removeprefix("gitdir:").strip()
        common = folder / "commondir"
        if common.is_file():
            git = (folder / common.read_text(encoding="utf-8").strip()).resolve()
            return git.parent if git.name == ".git" else root
    return root


def not_in_git(path: Path) -> None:
    """`ConfigError` when a relative path that is missing here exists in the main checkout: a queued experiment, or one
    in a temporary folder, is a copy of what git tracks."""
    original = main_checkout() / path
    if not path.is_absolute() and original.exists():
        raise ConfigError(
            f"{path} is missing in this experiment's copy of the repository, since git does not track {original};"
            f" run git add {path}, or dvc add for data, and start the experiment again"
        )


def store_root() -> Path:
    """Where work outlives DVC's outs: `$COSMO_STORE` if that is a folder, else `.store/` in the main checkout."""
    store = os.environ.get("COSMO_STORE") or ""
    return Path(store) if store and "://" not in store else main_checkout() / ".store"
