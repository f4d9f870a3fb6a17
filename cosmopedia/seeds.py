"""Several training seeds of one recipe: a folder for each, and figures over all of them."""

import math
import statistics
from collections.abc import Sequence
from pathlib import Path

from cosmopedia.core.errors import DataError


def seed_folders(models: Path) -> list[Path]:
    """`<models>/seed-<n>` in the order of the seeds. `DataError` when there is none."""
    folders = sorted(models.glob("seed-*"), key=lambda path: seed_of(path))
    if not folders:
        raise DataError(f"{models} holds no trained model (seed-<n>/); run `dvc repro {models.name}`, or dvc pull")
    return folders


def seed_of(folder: Path) -> int:
    """The seed in a folder's name."""
    return int(folder.name.removeprefix("seed-"))


def checkpoint_folder(model: Path, step: int) -> Path:
    """Where the weights of an earlier step lie, next to a model's own, which are those of the last step."""
    return model / "checkpoints" / f"step-{step}"


def checkpoint_folders(model: Path) -> list[Path]:
    """The earlier steps of a model that were kept (train.keep_last), in order."""
    folders = (model / "checkpoints").glob("step-*")
    return sorted(folders, key=lambda path: int(path.name.removeprefix("step-")))


def mean_and_sd(values: Sequence[float | None]) -> tuple[float | None, float | None]:
    """Mean and standard deviation over seeds: no mean where a seed has no value, no deviation for a single seed."""
    known = [value for value in values if value is not None]
    if len(known) < len(values):
        return None, None
    return math.fsum(known) / len(known), statistics.stdev(known) if len(known) > 1 else None
