"""Edited items: the share of an item's words that a document has in their places around a few words in a row.

A document and an item that share `ngram` words in a row are laid on one another there, and the words that agree, one
place to either side allowed, are weighed by their rarity in the items (the logarithm of all words over this one's
occurrences): a template proves little, a name much. In ordinary text about two words of an item agree by chance, which
is half of a short one and nothing of a long one; so `chance` words are taken off. An item of which every fifth word is
replaced keeps four in a row.
"""

from dataclasses import dataclass
from typing import Any

import numba
import numpy as np

from cosmopedia.contamination.forms import QUESTION_ANSWER, FormHashes
from cosmopedia.contamination.ngrams import NgramTable
from cosmopedia.corpus.word_hashes import WordHashes

SLACK = 1  # places by which words may be moved
TEMPLATE = 100  # forms; an n-gram that more of them have is a template and leads to none


@dataclass(frozen=True)
class Similar:
    """A form of which a document may have an edited copy."""

    form: int
    at: int  # the n-gram that they share: its first word in the document,
    place: int  # and in the form
    share: float  # of the form's words that are in their places, without those that agree by chance


class TolerantTable:
    """The short n-grams of forms, and what their words weigh."""

    def __init__(self, forms: FormHashes, shortest: int, ngram: int, ratio: float, chance: float):
        """`shortest`: words of a form; `ratio`: the share of them above which it is found."""
        self.ngram, self.ratio = ngram, ratio
        self._forms, self._sizes, self._question_of = forms.words, forms.sizes, forms.question_of
        at, grams = forms.words.ngrams(ngram)
        form = np.searchsorted(forms.words.bounds, at, "right") - 1
        chosen = ((forms.names == QUESTION_ANSWER) & (forms.sizes >= shortest))[form]
        at, grams, form = at[chosen], grams[chosen], form[chosen]
        table = NgramTable.of(forms.words, ngram, grams, form, at - forms.words.bounds[form])
        self._table = table.of_at_most(TEMPLATE)
        _, number, times = np.unique(forms.words.words, return_inverse=True, return_counts=True)
        self._weights = np.log((len(number) + 1) / times)[number]
        bounds, summed = forms.words.bounds, np.concatenate([[0.0], np.cumsum(self._weights)])
        self._whole = summed[bounds[1:]] - summed[bounds[:-1]]
        self._missing = self._whole * (1 - ratio - chance / np.maximum(forms.sizes, 1)) * (forms.sizes >= shortest)

    def lookup(self, words: WordHashes) -> dict[int, list[Similar]]:
        """The forms that a text has an edited copy of, by the number of the text."""
        text, at, form, place, _ = self._table.matches(words)
        found: dict[int, list[Similar]] = {}
        if len(text):
            # a hit of question and answer that lies in the question is one of the question
            question = self._question_of[form]
            inside = np.flatnonzero((question >= 0) & (place + self.ngram <= self._sizes[question]))
            text, at, place = (np.concatenate([column, column[inside]]) for column in (text, at, place))
            form = np.concatenate([form, question[inside]])
            arrays = words.words, words.bounds, text, at, form, place
            left = _left(*arrays, self._forms.words, self._forms.bounds, self._weights, self._missing)
            equal = np.flatnonzero(left > 0)
            shares = left[equal] / self._whole[form[equal]] + self.ratio
            columns = text[equal], form[equal], at[equal], place[equal], shares
            for number, *one in zip(*(column.tolist() for column in columns), strict=True):
                found.setdefault(number, []).append(Similar(*one))
        return found


@numba.njit(cache=True, nogil=True)
def _left(
    words: Any,
    bounds: Any,
    text: Any,
    at: Any,
    form: Any,
    place: Any,
    wanted: Any,
    ends: Any,
    weights: Any,
    missing: Any,
) -> Any:
    """How much more weight may be missing than is, of the words around each n-gram; 0: too much is.

    Of the n-grams of one copy the first one stands for all.
    """
    over = np.zeros(len(text), np.float64)
    last_text, last_first = np.full(len(ends) - 1, -1, np.int64), np.zeros(len(ends) - 1, np.int64)
    for n in range(len(text)):
        one, first = form[n], at[n] - place[n]
        if last_text[one] == text[n] and last_first[one] == first:
            continue
        last_text[one], last_first[one] = text[n], first
        low, high = bounds[text[n]], bounds[text[n] + 1]
        left = missing[one]
        for word in range(ends[one], ends[one + 1]):
            if left <= 0:
                break
            here = low + first + word - ends[one]
            agrees = False
            for near in range(max(low, here - SLACK), min(high, here + SLACK + 1)):
                agrees = agrees or words[near] == wanted[word]
            if not agrees:
                left -= weights[word]
        over[n] = max(left, 0.0)
    return over
