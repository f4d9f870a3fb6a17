"""Hashes of the words of many texts at once: for n-grams that texts share with benchmark items or with each other.

A `Normalisation` says what the words are. Here compiled code does the same for texts as Arrow holds them, in UTF-8: a
table says of every code point whether it belongs to a word and what it is folded to. It is filled from the
normalisation's own functions, 16 code points at a time, as they turn up. Texts with one that cannot be folded alone (a
ligature; an Indic vowel, which may be composed with a neighbour; for PUBLISHED a capital sigma, whose lower case
depends on its neighbours) are split in Python.

A word's hash is a polynomial over its characters and an n-gram's one over its words, modulo 2^64. Equal words have
equal hashes; different ones may, so whoever needs certainty must compare.
"""

import unicodedata
from dataclasses import dataclass
from typing import Any

import numba
import numpy as np
import pyarrow as pa

from cosmopedia.corpus.words import NORMAL, Normalisation
from cosmopedia.hashing import GOLDEN, mix64

# Kinds of code points. ALONE: a word by itself; RUN: a letter of which several in a row count as one (digits that are
# all folded to 0); MARK: dropped; INVOLVED: needs Python.
UNSEEN, BETWEEN, LETTER, ALONE, MARK, INVOLVED, RUN = range(7)
LEARNT = 16  # code points that a table gets at once
CODE_POINTS, CAPITAL_SIGMA = 0x110000, 0x3A3
JAMO = range(0x1161, 0x1200)  # vowels and finals, which are composed with the letter before them
BITS_PER_HASH = 16  # of a Bloom filter, or up to twice as many

Texts = list[str] | pa.StringArray | pa.LargeStringArray  # without nulls; a list's without lone surrogates

# By code point: what it is folded to, and in the last 3 bits its kind. A table per normalisation that was used.
_tables: dict[str, np.ndarray] = {}
_READY = np.arange(CODE_POINTS, dtype=np.uint32) << 3 | LETTER  # of words joined by spaces
_READY[ord(" ")] = BETWEEN
_mix64 = numba.njit(mix64)


@dataclass(frozen=True)
class BloomFilter:
    """Whether a hash may be one of many: never wrongly no, wrongly yes in one of a hundred cases."""

    bits: np.ndarray  # uint8; two bits are set per hash
    shift: np.uint64  # of a hash to the number of a bit

    @classmethod
    def of(cls, hashes: np.ndarray) -> "BloomFilter":
        bits = max(10, (len(hashes) * BITS_PER_HASH).bit_length())
        made = cls(np.zeros(1 << (bits - 3), dtype=np.uint8), np.uint64(64 - bits))
        _fill(made.bits, made.shift, hashes)
        return made


EVERYTHING = BloomFilter(np.full(1, 255, dtype=np.uint8), np.uint64(61))  # lets all hashes through


@dataclass(frozen=True)
class WordHashes:
    """The words of several texts, one after the other; text `t` has the words `bounds[t]` to `bounds[t + 1]`."""

    bounds: np.ndarray
    words: np.ndarray

    def ngrams(self, n: int, only: BloomFilter = EVERYTHING) -> tuple[np.ndarray, np.ndarray]:
        """(the first word, the hash) of the n-grams within a text that pass a filter, in their order."""
        top = np.uint64(pow(int(GOLDEN), n, 1 << 64))
        return _ngrams(self.words, self.bounds, n, top, only.bits, only.shift)

    def all_ngrams(self, n: int) -> tuple[np.ndarray, np.ndarray]:
        """The hashes of all n-grams within a text, in their order, and the bounds of each text's among them."""
        sizes = np.maximum(np.diff(self.bounds) - n + 1, 0)
        bounds = np.concatenate([[0], np.cumsum(sizes)])
        return _all_ngrams(self.words, self.bounds, n, np.uint64(pow(int(GOLDEN), n, 1 << 64)), bounds), bounds

    def runs(self, at: np.ndarray, sizes: np.ndarray) -> np.ndarray:
        """Hashes of `sizes` words from each word in `at` on; of n words that of the n-gram."""
        return _runs(self.words, at, sizes)


