"""The words by which passages and queries are compared, as numbers.

Words are those that decontamination compares (cosmopedia/corpus/words.py), as 64-bit hashes: no language, stemmer or
list of stop words is assumed. A word in more than a share of all passages says little about any of them, and has the
longest list of passages: it is left out.
"""

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np

from cosmopedia.corpus.word_hashes import Texts, word_hashes


class Terms(NamedTuple):
    """The different words of several texts, by text and word."""

    texts: np.ndarray  # int32
    words: np.ndarray  # uint64, hashes
    times: np.ndarray  # int32, how often the text has the word


def terms_of(texts: Texts) -> tuple[Terms, np.ndarray]:
    """(the terms of some texts, how many words each text has)."""
    hashed = word_hashes(texts)
    lengths = np.diff(hashed.bounds)
    text = np.repeat(np.arange(len(lengths), dtype=np.int32), lengths)
    order = np.lexsort((hashed.words, text))
    words = hashed.words[order]
    new = np.ones(len(text), dtype=bool)
    new[1:] = (text[1:] != text[:-1]) | (words[1:] != words[:-1])
    first = np.flatnonzero(new)
    return Terms(text[first], words[first], np.diff(np.append(first, len(text))).astype(np.int32)), lengths


class Query(NamedTuple):
    """What a text is looked up by."""

    words: np.ndarray  # the different ones that the vocabulary has, ascending numbers
    unknown: int  # different words that no passage has


class Vocabulary:
    """The different words of a corpus, and in how many passages each one is. Memory: 12 bytes per word."""

    def __init__(
        self,
        hashes: np.ndarray | None = None,
        passages: np.ndarray | None = None,
        common: np.ndarray | None = None,
    ):
        self.hashes = np.empty(0, np.uint64) if hashes is None else hashes  # ascending
        self.passages = np.empty(0, np.int32) if passages is None else passages
        self.common = np.empty(0, np.uint64) if common is None else common  # words that were left out; ascending

    def add(self, words: np.ndarray) -> None:
        """Count the words of a block of passages, each word once per passage."""
        different, passages = np.unique(words, return_counts=True)
        both = np.concatenate([self.hashes, different])
        counts = np.concatenate([self.passages, passages])
        self.hashes, places = np.unique(both, return_inverse=True)
        self.passages = np.bincount(places, counts, len(self.hashes)).astype(np.int32)

    def without_common(self, most: int) -> "Vocabulary":
        """Without the words that are in more than `most` passages."""
        kept = self.passages <= most
        return Vocabulary(self.hashes[kept], self.passages[kept], self.hashes[~kept])

    def numbers(self, words: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(the numbers of the words that the vocabulary has, which of `words` these are)."""
        if not len(self.hashes):
            return np.empty(0, np.int64), np.zeros(len(words), dtype=bool)
        places = np.minimum(np.searchsorted(self.hashes, words), len(self.hashes) - 1)
        known = self.hashes[places] == words
        return places[known], known

    def queries(self, texts: Texts) -> list[Query]:
        """What each text is looked up by; words that were left out are neither known nor unknown."""
        terms, lengths = terms_of(texts)
        numbers, known = self.numbers(terms.words)
        unknown = terms.texts[~known & ~np.isin(terms.words, self.common)]
        missing = np.bincount(unknown, minlength=len(lengths)).tolist()
        bounds = np.searchsorted(terms.texts[known], np.arange(len(lengths) + 1))
        return [Query(numbers[bounds[n] : bounds[n + 1]], missing[n]) for n in range(len(lengths))]


def vocabulary_of(blocks: Iterable[np.ndarray]) -> Vocabulary:
    """The vocabulary of several blocks of words, each word once per passage."""
    whole = Vocabulary()
    for words in blocks:
        whole.add(words)
    return whole
