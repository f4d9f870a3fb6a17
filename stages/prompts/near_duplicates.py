"""Near duplicates among seeds: MinHash over word 5-grams, on disk, before a prompt costs GPU time.

Two seeds are near duplicates when they have the same name (title, course, ...; "" where a source has none) and the
Jaccard similarity of their texts' word 5-grams reaches a threshold. Words are runs of letters, marks and digits,
whatever their case. A text of fewer words is one shingle; a text without any word equals only itself.

1. Seeds meet in buckets, 20 bands of 5 MinHash values (Broder, 1997; Leskovec et al., Mining of Massive Datasets,
   3.4): with probability 0.9996 at similarity 0.8, 0.975 at 0.7. One band is in memory at a time.
2. In each bucket a seed is compared with the first and with the one before it, by the exact similarity. Seeds stand in
   the order of their prompts' ids.

A seed goes when it is that similar to an earlier one, so the first of a group always stays, whatever the order in
which rows were read. All hashes are defined here: no version of a library can change what is found.
"""

import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from hashlib import blake2b
from itertools import pairwise

import numba
import numpy as np
import polars as pl
import pyarrow as pa

from cosmopedia.execution.progress import track
from cosmopedia.rng import draw_u64
from stages.prompts.slots import QUOTED, naming_slots
from stages.prompts.source_rows import Part, Seeds

WORDS = 5  # of a shingle
BANDS, ROWS = 20, 5
TEXTS = 4096  # that are hashed at once
COMPARED = 1 << 23  # shingles that are in memory at once to be compared
PADDING = np.uint64(draw_u64(0, "padding"))
STEPS = np.array([draw_u64(0, "step", n) | 1 for n in range(WORDS)], dtype=np.uint64)
FACTORS = np.array([draw_u64(0, "factor", n) >> 32 | 1 for n in range(BANDS * ROWS)], dtype=np.uint32)
TERMS = np.array([draw_u64(0, "term", n) >> 32 for n in range(BANDS * ROWS)], dtype=np.uint32)
FNV_START, FNV_PRIME = np.uint64(0xCBF29CE484222325), np.uint64(0x100000001B3)  # FNV-1a


@dataclass(frozen=True)
class Basis:
    """What a template's prompts are compared by: columns that must be equal but for case and marks, and a text."""

    names: tuple[str, ...]
    text: str  # "": the names are all

    @property
    def label(self) -> str:
        return "-".join((*self.names, self.text))


def basis_of(slots: Sequence[str]) -> Basis:
    """The basis of a template with these slots.

    Where it quotes the seed's text, those texts are compared, of seeds with one title; else the slots that say what is
    asked for must be equal.
    """
    text = next((f"slot.{slot}" for slot in QUOTED if slot in slots), "")
    return Basis(("title",) if text else tuple(f"slot.{slot}" for slot in naming_slots(slots)), text)


def sketch(part: Part, basis: Basis) -> None:
    """Put shingles and band keys beside a part's rows."""
    shingles, ends, bands = [], [np.zeros(1, np.int64)], []
    hashes: dict[str, int] = {}
    table = part.table()
    for start in range(0, part.rows, TEXTS):
        rows = table.slice(start, TEXTS)
        found, held = shingles_of(*_compared(rows, basis), hashes)
        shingles.append(found)
        ends.append(held)
        bands.append(_bands(found, np.cumsum(np.concatenate([[0], held])), FACTORS, TERMS, STEPS[0], ROWS))
    part.save(f"shingles-{basis.label}", np.concatenate([np.empty(0, np.uint32), *shingles]))
    part.save(f"ends-{basis.label}", np.cumsum(np.concatenate(ends)))
    for band, keys in enumerate(np.concatenate([np.empty((0, BANDS), np.uint64), *bands]).T):
        part.save(f"band-{band:02d}-{basis.label}", np.ascontiguousarray(keys))


def near_duplicates(seeds: Seeds, basis: Basis, members: np.ndarray, threshold: float) -> np.ndarray:
    """For each seed the place of the earlier one that it is like, or -1; only `members` (a mask) count."""
    places = np.flatnonzero(members)
    like = np.full(len(members), len(members))
    for band in track(range(BANDS), f"prompts: near duplicates of {seeds.source}", BANDS, "bands"):
        keys = seeds.column(f"band-{band:02d}-{basis.label}", members)
        for firsts, seconds in _pairs(keys):
            pairs = np.stack([places[firsts], places[seconds]], axis=1)
            pairs = pairs[pairs[:, 0] < like[pairs[:, 1]]]  # an earlier one than is known
            for some in _bounded(seeds, basis, pairs):
                alike = some[_similar(seeds, basis, some) >= threshold]
                np.minimum.at(like, alike[:, 1], alike[:, 0])
    like[like == len(members)] = -1
    return like


