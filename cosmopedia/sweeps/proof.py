"""Proof of reproducibility: two fresh runs in two folders, in unlike surroundings, and the hashes that come out."""

import io
import os
import signal
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

from cosmopedia.core.errors import ClusterError
from cosmopedia.core.files import log_tail, remove, write_text
from cosmopedia.core.lineage import store_root
from cosmopedia.execution.child_process import start
from cosmopedia.execution.compute import compute_path
from cosmopedia.execution.earlier import LOCK, lock_content
from cosmopedia.sweeps.definition import Arm
from cosmopedia.sweeps.worktrees import Start, discard, environment, git, prepare


@dataclass(frozen=True)
class Surroundings:
    """What must not change a result."""

    variables: dict[str, str]
    umask: int
    tasks: int  # of the corpus stages
    workers: int

    def __str__(self) -> str:
        words = " ".join(f"{name}={value}" for name, value in self.variables.items())
        return f"{words} umask={self.umask:03o} data.tasks={self.tasks} data.workers={self.workers}"


def threads(count: int) -> dict[str, str]:
    return {name: str(count) for name in ("OMP_NUM_THREADS", "POLARS_MAX_THREADS", "RAYON_NUM_THREADS")}


SURROUNDINGS = (
    Surroundings({"PYTHONHASHSEED": "1", "TZ": "UTC", "LC_ALL": "C.UTF-8"} | threads(1), 0o022, 1, 1),
    Surroundings({"PYTHONHASHSEED": "2", "TZ": "Asia/Kathmandu", "LC_ALL": "tr_TR.UTF-8"} | threads(3), 0o077, 3, 2),
)

SHARED = ("completions", "claims", "fleets")  # of the store, by both runs


@dataclass(frozen=True)
class Out:
    """An out's hash in each run, and in the committed dvc.lock; None: it is not there."""

    stage: str
    path: str
    hashes: tuple[str | None, ...]
    committed: str | None

    @property
    def same(self) -> bool:
        """Whether the runs agree."""
        return len(set(self.hashes)) == 1


def prove(targets: list[str]) -> Iterator[str | list[Out]]:
    """Run the pipeline, or the targets and what they read, in each of SURROUNDINGS: a line before each run, then the
    outs. `ClusterError` when a run fails; its folder stays.

    With a store in a bucket, a seed that was trained here with the same inputs is taken and not trained again."""
    point, locks = Start(), []
    committed = outs_of(git("show", f"HEAD:./{LOCK}")) if git("ls-files", LOCK) else {}
    for number, one in enumerate(SURROUNDINGS, 1):
        folder = store_root().resolve() / "verify" / str(number)
        yield f"run {number}: {one}; log: {folder.with_suffix('.log')}"
        prepare(folder, point, Arm(str(number), {}))
        (folder / LOCK).unlink(missing_ok=True)
        run(folder, one, targets)
        locks.append(outs_of((folder / LOCK).read_text(encoding="utf-8")))
    for number in range(len(SURROUNDINGS)):
        discard(store_root().resolve() / "verify" / str(number + 1))
    stages = {path: stage for lock in locks for path, (stage, _) in lock.items()}
    yield [
        Out(
            stage,
            path,
            tuple(lock.get(path, ("", None))[1] for lock in locks),
            committed.get(path, ("", None))[1],
        )
        for path, stage in stages.items()
    ]


def run(folder: Path, one: Surroundings, targets: list[str]) -> None:
    """`dvc repro` of everything, from nothing, in a worktree."""
    log = folder.with_suffix(".log")
    log.unlink(missing_ok=True)
    variables = environment("verify") | one.variables | {"COSMO_COMPUTE": str(write_compute(folder, one))}
    variables.pop("DVC_EXP_NAME")
    if "://" not in variables["COSMO_STORE"]:
        variables["COSMO_STORE"] = str(make_store(folder))
    command = [sys.executable, "-m", "dvc", "repro", "--force", "--no-run-cache", *targets]
    process = start(command, log, signal.SIGTERM, cwd=folder, env=variables, umask=one.umask)
    try:
        status = process.wait()
    except BaseException:
        os.killpg(process.pid, signal.SIGINT)
        process.wait(60)
        raise
    if status:
        raise ClusterError(f"{folder}: dvc repro ended with status {status}:\n{log_tail(log)}")


def make_store(folder: Path) -> Path:
    """A store of the run's own in its .dvc/tmp, with this checkout's completions and servers: in the store itself a
    run would find the seeds that the run before it has trained."""
    store = folder / ".dvc/tmp/store"
    remove(store)
    store.mkdir(parents=True)
    for name in SHARED:
        shared = store_root().resolve() / name
        shared.mkdir(parents=True, exist_ok=True)
        (store / name).symlink_to(shared)
    return store


def write_compute(folder: Path, one: Surroundings) -> Path:
    """The compute file with other numbers of tasks and workers, in the worktree's .dvc/tmp."""
    yaml = YAML()
    content: Any = yaml.load(compute_path().read_text(encoding="utf-8"))
    content["data"] |= {"tasks": one.tasks, "workers": one.workers}
    text = io.StringIO()
    yaml.dump(content, text)
    path = folder / ".dvc/tmp/verify.yaml"
    write_text(path, text.getvalue())
    return path


def outs_of(text: str) -> dict[str, tuple[str, str]]:
    """path -> (stage, hash) of a dvc.lock."""
    stages = lock_content(text).get("stages") or {}
    return {
        out["path"]: (name, out.get("md5", "")) for name, stage in stages.items() for out in stage.get("outs") or ()
    }
