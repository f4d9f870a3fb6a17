"""Checkpoints that a kill or a bad disk cannot turn into another training.

A checkpoint is a folder whose name ends with its step. It counts when its loss log, written last, is there; next to
it `contents.json` has the hash of every other file, which is compared before a training resumes from it.
"""

import json
import re
import shutil
from collections.abc import Iterable
from pathlib import Path

from cosmopedia.core.errors import ClusterError
from cosmopedia.core.files import write_text
from cosmopedia.core.lineage import hash_files

LOSSES = "losses.csv"  # the loss log of a checkpoint
CONTENTS = "contents.json"  # relative path of each file of a checkpoint -> its hash


def step_of(folder: Path) -> int | None:
    """The step in a checkpoint's name ("checkpoint-120", "120"); None for a name that is no checkpoint's."""
    match = re.fullmatch(r"(?:checkpoint-)?(\d+)", folder.name)
    return int(match[1]) if match else None


def latest(folders: Iterable[Path], tidy: bool = True) -> Path | None:
    """The newest whole checkpoint; `tidy` removes the ones that a kill left unfinished."""
    whole = []
    for path in folders:
        if step_of(path) is None or not path.is_dir():
            continue
        if (path / LOSSES).is_file():
            whole.append(path)
        elif tidy:
            shutil.rmtree(path)
    return max(whole, key=lambda path: step_of(path) or 0, default=None)


def names(folder: Path) -> list[str]:
    """The files of a checkpoint that are hashed, relative to it, in order."""
    files = (path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    return sorted(name for name in files if name not in (LOSSES, CONTENTS))


def hashes(folder: Path, files: Iterable[str]) -> dict[str, str]:
    """The hash of each of these files of a checkpoint."""
    return {name: hash_files([folder / name]) for name in files}


def write_contents(folder: Path, hashes: dict[str, str]) -> None:
    """Write the hashes of a checkpoint's files; only the loss log is written later."""
    write_text(folder / CONTENTS, json.dumps(hashes, indent=1) + "\n")


def check(folder: Path, first: int = 0, every: int = 1) -> None:
    """`ClusterError` when a file of a checkpoint is not as it was written, with the file and the way out.

    Several processes can share the work: the `first` (from 0) of `every` processes checks its part of the files.
    """
    try:
        written = dict(sorted(json.loads((folder / CONTENTS).read_text(encoding="utf-8")).items())[first::every])
        now = hashes(folder, written)
        damaged = [name for name in written if now[name] != written[name]]
        damage = f"{' and '.join(damaged)} damaged" if damaged else None
    except (OSError, ValueError, AttributeError) as error:
        damage = f"{CONTENTS} or a file that it names cannot be read ({error})"
    if damage is None:
        return
    others = [path for path in folder.parent.iterdir() if path != folder and (path / LOSSES).is_file()]
    steps = [step for path in others if (step := step_of(path)) is not None]
    then = f"goes on from step {max(steps)}, the checkpoint before it" if steps else "begins again"
    raise ClusterError(
        f"{folder}: {damage}, so training cannot go on from this checkpoint; check the disk, then remove the folder"
        f" (rm -r {folder}) and run it again: training then {then}"
    )