def word_hashes(texts: Texts, form: Normalisation = NORMAL) -> WordHashes:
    """The hashes of the words of every text."""
    array: Any = texts if isinstance(texts, pa.Array) else pa.array(texts, pa.string())
    hashes, involved = _hashed(array, form)
    if not len(involved):
        return hashes
    split = [" ".join(form.words(array[text].as_py())) for text in involved.tolist()]
    others, _ = _hashed(pa.array(split, pa.string()), None)
    sizes = np.diff(others.bounds)
    words = np.insert(hashes.words, np.repeat(hashes.bounds[involved], sizes), others.words)
    more = np.zeros_like(hashes.bounds)
    more[involved + 1] = sizes
    return WordHashes(hashes.bounds + np.cumsum(more), words)


def _hashed(texts: Any, form: Normalisation | None) -> tuple[WordHashes, np.ndarray]:
    """(the hashes, the texts that have none because they must be split in Python); None: words joined by spaces."""
    table = _READY if form is None else _table(form)
    data, ends = _buffers(texts)
    involved = np.zeros(len(texts), dtype=np.bool_)
    # A sign of one byte may be a word by itself. Memory that is not written to is not taken.
    words = np.empty(int(ends[-1]) - int(ends[0]), dtype=np.uint64)
    bounds = np.zeros(len(texts) + 1, dtype=np.int64)
    text, unseen = _hash_words(data, ends, table, 0, bounds, words, involved)
    while text < len(texts):
        assert form is not None
        _learn(table, form, unseen - unseen % LEARNT)
        text, unseen = _hash_words(data, ends, table, text, bounds, words, involved)
    return WordHashes(bounds, words[: bounds[-1]]), np.flatnonzero(involved)


def _table(form: Normalisation) -> np.ndarray:
    if form.name not in _tables:
        _tables[form.name] = np.zeros(CODE_POINTS, dtype=np.uint32)
    return _tables[form.name]


def _buffers(texts: Any) -> tuple[np.ndarray, np.ndarray]:
    """(UTF-8, where each text begins and the last one ends) of an Arrow array."""
    _, offsets, data = texts.buffers()
    kind = np.int64 if pa.types.is_large_string(texts.type) else np.int32
    ends = np.frombuffer(offsets, kind)[texts.offset : texts.offset + len(texts) + 1] if offsets else np.zeros(1)
    codes = np.frombuffer(data, dtype=np.uint8) if data else np.zeros(0, dtype=np.uint8)
    return codes, ends.astype(np.int64)


@numba.njit(cache=True, nogil=True)
def _hash_words(
    data: Any, ends: Any, table: Any, start: int, bounds: Any, words: Any, involved: Any
) -> tuple[Any, Any]:
    """Fill `bounds`, `words` and `involved` from valid UTF-8, from the text `start` on.

    (the text that it could not finish, a code point of it that the table lacks), or (the number of texts, 0).
    """
    found = bounds[start]
    simple = np.full(256, UNSEEN, np.uint32)
    for code in range(128):  # of slices, numba would compile 2 s longer: for a message
        simple[code] = table[code]
    for text in range(start, len(ends) - 1):
        value, inside, alone, place, end = np.uint64(0), False, False, ends[text], ends[text + 1]
        last = np.uint32(0)
        while place < end:
            begin = place
            while place < end and not alone:  # ASCII letters and what is between words
                entry = simple[data[place]]
                kind = entry & 7
                if kind == LETTER:
                    value = value * GOLDEN + np.uint64(entry >> 3)
                    inside = True
                elif kind != BETWEEN:
                    break
                elif inside:
                    words[found] = _mix64(value)
                    found += 1
                    value, inside = np.uint64(0), False
                place += 1
            if place > begin:
                last = simple[data[place - 1]]
            if place == end:
                break
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
            if kind == RUN and entry == last:
                continue
            if kind != MARK:
                last = entry
            if kind in (LETTER, ALONE, RUN):
                if inside and (kind == ALONE or alone):
                    words[found] = _mix64(value)
                    found += 1
                    value = np.uint64(0)
                value = value * GOLDEN + np.uint64(entry >> 3)
                inside, alone = True, kind == ALONE
            elif kind == BETWEEN:
                if inside:
                    words[found] = _mix64(value)
                    found += 1
                    value, inside = np.uint64(0), False
            elif kind == INVOLVED:
                involved[text] = True
            elif kind == UNSEEN:
                return text, code
        if inside:
            words[found] = _mix64(value)
            found += 1
        if involved[text]:
            found = bounds[text]
        bounds[text + 1] = found
    return len(ends) - 1, 0


