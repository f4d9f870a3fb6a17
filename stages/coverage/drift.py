"""How far the topics of documents are from those of the source rows that they were written from.

The Jensen-Shannon divergence of two small samples is above 0 when nothing has drifted. So it is compared with its
values when each source row and its documents change places at random, all documents of a row together: if the
documents keep their rows' topics but for noise, the measured value is one of these.
"""

from typing import NamedTuple

import numpy as np

from cosmopedia.corpus.divergence import divergence


class Drift(NamedTuple):
    """A divergence (bits, 0 to 1), and what chance makes of it."""

    divergence: float
    by_chance: float  # its mean when rows and documents change places
    by_chance_95: float  # 95% of these are at most so great
    p_value: float  # share of these that are at least as great as the measured one


def drift(rows: np.ndarray, documents: np.ndarray, owners: np.ndarray, permutations: int, seed: int) -> Drift:
    """The drift from the topics of the rows [documents] to those of the documents [documents].

    `owners` [documents] is the number of each document's source row: those of one row change places together. Topics
    are numbers from -1 (none, a topic like the others) on.
    """
    size = int(max(rows.max(initial=-1), documents.max(initial=-1))) + 2
    first, second = rows + 1, documents + 1

    def between(swapped: np.ndarray) -> float:
        sides = np.where(swapped, second, first), np.where(swapped, first, second)
        return divergence(*(np.bincount(side, minlength=size) for side in sides))

    measured = between(np.zeros(len(rows), bool))
    rng = np.random.default_rng(seed)
    flips = (rng.integers(0, 2, owners.max(initial=-1) + 1, dtype=np.int8).astype(bool) for _ in range(permutations))
    chance = np.array([between(flipped[owners]) for flipped in flips])
    # sums of floats differ in their last digits, and an equal split may not count as less
    as_great = int((chance >= measured - 1e-12).sum())
    return Drift(measured, float(chance.mean()), float(np.quantile(chance, 0.95)), (as_great + 1) / (permutations + 1))
