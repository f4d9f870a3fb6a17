"""Near duplicates among seeds: MinHash over word 5-grams, in memory, before a prompt costs GPU time.

Two seeds are near duplicates when they have the same name (title, course, ...; "" where a source has none) and the
Jaccard similarity of their texts' word 5-grams reaches a threshold. Words are runs of letters and digits, whatever
their case. A text of fewer words is one shingle; a text without any word equals only itself.

1. Seeds meet in buckets, 20 bands of 5 MinHash values (Broder, 1997; Leskovec et al., Mining of Massive Datasets,
   3.4): with probability 0.9996 at similarity 0.8, 0.975 at 0.7.
2. In each bucket a seed is compared with the smallest id and with the next smaller one, by the exact similarity.

A seed goes when it is that similar to one with a smaller id, so the smallest id of a group always stays, whatever the
order of the rows. Words are hashed by BLAKE2b: no version of a library can change what is found.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import blake2b

import numpy as np
import polars as pl

from stages.draws import draw_u64
from stages.prompting.slots import QUOTED, naming_slots

WORDS = 5  # of a shingle
BANDS, ROWS = 20, 5
TEXTS = 2000  # that are hashed at once: their shingles stay in the processor's cache
PADDING = np.uint64(draw_u64(0, "padding"))
STEPS = np.array([draw_u64(0, "step", n) | 1 for n in range(WORDS)], dtype=np.uint64)
FACTORS = np.array([draw_u64(0, "factor", n) | 1 for n in range(BANDS * ROWS)], dtype=np.uint64)
TERMS = np.array([draw_u64(0, "term", n) for n in range(BANDS * ROWS)], dtype=np.uint64)


@dataclass(frozen=True)
class Sketch:
    """What is known of a source's seeds: shingles of all, MinHash bands of those that meet another."""

    ids: np.ndarray  # rank of each seed's id
    shingles: np.ndarray  # uint32, those of seed n at starts[n]:starts[n + 1]
    starts: np.ndarray
    candidate: np.ndarray  # for each seed its row in `bands`, or -1
    bands: np.ndarray  # uint64 (candidates, BANDS)


class Alikes:
    """Near duplicates among the prompts of one source; a sketch is made once for all templates of the same basis.

    `rows` have slot columns; without a threshold nothing is looked for.
    """

    def __init__(self, rows: pl.DataFrame, threshold: float | None):
        self.rows, self.threshold = rows, threshold
        self._sketches: dict[tuple[str, ...], Sketch] = {}

    def apart(self, cell: pl.DataFrame, slots: tuple[str, ...]) -> tuple[pl.DataFrame, pl.DataFrame]:
        """(prompts that stay, near duplicates) of PROMPT rows; `detail` names the seed that a near duplicate is like.

        `slots` are the template's. Where it quotes the seed's text, those texts are compared, of seeds with one title;
        else the slots that say what is asked for must be equal, case and punctuation aside.
        """
        if self.threshold is None:
            return cell, cell.clear().with_columns(detail=pl.lit("", pl.String))
        text = next((f"slot.{slot}" for slot in QUOTED if slot in slots), "")
        basis = (*(["title"] if text else [f"slot.{slot}" for slot in naming_slots(slots)]), text)
        if basis not in self._sketches:
            self._sketches[basis] = self._sketch(basis)
        ids = self.rows["row_id"]
        places = cell.select(row_id="seed_id").join(
            self.rows.select("row_id").with_row_index(), on="row_id", maintain_order="left"
        )["index"]
        found = near_duplicates(self._sketches[basis], places.to_numpy().astype(np.int64), self.threshold)
        like = pl.Series("detail", [found.get(place) for place in places], dtype=pl.Int64)
        gone = like.is_not_null()
        detail = pl.concat_str(pl.lit("like "), ids.gather(like.drop_nulls()))
        return cell.filter(~gone), cell.filter(gone).with_columns(detail=detail)

    def _sketch(self, basis: tuple[str, ...]) -> Sketch:
        *names, text = basis
        joined = self.rows.select(pl.concat_str([pl.col(n).fill_null("") for n in names], separator="\n")).to_series()
        texts = self.rows[text] if text else pl.Series([""] * self.rows.height, dtype=pl.String)
        return sketch(self.rows["row_id"].to_list(), joined.to_list(), texts)


def sketch(ids: Sequence[str], names: Sequence[str], texts: pl.Series) -> Sketch:
    """The seeds' sketch. `names`: what must be equal, case and punctuation aside."""
    shingles, starts = _shingles(names, texts)
    bands = _bands(shingles, starts)
    chosen = _meeting(bands)
    candidate = np.full(len(ids), -1)
    candidate[chosen] = np.arange(chosen.sum())
    ranks = np.empty(len(ids), dtype=np.int64)
    ranks[sorted(range(len(ids)), key=lambda n: ids[n])] = np.arange(len(ids))
    return Sketch(ranks, shingles, starts, candidate, bands[chosen])


def near_duplicates(known: Sketch, seeds: np.ndarray, threshold: float) -> dict[int, int]:
    """Of these seeds (positions) the ones to take out, each with the one that it is like, which has a smaller id."""
    members = seeds[known.candidate[seeds] >= 0]
    members = members[np.argsort(known.ids[members])]
    bands = known.bands[known.candidate[members]]
    found: dict[int, int] = {}
    for first, second in _pairs(bands):
        seed, other = int(members[second]), int(members[first])
        if seed not in found and _jaccard(known, seed, other) >= threshold:
            found[seed] = other
    return found


