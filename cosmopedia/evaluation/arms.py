"""The arms of a comparison: the answers that evaluate wrote in a folder, at a git revision, or in an experiment."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cosmopedia.errors import DataError
from cosmopedia.execution import versions

EVALUATE = "data/evaluate"
COSTS = ("metrics/train.json", "metrics/tokenize_corpus.json", "metrics/generate.json")
RUN = ".store/runs/generate.json"  # what a checkout's last run spent; revisions have no such record
ANSWERS, HELD_OUT = re.compile(r"seed-(\d+)\.parquet"), re.compile(r"heldout-seed-(\d+)\.parquet")


@dataclass(frozen=True)
class Arm:
    """The files of one arm."""

    name: str
    kind: str  # folder | revision | experiment
    answers: Mapping[int, Path]  # by training seed
    held_out: Mapping[int, Path]
    metrics: Mapping[str, dict[str, Any]] = field(default_factory=dict)  # of COSTS that exist


def find(name: str, folder: Path) -> Arm:
    """An arm by what a person typed; `folder` is that as a path.

    `ConfigError` for a name that is nothing of this, `DataError` for an arm without answers.
    """
    wanted = f"holds no {EVALUATE}/seed-<n>.parquet; run `dvc repro evaluate` there, or dvc pull"
    version = versions.find(name, folder, [EVALUATE], lambda file: bool(ANSWERS.fullmatch(file)), wanted)
    files = version.files(EVALUATE)
    by_seed = [
        {int(match[1]): path for file, path in files.items() if (match := pattern.fullmatch(file))}
        for pattern in (ANSWERS, HELD_OUT)
    ]
    if not by_seed[0]:
        raise DataError(f"{name}: {EVALUATE} has no seed-<n>.parquet; run evaluate again")
    metrics = {out: content for out in COSTS if (content := version.json(out)) is not None}
    if version.kind == "folder" and (folder / RUN).is_file():
        metrics["runs/generate.json"] = versions.read_json(folder / RUN)
    return Arm(name, version.kind, by_seed[0], by_seed[1], metrics)
