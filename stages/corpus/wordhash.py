"""Hashes of the words of many texts at once, for finding what they share with a table of n-grams.

`plain_words` says what the words are: NFD, diacritics removed, lower case, runs of word characters. Here numpy does
the same for a batch of texts, a character at a time: a table says of every code point whether it stands in words and
what it is folded to. It is filled from `plain_words`' own functions as code points turn up; texts with one that cannot
be folded by itself (Hangul, a capital sigma, whose lower case depends on its neighbours) are taken apart in Python.

A word's hash is a polynomial over its characters and an n-gram's one over its words, modulo powers of two, so both
come from differences of running sums. Equal words have equal hashes; different ones may, so whoever looks up must
compare.
"""

import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache

import numpy as np

from stages.corpus.words import WORD, plain_words, without_diacritics

UNSEEN, BETWEEN, LETTER, MARK, INVOLVED = range(5)  # kinds of code points; MARK: dropped; INVOLVED: needs Python
TOGETHER = 1 << 18  # characters that are hashed at once, so that numpy stays within the caches
KIND = np.uint32(7)  # the bits of `_table` that hold the kind
CODE_POINTS, CAPITAL_SIGMA = 0x110000, 0x3A3
CHARACTER_BASE, WORD_BASE = 0x9E3779B1, 0x9E3779B97F4A7C15  # odd: invertible, and every position counts

_table = np.zeros(CODE_POINTS, dtype=np.uint32)  # by code point: what it is folded to, and its kind


@dataclass(frozen=True)
class Hashes:
    """Words of several texts in a row; text `t` has the words `bounds[t]` to `bounds[t + 1]`."""

    bounds: np.ndarray
    sums: np.ndarray  # of the words' hashes times the powers of WORD_BASE, from the first word on

    def ngrams(self, n: int | np.ndarray, at: np.ndarray | None = None) -> np.ndarray:
        """Hashes of the `n` words from each position in `at` on (default: all that have `n`), across texts' ends."""
        _, inverse = _powers(WORD_BASE, np.uint64, len(self.sums))
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
    np.cumsum(values * _powers(WORD_BASE, np.uint64, len(values))[0][: len(values)], out=sums[1:])
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
    codes = np.frombuffer(joined.encode("utf-32-le", "surrogatepass"), dtype=np.uint32).astype(np.intp)
    folded = _table.take(codes)
    if not folded.all():
        _learn(np.unique(codes[folded == UNSEEN]))
        folded = _table.take(codes)
    del codes  # of a text of megabytes they are many
    kinds = (folded & KIND).astype(np.uint8)
    ends = np.cumsum([len(text) + 1 for text in texts])
    if (involved := np.flatnonzero(kinds == INVOLVED)).size:
        named = set(np.searchsorted(ends, involved, "right").tolist())
        return _hashed([" ".join(plain_words(text)) if t in named else text for t, text in enumerate(texts)])
    if not (kept := kinds != MARK).all():
        ends = np.concatenate([[0], np.cumsum(kept)])[ends]
        folded, kinds = folded[kept], kinds[kept]
    letters = kinds == LETTER
    edges = np.flatnonzero(letters[1:] != letters[:-1]) + 1
    if letters[0]:
        edges = np.concatenate([[0], edges])
    starts, stops = edges[::2], edges[1::2]
    powers, inverse = _powers(CHARACTER_BASE, np.uint32, len(folded))
    sums = np.zeros(len(folded) + 1, dtype=np.uint32)
    np.cumsum(folded * powers[: len(folded)], out=sums[1:])
    words = mixed(((sums[stops] - sums[starts]) * inverse[starts]).astype(np.uint64))
    return np.diff(np.searchsorted(starts, ends), prepend=0), words


def mixed(values: np.ndarray) -> np.ndarray:
    """SplitMix64's finaliser, for 64-bit values."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))


def _learn(codes: np.ndarray) -> None:
    """Fill the tables for code points."""
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


def _powers(base: int, kind: type[np.unsignedinteger], count: int) -> tuple[np.ndarray, np.ndarray]:
    """(powers of `base` from 0, their inverses), `count` of each or more."""
    return _power_tables(base, kind, max(16, count.bit_length()))


@cache
def _power_tables(base: int, kind: type[np.unsignedinteger], bits: int) -> tuple[np.ndarray, np.ndarray]:
    size, modulus = 1 << bits, 1 << 8 * np.dtype(kind).itemsize
    tables = []
    for factor in (base, pow(base, -1, modulus)):
        table = np.full(size, factor, dtype=kind)
        table[0] = 1
        tables.append(np.cumprod(table, dtype=kind))
    return tables[0], tables[1]
