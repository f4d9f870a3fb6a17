"""The forms in which a benchmark item gets into a corpus, and the words of each.

`question_answer` is the published rule's text: the question and its right answer, as one. Copies on the web have the
question alone, something between question and answer ("Answer:", "A)"), all choices as a list, or a text that belongs
to the item: BoolQ's passage, GSM8K's worked answer, Winogrande's sentence with its gap.
"""

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np

from cosmopedia.corpus.word_hashes import WordHashes, word_hashes
from cosmopedia.corpus.words import Normalisation

QUESTION, QUESTION_ANSWER, CHOICES = "question", "question_answer", "choices"


class Form(NamedTuple):
    """A benchmark item in one of its forms: texts that follow one another, with or without something in between."""

    item_id: str
    task: str
    name: str
    parts: tuple[str, ...]


def forms_of(row: dict[str, Any], published_only: bool = False) -> Iterator[Form]:
    """The forms of a BENCHMARK row: all, or the published rule's."""
    about = row["item_id"], row["task"]
    question = row["question"]
    yield Form(*about, QUESTION_ANSWER, (question, row["answer"]))
    if published_only:
        return
    if row["answer"].strip():
        yield Form(*about, QUESTION, (question,))
    if len(row["choices"]) > 1:
        yield Form(*about, CHOICES, (question, *row["choices"]))
    for other in row["other_forms"]:
        yield Form(*about, other["form"], (other["text"],))


class FormHashes:
    """The hashes of the words of all forms, and which of them are looked for, and how."""

    def __init__(self, forms: list[Form], normalisation: Normalisation):
        numbers: dict[str, int] = {}
        pieces = np.array([numbers.setdefault(part, len(numbers)) for form in forms for part in form.parts], np.int64)
        hashes = word_hashes([*numbers], normalisation)
        # one row per part of a form: the words that it has of `hashes`
        self.part_sizes = np.diff(hashes.bounds)[pieces]
        self.part_bounds = np.cumsum([0, *(len(form.parts) for form in forms)])
        before = np.cumsum(self.part_sizes) - self.part_sizes
        places = np.repeat(hashes.bounds[pieces] - before, self.part_sizes)
        places += np.arange(len(places))
        bounds = np.append(before, len(places))[self.part_bounds]
        self.words = WordHashes(bounds, hashes.words[places])
        self.sizes = np.diff(bounds)
        self.names = np.array([form.name for form in forms], dtype=str)
        items: dict[str, int] = {}
        self.items = np.array([items.setdefault(form.item_id, len(items)) for form in forms], dtype=np.int64)

    def choose(self, shortest: int, shortest_alone: int, published_only: bool) -> None:
        """Set which forms are looked for: `as_they_are`, `by_parts` (masks), and `question_of`.

        A question of `shortest_alone` words or more that no other item has is in all of its item's forms, so the other
        ones are looked for only without it. Its n-grams are those of question and answer: `question_of` leads from
        that form to it, -1 where it is not looked for.
        """
        whole = self.words.runs(self.words.bounds[:-1], self.sizes)
        published, question = self.names == QUESTION_ANSWER, self.names == QUESTION
        self.as_they_are, self.by_parts = published, np.zeros_like(published)
        self.question_of = np.full(len(whole), -1)
        if published_only:
            return
        _, number, times = np.unique(whole[question], return_inverse=True, return_counts=True)
        alone = question & (self.sizes >= shortest_alone)
        alone[question] &= times[number] == 1
        found = np.isin(self.items, self.items[alone])
        filled = np.concatenate([[0], np.cumsum(self.part_sizes > 0)])[self.part_bounds]
        several = np.diff(filled) > 1
        other = ~published & ~question & (self.names != CHOICES) & (self.sizes >= shortest_alone)
        choices = (self.names == CHOICES) & ~found
        self.as_they_are = published | other | choices
        self.by_parts = (published | choices) & ~found & several & (self.sizes >= shortest)
        numbers = np.full(len(whole) + 1, -1)
        numbers[self.items[alone]] = np.flatnonzero(alone)
        longer = published & (numbers[self.items] >= 0)
        longer[longer] = self.sizes[longer] > self.sizes[numbers[self.items[longer]]]  # else both are the same
        self.question_of[longer] = numbers[self.items[longer]]
