"""Files that are whole or absent, folders that are really emptied, file locks, and the end of a log."""

import errno
import fcntl
import glob
import os
import shutil
import socket
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A name to write a file or a folder under; it becomes `path` once the body has ended well.

    The draft's name holds host, process and thread, so that two that write the same file do not share a draft. Drafts
    that killed processes of this host left are removed. A reader sees the old content or the new, never a part.
    Durability (fsync) is left to the body.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    prefix = f".{path.name}.{socket.gethostname()}-"
    for left in path.parent.glob(f"{glob.escape(prefix)}*.partial"):
        if not runs(left.name.removeprefix(prefix).partition("-")[0]):
            discard(left)
    draft = path.with_name(f"{prefix}{os.getpid()}-{threading.get_ident()}.partial")
    remove(draft)
    try:
        yield draft
        draft.replace(path)
    except BaseException:
        discard(draft)
        raise


def clear_folder(path: Path) -> None:
    """Make `path` an empty folder, for what a stage writes anew.

    Where it is a link to a folder (on a scratch disk), the link stays and that folder is emptied, or made if it is
    gone. `OSError` with the path when something cannot be removed: a file that stays would count as a result; also
    when `path` is a file.
    """
    if path.is_dir():
        for entry in path.iterdir():
            remove(entry)
    elif path.exists():
        raise NotADirectoryError(errno.ENOTDIR, "a file is where a folder is written; move it away", str(path))
    else:
        path.resolve().mkdir(parents=True)


def remove(path: Path) -> None:
    """Remove a file, a link or a folder with all that is in it; `OSError` with the path when that fails."""
    if not path.is_dir() or path.is_symlink():
        path.unlink(missing_ok=True)
        return
    try:
        shutil.rmtree(path)
    except FileNotFoundError:  # another process removes the same
        remove(path)


def discard(path: Path) -> None:
    """Remove scratch that no result depends on; a warning when it stays."""
    try:
        remove(path)
    except OSError as error:
        print(f"warning: {error.filename or path} could not be removed: {error.strerror}", file=sys.stderr, flush=True)


def runs(process: str) -> bool:
    """Whether the process of this host with that number still runs; in doubt, yes."""
    try:
        os.kill(int(process), 0)
    except ProcessLookupError:
        return False
    except (ValueError, OSError):
        pass
    return True


def write_text(path: Path, content: str) -> None:
    """Write a text file, UTF-8 with the line ends as given, whole or not at all."""
    with replacing(path) as draft:
        draft.write_text(content, encoding="utf-8", newline="")


def lock(file: IO | int, of_process: bool = False, wait: bool = False) -> bool:
    """Lock an open file for writing; False when another process has it and `wait` is not set.

    Closing the file releases the lock. By default it belongs to the open file and passes to forked children (flock).
    With `of_process` it belongs to this process alone, but is also lost when the process closes any other handle of
    the file (POSIX). `OSError` other than `BlockingIOError`: the file system has no locks.
    """
    take = fcntl.lockf if of_process else fcntl.flock
    try:
        take(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except (BlockingIOError, PermissionError):  # POSIX allows either
        return False
    return True


def log_tail(path: Path, lines: int = 15) -> str:
    """The last lines of a log, indented."""
    try:
        text = path.read_text(encoding="utf-8", errors="replace")
    except FileNotFoundError:
        return "    (no log was written)"
    return indented_tail(text.splitlines(), lines)


def indented_tail(lines: list[str], count: int = 15) -> str:
    """The last lines of some text, indented, for a message."""
    return "\n".join(f"    {line}" for line in lines[-count:]) or "    (empty)"
