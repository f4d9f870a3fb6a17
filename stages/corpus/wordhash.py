"""Hashes of the words of many texts at once, for finding what they share with a table of n-grams.

`plain_words` says what the words are: NFD, diacritics removed, lower case, runs of word characters. Here compiled code
does the same for a batch of texts: a table says of every code point whether it stands in words and what it is folded
to. It is filled from `plain_words`' own functions as code points turn up; texts with one that cannot be folded by
itself (Hangul, a capital sigma, whose lower case depends on its neighbours) are taken apart in Python.

A word's hash is a polynomial over its characters and an n-gram's one over its words, modulo 2^64; an n-gram's comes
from differences of running sums. Equal words have equal hashes; different ones may, so whoever looks up must compare.
"""

import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from typing import Any

import numba
import numpy as np

from stages.corpus.words import WORD, plain_words, without_diacritics

UNSEEN, BETWEEN, LETTER, MARK, INVOLVED = range(5)  # kinds of code points; MARK: dropped; INVOLVED: needs Python
TOGETHER = 1 << 18  # characters that are hashed at once, so that they stay within the caches
KIND = np.uint32(7)  # the bits of `_table` that hold the kind
CODE_POINTS, CAPITAL_SIGMA = 0x110000, 0x3A3
CHARACTER_BASE, WORD_BASE = 0xD6E8FEB86659FD93, 0x9E3779B97F4A7C15  # odd: invertible, and every position counts

_table = np.zeros(CODE_POINTS, dtype=np.uint32)  # by code point: what it is folded to, and its kind


@dataclass(frozen=True)
class Hashes:
    """Words of several texts in a row; text `t` has the words `bounds[t]` to `bounds[t + 1]`."""

    bounds: np.ndarray
    sums: np.ndarray  # of the words' hashes times the powers of WORD_BASE, from the first word on

    def ngrams(self, n: int | np.ndarray, at: np.ndarray | None = None) -> np.ndarray:
        """Hashes of the `n` words from each position in `at` on (default: all that have `n`), across texts' ends."""
        _, inverse = _powers(len(self.sums))
        if at is not None:
            return (self.sums[at + n] - self.sums[at]) * inverse[at]
        count = max(0, len(self.sums) - int(n))
        return (self.sums[len(self.sums) - count :] - self.sums[:count]) * inverse[:count]


def word_hashes(texts: list[str]) -> Hashes:
    """The hashes of `plain_words` of every text."""
    first, counts, words = 0, [np.zeros(1, dtype=np.int64)], []
    for last in _groups(texts):
        found = _hashed(texts[first:last])
        counts.append(found[0])
        words.append(found[1])
        first = last
    values = np.concatenate(words) if words else np.zeros(0, dtype=np.uint64)
    sums = np.zeros(len(values) + 1, dtype=np.uint64)
    np.cumsum(values * _powers(len(values))[0][: len(values)], out=sums[1:])
    return Hashes(np.cumsum(np.concatenate(counts)), sums)


def _groups(texts: list[str]) -> Iterator[int]:
    """Ends of groups of texts of TOGETHER characters at most, or of one text."""
    characters = 0
    for number, text in enumerate(texts):
        if characters and characters + len(text) > TOGETHER:
            yield number
            characters = 0
        characters += len(text)
    yield len(texts)


def _hashed(texts: list[str]) -> tuple[np.ndarray, np.ndarray]:
    """(the number of words of each text, the hashes of all words)."""
    joined = "\n".join(texts) + "\n"
    codes = np.frombuffer(joined.encode("utf-32-le", "surrogatepass"), dtype=np.uint32)
    ends = np.cumsum([len(text) + 1 for text in texts])
    counts, words = np.zeros(len(texts), dtype=np.int64), np.empty(len(codes) // 2 + 1, dtype=np.uint64)
    while (stopped := _hash_words(codes, ends, _table, counts, words)) >= 0:
        if _table[codes[stopped]] & KIND == INVOLVED:
            named = {int(t) for t in np.flatnonzero(_involved(codes, ends, _table))}
            return _hashed([" ".join(plain_words(text)) if t in named else text for t, text in enumerate(texts)])
        _learn(np.unique(codes[_table[codes] == UNSEEN]))
    return counts, words[: counts.sum()]


@numba.njit(cache=True, nogil=True)
def _mixed(value: Any) -> Any:
    """SplitMix64's finaliser."""
    value = (value ^ (value >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    value = (value ^ (value >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return value ^ (value >> np.uint64(31))


@numba.njit(cache=True, nogil=True)
def _hash_words(codes: Any, ends: Any, table: Any, counts: Any, words: Any) -> int:
    """Fill `counts` and `words`; the place of the first character that it cannot take, or -1.

    A word's hash is a polynomial over its characters, mixed.
    """
    found, text, value, inside = 0, 0, np.uint64(0), False
    counts[:] = 0
    for place in range(len(codes)):
        entry = table[codes[place]]
        kind = entry & 7
        if kind == LETTER:
            value = value * np.uint64(CHARACTER_BASE) + np.uint64(entry)
            inside = True
        elif kind == BETWEEN:
            if inside:
                words[found] = _mixed(value)
                found += 1
                counts[text] += 1
                value, inside = np.uint64(0), False
            if place + 1 == ends[text]:
                text += 1
        elif kind != MARK:
            return place
    return -1


@numba.njit(cache=True, nogil=True)
def _involved(codes: Any, ends: Any, table: Any) -> Any:
    """Of each text whether it has a character that needs Python."""
    found, text = np.zeros(len(ends), dtype=np.bool_), 0
    for place in range(len(codes)):
        if table[codes[place]] & 7 == INVOLVED:
            found[text] = True
        if place + 1 == ends[text]:
            text += 1
    return found


def _learn(codes: np.ndarray) -> None:
    """Fill the table for code points."""
    for code in codes.tolist():
        character = chr(code)
        folded = without_diacritics(character).lower()
        if not folded:
            kind = MARK
        elif len(folded) > 1 or code == CAPITAL_SIGMA or unicodedata.combining(character):
            kind = INVOLVED
        else:
            kind = LETTER if WORD.match(folded) else BETWEEN
        _table[code] = (ord(folded[0]) << 3 if folded else 0) | kind


def _powers(count: int) -> tuple[np.ndarray, np.ndarray]:
    """Powers of WORD_BASE from 0, and their inverses, `count` of each or more."""
    return _power_tables(max(16, count.bit_length()))


@cache
def _power_tables(bits: int) -> tuple[np.ndarray, np.ndarray]:
    tables = []
    for factor in (WORD_BASE, pow(WORD_BASE, -1, 1 << 64)):
        table = np.full(1 << bits, factor, dtype=np.uint64)
        table[0] = 1
        tables.append(np.cumprod(table, dtype=np.uint64))
    return tables[0], tables[1]