@numba.njit(cache=True, nogil=True)
def _ngrams(words: Any, bounds: Any, size: int, top: Any, bits: Any, shift: Any) -> tuple[Any, Any]:
    """See `WordHashes.ngrams`; `top` is GOLDEN to the power of `size`."""
    at, hashes, found = np.empty(len(words), np.int64), np.empty(len(words), np.uint64), 0
    for text in range(len(bounds) - 1):
        value = np.uint64(0)
        for place in range(bounds[text], bounds[text + 1]):
            value = value * GOLDEN + words[place]
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
def _all_ngrams(words: Any, bounds: Any, size: int, top: Any, ngram_bounds: Any) -> Any:
    """See `WordHashes.all_ngrams`; `top` is GOLDEN to the power of `size`."""
    hashes = np.empty(ngram_bounds[-1], np.uint64)
    for text in range(len(bounds) - 1):
        value, first = np.uint64(0), ngram_bounds[text] - size + 1
        for at in range(bounds[text + 1] - bounds[text]):
            value = value * GOLDEN + words[bounds[text] + at]
            if at >= size:
                value -= words[bounds[text] + at - size] * top
            if at >= size - 1:
                hashes[first + at] = value
    return hashes


@numba.njit(cache=True, nogil=True)
def _runs(words: Any, at: Any, sizes: Any) -> Any:
    hashes = np.zeros(len(at), np.uint64)
    for n in range(len(at)):
        for place in range(at[n], at[n] + sizes[n]):
            hashes[n] = hashes[n] * GOLDEN + words[place]
    return hashes


@numba.njit(cache=True, nogil=True)
def _bit(shift: Any, value: Any) -> Any:
    """(the byte, the bit) of a Bloom filter for a hash."""
    number = value >> shift
    return number >> np.uint64(3), np.uint8(1 << (number & np.uint64(7)))


@numba.njit(cache=True, nogil=True)
def _holds(bits: Any, shift: Any, value: Any) -> Any:
    byte, bit = _bit(shift, value)
    if not bits[byte] & bit:
        return False
    byte, bit = _bit(shift, value * GOLDEN)
    return bits[byte] & bit != 0


@numba.njit(cache=True, nogil=True)
def _fill(bits: Any, shift: Any, hashes: Any) -> None:
    for value in hashes:
        for other in (value, value * GOLDEN):
            byte, bit = _bit(shift, other)
            bits[byte] |= bit


def _learn(table: np.ndarray, form: Normalisation, first: int) -> None:
    """Fill a table for LEARNT code points."""
    for code in range(first, first + LEARNT):
        folded = form.fold(chr(code))
        table[code] = (ord(folded[0]) << 3 if folded else 0) | _kind(code, folded, form)


def _kind(code: int, folded: str, form: Normalisation) -> int:
    words = form.words(chr(code))
    if not folded:
        return MARK
    if unicodedata.category(folded[0])[0] == "M" or code in JAMO or code == CAPITAL_SIGMA:
        return INVOLVED
    if not words:
        return BETWEEN
    if words != [folded] or len(folded) > 1:
        return INVOLVED
    twice = form.words(chr(code) * 2)
    return ALONE if len(twice) > 1 else RUN if twice == words else LETTER
