"""The long matching blocks of difflib's SequenceMatcher(None, document, item, autojunk=False), without its cost.

difflib takes the longest common substring (of equals the one that begins first in the document, then in the item) and
goes on to its left and to its right. A range's longest block bounds all that are inside it, so blocks of at most
`min_block` characters can be left out with everything below them, and what remains is made of runs: common substrings
that cannot be extended. Compiled code finds these from where `min_block` + 1 characters of the document are in the
item, and goes through difflib's recursion over a few dozen of them. A range of the document cuts runs off at its ends,
so one list of runs serves the whole document and every window of it.
"""

from dataclasses import dataclass
from typing import Any

import numba
import numpy as np

from cosmopedia.hashing import GOLDEN, mix64

_mix64 = numba.njit(mix64)

Block = tuple[int, int, int]  # place in the document, place in the item, length


@dataclass(frozen=True)
class Runs:
    """All common substrings of a document and an item that are longer than `min_block` and cannot be extended."""

    rows: np.ndarray  # of a Block each, ascending
    covered: int  # characters of the item that are in some run: no range of the document has more in blocks
    item_length: int
    min_block: int

    def blocks(self, start: int, end: int) -> list[Block]:
        """difflib's blocks of the document's characters `start` to `end` and the item, ascending."""
        first_near, end_near = np.searchsorted(self.rows[:, 0], (start - self.item_length, end))
        near = self.rows[first_near:end_near]
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
    blocks = np.empty((len(chosen) - 1, 3), np.int64)
    for n in range(1, len(chosen)):
        blocks[n - 1, 0], blocks[n - 1, 1], blocks[n - 1, 2] = chosen[n]
    return blocks


class Matcher:
    """One document, ready to be matched with any number of items."""

    def __init__(self, document: str, min_block: int):
        self.min_block, self._codes = min_block, _codes(document)
        bits = max(4, len(self._codes).bit_length())
        self._shift = np.uint64(64 - bits)
        self._first, self._next = _chains(self._codes, min_block + 1, bits, self._shift)

    def runs(self, item: str) -> Runs:
        """The runs that the document has in common with an item."""
        rows, covered = _runs(self._codes, _codes(item), self.min_block + 1, self._first, self._next, self._shift)
        return Runs(rows[np.lexsort((rows[:, 1], rows[:, 0]))], covered, len(item), self.min_block)


def _codes(text: str) -> np.ndarray:
    return np.frombuffer(text.encode("utf-32-le", "surrogatepass"), dtype=np.uint32)


@numba.njit(cache=True, nogil=True)
def _bucket(codes: Any, at: int, size: int, shift: Any) -> Any:
    """The number of the chain for the `size` characters from `at` on."""
    value = np.uint64(0)
    for place in range(at, at + size):
        value = value * GOLDEN + np.uint64(codes[place])
    return _mix64(value) >> shift


@numba.njit(cache=True, nogil=True)
def _chains(codes: Any, size: int, bits: int, shift: Any) -> tuple[Any, Any]:
    """(the first place in each bucket, the next place in the same one), ascending; -1 ends a chain."""
    first = np.full(1 << bits, -1, np.int32)
    following = np.empty(len(codes), np.int32)
    for at in range(len(codes) - size, -1, -1):
        bucket = _bucket(codes, at, size, shift)
        following[at], first[bucket] = first[bucket], at
    return first, following


@numba.njit(cache=True, nogil=True)
def _runs(document: Any, item: Any, least: int, first: Any, following: Any, shift: Any) -> tuple[Any, int]:
    """(rows of a Block, not sorted; how many characters of the item are in some of them)."""
    rows = np.empty((16, 3), np.int64)
    count = covered = reached = 0
    for place in range(len(item) - least + 1):
        at = first[_bucket(item, place, least, shift)]
        while at >= 0:
            if not (at and place and document[at - 1] == item[place - 1]):
                size, limit = 0, min(len(document) - at, len(item) - place)
                while size < limit and document[at + size] == item[place + size]:
                    size += 1
                if size >= least:
                    if count == len(rows):
                        rows = np.concatenate((rows, np.empty_like(rows)))
                    rows[count, 0], rows[count, 1], rows[count, 2] = at, place, size
                    count += 1
                    covered += max(0, place + size - max(reached, place))
                    reached = max(reached, place + size)
            at = following[at]
    return rows[:count], covered
