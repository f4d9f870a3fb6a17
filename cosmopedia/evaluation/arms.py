"""The arms of a comparison: the answers that evaluate wrote in a folder, at a git revision, or in an experiment."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cosmopedia.core.errors import DataError
from cosmopedia.execution import versions

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

    `ConfigError` for a name that is nothing of this, `DataError` for an arm without answers.
    """
    wanted = f"holds no {EVALUATE}/seed-<n>.parquet; run `dvc repro evaluate` there, or dvc pull"
    return arm_of(versions.find(name, folder, [EVALUATE], lambda file: bool(ANSWERS.fullmatch(file)), wanted))


def arm_of(version: versions.Version) -> Arm:
    """The arm that a version is. `DataError` for one without answers."""
    name, files = version.name, version.files(EVALUATE)
    answers, held_out = _by_seed(ANSWERS, files), _by_seed(HELD_OUT, files)
    if not answers:
        raise DataError(f"{name}: {EVALUATE} has no seed-<n>.parquet; run dvc repro evaluate there, or dvc pull")
    metrics = {out: content for out in COSTS if (content := version.json(out)) is not None}
    if version.kind == "folder" and (version.folder / RUN).is_file():
        metrics["runs/generate.json"] = versions.read_json(version.folder / RUN)
    return Arm(name, version.kind, answers, held_out, metrics)


def _by_seed(pattern: re.Pattern[str], files: Mapping[str, Path]) -> dict[int, list[Path]]:
    """The files of each seed, by step; the seed's own, whose name has no step, at the end."""
    matches = [(match, path) for file, path in files.items() if (match := pattern.fullmatch(file))]
    found: dict[int, list[Path]] = {}
    for match, path in sorted(matches, key=lambda pair: float(pair[0][2] or "inf")):
        found.setdefault(int(match[1]), []).append(path)
    return found
