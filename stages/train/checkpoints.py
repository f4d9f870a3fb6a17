"""Checkpoints that a kill or a bad disk cannot turn into another training.

A checkpoint is a folder whose name ends with its step. It counts when its loss log, written last, is there; beside it
`contents.json` holds the hash of every other file, compared before a training goes on from it.
"""

import json
import re
import shutil
from collections.abc import Iterable
from pathlib import Path

from cosmopedia.errors import ClusterError
from cosmopedia.lineage import hash_files

LOSSES = "losses.csv"  # the loss log of a checkpoint
CONTENTS = "contents.json"  # relative path of each file of a checkpoint -> its hash


def step_of(folder: Path) -> int | None:
    """The step in a checkpoint's name ("checkpoint-120", "120"); None for a name that is no checkpoint's."""
    found = re.fullmatch(r"(?:checkpoint-)?(\d+)", folder.name)
    return int(found[1]) if found else None


def latest(folders: Iterable[Path], tidy: bool = True) -> Path | None:
    """The newest whole checkpoint; `tidy` removes those that a kill left unfinished."""
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
    found = (path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    return sorted(name for name in found if name not in (LOSSES, CONTENTS))


def hashes(folder: Path, files: Iterable[str]) -> dict[str, str]:
    """The hash of each of these files of a checkpoint."""
    return {name: hash_files([folder / name]) for name in files}


def seal(folder: Path, found: dict[str, str]) -> None:
    """Write down what a checkpoint holds; the loss log may follow."""
    (folder / CONTENTS).write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


def check(folder: Path, first: int = 0, every: int = 1) -> None:
    """`ClusterError` when a file of a checkpoint is not as it was written, with the file and the way out.

    Of several processes each may check its own files: the `first`-th (from 0) of `every` processes.
    """
    try:
        written = dict(sorted(json.loads((folder / CONTENTS).read_text(encoding="utf-8")).items())[first::every])
        found = hashes(folder, written)
        damaged = [name for name in written if found[name] != written[name]]
        damage = f"{' and '.join(damaged)} damaged" if damaged else None
    except (OSError, ValueError, AttributeError) as error:
        damage = f"{CONTENTS} or a file that it names cannot be read ({error})"
    if damage is None:
        return
    others = [path for path in folder.parent.iterdir() if path != folder and (path / LOSSES).is_file()]
    steps = [step for path in others if (step := step_of(path)) is not None]
    goes_on = f"goes on from step {max(steps)}, the checkpoint before it" if steps else "begins anew"
    raise ClusterError(
        f"{folder}: {damage}, so training cannot go on from this checkpoint; look at the disk, then remove that folder"
        f" (rm -r {folder}) and run it again: training then {goes_on}"
    )
