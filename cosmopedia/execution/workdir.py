"""A folder that outlives a killed run of a stage, and is found again by a run that does the same.

DVC empties a stage's outs before it runs it, so unfinished work lies outside of them, in
`<store>/work/<stage>/<key>.<number>/`. The key says from what the stage works: what dvc.yaml names as its deps (data,
templates, code), by its bytes, and the stage's parameters. The folder of a run that has ended under another key goes.
"""

import fcntl
import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from typing import IO
from uuid import uuid4

from cosmopedia.errors import DataError, InternalError
from cosmopedia.lineage import hash_files, store_root
from cosmopedia.params import read_yaml, section
from cosmopedia.rng import content_hash

PIPELINE = Path("dvc.yaml")


@contextmanager
def work_folder(stage: str, *identity: object) -> Iterator[Path]:
    """The stage's folder, which no other process has.

    It goes when the body ends well, and when it finds what lies in it to be wrong (`DataError`, `InternalError`);
    otherwise it stays for the next run of the stage. `identity` is what else decides the results, in words.
    """
    folder, lock = _claim(store_root().resolve() / "work" / stage, _key(stage, identity))
    with lock:
        try:
            yield folder
        except (DataError, InternalError):
            shutil.rmtree(folder, ignore_errors=True)
            raise
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def made(path: Path) -> Iterator[Path]:
    """A name to write to; what was written is called `path` once the body has ended well."""
    partial = path.with_name(f".{path.name}.partial")
    shutil.rmtree(partial) if partial.is_dir() else partial.unlink(missing_ok=True)
    path.parent.mkdir(parents=True, exist_ok=True)
    yield partial
    partial.rename(path)


def lend(path: Path, target: Path) -> None:
    """Put a finished file at `target` too, without a copy where the file system can.

    So it is still in its folder if the run is killed before it has ended.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        target.hardlink_to(path)
    except OSError:  # another file system
        shutil.copyfile(path, target)


def _key(stage: str, identity: tuple[object, ...]) -> str:
    """Runs of the stage with equal keys do the same. Where no dvc.yaml names its deps, no two are equal."""
    known = read_yaml(PIPELINE)["stages"] if PIPELINE.is_file() else {}
    if stage not in known:
        return f"alone-{uuid4().hex}"
    found: list[object] = [*identity, json.dumps(section(stage), sort_keys=True)]
    for dep in sorted(known[stage]["deps"]):
        path = Path(dep)
        files = sorted(filter(_counts, path.rglob("*"))) if path.is_dir() else [path]
        found += [f"{file} {hash_files([file]) if file.is_file() else None}" for file in files]
    return content_hash(*found)


def _counts(path: Path) -> bool:
    """Whether DVC sees a file of a folder (.dvcignore)."""
    return path.is_file() and "__pycache__" not in path.parts and not path.name.startswith("cosmo_")


def _claim(room: Path, key: str) -> tuple[Path, IO[str]]:
    """(a folder for `key` in `room`, its open lock file), and no folder of a run that has ended under another key.

    Runs of other checkouts (queued experiments) that go on keep theirs; one with the same key makes another folder.
    The lock is a POSIX one: it ends with this process, and does not pass to the processes that it forks.
    """
    room.mkdir(parents=True, exist_ok=True)
    for other in room.iterdir():
        if other.name.rpartition(".")[0] != key and (lock := _locked(other)):
            with lock:
                shutil.rmtree(other, ignore_errors=True)
    for number in count():
        folder = room / f"{key}.{number}"
        folder.mkdir(exist_ok=True)
        if lock := _locked(folder):
            return folder, lock
    raise AssertionError


def _locked(folder: Path) -> IO[str] | None:
    """The open and locked lock file of a folder; None when another process has it."""
    try:
        file = (folder / "lock").open("a")
    except OSError:  # somebody is removing the folder
        return None
    try:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if (folder / "lock").exists():
            return file
    except OSError:
        pass
    file.close()
    return None
