"""What the words of a document are when it is compared with others, and compiled code that compares many at once.

WITH_SIGNS is what decides: the library's words, numbers among them, and each sign of a formula (+ - / % = < $ ...) as
a word of its own, so that "12 + 7" is another text than "12 - 7" and a full stop makes no difference. In ANY_NUMBER
all numbers are 0, as in datatrove's MinHash: for candidates.
"""

import unicodedata
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numba
import numpy as np
import pyarrow as pa
import regex

from cosmopedia.core.rng import content_hash
from cosmopedia.corpus.word_hashes import WordHashes, word_hashes
from cosmopedia.corpus.words import WORDS, Normalisation, folded, words
from cosmopedia.hashing import GOLDEN, mix64

NUMBERS = regex.compile(r"\p{N}+")
WORDS_AND_SIGNS = regex.compile(rf"{WORDS.pattern}|[\p{{Sm}}\p{{Sc}}%/^\-]", regex.V1)
OTHER = np.uint64(0xD6E8FEB86659FD93)  # a second odd factor, for 128 bits
_mix64 = numba.njit(mix64)


def words_and_signs(text: str) -> list[str]:
    """The words of a text and the signs of its formulae, in order."""
    return WORDS_AND_SIGNS.findall(folded(text))


def with_any_number(text: str) -> str:
    """The folded text with 0 for every number: "Step 12b" and "Step 3b" become one."""
    return NUMBERS.sub("0", folded(text))


WITH_SIGNS = Normalisation("words and signs", words_and_signs, folded)
ANY_NUMBER = Normalisation("any number", lambda text: words(with_any_number(text)), with_any_number)


@dataclass(frozen=True)
class Shingles:
    """Hashes of the n-grams of several texts; text `t` has `hashes[bounds[t] : bounds[t + 1]]`, in its order."""

    hashes: np.ndarray
    bounds: np.ndarray

    @classmethod
    def of(cls, hashed: WordHashes, n: int) -> "Shingles":
        return cls(*hashed.all_ngrams(n))

    def distinct(self) -> "Shingles":
        """Each text's n-grams as a set: sorted, each of them once."""
        hashes = self.hashes.copy()
        for first, end in pairwise(self.bounds.tolist()):
            hashes[first:end].sort()
        return Shingles(*_distinct(hashes, self.bounds))

    def __getitem__(self, text: int) -> np.ndarray:
        return self.hashes[self.bounds[text] : self.bounds[text + 1]]


@numba.njit(cache=True, nogil=True)
def _distinct(hashes: Any, bounds: Any) -> Any:
    """(hashes, bounds) without equal neighbours in a text; `hashes` is overwritten."""
    fewer, found = np.zeros_like(bounds), 0
    for text in range(len(bounds) - 1):
        for at in range(bounds[text], bounds[text + 1]):
            if at == bounds[text] or hashes[at] != hashes[at - 1]:
                hashes[found] = hashes[at]
                found += 1
        fewer[text + 1] = found
    return hashes[:found], fewer


def hashed_words(texts: pa.ChunkedArray, form: Normalisation = WITH_SIGNS) -> WordHashes:
    """The words of a table's column."""
    return word_hashes(texts.combine_chunks(), form)


def fingerprints(texts: pa.ChunkedArray, hashed: WordHashes) -> np.ndarray:
    """128 bits per text, equal for texts with the same words and signs in the same order; uint64, shape (texts, 2).

    Texts without any are equal when they differ only in case, white space and Unicode composition.
    """
    found = _fingerprints(hashed.words, hashed.bounds)
    for text in np.flatnonzero(np.diff(hashed.bounds) == 0).tolist():
        plain = " ".join(unicodedata.normalize("NFC", texts[text].as_py()).casefold().split())
        found[text] = np.frombuffer(bytes.fromhex(content_hash(plain)), "<u8")
    return found


@numba.njit(cache=True, nogil=True)
def _fingerprints(words: Any, bounds: Any) -> Any:
    found = np.empty((len(bounds) - 1, 2), np.uint64)
    for text in range(len(bounds) - 1):
        one = other = np.uint64(bounds[text + 1] - bounds[text])
        for at in range(bounds[text], bounds[text + 1]):
            one = one * GOLDEN + words[at]
            other = _mix64(other + words[at]) * OTHER
        found[text, 0], found[text, 1] = _mix64(one), other
    return found


@numba.njit(cache=True, nogil=True)
def shares(hashes: Any, bounds: Any, others: Any, other_bounds: Any) -> Any:
    """The share of each text's distinct n-grams that are among another's; NaN where one of the two has none.

    An open hash table of at least twice as many places as n-grams; `owners` tells what other texts left in it.
    """
    longest, others_longest = 0, 0  # np.diff takes numba 2 s to compile
    for text in range(len(bounds) - 1):
        longest = max(longest, bounds[text + 1] - bounds[text])
        others_longest = max(others_longest, other_bounds[text + 1] - other_bounds[text])
    size = 2
    while size < 2 * (longest + others_longest):
        size *= 2
    table, owners = np.empty(size, np.uint64), np.full(size, -1, np.int64)
    found = np.full(len(bounds) - 1, np.nan)
    for text in range(len(bounds) - 1):
        own, quoted = bounds[text + 1] - bounds[text], other_bounds[text + 1] - other_bounds[text]
        if not own or not quoted:
            continue
        bits = 1
        while 1 << bits < 2 * (own + quoted):
            bits += 1
        theirs, ours, distinct, common = 3 * text, 3 * text + 1, 0, 0  # + 2: of both
        for at in range(other_bounds[text], other_bounds[text + 1]):
            place = _place(table, owners, bits, theirs, others[at])
            table[place], owners[place] = others[at], theirs
        for at in range(bounds[text], bounds[text + 1]):
            place = _place(table, owners, bits, theirs, hashes[at])
            if owners[place] < theirs:
                table[place], owners[place] = hashes[at], ours
                distinct += 1
            elif owners[place] == theirs:
                owners[place] = theirs + 2
                distinct, common = distinct + 1, common + 1
        found[text] = common / distinct
    return found


@numba.njit(cache=True, nogil=True)
def _place(table: Any, owners: Any, bits: int, oldest: int, value: Any) -> Any:
    """Where a value is in the first 2^bits places, or where it can go."""
    place = np.int64(value * GOLDEN >> np.uint64(64 - bits))
    while owners[place] >= oldest and table[place] != value:
        place = (place + 1) & ((1 << bits) - 1)
    return place
