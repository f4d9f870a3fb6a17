"""Whether two arms differ, when training seeds and items are both samples.

A seed's score moves by training noise, which more items do not shrink; a difference may hold for some items and not
for others, which more seeds do not shrink. So the variance of a difference of two arms has both parts:

    V = var(A's seed scores) / seeds(A) + var(B's) / seeds(B) + max(0, V_items - V_noise)

V_items is the variance, over items, of the difference of the means over seeds. It contains the part V_noise by which a
training answers items at random, which the seed scores contain already; what is left is how unequal the effect is from
item to item. (The two-way clustered variance of Cameron, Gelbach and Miller 2011, its third term never negative.) The
interval is Student's t with Satterthwaite's degrees of freedom; without an item part it is Welch's.

The bootstrap over seeds and items is shown next to it and decides nothing: from two or three seeds it draws intervals
that are too short (docs/decisions/2026-11-29-compare.md has how often it errs).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.special import nctdtrinc, stdtr, stdtrit

ALPHA, POWER = 0.05, 0.8
FEW_SEEDS = 3  # with fewer in an arm, a calibrated noise floor is pooled with what they show
MOST_SEEDS = 1000
RESAMPLES, RESAMPLED_AT_ONCE = 2000, 250


@dataclass(frozen=True)
class Part:
    """One arm's answers to a task or a held-out set, for one measure; clusters are drawn as a whole."""

    sums: np.ndarray  # [seeds, clusters]: of the measure over the cluster's items
    sizes: np.ndarray  # [clusters]: items; bytes where the measure is bits per byte of documents


Parts = Sequence[Part]  # of a panel: its tasks, each with the same weight


@dataclass(frozen=True)
class NoiseFloor:
    """What several seeds of the same data show, for one measure of a task, panel or set."""

    sd: float  # of a seed's score
    seeds: int
    item_noise: float  # variance of a seed's score by answers that are random from training to training
    name: str = ""


@dataclass(frozen=True)
class Estimate:
    """The difference of two arms; intervals are of 1 - ALPHA. None: cannot be known from one seed."""

    baseline: float
    score: float
    seeds: tuple[int, int]
    sd: tuple[float | None, float | None]  # of a seed's score, by arm
    error: float | None = None  # standard error of the difference
    freedom: float | None = None
    low: float | None = None
    high: float | None = None
    p: float | None = None
    items_share: float | None = None  # of the variance; more seeds do not lower it
    seen: float | None = None  # the smallest difference found with probability POWER
    seeds_for_half: int | None = None  # per arm; None: more than MOST_SEEDS, or no number of seeds
    floor: str = ""  # the noise floor that was pooled, if any

    @property
    def difference(self) -> float:
        return self.score - self.baseline


def seed_scores(parts: Parts) -> np.ndarray:
    """Each seed's score: the mean over parts of sums / sizes. [seeds]"""
    return np.mean([part.sums.sum(axis=1) / part.sizes.sum() for part in parts], axis=0)


def item_noise(parts: Parts) -> float:
    """Variance of one seed's score from answers that are random from training to training; 0 for one seed."""
    total = 0.0
    for part in parts:
        seeds, clusters = part.sums.shape
        if seeds > 1 and clusters > 1:
            residual = part.sums - part.sums.mean(axis=0)
            residual -= np.outer(residual.sum(axis=1) / part.sizes.sum(), part.sizes)
            total += _spread(residual) / (seeds - 1) / part.sizes.sum() ** 2
    return total / len(parts) ** 2


def item_variance(a: Parts, b: Parts) -> float:
    """Variance of the difference of two arms' means over seeds, were the items drawn again."""
    total = 0.0
    for one, other in zip(a, b, strict=True):
        if one.sizes.size > 1:
            difference = other.sums.mean(axis=0) - one.sums.mean(axis=0)
            residual = difference - one.sizes * difference.sum() / one.sizes.sum()
            total += _spread(residual) / one.sizes.sum() ** 2
    return total / len(a) ** 2


def _spread(residual: np.ndarray) -> float:
    clusters = residual.shape[-1]
    return float((residual**2).sum() * clusters / (clusters - 1))


@dataclass(frozen=True)
class _Design:
    """The parts of the variance, from which any number of seeds can be judged."""

    variances: tuple[float, float]  # of a seed's score, by arm
    seeds: tuple[int, int]
    freedoms: tuple[float, ...]  # of the two variances, or of the pooled one
    items: float
    items_freedom: float
    alpha: float

    def error_and_freedom(self, seeds: int | None = None) -> tuple[float, float]:
        """Standard error and degrees of freedom, with as many seeds as there are, or with `seeds` in each arm."""
        counts = self.seeds if seeds is None else (seeds, seeds)
        terms = [variance / count for variance, count in zip(self.variances, counts, strict=True)]
        freedoms = self.freedoms
        if len(freedoms) == 1:
            terms = [sum(terms)]
            freedoms = (freedoms[0] if seeds is None else max(2.0 * (seeds - 1), freedoms[0]),)
        elif seeds is not None:
            freedoms = (seeds - 1, seeds - 1)
        terms, freedoms = [*terms, self.items], (*freedoms, self.items_freedom)
        total = sum(terms)
        if total <= 0:
            return 0.0, float(sum(freedoms))
        uncertain = sum(term**2 / freedom for term, freedom in zip(terms, freedoms, strict=True) if term > 0)
        return float(np.sqrt(total)), float(total**2 / uncertain)

    def seen(self, seeds: int | None = None) -> float:
        """The smallest difference that is found with probability POWER."""
        error, freedom = self.error_and_freedom(seeds)
        return error * noncentrality(freedom, self.alpha)

    def seeds_for(self, difference: float) -> int | None:
        """The fewest seeds per arm that see a difference; None when MOST_SEEDS do not."""
        low, high = 2, MOST_SEEDS
        if self.seen(high) > difference:
            return None
        while low < high:
            middle = (low + high) // 2
            low, high = (low, middle) if self.seen(middle) <= difference else (middle + 1, high)
        return low