def plain(name: str) -> str:
    """A name's words in lower case; the name itself when it has none."""
    return " ".join("".join(c if c.isalnum() else " " for c in name.casefold()).split()) or name


def _shingles(names: Sequence[str], texts: pl.Series) -> tuple[np.ndarray, np.ndarray]:
    """(shingles as uint32, where each text's begin and the last ends)."""
    seen: dict[str, int] = {}
    parts, sizes = [np.empty(0, dtype=np.uint32)], [np.zeros(1, dtype=np.int64)]
    for start in range(0, len(texts), TEXTS):
        shingles, held = _shingles_of(names[start : start + TEXTS], texts[start : start + TEXTS], seen)
        parts.append(shingles)
        sizes.append(held)
    return np.concatenate(parts), np.cumsum(np.concatenate(sizes))


def _shingles_of(names: Sequence[str], texts: pl.Series, seen: dict[str, int]) -> tuple[np.ndarray, np.ndarray]:
    """(shingles of a few texts, how many each has). `seen`: hashes of words, added to."""
    words = texts.str.to_lowercase().str.extract_all(r"\w+")
    counts = words.list.len().to_numpy().astype(np.int64)
    flat = words.explode(empty_as_null=False).to_arrow().dictionary_encode()
    spelled = flat.dictionary.to_pylist()
    seen.update((word, _hash(word)) for word in spelled if word not in seen)
    hashes = np.array([seen[word] for word in spelled], dtype=np.uint64)[flat.indices.to_numpy()]
    lengths = np.maximum(counts, WORDS)
    ends = np.cumsum(lengths)
    padded = np.full(int(ends[-1]), PADDING)
    padded[np.arange(len(hashes)) + np.repeat(ends - lengths - np.cumsum(counts) + counts, counts)] = hashes
    sums = np.zeros(len(padded) - WORDS + 1, dtype=np.uint64)
    for n, step in enumerate(STEPS):
        sums += padded[n : n + len(sums)] * step
    inside = np.ones(len(sums), dtype=bool)
    for n in range(1, WORDS):  # shingles that would reach into the next text
        inside[ends[:-1] - n] = False
    held = lengths - WORDS + 1
    bare = zip(names, texts, counts == 0, strict=True)
    marks = [plain(name) + (f"\x1f{text}" if wordless else "") for name, text, wordless in bare]
    keys = np.repeat(np.array([_hash(mark) for mark in marks], dtype=np.uint64), held)
    return (_mixed(sums[inside] ^ keys) >> np.uint64(32)).astype(np.uint32), held


def _hash(text: str) -> int:
    return int.from_bytes(blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest(), "little")


def _mixed(values: np.ndarray) -> np.ndarray:
    """SplitMix64's finaliser: every bit of the input moves every bit of the output."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))


def _meeting(bands: np.ndarray) -> np.ndarray:
    """Whether a row shares a band's key with another."""
    meeting = np.zeros(len(bands), dtype=bool)
    for keys in bands.T:
        order = np.argsort(keys)
        same = keys[order][1:] == keys[order][:-1]
        meeting[order[1:][same]] = meeting[order[:-1][same]] = True
    return meeting


def _bands(shingles: np.ndarray, starts: np.ndarray) -> np.ndarray:
    """The texts' band keys."""
    bands = np.empty((len(starts) - 1, BANDS), dtype=np.uint64)
    for first in range(0, len(bands), TEXTS):
        bounds = starts[first : first + TEXTS + 1]
        values, begins = shingles[bounds[0] : bounds[-1]].astype(np.uint64), bounds[:-1] - bounds[0]
        for band in range(BANDS):
            key = np.zeros(len(begins), dtype=np.uint64)
            for n in range(band * ROWS, (band + 1) * ROWS):
                lowest = np.minimum.reduceat((values * FACTORS[n] + TERMS[n]) >> np.uint64(32), begins)
                key = _mixed(key * STEPS[0] + lowest)
            bands[first : first + TEXTS, band] = key
    return bands


def _pairs(bands: np.ndarray) -> list[tuple[int, int]]:
    """Pairs (smaller, larger) of rows to compare: each of a bucket with the bucket's first and with the one before."""
    pairs = [np.empty((0, 2), dtype=np.int64)]
    for keys in bands.T:
        order = np.argsort(keys, kind="stable")
        same = np.concatenate([[False], keys[order][1:] == keys[order][:-1]])
        at = np.flatnonzero(same)
        first = np.maximum.accumulate(np.where(same, 0, np.arange(len(order))))
        pairs += [np.stack([order[at - 1], order[at]], 1), np.stack([order[first[at]], order[at]], 1)]
    return [(int(a), int(b)) for a, b in np.unique(np.concatenate(pairs), axis=0)]


def _jaccard(known: Sketch, first: int, second: int) -> float:
    a, b = (np.unique(known.shingles[known.starts[n] : known.starts[n + 1]]) for n in (first, second))
    both = len(np.intersect1d(a, b, assume_unique=True))
    return both / (len(a) + len(b) - both)
