"""Hashes of the words of many texts at once, for finding what they share with a table of n-grams.

`plain_words` says what the words are: NFD, diacritics removed, lower case, runs of word characters. Here compiled code
does the same for texts as Arrow holds them, in UTF-8: a table says of every code point whether it stands in words and
what it is folded to. It is filled from `plain_words`' own functions, 16 code points at a time, as they turn up; texts
with one that cannot be folded by itself (Hangul, a capital sigma, whose lower case depends on its neighbours) are
taken apart in Python.

A word's hash is a polynomial over its characters and an n-gram's one over its words, modulo 2^64. Equal words have
equal hashes; different ones may, so whoever looks up must compare.
"""

import unicodedata
from dataclasses import dataclass
from typing import Any

import numba
import numpy as np
import pyarrow as pa

from cosmopedia.corpus.words import WORD, plain_words, without_diacritics

UNSEEN, BETWEEN, LETTER, MARK, INVOLVED = range(5)  # kinds of code points; MARK: dropped; INVOLVED: needs Python
KIND = np.uint32(7)  # the bits of `_table` that hold the kind
LEARNT = 16  # code points that `_table` gets at once
CODE_POINTS, CAPITAL_SIGMA = 0x110000, 0x3A3
CHARACTER_BASE, WORD_BASE = 0xD6E8FEB86659FD93, 0x9E3779B97F4A7C15  # odd, so that every position counts
PLACES = 16  # bits of a sieve for a hash, or up to twice as many

Texts = list[str] | pa.StringArray  # without nulls; a list's without lone surrogates

_table = np.zeros(CODE_POINTS, dtype=np.uint32)  # by code point: what it is folded to, and its kind


@dataclass(frozen=True)
class Sieve:
    """Whether a hash may be one of many: never wrongly no, wrongly yes in one of a hundred cases."""

    bits: np.ndarray  # uint8; two for a hash
    shift: np.uint64  # of a hash to the number of a bit

    @classmethod
    def of(cls, hashes: np.ndarray) -> "Sieve":
        bits = max(10, (len(hashes) * PLACES).bit_length())
        sieve = cls(np.zeros(1 << (bits - 3), dtype=np.uint8), np.uint64(64 - bits))
        _fill(sieve.bits, sieve.shift, hashes)
        return sieve


EVERYTHING = Sieve(np.full(1, 255, dtype=np.uint8), np.uint64(61))  # the sieve that lets all hashes through


@dataclass(frozen=True)
class Hashes:
    """Words of several texts in a row; text `t` has the words `bounds[t]` to `bounds[t + 1]`."""

    bounds: np.ndarray
    words: np.ndarray

    def ngrams(self, n: int, sieve: Sieve = EVERYTHING) -> tuple[np.ndarray, np.ndarray]:
        """(the first word, the hash) of the `n` words in a row within a text that pass a sieve, in their order."""
        top = np.uint64(pow(WORD_BASE, n, 1 << 64))
        return _ngrams(self.words, self.bounds, n, top, sieve.bits, sieve.shift)

    def runs(self, at: np.ndarray, sizes: np.ndarray) -> np.ndarray:
        """Hashes of `sizes` words from each word in `at` on, as those of n-grams."""
        return _runs(self.words, at, sizes)


