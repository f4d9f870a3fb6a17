"""Where an arm of a comparison lies: a folder, a git revision, or an experiment of DVC.

Of a revision nothing is checked out: its dvc.lock names the outs by hash, and DVC's cache has their files.
"""

import json
import re
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cosmopedia.errors import ConfigError, DataError
from cosmopedia.execution.earlier import LOCK, cache_folders, cached_file, lock_content

EVALUATE = "data/evaluate"
COSTS = ("metrics/train.json", "metrics/tokenize_corpus.json", "metrics/generate.json")
RUN = ".store/runs/generate.json"  # what a checkout's last run spent; revisions have no such record
# A seed's last model, and the steps of earlier checkpoints of it that were scored (train.keep_last).
ANSWERS = re.compile(r"seed-(\d+)(?:-step-(\d+))?\.parquet")
HELD_OUT = re.compile(r"heldout-seed-(\d+)(?:-step-(\d+))?\.parquet")


@dataclass(frozen=True)
class Arm:
    """The files of one arm."""

    name: str
    kind: str  # folder | revision | experiment
    answers: Mapping[int, Sequence[Path]]  # by training seed: of its checkpoints, the last one at the end
    held_out: Mapping[int, Sequence[Path]]
    metrics: Mapping[str, dict[str, Any]] = field(default_factory=dict)  # of COSTS that exist


def find(name: str, folder: Path) -> Arm:
    """An arm by what a person typed; `folder` is that as a path.

    A folder with answers in it wins over a branch of the same name. `ConfigError` for a name that is nothing of this,
    `DataError` for an arm without answers.
    """
    for place in (folder / EVALUATE, folder):
        files = {path.name: path for path in place.glob("*.parquet")} if place.is_dir() else {}
        if any(ANSWERS.fullmatch(file) for file in files):
            metrics = {out: _json(folder / out) for out in COSTS if (folder / out).is_file()}
            if (folder / RUN).is_file():
                metrics["runs/generate.json"] = _json(folder / RUN)
            return _arm(name, "folder", files, metrics)
    experiment = _experiments().get(name)
    commit = experiment or _git("rev-parse", "--verify", "--quiet", f"{name}^{{commit}}").strip()
    if not commit and folder.is_dir():
        raise DataError(f"{folder} holds no {EVALUATE}/seed-<n>.parquet; run `dvc repro evaluate` there, or dvc pull")
    if not commit:
        raise ConfigError(
            f"{name!r} is no folder, git revision or DVC experiment; `git branch -a` and `dvc exp list` have the names"
        )
    return _of_revision(name, "experiment" if experiment else "revision", commit)


def _experiments() -> dict[str, str]:
    """Commits of DVC's experiments by name; of two with one name the younger."""
    lines = _git("for-each-ref", "--sort=committerdate", "--format=%(refname) %(objectname)", "refs/exps").splitlines()
    pairs = (line.split(" ") for line in lines)
    return {ref.rpartition("/")[2]: commit for ref, commit in pairs if ref.count("/") == 4}


def _of_revision(name: str, kind: str, commit: str) -> Arm:
    lock = lock_content(_git("show", f"{commit}:./{LOCK}"))
    stages = (lock.get("stages") or {}).values()
    hashes = {out["path"]: out.get("md5", "") for stage in stages for out in stage.get("outs") or ()}
    if EVALUATE not in hashes:
        raise DataError(f"{name}: its {LOCK} has no {EVALUATE}; run the pipeline there and commit {LOCK}")
    caches = cache_folders()
    listing = cached_file(caches, hashes[EVALUATE])
    entries = json.loads(listing.read_text(encoding="utf-8")) if listing else []
    files = {entry["relpath"]: cached_file(caches, entry["md5"]) for entry in entries}
    absent = [file for file, path in files.items() if path is None]
    if listing is None or absent:
        what = f"{EVALUATE}/{absent[0]}" if absent else EVALUATE
        raise DataError(
            f"{name}: {what} is not in DVC's cache; `git checkout {commit[:10]} -- {LOCK} && dvc fetch {EVALUATE}`"
            " brings it from the remote"
        )
    costs = {out: cached_file(caches, hashes[out]) for out in COSTS if hashes.get(out)}
    metrics = {out: _json(path) for out, path in costs.items() if path}
    return _arm(name, kind, {file: path for file, path in files.items() if path}, metrics)


def _arm(name: str, kind: str, files: Mapping[str, Path], metrics: dict[str, dict[str, Any]]) -> Arm:
    answers, held_out = _by_seed(ANSWERS, files), _by_seed(HELD_OUT, files)
    if not answers:
        raise DataError(f"{name}: {EVALUATE} has no seed-<n>.parquet; run evaluate again")
    return Arm(name, kind, answers, held_out, metrics)


def _by_seed(pattern: re.Pattern[str], files: Mapping[str, Path]) -> dict[int, list[Path]]:
    """The files of each seed, by step; the seed's own, whose name has no step, at the end."""
    matches = [(match, path) for file, path in files.items() if (match := pattern.fullmatch(file))]
    found: dict[int, list[Path]] = {}
    for match, path in sorted(matches, key=lambda pair: float(pair[0][2] or "inf")):
        found.setdefault(int(match[1]), []).append(path)
    return found


def _json(path: Path) -> dict[str, Any]:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise DataError(f"{path} is no JSON: {error}; run the stage that writes it again") from None


def _git(*arguments: str) -> str:
    """What a git command prints; "" when it fails."""
    return subprocess.run(["git", *arguments], capture_output=True, text=True, check=False).stdout
