"""An arm's folder: a git worktree with the arm's params, on this checkout's cache and completion store.

The arm starts from HEAD and what is changed in tracked files; dvc.lock and metrics/ start from HEAD.
"""

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

from cosmopedia.core.errors import ConfigError, InternalError
from cosmopedia.core.files import remove
from cosmopedia.core.lineage import store_root
from cosmopedia.core.rng import content_hash
from cosmopedia.execution.child_process import LEADING
from cosmopedia.execution.earlier import cache_folders
from cosmopedia.sweeps.definition import Arm
from cosmopedia.yaml_editing import set_params

OWN_RESULTS = (":(exclude)dvc.lock", ":(exclude)metrics", ":(exclude)sweeps")  # no part of what an arm starts from


def git(*arguments: str, folder: Path | None = None, given: str | None = None) -> str:
    """What a git command prints; `InternalError` when it fails."""
    done = subprocess.run(["git", *arguments], cwd=folder, input=given, capture_output=True, text=True, check=False)
    if done.returncode:
        raise InternalError(f"git {' '.join(arguments)} in {folder or Path.cwd()} failed: {done.stderr.strip()}")
    return done.stdout


class Start:
    """What every arm starts from: a commit, and the changes in tracked files that are not committed."""

    def __init__(self) -> None:
        self.commit = git("rev-parse", "HEAD").strip()
        self.diff = git("diff", "--binary", "HEAD", "--", ".", *OWN_RESULTS)

    def fingerprint(self, arm: Arm) -> str:
        """Changes whenever the arm would give other results."""
        contents = [f"{path} {Path(source).read_text(encoding='utf-8')}" for path, source in sorted(arm.files.items())]
        return content_hash(self.commit, self.diff, repr(sorted(arm.changes.items(), key=str)), *contents)


def prepare(folder: Path, start: Start, arm: Arm) -> None:
    """Make an arm's worktree, or set an old one back; results that git ignores stay in it."""
    if (folder / ".git").is_file():
        git("checkout", "-q", "--force", "--detach", start.commit, folder=folder)
        git("clean", "-qfd", folder=folder)
    else:
        remove(folder)
        git("worktree", "prune")
        folder.parent.mkdir(parents=True, exist_ok=True)
        git("worktree", "add", "-q", "--force", "--detach", str(folder), start.commit)
    if start.diff:
        git("apply", "--whitespace=nowarn", "-", folder=folder, given=start.diff)
    for path, source in arm.files.items():
        shutil.copyfile(source, folder / path)
    for path, values in arm.params.items():
        set_params(folder / path, values)
    write_dvc_config(folder)


def write_dvc_config(folder: Path) -> None:
    """.dvc/config.local of an arm: this checkout's, and its cache."""
    from dvc.config import Config

    ours, theirs = Path(".dvc/config.local"), folder / ".dvc/config.local"
    theirs.unlink(missing_ok=True)
    if ours.is_file():
        shutil.copyfile(ours, theirs)
    content: Any
    with Config(str(folder / ".dvc")).edit("local") as content:
        content.setdefault("cache", {})["dir"] = str(cache_folders()[0].resolve())


def environment(experiment: str) -> dict[str, str]:
    """The environment of an arm's processes: the arm's own code, this checkout's tools, store and compute file."""
    kept = {name: value for name, value in os.environ.items() if name not in (*LEADING, "PYTHONPATH", "DVC_ROOT")}
    kept["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{kept.get('PATH', '')}"
    kept["DVC_EXP_NAME"] = experiment
    if "://" not in kept.get("COSMO_STORE", ""):
        kept["COSMO_STORE"] = str(store_root().resolve())
    compute = Path(kept.get("COSMO_COMPUTE", ""))
    if compute.suffix and compute.is_file():
        kept["COSMO_COMPUTE"] = str(compute.resolve())
    return kept


def save(folder: Path, experiment: str) -> str:
    """Keep an arm's results as a DVC experiment, in place of an older one of that name; its commit."""
    command = [sys.executable, "-m", "dvc", "exp", "save", "--force", "--name", experiment]
    done = subprocess.run(
        command, cwd=folder, env=environment(experiment), capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise ConfigError(f"dvc exp save in {folder} failed: {done.stderr.strip()[-500:]}; its results are there")
    head = git("rev-parse", "HEAD", folder=folder).strip()
    return git("rev-parse", f"refs/exps/{head[:2]}/{head[2:]}/{experiment}").strip()


def discard(folder: Path) -> None:
    """Remove a worktree whose results are saved."""
    if folder.exists():
        git("worktree", "remove", "--force", "--force", str(folder))
