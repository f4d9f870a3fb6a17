"""Near duplicates among source rows: MinHash over word 5-grams, on disk, before a prompt costs GPU time.

Two rows are near duplicates when they have the same name (title, course, ...; "" where a source has none) and the
Jaccard similarity of their texts' word 5-grams reaches a threshold. Words are those of `plain_words`. A text of fewer
than five words is one shingle; a text without any word equals only itself.

1. Rows meet in buckets, 12 bands of 3 MinHash values: with probability 0.9998 at similarity 0.8, 0.994 at 0.7, 0.09 at
   0.2. One band is in memory at a time.
2. In each bucket a row is compared with the first one and with the one before it, by the exact similarity. Rows are in
   the order of their prompts' ids.

A row is removed when it is that similar to an earlier one, so the first of a group is always kept, whatever the order
in which rows were read. All hashes are ours: no version of a library can change the outcome.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from cosmopedia.core.rng import draw_u64
from cosmopedia.corpus.minhash import PRIME, jaccard, signatures
from cosmopedia.corpus.word_hashes import word_hashes
from cosmopedia.execution.progress import track
from cosmopedia.hashing import mix64
from stages.prompts.slots import QUOTED, naming_slots
from stages.prompts.source_rows import Part, SourceRows

WORDS = 5  # of a shingle
BANDS, ROWS = 12, 3
TEXTS = 4096  # that are hashed at once
COMPARED = 1 << 23  # shingles that are in memory at once to be compared
FACTORS = np.array([1 + draw_u64(0, "factor", n) % (PRIME - 1) for n in range(BANDS * ROWS)], dtype=np.uint64)
TERMS = np.array([draw_u64(0, "term", n) % PRIME for n in range(BANDS * ROWS)], dtype=np.uint64)


@dataclass(frozen=True)
class ComparisonKey:
    """What a template's prompts are compared by: columns with equal words, and a text."""

    names: tuple[str, ...]
    text: str  # "": only the names count

    @property
    def label(self) -> str:
        return "-".join((*self.names, self.text))


def comparison_key(slots: Sequence[str]) -> ComparisonKey:
    """The key for a template with these slots.

    Where it quotes the row's text, those texts are compared, of rows with one title; else the slots that say what the
    prompt is about must be equal.
    """
    text = next((f"slot.{slot}" for slot in QUOTED if slot in slots), "")
    return ComparisonKey(("title",) if text else tuple(f"slot.{slot}" for slot in naming_slots(slots)), text)


def save_band_keys(part: Part, key: ComparisonKey) -> None:
    """Put the band keys and the number of shingles of a part's rows next to them."""
    table = part.table()
    sizes: list[np.ndarray] = [np.empty(0, np.int32)]
    keys: list[np.ndarray] = [np.empty((0, BANDS), np.uint64)]
    for start in range(0, part.rows, TEXTS):
        shingles, bounds = shingles_of(table.slice(start, TEXTS).combine_chunks(), key)
        sizes.append(np.diff(bounds).astype(np.int32))
        values = signatures(shingles, bounds, FACTORS, TERMS).reshape(-1, BANDS, ROWS)
        mixed = np.zeros(values.shape[:2], np.uint64)
        for row in range(ROWS):
            mixed = mix64(mixed + values[:, :, row])
        keys.append(mixed)
    part.save(f"sizes-{key.label}", np.concatenate(sizes))
    for band, column in enumerate(np.concatenate(keys).T):
        part.save(f"band-{band:02d}-{key.label}", np.ascontiguousarray(column))


def near_duplicates(rows: SourceRows, key: ComparisonKey, members: np.ndarray, threshold: float) -> np.ndarray:
    """For each row the place of the earlier one that it is similar to, or -1; only `members` (a mask) count."""
    places = np.flatnonzero(members)
    sizes = rows.column(f"sizes-{key.label}", members)
    first = np.arange(len(places))  # the first member that each one is similar to, itself at the beginning
    for band in track(range(BANDS), f"prompts: near duplicates of {rows.source}", BANDS, "bands"):
        for pairs in _pairs(rows.column(f"band-{band:02d}-{key.label}", members)):
            earlier = pairs[pairs[:, 0] < first[pairs[:, 1]]]
            for some in _bounded(earlier, sizes):
                similar = some[_similarities(rows, key, places[some]) >= threshold]
                np.minimum.at(first, similar[:, 1], similar[:, 0])
    found = np.full(len(members), -1)
    removed = np.flatnonzero(first < np.arange(len(places)))
    found[places[removed]] = places[first[removed]]
    return found


def shingles_of(rows: pa.Table, key: ComparisonKey) -> tuple[np.ndarray, np.ndarray]:
    """(shingles as uint64, where each row's begin and the last one's end) of prepared rows."""
    columns = [pc.fill_null(rows[name], "") for name in key.names]
    names = pc.binary_join_element_wise(*columns, pa.scalar("\n", pa.large_string()))  # type: ignore[attr-defined]
    texts = rows[key.text].combine_chunks() if key.text else pa.repeat("", rows.num_rows)
    words = word_hashes(texts)
    sizes = np.diff(words.bounds)
    at, ngrams = words.ngrams(WORDS)
    short = np.flatnonzero(sizes < WORDS)
    places = np.searchsorted(at, words.bounds[short])
    shingles = np.insert(ngrams, places, _text_hashes(texts.take(pa.array(short))))
    counts = np.maximum(sizes - WORDS + 1, 1)
    own_name = mix64(_text_hashes(names.combine_chunks()))  # mixed, lest it cancels out a text that is its own title
    shingles = mix64(shingles ^ np.repeat(own_name, counts))
    return shingles, np.concatenate([[0], np.cumsum(counts)])


def _text_hashes(texts: pa.Array) -> np.ndarray:
    """A hash of all words of each text; of a text without any word, of its characters."""
    encoded = texts.dictionary_encode()
    words = word_hashes(encoded.dictionary)
    sizes = np.diff(words.bounds)
    hashes = words.runs(words.bounds[:-1], sizes)
    for n in np.flatnonzero(sizes == 0).tolist():
        hashes[n] = draw_u64(0, encoded.dictionary[n].as_py())
    return hashes[encoded.indices.to_numpy()]


def _pairs(keys: np.ndarray) -> Iterator[np.ndarray]:
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
    yield np.stack([met[first[at]], met[at]], axis=1)
    yield np.stack([met[at - 1], met[at]], axis=1)


def _bounded(pairs: np.ndarray, sizes: np.ndarray) -> Iterator[np.ndarray]:
    """The pairs in pieces of at most about `COMPARED` shingles, of which each row has `sizes`."""
    if len(pairs):
        weights = np.cumsum(sizes[pairs].sum(axis=1, dtype=np.int64)) // COMPARED
        yield from np.split(pairs, np.flatnonzero(np.diff(weights)) + 1)


def _similarities(rows: SourceRows, key: ComparisonKey, pairs: np.ndarray) -> np.ndarray:
    """The Jaccard similarity of each pair of rows."""
    places, inverse = np.unique(pairs, return_inverse=True)
    sets: list[np.ndarray] = []
    for part, some in rows.split(places):
        for _, taken in part.slices(some):
            shingles, bounds = shingles_of(taken, key)
            sets += map(np.unique, np.split(shingles, bounds[1:-1]))
    return np.array([jaccard(sets[a], sets[b]) for a, b in inverse.reshape(pairs.shape)])