def _compared(rows: pa.Table, basis: Basis) -> tuple[list[str], pl.Series]:
    """(names, texts) of prepared rows."""
    columns = [pl.col(name).fill_null("") for name in basis.names]
    frame = pl.DataFrame(rows.select([*basis.names, *([basis.text] if basis.text else [])]))
    names = frame.select(pl.concat_str(columns, separator="\n")).to_series().to_list()
    return names, frame[basis.text] if basis.text else pl.Series([""] * len(names), dtype=pl.String)


def plain(name: str) -> str:
    """A name's words in lower case; the name itself when it has none."""
    return " ".join("".join(c if c.isalnum() else " " for c in name.casefold()).split()) or name


def shingles_of(names: Sequence[str], texts: pl.Series, hashes: dict[str, int]) -> tuple[np.ndarray, np.ndarray]:
    """(shingles as uint32, how many each text has). `hashes`: those of names, added to."""
    hashes.update((name, _hash(plain(name))) for name in set(names) if name not in hashes)
    keys = np.array([hashes[name] for name in names], dtype=np.uint64)
    lowered = texts.str.to_lowercase().to_arrow(compat_level=pl.CompatLevel.oldest())
    data, ends = buffers(lowered)
    ascii_only = not len(data) or int(data.max()) < 128
    found, held, words = _shingles(
        data, ends, keys, word_characters(0x80 if ascii_only else 0x110000), STEPS, PADDING, FNV_START, FNV_PRIME
    )
    for n in np.flatnonzero(words == 0).tolist():  # one shingle, of the text as it is
        found[held[:n].sum()] = _hash(f"{plain(names[n])}\x1f{texts[n]}") >> 32
    return found, held


def buffers(texts: pa.Array) -> tuple[np.ndarray, np.ndarray]:
    """(bytes, where each text begins and the last ends) of an array of type large_string without nulls."""
    _, ends, data = texts.buffers()
    bounds = np.frombuffer(ends, np.int64)[texts.offset : texts.offset + len(texts) + 1] if len(texts) else np.zeros(1)
    return np.frombuffer(data, np.uint8) if data is not None else np.empty(0, np.uint8), bounds.astype(np.int64)


@cache
def word_characters(size: int) -> np.ndarray:
    """For each of the first characters of Unicode whether it belongs to a word: letters, marks, digits, underscore."""
    kinds = (unicodedata.category(chr(c)) for c in range(size))
    return np.array([kind[0] in "LMN" or kind == "Pc" for kind in kinds])


