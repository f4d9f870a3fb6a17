"""What a sweep takes and what it can show, before it is run."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from cosmopedia.core.errors import ConfigError
from cosmopedia.sweeps.definition import Arm, Sweep
from cosmopedia.sweeps.sharing import Stage, signatures, waits


@dataclass(frozen=True)
class ArmOutlook:
    """What one arm does."""

    arm: str
    changes: str  # against the params of this checkout
    own: list[str]  # stages that no earlier arm does for it
    shared: int  # stages that an earlier arm, or this checkout, has done
    trainings: int


def outlooks(sweep: Sweep, stages: list[Stage]) -> list[ArmOutlook]:
    """Of each arm, in the order in which they run."""
    waiting = waits(stages, sweep.arms)
    result = []
    for name, arm in sweep.arms.items():
        reached = signatures(stages, arm)
        by_others = set().union(*waiting[name].values())
        own = [stage.name for stage in stages if reached[stage.name] and stage.name not in by_others]
        trainings = len(sweep.seeds) if "train" in own else 0
        result.append(ArmOutlook(name, changes_in_words(sweep, arm), own, len(stages) - len(own), trainings))
    return result


def changes_in_words(sweep: Sweep, arm: Arm) -> str:
    """What tells an arm from the others."""
    common = [one.changes for one in sweep.arms.values()]
    own = {
        key: value
        for key, value in arm.changes.items()
        if not all(key in other and other[key] == value for other in common)
    }
    words = [f"{key}={_as_yaml(value)}" for key, value in own.items()]
    return ", ".join(words if len(words) < 3 else [words[0], f"... ({len(words)})"]) or "-"


def _as_yaml(value: Any) -> str:
    return json.dumps(value) if value is None or isinstance(value, bool) else str(value)


def check_budget(sweep: Sweep, trainings: int, gpu_hours: float | None, money: float | None) -> None:
    """`ConfigError` when the sweep takes more than its budget."""
    wanted: Mapping[str, Any] = {"trainings": trainings, "gpu_hours": gpu_hours, "money": money}
    for name, bound in sweep.budget.model_dump().items():
        value = wanted[name]
        if bound is None or (value is not None and value <= bound):
            continue
        words = f"takes {value:,.6g}" if value is not None else "has no forecast of its cost (see cosmo sweep plan)"
        raise ConfigError(
            f"sweeps/{sweep.name}.yaml: the sweep {words}, its budget.{name} is {bound}; take arms or seeds out, or"
            " raise it"
        )
