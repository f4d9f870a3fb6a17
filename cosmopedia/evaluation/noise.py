"""Noise floors: by how much the scores of models move that saw the same data, kept in metrics/noise/<name>.json.

A floor holds for the items, the number of parameters and the number of tokens that it was measured with. A comparison
pools it with what few seeds show.
"""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from pydantic import Field, ValidationError
from scipy.special import chdtri

from cosmopedia.core.errors import ConfigError, DataError
from cosmopedia.core.params import Params
from cosmopedia.core.rng import content_hash
from cosmopedia.evaluation.arms import Arm
from cosmopedia.evaluation.effects import NoiseFloor, item_noise, seed_scores
from cosmopedia.evaluation.readings import Readings, Scope, Task, parts, scopes

NOISE = Path("metrics/noise")
SAME_SCALE = 0.1  # parameters and tokens may differ by this share


class Spread(Params):
    """How one score moves from seed to seed."""

    kind: str
    name: str
    measure: str
    mean: float
    sd: float  # of a seed's score
    sd_low: float  # 95% interval of the sd, by chi squared
    sd_high: float
    item_noise: float  # variance of a seed's score by answers that are random from training to training
    items: str  # hash of the items


class Noise(Params):
    """A file of metrics/noise/."""

    name: str
    source: str  # what was calibrated, as it was typed
    seeds: list[int] = Field(min_length=2)
    parameters: int | None
    tokens: int | None  # that a seed was trained on
    checkpoints: int = 1  # of a seed, of whose scores the seed's are the means
    spreads: list[Spread]


def measure_noise(name: str, arm: Arm, readings: Readings, panels: Mapping[str, list[str]]) -> Noise:
    """The noise floor that an arm's seeds show. `DataError` for a single seed."""
    count = len(readings.seeds)
    if count < 2:
        raise DataError(f"{arm.name} has one training seed; a noise floor takes two or more: train.seeds=[1,2,3,4,5]")
    spreads = []
    for scope, tasks in sorted(scopes(readings, panels).items()):
        part = parts(tasks, scope.measure)
        scores = seed_scores(part)
        sd = float(scores.std(ddof=1))
        low, high = (float((count - 1) / chdtri(count - 1, tail)) ** 0.5 * sd for tail in (0.025, 0.975))
        spreads.append(
            Spread(
                kind=scope.kind,
                name=scope.name,
                measure=scope.measure,
                mean=float(scores.mean()),
                sd=sd,
                sd_low=low,
                sd_high=high,
                item_noise=item_noise(part),
                items=_items(tasks),
            )
        )
    parameters, tokens = scale(arm)
    return Noise(
        name=name,
        source=arm.name,
        seeds=list(readings.seeds),
        parameters=parameters,
        tokens=tokens,
        checkpoints=readings.checkpoints,
        spreads=spreads,
    )


def scale(arm: Arm) -> tuple[int | None, int | None]:
    """Parameters, and tokens that one seed was trained on; None where the arm has no metrics/train.json."""
    train: dict[str, Any] = arm.metrics.get("metrics/train.json", {})
    return train.get("parameters"), train.get("tokens")


def write(noise: Noise) -> Path:
    """To metrics/noise/<name>.json, a file that a person commits."""
    from cosmopedia.core.files import write_text

    path = NOISE / f"{noise.name}.json"
    write_text(path, json.dumps(noise.model_dump(), indent=1) + "\n")
    return path


def read(path: Path) -> Noise:
    """A file of metrics/noise/. `DataError` for one that is no noise floor."""
    try:
        return Noise.model_validate_json(path.read_text(encoding="utf-8"))
    except (ValidationError, ValueError) as error:
        raise DataError(f"{path} is no noise floor: {' '.join(str(error).split())[:300]}; calibrate again") from None


def fitting(arms: list[Arm], name: str | None) -> Noise | None:
    """The noise floor for arms: the one that is named, else of those of the arms' scale the one with most seeds.

    `ConfigError` when the named one is missing or of another scale.
    """
    if name is not None:
        path = NOISE / f"{name}.json"
        if not path.is_file():
            known = ", ".join(sorted(file.stem for file in NOISE.glob("*.json"))) or "none"
            raise ConfigError(f"{path} is missing (there are: {known}); `cosmo calibrate` writes one")
        noise = read(path)
        for arm in arms:
            if _checkpoints(arm) != {noise.checkpoints}:
                raise ConfigError(
                    f"{path} is for scores of {noise.checkpoints} checkpoint(s) per seed, {arm.name} has"
                    f" {max(_checkpoints(arm))}; calibrate with that train.keep_last"
                )
            if None not in scale(arm) and not same_scale(noise, *scale(arm)):
                raise ConfigError(
                    f"{path} is for {noise.parameters} parameters and {noise.tokens} tokens, {arm.name} has"
                    f" {scale(arm)}; calibrate at that scale"
                )
        return noise
    noises = [read(path) for path in sorted(NOISE.glob("*.json"))]
    noises = [
        noise
        for noise in noises
        if all(same_scale(noise, *scale(arm)) and _checkpoints(arm) == {noise.checkpoints} for arm in arms)
    ]
    return max(noises, key=lambda noise: len(noise.seeds), default=None)


def _checkpoints(arm: Arm) -> set[int]:
    return {len(paths) for paths in arm.answers.values()}


def same_scale(noise: Noise, parameters: int | None, tokens: int | None) -> bool:
    """Whether models of so many parameters, each trained on so many tokens, are of the noise's scale."""
    return all(
        one is not None and two is not None and abs(one - two) <= SAME_SCALE * one
        for one, two in ((noise.parameters, parameters), (noise.tokens, tokens))
    )


def floors(noise: Noise | None) -> Callable[[Scope, list[Task]], NoiseFloor | None]:
    """What `compare` asks for the floor of a scope; None where the noise was not measured with the same items."""
    known = {(s.kind, s.name, s.measure): s for s in noise.spreads} if noise else {}

    def floor_of(scope: Scope, tasks: list[Task]) -> NoiseFloor | None:
        spread = known.get((scope.kind, scope.name, scope.measure))
        if noise is None or spread is None or spread.items != _items(tasks):
            return None
        return NoiseFloor(spread.sd, len(noise.seeds), spread.item_noise, noise.name)

    return floor_of


def _items(tasks: list[Task]) -> str:
    return content_hash(*(task.digest() for task in tasks), size=8)