@numba.njit(cache=True, nogil=True)
def _mixed(value):  # identity.mixed, for one number
    value = (value ^ (value >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    value = (value ^ (value >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return value ^ (value >> np.uint64(31))


@numba.njit(cache=True, nogil=True)
def _shingles(data, ends, keys, in_word, steps, padding, start, prime):
    """(shingles, how many each text has, words in each text) of lower-case UTF-8."""
    texts = len(keys)
    out = np.empty((ends[-1] - ends[0]) // 2 + 2 * texts, np.uint32)
    held, words = np.zeros(texts, np.int64), np.zeros(texts, np.int64)
    last = np.zeros(WORDS, np.uint64)  # the hashes of the last words
    size = 0
    for n in range(texts):
        count, hashed, inside, at = 0, start, False, ends[n]
        first = size
        while at <= ends[n + 1]:
            joins, length = False, 1
            if at < ends[n + 1]:
                byte = data[at]
                if byte < 0x80:
                    joins = in_word[byte]
                else:
                    length = 2 if byte < 0xE0 else 3 if byte < 0xF0 else 4
                    point = np.int64(byte) & (0xFF >> (length + 1))
                    for k in range(1, length):
                        point = (point << 6) | (np.int64(data[at + k]) & 0x3F)
                    joins = in_word[point]
            if joins:
                for k in range(length):
                    hashed = (hashed ^ np.uint64(data[at + k])) * prime
                inside = True
            elif inside:
                for k in range(WORDS - 1):
                    last[k] = last[k + 1]
                last[WORDS - 1] = _mixed(hashed)
                count, hashed, inside = count + 1, start, False
                if count >= WORDS:
                    total = np.uint64(0)
                    for k in range(WORDS):
                        total += last[k] * steps[k]
                    out[size] = np.uint32(_mixed(total ^ keys[n]) >> np.uint64(32))
                    size += 1
            at += length
        if count < WORDS:
            total = np.uint64(0)
            for k in range(WORDS):
                total += (last[WORDS - count + k] if k < count else padding) * steps[k]
            out[size] = np.uint32(_mixed(total ^ keys[n]) >> np.uint64(32))
            size += 1
        held[n], words[n] = size - first, count
    return out[:size].copy(), held, words


@numba.njit(cache=True, nogil=True)
def _bands(shingles, bounds, factors, terms, step, rows):
    """The texts' band keys, each of `rows` minima."""
    texts, hashes = len(bounds) - 1, len(factors)
    out = np.zeros((texts, hashes // rows), np.uint64)
    lowest = np.empty(hashes, np.uint32)
    for n in range(texts):
        lowest[:] = 0xFFFFFFFF
        for at in range(bounds[n], bounds[n + 1]):
            value = shingles[at]
            for k in range(hashes):
                lowest[k] = min(lowest[k], np.uint32(value * factors[k] + terms[k]))
        for k in range(hashes):
            out[n, k // rows] = _mixed(out[n, k // rows] * step + np.uint64(lowest[k]))
    return out


def _hash(text: str) -> int:
    return int.from_bytes(blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest(), "little")


def _pairs(keys: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Pairs (earlier, later) to compare: each of a bucket with the bucket's first, and with the one before."""
    order = np.argsort(keys)
    ordered = keys[order]
    same = np.flatnonzero(ordered[1:] == ordered[:-1])
    met = np.unique(np.concatenate([order[same], order[same + 1]]))
    del order, ordered
    met = met[np.argsort(keys[met], kind="stable")]
    again = np.concatenate([[False], keys[met][1:] == keys[met][:-1]])
    at = np.flatnonzero(again)
    first = np.maximum.accumulate(np.where(again, 0, np.arange(len(met))))
    yield met[first[at]], met[at]
    yield met[at - 1], met[at]


def _bounded(seeds: Seeds, basis: Basis, pairs: np.ndarray) -> Iterator[np.ndarray]:
    """Pairs by and by, no more at a time than `COMPARED` shingles."""
    if not len(pairs):
        return
    places, inverse = np.unique(pairs, return_inverse=True)
    sizes = []
    for part, some in seeds.split(places):
        ends = part.load(f"ends-{basis.label}")
        sizes.append(ends[some + 1] - ends[some])
    weight = np.cumsum(np.concatenate(sizes)[inverse].reshape(pairs.shape).sum(axis=1)) // COMPARED
    cuts = [0, *(np.flatnonzero(np.diff(weight)) + 1), len(pairs)]
    for begin, end in pairwise(cuts):
        yield pairs[begin:end]


def _similar(seeds: Seeds, basis: Basis, pairs: np.ndarray) -> np.ndarray:
    """The Jaccard similarity of each pair of seeds."""
    places, inverse = np.unique(pairs, return_inverse=True)
    sets = [np.empty(0, np.uint32)]
    for part, some in seeds.split(places):
        values, ends = part.load(f"shingles-{basis.label}"), part.load(f"ends-{basis.label}")
        for n in some:
            sets.append(np.unique(values[ends[n] : ends[n + 1]]))
    bounds = np.cumsum([len(found) for found in sets])
    return _jaccard(np.concatenate(sets), bounds, inverse.reshape(pairs.shape))


@numba.njit(cache=True, nogil=True)
def _jaccard(shingles, bounds, pairs):
    """The similarity of pairs of sets, each the sorted values from one bound to the next."""
    out = np.empty(len(pairs))
    for n in range(len(pairs)):
        a, b = bounds[pairs[n, 0]], bounds[pairs[n, 1]]
        a_end, b_end = bounds[pairs[n, 0] + 1], bounds[pairs[n, 1] + 1]
        either, both = a_end - a + b_end - b, 0
        while a < a_end and b < b_end:
            if shingles[a] == shingles[b]:
                both, a, b = both + 1, a + 1, b + 1
            elif shingles[a] < shingles[b]:
                a += 1
            else:
                b += 1
        out[n] = both / (either - both)
    return out
