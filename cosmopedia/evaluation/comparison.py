"""Arms next to a baseline: a row per measure of every task, panel and held-out set, with its verdict."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from cosmopedia.core.errors import DataError
from cosmopedia.core.rng import draw_u64
from cosmopedia.evaluation.effects import (
    ALPHA,
    RESAMPLES,
    Estimate,
    NoiseFloor,
    estimate,
    holm,
    over_seeds,
    resampled,
)
from cosmopedia.evaluation.item_scores import LOWER_IS_BETTER, METRICS
from cosmopedia.evaluation.readings import HELD_OUT, Readings, Scope, Task, check_same, parts, scopes

BETTER, WORSE, EQUAL, UNKNOWN = "better", "worse", "not distinguishable", "one seed: not known"
LOWER = LOWER_IS_BETTER | {HELD_OUT}
SEED = 0  # of the resampling: the same files give the same figures


@dataclass(frozen=True)
class Row:
    """One arm compared with the baseline."""

    scope: Scope
    arm: str
    estimate: Estimate
    p_holm: float | None  # over arms
    bootstrap: tuple[float, float]  # percentiles of the hierarchical bootstrap
    verdict: str

    def as_json(self) -> dict[str, Any]:
        return {
            **asdict(self.scope),
            "arm": self.arm,
            "verdict": self.verdict,
            "difference": self.estimate.difference,
            **asdict(self.estimate),
            "p_holm": self.p_holm,
            "bootstrap": list(self.bootstrap),
        }


def compare(
    arms: Mapping[str, Readings],
    panels: Mapping[str, list[str]],
    floor_of: Callable[[Scope, list[Task]], NoiseFloor | None] = lambda *_: None,
) -> list[Row]:
    """Every arm against the first. `DataError` when they did not answer the same items."""
    names = list(arms)
    check_arms(arms)
    shared = all(readings.sets for readings in arms.values())
    tables = [scopes(readings, panels) for readings in arms.values()]
    chosen = [scope for scope in sorted(tables[0]) if shared or scope.kind != "held-out"]
    bootstrap = Bootstrap(list(arms.values()), shared)
    rows = []
    for scope in chosen:
        tasks = tables[0][scope]
        baseline, floor = parts(tasks, scope.measure), floor_of(scope, tasks)
        others = [parts(table[scope], scope.measure) for table in tables[1:]]
        estimates = [estimate(baseline, other, floor, arms=len(others)) for other in others]
        means = bootstrap.means(_names(arms[names[0]], tasks), scope.measure)
        adjusted = holm([one.p for one in estimates])
        for name, one, p, mean in zip(names[1:], estimates, adjusted, means[1:], strict=True):
            low, high = np.quantile(mean - means[0], (ALPHA / 2, 1 - ALPHA / 2))
            word = verdict(one.difference, p, scope.measure)
            rows.append(Row(scope, name, one, p, (float(low), float(high)), word))
    return rows


def check_arms(arms: Mapping[str, Readings]) -> None:
    """`DataError` when two arms did not answer the same items, or are means over different numbers of checkpoints."""
    (first, ours), *others = arms.items()
    for name, theirs in others:
        if ours.checkpoints != theirs.checkpoints:
            raise DataError(
                f"{first} has {ours.checkpoints} checkpoints per seed and {name} {theirs.checkpoints}, so their scores"
                " differ by more than the data; train both with the same train.keep_last"
            )
        for one, two in zip(ours.identities, theirs.identities, strict=True):
            if one is not None and two is not None:
                check_same(first, one, name, two)


def verdict(difference: float, p: float | None, measure: str) -> str:
    """The word for a difference, given its p-value adjusted for the number of arms."""
    if p is None:
        return UNKNOWN
    if p >= ALPHA:
        return EQUAL
    return BETTER if (difference < 0) == (measure in LOWER) else WORSE


def _names(readings: Readings, tasks: list[Task]) -> list[tuple[str, str]]:
    known = {id(task): ("task", name) for name, task in readings.tasks.items()}
    known |= {id(task): ("set", name) for name, task in readings.sets.items()}
    return [known[id(task)] for task in tasks]


class Bootstrap:
    """The hierarchical bootstrap: seeds are drawn again in each arm, items (or their clusters) once for all arms."""

    def __init__(self, arms: list[Readings], with_sets: bool):
        rng = np.random.default_rng(SEED)
        draws = [rng.integers(0, len(arm.seeds), size=(RESAMPLES, len(arm.seeds))) for arm in arms]
        self._means: dict[tuple[str, str], list[np.ndarray]] = {}
        groups: list[tuple[str, Sequence[str], list[Mapping[str, Task]]]]
        groups = [("task", METRICS, [arm.tasks for arm in arms])]
        if with_sets:
            groups.append(("set", (HELD_OUT,), [arm.sets for arm in arms]))
        for kind, measures, by_arm in groups:
            for name, task in by_arm[0].items():
                tables = [np.stack([tasks[name].sums[measure] for measure in measures]) for tasks in by_arm]
                drawn = resampled(tables, task.sizes, np.random.default_rng(draw_u64(SEED, kind, name)))
                self._means[kind, name] = [over_seeds(*pair) for pair in zip(drawn, draws, strict=True)]

    def means(self, tasks: list[tuple[str, str]], measure: str) -> list[np.ndarray]:
        """The resampled score of each arm: the mean over tasks. [arms][RESAMPLES]"""
        at = 0 if measure == HELD_OUT else METRICS.index(measure)
        arms = range(len(self._means[tasks[0]]))
        return [np.mean([self._means[task][arm][:, at] for task in tasks], axis=0) for arm in arms]
