"""BM25 over passages with bm25s (Lù 2024, arXiv:2407.03618): blocks of passages, each an index on disk that is mapped.

Scores are Lucene's BM25 (k1 1.5, b 0.75). How rare a word is, and how long passages are on average, is counted over
all passages, so that a score depends on no block; blocks bound the memory. bm25s's own way to an index goes through
lists of Python numbers and knows one block only: here its arrays are filled from the counts, and it scores.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from bm25s import BM25

from stages.retrieve.words import Query, Terms, Vocabulary

ARRAYS = ("words", "data", "indices", "indptr")
# What Scale divides by: measured, docs/decisions/2026-11-30-grounding.md
EXTRA_WORDS = 2  # that a query counts as having, and no passage; else a title of two words is found by one of them
SIZE_POWER = 0.75  # of the logarithm of its size; at 0.5 chance matches pass in a large corpus, at 1 good ones fail


@dataclass(frozen=True)
class Statistics:
    """What a score needs to know of all passages."""

    passages: int
    mean_length: float  # words of a passage, the common ones too


def save_block(folder: Path, terms: Terms, lengths: np.ndarray, vocabulary: Vocabulary, whole: Statistics) -> None:
    """Index a block: `terms` of its passages by their hashes, and `lengths`, words of each passage."""
    numbers, known = vocabulary.numbers(terms.words)
    passage, times = terms.texts[known], terms.times[known].astype(np.float64)
    model = BM25()
    rare = rarity(vocabulary.passages, whole)[numbers]
    length = model.k1 * (1 - model.b + model.b * lengths[passage] / whole.mean_length)
    words, column = np.unique(numbers, return_inverse=True)
    scores = (rare * times / (length + times)).astype(np.float32)
    data, indices, indptr = model._np_csc(
        data=scores, rows=passage.astype(np.int32), cols=column.astype(np.int32), shape=(len(lengths), len(words))
    )
    folder.mkdir(parents=True)
    for name, array in zip(ARRAYS, (words, data, indices, indptr), strict=True):
        np.save(folder / f"{name}.npy", array)
    np.save(folder / "passages.npy", np.array(len(lengths)))


def rarity(passages: Any, whole: Statistics) -> Any:
    """The weight (Lucene's idf, nats) of words that are in so many passages."""
    return np.log1p((whole.passages - passages + 0.5) / (passages + 0.5))


class Scale:
    """Brings BM25 to a scale on which scores of queries of any length, in corpora of any size, can be compared.

    BM25 is divided by the length of the query's vector of weights, its unknown words and EXTRA_WORDS included, and by
    a power of the logarithm of the number of passages. Chance matches add up as that length does, and their greatest
    sum grows with the corpus; a query of which most words are in no passage is about something else.
    """

    def __init__(self, vocabulary: Vocabulary, whole: Statistics):
        self._passages, self._whole = vocabulary.passages, whole
        self._unknown, self._size = rarity(0, whole) ** 2, np.log1p(whole.passages) ** SIZE_POWER

    def divisor(self, query: Query) -> np.float32:
        """What a query's BM25 is divided by."""
        known = rarity(self._passages[query.words], self._whole) ** 2
        squares = known.sum() + (query.unknown + EXTRA_WORDS) * self._unknown
        return np.float32(np.sqrt(squares) * self._size)


class Block:
    """An index of a block on disk, for queries."""

    def __init__(self, folder: Path, first: int, scorer: Any = None):
        arrays = {name: np.load(folder / f"{name}.npy", mmap_mode="r") for name in ARRAYS}
        self.first, self._words = first, arrays.pop("words")
        self.passages = int(np.load(folder / "passages.npy"))
        self._model = BM25()
        self._model.scores = {**arrays, "num_docs": self.passages}
        self._model.nonoccurrence_array = None
        if scorer is not None:
            self._model._compute_relevance_from_scores = scorer

    def scores(self, words: np.ndarray) -> np.ndarray:
        """The score of each passage for a query's words (ascending numbers of the vocabulary)."""
        places = np.minimum(np.searchsorted(self._words, words), max(len(self._words) - 1, 0))
        if not len(self._words):
            return np.zeros(self.passages, np.float32)
        ids: Any = places[self._words[places] == words]
        return self._model.get_scores_from_ids(ids)


def compiled_scorer() -> Any:
    """bm25s's compiled scoring, for all blocks of a process: the compiler takes a second."""
    model = BM25()
    model.activate_numba_scorer()
    return model._compute_relevance_from_scores


def best(scores: np.ndarray, count: int, least: float) -> np.ndarray:
    """The places of the `count` best scores of at least `least`, best first; of equal ones the first places."""
    if len(scores) > count:
        least = max(least, float(np.partition(scores, len(scores) - count)[len(scores) - count]))
    places = np.flatnonzero((scores >= least) & (scores > 0))
    return places[np.lexsort((places, -scores[places]))][:count]


def search(
    blocks: Sequence[Block], queries: Sequence[Query], scale: Scale, count: int, least: float
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """(passages, scores) of each query's `count` best passages, best first; of equal scores the first passages."""
    found: list[list[tuple[np.ndarray, np.ndarray]]] = [[] for _ in queries]
    for block in blocks:
        for several, query in zip(found, queries, strict=True):
            if len(query.words):
                scores = block.scores(query.words) / scale.divisor(query)
                places = best(scores, count, least)
                several.append((places + block.first, scores[places]))
    for several in found:
        passages = np.concatenate([np.empty(0, np.int64), *(places for places, _ in several)])
        scores = np.concatenate([np.empty(0, np.float32), *(scores for _, scores in several)])
        order = np.lexsort((passages, -scores))[:count]
        yield passages[order], scores[order]
