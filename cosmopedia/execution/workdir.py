"""A folder that outlives a killed run of a stage, for the next run that does the same.

DVC empties a stage's outs before it runs it, so unfinished work is kept outside of them, in
`<store>/work/<stage>/<key>.<number>/`. The key is a hash of the stage's input: the bytes of its deps in dvc.yaml
(data, templates, code) and its parameters. The folders of runs that have ended under another key are removed.
"""

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from typing import IO
from uuid import uuid4

from cosmopedia.core.errors import DataError, InternalError
from cosmopedia.core.files import discard, lock, replacing
from cosmopedia.core.lineage import hash_files, store_root
from cosmopedia.core.params import read_yaml, section
from cosmopedia.core.rng import content_hash

PIPELINE = Path("dvc.yaml")


@contextmanager
def work_folder(stage: str, *identity: object) -> Iterator[Path]:
    """The stage's folder, which no other process uses.

    It is removed when the body ends well, and when the body finds its content to be wrong (`DataError`,
    `InternalError`); otherwise it stays for the next run of the stage. `identity` is whatever else decides the
    results.
    """
    folder, file = _claim(store_root().resolve() / "work" / stage, _key(stage, identity))
    with file:
        try:
            yield folder
        except (DataError, InternalError):
            discard(folder)
            raise
        discard(folder)


def lend(path: Path, target: Path) -> None:
    """Put a finished file at `target` too, without a copy where the file system allows it.

    It so stays in its folder if the run is killed before its end.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        target.hardlink_to(path)
    except OSError:  # another file system
        with replacing(target) as draft:
            shutil.copyfile(path, draft)


def _key(stage: str, identity: tuple[object, ...]) -> str:
    """Runs of the stage with equal keys do the same. Where no dvc.yaml names its deps, no two keys are equal."""
    stages = read_yaml(PIPELINE)["stages"] if PIPELINE.is_file() else {}
    if stage not in stages:
        return f"alone-{uuid4().hex}"
    parts: list[object] = [*identity, json.dumps(section(stage), sort_keys=True)]
    for dep in sorted(stages[stage]["deps"]):
        path = Path(dep)
        inside = (file for file in path.rglob("*") if file.is_file() and seen_by_dvc(file))
        files = sorted(inside) if path.is_dir() else [path]
        parts += [f"{file} {hash_files([file]) if file.is_file() else None}" for file in files]
    return content_hash(*parts)


def seen_by_dvc(path: Path) -> bool:
    """Whether a file of a dep counts (.dvcignore)."""
    return "__pycache__" not in path.parts and not path.name.startswith("cosmo_")


def _claim(parent: Path, key: str) -> tuple[Path, IO[str]]:
    """(a folder for `key` in `parent`, its open lock file); removes folders of runs that have ended under another key.

    Running runs of other checkouts (queued experiments) keep theirs; one with the same key gets another folder. The
    lock is a POSIX one: it ends with this process and does not pass to processes that it forks.
    """
    parent.mkdir(parents=True, exist_ok=True)
    for other in parent.iterdir():
        if other.name.rpartition(".")[0] != key and (file := _locked(other)):
            with file:
                discard(other)
    for number in count():
        folder = parent / f"{key}.{number}"
        folder.mkdir(exist_ok=True)
        if file := _locked(folder):
            return folder, file
    raise AssertionError


def _locked(folder: Path) -> IO[str] | None:
    """The open and locked lock file of a folder; None when another process has it."""
    try:
        file = (folder / "lock").open("a")
    except OSError:  # another process is removing the folder
        return None
    try:
        if lock(file, of_process=True) and (folder / "lock").exists():
            return file
    except OSError:
        pass
    file.close()
    return None
