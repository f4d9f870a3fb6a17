"""Which row gets which passages: the best scores first, each passage at most so often."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numba
import numpy as np

from stages.retrieve.passages import PAIR

NAMES = ["loss", "row", "passage"]

CHUNK = 1 << 22  # pairs in memory at once: 64 MB
SAMPLE = 1 << 10  # every so many a pair's score is looked at, to cut the pairs of all files into chunks


@dataclass(frozen=True)
class Assignment:
    """The passages of every row. Memory: 8 bytes per row and passage, 4 per passage of the corpus."""

    passages: np.ndarray  # int32 [rows, passages of a row], best first; -1: none
    scores: np.ndarray  # float32, likewise
    uses: np.ndarray  # int32, of each passage
    used_up: np.ndarray  # bool: rows that a passage was refused to, since others had it often enough


def assign(
    files: Sequence[Path], rows: int, lengths: np.ndarray, count: int, words: int, cap: int | None
) -> Assignment:
    """The best passages of each row: `count` at most, together of `words` words (the first of any length), each
    passage in `cap` rows at most. Of equal scores the first row's and passage's counts first."""
    made = Assignment(
        np.full((rows, count), -1, np.int32),
        np.zeros((rows, count), np.float32),
        np.zeros(len(lengths), np.int32),
        np.zeros(rows, dtype=bool),
    )
    filled, written = np.zeros(rows, np.int32), np.zeros(rows, np.int32)
    limit = np.iinfo(np.int32).max if cap is None else cap
    for pairs in _by_score([np.load(file, mmap_mode="r") for file in files]):
        losses, taken, numbers = (np.ascontiguousarray(pairs[name]) for name in NAMES)
        _give(
            losses, taken, numbers, lengths.astype(np.int32), words, limit,
            made.passages, made.scores, made.uses, made.used_up, filled, written,
        )  # fmt: skip
    return made


def _by_score(runs: list[np.ndarray]) -> Iterator[np.ndarray]:
    """The pairs of sorted runs in chunks, in the order of their scores."""
    sampled = np.sort(np.concatenate([np.empty(0, np.float32), *(run["loss"][::SAMPLE] for run in runs)]))
    bounds = np.unique(sampled[:: max(1, CHUNK // SAMPLE)])[1:]
    places = [np.concatenate([[0], np.searchsorted(run["loss"], bounds), [len(run)]]) for run in runs]
    for number in range(len(bounds) + 1):
        parts = [run[at[number] : at[number + 1]] for run, at in zip(runs, places, strict=True)]
        yield np.sort(np.concatenate([np.empty(0, PAIR), *parts]), order=NAMES)


@numba.njit(cache=True)
def _give(
    losses: Any, rows: Any, numbers: Any, lengths: Any, words: Any, limit: Any,
    passages: Any, scores: Any, uses: Any, used_up: Any, filled: Any, written: Any,
) -> None:  # fmt: skip
    """Go through pairs in their order, and give each row what it may still have."""
    for pair in range(len(rows)):
        row, number = rows[pair], numbers[pair]
        place = filled[row]
        if place == passages.shape[1] or (place and written[row] + lengths[number] > words):
            continue
        if uses[number] == limit:
            used_up[row] = True
            continue
        passages[row, place], scores[row, place] = number, -losses[pair]
        uses[number] += 1
        filled[row] = place + 1
        written[row] += lengths[number]