def noncentrality(freedom: float, alpha: float = ALPHA, power: float = POWER) -> float:
    """The difference, in standard errors, that a two-sided t test finds with that power."""
    return float(nctdtrinc(freedom, 1 - power, stdtrit(freedom, 1 - alpha / 2)))


def seen_by(sd: float, seeds: int) -> float:
    """The smallest difference that `seeds` per arm see, both with that standard deviation of a seed's score."""
    return float(sd * np.sqrt(2 / seeds) * noncentrality(2 * (seeds - 1)))


def seeds_to_see(sd: float, difference: float) -> int | None:
    """The fewest seeds per arm that see a difference; None when MOST_SEEDS do not."""
    return _Design((sd**2, sd**2), (2, 2), (2.0,), 0.0, 1.0, ALPHA).seeds_for(difference)


def estimate(a: Parts, b: Parts, floor: NoiseFloor | None = None, arms: int = 1) -> Estimate:
    """The difference of `b` to `a`, with the interval that decides.

    `floor` counts where an arm has fewer than FEW_SEEDS. `arms` are compared with the same baseline, which lowers
    what the design could see.
    """
    scores = seed_scores(a), seed_scores(b)
    counts = len(scores[0]), len(scores[1])
    variances = [float(np.var(score, ddof=1)) if len(score) > 1 else None for score in scores]
    known: dict[str, Any] = {
        "baseline": float(scores[0].mean()),
        "score": float(scores[1].mean()),
        "seeds": counts,
        "sd": tuple(None if variance is None else variance**0.5 for variance in variances),
    }
    if min(counts) >= FEW_SEEDS:
        floor = None
    if floor is None and min(counts) < 2:
        return Estimate(**known)
    noise = sum(item_noise(parts) / count for parts, count in zip((a, b), counts, strict=True))
    if floor is None:
        seed_variances = tuple(variance or 0.0 for variance in variances)
        freedoms: tuple[float, ...] = tuple(count - 1.0 for count in counts)
    else:
        weights = [*(count - 1 for count in counts), floor.seeds - 1]
        spreads = [*(variance or 0.0 for variance in variances), floor.sd**2]
        pooled = float(np.average(spreads, weights=weights))
        seed_variances, freedoms = (pooled, pooled), (float(sum(weights)),)
        noise = floor.item_noise * sum(1 / count for count in counts)
    items = max(0.0, item_variance(a, b) - noise)
    items_freedom = max(sum(part.sizes.size - 1 for part in a), 1)
    design = _Design(seed_variances, counts, freedoms, items, items_freedom, ALPHA / arms)  # type: ignore[arg-type]
    error, freedom = design.error_and_freedom()
    difference = known["score"] - known["baseline"]
    reach = error * float(stdtrit(freedom, 1 - ALPHA / 2))
    seen = design.seen()
    return Estimate(
        **known,
        error=error,
        freedom=freedom,
        low=difference - reach,
        high=difference + reach,
        p=float(2 * stdtr(freedom, -abs(difference) / error)) if error else float(difference == 0),
        items_share=items / error**2 if error else 0.0,
        seen=seen,
        seeds_for_half=design.seeds_for(seen / 2),
        floor=floor.name if floor else "",
    )


def holm(values: Sequence[float | None]) -> list[float | None]:
    """p-values adjusted for their number (Holm 1979), in the order given; None stays None."""
    known = sorted((value, at) for at, value in enumerate(values) if value is not None)
    adjusted: list[float | None] = [None] * len(values)
    highest = 0.0
    for rank, (value, at) in enumerate(known):
        highest = max(highest, min(1.0, value * (len(known) - rank)))
        adjusted[at] = highest
    return adjusted


def resampled(tables: Sequence[np.ndarray], sizes: np.ndarray, rng: np.random.Generator) -> list[np.ndarray]:
    """Scores of every seed with the clusters of a task drawn again, the same draw for all arms and measures.

    `tables` are [..., seeds, clusters] of one arm each, `sizes` [clusters] or [..., clusters]; returned are arrays
    [RESAMPLES, ..., seeds].
    """
    clusters = tables[0].shape[-1]
    flat = np.concatenate([table.reshape(-1, clusters) for table in tables])
    scores = np.empty((RESAMPLES, len(flat)))
    for first in range(0, RESAMPLES, RESAMPLED_AT_ONCE):
        draws = rng.integers(0, clusters, size=(RESAMPLED_AT_ONCE, clusters))
        draws += np.arange(RESAMPLED_AT_ONCE)[:, None] * clusters
        counts = np.bincount(draws.ravel(), minlength=RESAMPLED_AT_ONCE * clusters)
        counts = counts.reshape(RESAMPLED_AT_ONCE, clusters).astype(np.float64)
        scores[first : first + RESAMPLED_AT_ONCE] = counts @ flat.T / (counts @ sizes)[:, None]
    ends = np.cumsum([table.size // clusters for table in tables])[:-1]
    return [
        part.reshape(RESAMPLES, *table.shape[:-1])
        for part, table in zip(np.split(scores, ends, axis=1), tables, strict=True)
    ]


def over_seeds(scores: np.ndarray, draws: np.ndarray) -> np.ndarray:
    """Means over the seeds that each resample draws. scores [RESAMPLES, ..., seeds], draws [RESAMPLES, seeds]."""
    places = draws.reshape(len(draws), *(1,) * (scores.ndim - 2), draws.shape[1])
    return np.take_along_axis(scores, places, axis=-1).mean(axis=-1)