def word_hashes(texts: Texts) -> Hashes:
    """The hashes of `plain_words` of every text."""
    array: Any = texts if isinstance(texts, pa.Array) else pa.array(texts, pa.string())
    _, offsets, data = array.buffers()
    ends = np.frombuffer(offsets, dtype=np.int32)[array.offset : array.offset + len(array) + 1]
    codes = np.frombuffer(data, dtype=np.uint8) if data else np.zeros(0, dtype=np.uint8)
    involved = np.zeros(len(array), dtype=np.bool_)
    words = np.empty((int(ends[-1]) - int(ends[0])) // 2 + len(array), dtype=np.uint64)
    bounds = np.zeros(len(array) + 1, dtype=np.int64)
    text = 0
    while (stopped := _hash_words(codes, ends, _table, text, bounds, words, involved))[0] < len(array):
        text, unseen = stopped
        _learn(unseen - unseen % LEARNT)
    if involved.any():
        plain = array.to_pylist()
        for text in np.flatnonzero(involved).tolist():
            plain[text] = " ".join(plain_words(plain[text]))
        return word_hashes(plain)
    return Hashes(bounds, words[: bounds[-1]])


@numba.njit(cache=True, nogil=True)
def _mixed(value: Any) -> Any:
    """SplitMix64's finaliser."""
    value = (value ^ (value >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    value = (value ^ (value >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return value ^ (value >> np.uint64(31))


@numba.njit(cache=True, nogil=True)
def _hash_words(
    data: Any, ends: Any, table: Any, start: int, bounds: Any, words: Any, involved: Any
) -> tuple[Any, Any]:
    """Fill `bounds`, `words` and `involved` from valid UTF-8, from the text `start` on.

    (the text that it could not finish, a code point of it that the table lacks), or (the number of texts, 0).
    """
    found = bounds[start]
    for text in range(start, len(ends) - 1):
        value, inside, place, end = np.uint64(0), False, ends[text], ends[text + 1]
        while place < end:
            first = np.int64(data[place])
            if first < 0x80:
                code, place = first, place + 1
            elif first < 0xE0:
                code, place = (first & 31) << 6 | (data[place + 1] & 63), place + 2
            elif first < 0xF0:
                code = (first & 15) << 12 | np.int64(data[place + 1] & 63) << 6 | (data[place + 2] & 63)
                place += 3
            else:
                code = (first & 7) << 18 | np.int64(data[place + 1] & 63) << 12
                code |= np.int64(data[place + 2] & 63) << 6 | (data[place + 3] & 63)
                place += 4
            entry = table[code]
            kind = entry & 7
            if kind == LETTER:
                value = value * np.uint64(CHARACTER_BASE) + np.uint64(entry)
                inside = True
            elif kind == BETWEEN:
                if inside:
                    words[found] = _mixed(value)
                    found += 1
                    value, inside = np.uint64(0), False
            elif kind == INVOLVED:
                involved[text] = True
            elif kind == UNSEEN:
                return text, code
        if inside:
            words[found] = _mixed(value)
            found += 1
        bounds[text + 1] = found
    return len(ends) - 1, 0


@numba.njit(cache=True, nogil=True)
def _ngrams(words: Any, bounds: Any, size: int, top: Any, bits: Any, shift: Any) -> tuple[Any, Any]:
    """See `Hashes.ngrams`; `top` is WORD_BASE to the power of `size`."""
    at, hashes, found = np.empty(len(words), np.int64), np.empty(len(words), np.uint64), 0
    for text in range(len(bounds) - 1):
        value = np.uint64(0)
        for place in range(bounds[text], bounds[text + 1]):
            value = value * np.uint64(WORD_BASE) + words[place]
            first = place - size + 1
            if first < bounds[text]:
                continue
            if first > bounds[text]:
                value -= words[first - 1] * top
            if _holds(bits, shift, value):
                at[found], hashes[found] = first, value
                found += 1
    return at[:found].copy(), hashes[:found].copy()


@numba.njit(cache=True, nogil=True)
def _runs(words: Any, at: Any, sizes: Any) -> Any:
    hashes = np.zeros(len(at), np.uint64)
    for n in range(len(at)):
        for place in range(at[n], at[n] + sizes[n]):
            hashes[n] = hashes[n] * np.uint64(WORD_BASE) + words[place]
    return hashes


@numba.njit(cache=True, nogil=True)
def _bit(shift: Any, value: Any) -> Any:
    """(the byte, the bit) of a sieve for a hash."""
    number = value >> shift
    return number >> np.uint64(3), np.uint8(1 << (number & np.uint64(7)))


@numba.njit(cache=True, nogil=True)
def _holds(bits: Any, shift: Any, value: Any) -> Any:
    byte, bit = _bit(shift, value)
    if not bits[byte] & bit:
        return False
    byte, bit = _bit(shift, value * np.uint64(CHARACTER_BASE))
    return bits[byte] & bit != 0


@numba.njit(cache=True, nogil=True)
def _fill(bits: Any, shift: Any, hashes: Any) -> None:
    for value in hashes:
        for other in (value, value * np.uint64(CHARACTER_BASE)):
            byte, bit = _bit(shift, other)
            bits[byte] |= bit


def _learn(first: int) -> None:
    """Fill the table for LEARNT code points."""
    for code in range(first, first + LEARNT):
        character = chr(code)
        folded = without_diacritics(character).lower()
        if not folded:
            kind = MARK
        elif len(folded) > 1 or code == CAPITAL_SIGMA or unicodedata.combining(character):
            kind = INVOLVED
        else:
            kind = LETTER if WORD.match(folded) else BETWEEN
        _table[code] = (ord(folded[0]) << 3 if folded else 0) | kind
