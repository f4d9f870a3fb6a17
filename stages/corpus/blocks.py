"""The long matching blocks of difflib's SequenceMatcher(None, document, item, autojunk=False), without its cost.

difflib takes the longest common substring (of equals the one that begins first in the document, then in the item) and
goes on to its left and to its right. A range's longest block bounds all that lie inside it, so blocks of at most
`min_block` characters can be left out with everything below them, and what remains is made of runs: common substrings
that cannot be extended. These come from equal seeds, of `min_block` + 1 characters, that numpy finds; the rest is
difflib's recursion over a few dozen runs, compiled. A range of the document cuts runs off at its ends, so one list of
runs serves the whole document and every window of it.
"""

from dataclasses import dataclass
from typing import Any

import numba
import numpy as np

SEEDS = 1 << 22  # equal seeds that are in memory at once; only texts that repeat themselves have more
KEY_BITS = 62  # of a seed as one number

Block = tuple[int, int, int]  # place in the document, place in the item, length


@dataclass(frozen=True)
class Runs:
    """All common substrings of a document and an item that are longer than `min_block` and cannot be extended."""

    found: np.ndarray  # rows of a Block, ascending
    covered: int  # characters of the item that lie in some run: no range of the document has more in blocks
    item_length: int
    min_block: int

    def blocks(self, start: int, end: int) -> list[Block]:
        """difflib's blocks of the document's characters `start` to `end` and the item, ascending."""
        first_near, end_near = np.searchsorted(self.found[:, 0], (start - self.item_length, end))
        near = self.found[first_near:end_near]
        longest_first = near[np.argsort(-near[:, 2], kind="stable")]
        chosen = _chosen(longest_first, start, end, self.item_length, self.min_block + 1)
        return sorted(map(tuple, chosen.tolist()))  # type: ignore[arg-type]


@numba.njit(cache=True, nogil=True)
def _chosen(runs: Any, start: int, end: int, item_length: int, least: int) -> Any:
    """difflib's blocks of `least` characters or more, in any order, from runs by descending length."""
    chosen, ranges = [(0, 0, 0)], [(start, end, 0, item_length)]
    while ranges:
        low, high, first, last = ranges.pop()
        best_at, best_place, size = 0, 0, 0
        for n in range(len(runs)):
            at, place, length = runs[n, 0], runs[n, 1], runs[n, 2]
            if length < size:
                break  # no run after this one is longer, even whole
            cut = max(0, low - at, first - place)
            at, place, length = at + cut, place + cut, length - cut
            length = min(length, high - at, last - place)
            if length > size or (length == size and (at, place) < (best_at, best_place)):
                best_at, best_place, size = at, place, length
        if size >= least:
            chosen.append((best_at, best_place, size))
            ranges.append((low, best_at, first, best_place))
            ranges.append((best_at + size, high, best_place + size, last))
    found = np.empty((len(chosen) - 1, 3), np.int64)
    for n in range(1, len(chosen)):
        found[n - 1, 0], found[n - 1, 1], found[n - 1, 2] = chosen[n]
    return found


