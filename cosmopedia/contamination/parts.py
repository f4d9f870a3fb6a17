"""Short items, whose parts (question, answer, choices) a document has in order, with a few foreign words in between.

The longest part is looked for by the hash of its first words; compiled code then looks for the other parts before and
after it.
"""

from typing import Any

import numba
import numpy as np

from cosmopedia.contamination.forms import FormHashes
from cosmopedia.contamination.ngrams import NgramTable
from cosmopedia.corpus.word_hashes import WordHashes
from cosmopedia.hashing import GOLDEN

ANCHORS = np.array([1, 2, 3, 5])  # words, the first of the longest part, by which it is looked for


class PartsTable:
    """Forms that are found part by part."""

    def __init__(self, forms: FormHashes, chosen: np.ndarray, gap: int):
        """`chosen`: the numbers of the forms; `gap`: how many words there may be between two parts."""
        self.gap = gap
        self._first, self._last = forms.part_bounds[chosen], forms.part_bounds[chosen + 1]
        ends = np.cumsum(forms.part_sizes)
        self._sizes = forms.part_sizes
        self._hashes = forms.words.runs(ends - self._sizes, self._sizes)
        self._chosen = chosen
        several = zip(self._first.tolist(), self._last.tolist(), strict=True)
        anchors = [first + int(np.argmax(self._sizes[first:last])) for first, last in several]
        self._anchors = np.array(anchors, dtype=np.int64)
        sizes = ANCHORS[np.searchsorted(ANCHORS, self._sizes[self._anchors], "right") - 1]
        self._tables = []
        for size in np.unique(sizes).tolist():
            numbers = np.flatnonzero(sizes == size)
            starts = (ends - self._sizes)[self._anchors[numbers]]
            begins = forms.words.runs(starts, np.full_like(numbers, size))
            self._tables.append(NgramTable.of(forms.words, size, begins, numbers, np.zeros_like(numbers)))

    def lookup(self, words: WordHashes) -> list[tuple[int, int, int, int]]:
        """(text, the first word, the word after the last one, form) of every form found."""
        found: list[tuple[int, int, int, int]] = []
        for table in self._tables:
            text, at, number, _, _ = table.matches(words)
            if len(text):
                low, high = words.bounds[text], words.bounds[text + 1]
                start, end = _extents(
                    words.words, at + low, low, high, self._anchors[number], self._first[number], self._last[number],
                    self._hashes, self._sizes, self.gap,
                )  # fmt: skip
                equal = np.flatnonzero(start >= 0)
                columns = text, start - low, end - low, self._chosen[number]
                found += zip(*(column[equal].tolist() for column in columns), strict=True)
        return found


@numba.njit(cache=True, nogil=True)
def _extents(
    words: Any, at: Any, low: Any, high: Any, anchor: Any, first: Any, last: Any, hashes: Any, sizes: Any, gap: int
) -> tuple[Any, Any]:
    """Where the parts begin and end around each place of an anchor; -1: one is missing."""
    starts, ends = np.full(len(at), -1, np.int64), np.full(len(at), -1, np.int64)
    for n in range(len(at)):
        part, place = anchor[n], at[n]
        if not _is_there(words, place, high[n], hashes[part], sizes[part]):
            continue
        start, end, complete = place, place + sizes[part], True
        for part in range(anchor[n] + 1, last[n]):
            complete = False
            for skipped in range(gap + 1):
                if _is_there(words, end + skipped, high[n], hashes[part], sizes[part]):
                    end, complete = end + skipped + sizes[part], True
                    break
            if not complete:
                break
        if not complete:
            continue
        for part in range(anchor[n] - 1, first[n] - 1, -1):
            complete = False
            for skipped in range(gap + 1):
                place = start - skipped - sizes[part]
                if place >= low[n] and _is_there(words, place, high[n], hashes[part], sizes[part]):
                    start, complete = place, True
                    break
            if not complete:
                break
        if complete:
            starts[n], ends[n] = start, end
    return starts, ends


@numba.njit(cache=True, nogil=True)
def _is_there(words: Any, place: int, high: int, wanted: Any, size: int) -> Any:
    """Whether the words from a place on are those of a part."""
    if place + size > high:
        return False
    value = np.uint64(0)
    for n in range(place, place + size):
        value = value * GOLDEN + words[n]
    return value == wanted