class Matcher:
    """One document, ready to be matched with any number of items."""

    def __init__(self, document: str, min_block: int):
        self.length, self.min_block = len(document), min_block
        codes = _codes(document)
        present = np.zeros(int(codes.max(initial=0)) + 1, dtype=bool)
        present[codes] = True
        self._number = np.cumsum(present, dtype=np.int32) * present  # of each character; 0: not in the document
        base = int(present.sum()) + 1
        self._seed = max(1, min(min_block + 1, int(KEY_BITS / np.log2(base + 1))))
        self._base = base
        numbers = self._number[codes]
        keys = self._keys(numbers)
        self._order = np.argsort(keys, kind="stable")
        self._sorted = keys[self._order]
        self._numbers = np.concatenate([[-1], numbers, [-2]], dtype=np.int32)  # ends that equal nothing

    def runs(self, items: list[str]) -> list[Runs]:
        """The runs that the document has in common with each item."""
        codes = _codes("\n".join(items))
        ends = (
            np.cumsum([len(item) + 1 for item in items]) - 1
        )  # of the items, each followed by a character of no text
        numbers = self._number[np.minimum(codes, len(self._number) - 1)] * (codes < len(self._number))
        numbers[ends[:-1]] = 0
        keys = np.where(self._known(numbers), self._keys(numbers), -1)
        item_numbers = np.concatenate([[-3], np.where(numbers == 0, -4, numbers), [-5]])
        left = np.searchsorted(self._sorted, keys, "left")
        count = np.searchsorted(self._sorted, keys, "right") - left
        starts, closes = [], []
        cuts = np.searchsorted(np.cumsum(count), np.arange(SEEDS, int(count.sum()), SEEDS))
        for places in np.split(np.arange(len(count)), np.unique(cuts)):
            place, at = np.repeat(places, count[places]), self._positions(left[places], count[places])
            opens = self._numbers[at] != item_numbers[place]
            ended = self._numbers[at + self._seed + 1] != item_numbers[place + self._seed + 1]
            starts.append((at[opens], place[opens]))
            closes.append((at[ended], place[ended]))
        at, place = _by_diagonal(starts)
        size = _by_diagonal(closes)[0] - at + self._seed
        long = size > self.min_block
        return self._by_item(at[long], place[long], size[long], ends)

    def _by_item(self, at: np.ndarray, place: np.ndarray, size: np.ndarray, ends: np.ndarray) -> list[Runs]:
        """The runs of each item, from the runs of all one after another."""
        steps = np.zeros(int(ends[-1]) + 2, dtype=np.int64)
        np.add.at(steps, place, 1)
        np.add.at(steps, place + size, -1)
        covered = np.concatenate([[0], np.cumsum(np.cumsum(steps) > 0)])
        firsts = np.concatenate([[0], ends[:-1] + 1])
        item = np.searchsorted(ends, place)
        order = np.lexsort((place, at, item))
        rows = np.column_stack([at, place - firsts[item], size])[order]
        bounds = np.searchsorted(item[order], np.arange(len(ends) + 1))
        return [
            Runs(rows[bounds[n] : bounds[n + 1]], int(covered[end] - covered[first]), int(end - first), self.min_block)
            for n, (first, end) in enumerate(zip(firsts, ends, strict=True))
        ]

    def _positions(self, left: np.ndarray, count: np.ndarray) -> np.ndarray:
        """Places in the document of the seeds that are sorted at `left` and after, `count` of them each."""
        before = np.cumsum(count) - count
        return self._order[np.arange(int(count.sum())) + np.repeat(left - before, count)]

    def _keys(self, numbers: np.ndarray) -> np.ndarray:
        """Every `seed` consecutive numbers as one."""
        size = max(0, len(numbers) - self._seed + 1)
        keys = np.zeros(size, dtype=np.int64)
        for k in range(self._seed):
            keys *= self._base
            keys += numbers[k : k + size]
        return keys

    def _known(self, numbers: np.ndarray) -> np.ndarray:
        """Whether all numbers of a seed are characters of the document."""
        missing = np.concatenate([[0], np.cumsum(numbers == 0)])
        size = max(0, len(numbers) - self._seed + 1)
        return missing[self._seed : self._seed + size] == missing[:size]


def _codes(text: str) -> np.ndarray:
    return np.frombuffer(text.encode("utf-32-le", "surrogatepass"), dtype=np.uint32)


def _by_diagonal(parts: list[tuple[np.ndarray, np.ndarray]]) -> tuple[np.ndarray, np.ndarray]:
    """(places in the document, places in the item), by diagonal and then by place: starts and ends pair off."""
    at = np.concatenate([part[0] for part in parts])
    place = np.concatenate([part[1] for part in parts])
    order = np.lexsort((at, at - place))
    return at[order], place[order]
