"""Contamination of documents by benchmark items: every pair that shares an n-gram, then the matched-block ratio.

The published rule (Cosmopedia, decontamination/decontaminate.py, after Phi-1's 10-grams): words are those of
`plain_words` and texts are these words joined by spaces. A document that shares a 10-gram with an item is a candidate;
it is contaminated when difflib's matching blocks of more than 5 characters, joined and with white space collapsed, are
longer than half the item. The published script looks only at the first n-gram hit of a document, in the order of a
set, and an n-gram leads it to the last item that has it; here all pairs are tested. An item's text is its question and
its right answer.

`plain` is that ratio. It grows with the document: the more text, the more of an item's short phrases are somewhere in
it. `window` is the same ratio over only the part of the document where the item would be, if the shared n-gram were
where it is in the item: for an item of L characters that would begin at s, the characters s - window * L to
s + L + window * L. Of several such places the best counts, of equals the first.

Items of `shortest_item` words up to `ngram` - 1 are found by all their words. Shorter ones are everywhere and count
only where they are the whole document. A document that holds an item verbatim has ratio 1, whatever the parameters.

N-grams in more documents than `common_ngram` allows (legal phrases, templates) lead to no candidate, unless the
document holds the item verbatim.
"""

import pickle
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate
from pathlib import Path
from typing import Any, Literal

import numpy as np
from pydantic import Field

from cosmopedia.corpus.word_hashes import Texts, word_hashes
from cosmopedia.corpus.words import plain_words
from cosmopedia.params import Params
from stages.decontaminate.matching_blocks import Block, Matcher
from stages.decontaminate.ngrams import NOT_COUNTED, NgramTable

RULES = ("plain", "window")


class DecontaminateParams(Params):
    """When a document counts as contaminated."""

    ngram: int = Field(ge=2)  # words that a document and an item must share in a row
    shortest_item: int = Field(ge=1)  # words; shorter items are found only as whole documents
    min_block: int = Field(ge=0)  # characters; only longer matching blocks count
    max_ratio: float = Field(ge=0, lt=1)  # matched characters over the item's; above it is contaminated
    ratio: Literal["plain", "window"]  # which of the two decides
    window: float = Field(ge=0)  # the window's margin on each side, in lengths of the item
    common_ngram: float | None = Field(gt=0)  # documents, below 1 a share of them; n-grams in more make no candidate


@dataclass(frozen=True)
class Item:
    """A benchmark item."""

    item_id: str
    task: str
    question_and_answer: str

    @cached_property
    def words(self) -> list[str]:
        return plain_words(self.question_and_answer)

    @cached_property
    def text(self) -> str:
        """As it is matched."""
        return " ".join(self.words)


@dataclass(frozen=True)
class Hit:
    """Words that a document and an item share."""

    at: int  # the first one, in the document
    place: int  # and in the item
    size: int  # words
    ngram: int  # its number, or NOT_COUNTED


@dataclass(frozen=True)
class Match:
    """A pair that shares an n-gram, and how much of the item the document holds."""

    item: Item
    ngram: str  # the first that they share
    matched: str  # by the rule that decides
    plain: float
    window: float

    def contaminated(self, params: DecontaminateParams, rule: str | None = None) -> bool:
        """The verdict of one of RULES; by default of the one that decides."""
        return getattr(self, rule or params.ratio) > params.max_ratio


@dataclass(frozen=True)
class Findings:
    """What a document has in common with the items."""

    pairs: int  # candidates: items that share an n-gram with it
    common_only: int  # items that share only common n-grams and are not in it verbatim: not candidates
    matches: list[Match]  # the candidates that may be above max_ratio by either rule


class Index:
    """The n-grams of benchmark items, for looking documents up."""

    def __init__(self, items: Iterable[tuple[str, str, str]], rule: DecontaminateParams):
        """`items` are (item_id, task, text)."""
        self.rule, self.items = rule, sorted(items)
        self._item: dict[int, Item] = {}
        hashes = word_hashes([text for _, _, text in self.items])
        sizes = np.diff(hashes.bounds)
        short = min(rule.shortest_item, rule.ngram)
        long = np.flatnonzero(sizes >= rule.ngram)
        middle = np.flatnonzero((sizes >= short) & (sizes < rule.ngram))
        self.checked, self.short, self.shortest = len(long), len(middle), len(self.items) - len(long) - len(middle)
        at, grams = hashes.ngrams(rule.ngram)
        items_of = np.searchsorted(hashes.bounds, at, "right") - 1
        self._long = NgramTable.of(hashes, rule.ngram, grams, items_of, at - hashes.bounds[items_of])
        first = hashes.runs(hashes.bounds[middle], np.full_like(middle, short))
        self._short = NgramTable.of(hashes, short, first, middle, np.zeros_like(middle), sizes[middle])
        self._whole: dict[str, list[int]] = {}
        for number in np.flatnonzero((sizes > 0) & (sizes < short)).tolist():
            self._whole.setdefault(self.item(number).text, []).append(number)
        self._shortest_item = short
        self.common = np.zeros(self.ngrams, dtype=bool)

    def item(self, number: int) -> Item:
        """An item by its number."""
        if number not in self._item:
            self._item[number] = Item(*self.items[number])
        return self._item[number]

    def hits(self, texts: Texts) -> Iterator[tuple[int, list[str], dict[int, list[Hit]]]]:
        """(number of a text, its words, the hits of each item by number), for the texts with any, in their order."""
        for text, near in sorted(self._near(texts).items()):
            words = plain_words(str(texts[text]))
            if hits := self._verified(words, near):
                yield text, words, hits

    def _near(self, texts: Texts) -> dict[int, list[tuple[int, int, int, int]]]:
        """(place in the text, item, place in the item, n-gram) of equal hashes, by the number of the text."""
        hashes = word_hashes(texts)
        near: dict[int, list[tuple[int, int, int, int]]] = {}
        for table in (self._long, self._short):
            for text, *hit in table.lookup(hashes):
                near.setdefault(text, []).append((hit[0], hit[1], hit[2], hit[3]))
        sizes = np.diff(hashes.bounds)
        for text in np.flatnonzero((sizes > 0) & (sizes < self._shortest_item)).tolist():
            near.setdefault(text, [])
        return near

    def _verified(self, words: list[str], near: list[tuple[int, int, int, int]]) -> dict[int, list[Hit]]:
        hits: dict[int, list[Hit]] = {}
        for at, item, place, ngram in sorted(near):
            wanted = self.item(item).words
            size = len(wanted) if ngram == NOT_COUNTED else self.rule.ngram
            if words[at : at + size] == wanted[place : place + size]:
                hits.setdefault(item, []).append(Hit(at, place, size, ngram))
        if len(words) < self._shortest_item:
            for item in self._whole.get(" ".join(words), []):
                hits[item] = [Hit(0, 0, len(words), NOT_COUNTED)]
        return dict(sorted(hits.items()))

    def findings(self, texts: Texts) -> Iterator[tuple[int, Findings]]:
        """(number of a text, its findings), for the texts that share an n-gram with an item."""
        for text, words, hits in self.hits(texts):
            document = " ".join(words)
            rare: dict[int, str] = {}  # items that are not in it verbatim, with the first n-gram that is not common
            matches: list[Match] = []
            for number, several in hits.items():
                item = self.item(number)
                if item.text in document:
                    matches.append(Match(item, _shared(item, several[0]), item.text, 1.0, 1.0))
                elif first := next((hit for hit in several if not self.common[hit.ngram]), None):
                    rare[number] = _shared(item, first)
            pairs = len(matches) + len(rare)
            matches += self._rated(document, words, rare, hits)
            matches.sort(key=lambda match: match.item.item_id)
            yield text, Findings(pairs, len(hits) - pairs, matches)

    def _rated(
        self, document: str, words: list[str], shared: dict[int, str], hits: dict[int, list[Hit]]
    ) -> Iterator[Match]:
        """The matches of items that the document does not hold verbatim, where a ratio can be above `max_ratio`."""
        if not shared:
            return
        rule = self.rule
        starts = _starts(words)
        matcher = Matcher(document, rule.min_block)
        for number, words_shared in shared.items():
            item = self.item(number)
            runs, size = matcher.runs(item.text), len(item.text)
            if runs.covered <= rule.max_ratio * size:
                continue
            own, margin = _starts(item.words), int(rule.window * size)
            begins = sorted({starts[hit.at] - own[hit.place] for hit in hits[number]})
            windows = [(max(0, at - margin), min(len(document), at + size + margin)) for at in begins]
            different = {document[low:high]: (low, high) for low, high in reversed(windows)}
            matched, plain = joined(document, runs.blocks(0, len(document)), size)
            rated = [joined(document, runs.blocks(low, high), size) for low, high in sorted(different.values())]
            best, window = max(rated, key=lambda pair: pair[1])
            yield Match(item, words_shared, matched if rule.ratio == "plain" else best, plain, window)

    def count(self, texts: Texts, documents: np.ndarray) -> None:
        """Add to `documents` (by an n-gram's number) the texts that have it."""
        for _, _, hits in self.hits(texts):
            numbers = {hit.ngram for several in hits.values() for hit in several} - {NOT_COUNTED}
            documents[list(numbers)] += 1

    @property
    def ngrams(self) -> int:
        """How many different n-grams the items have; they are numbered from 0."""
        return int(self._long.ngrams.max(initial=-1)) + 1

    def commonest(self, documents: np.ndarray, count: int) -> list[dict[str, Any]]:
        """`count` of the common n-grams, with how many documents and items have them; most documents first."""
        numbers = np.flatnonzero(self.common)
        least = np.sort(documents[numbers])[-count:][:1]  # empty where none is common
        rows = []
        for number in numbers[documents[numbers] >= least].tolist():
            entries = slice(*np.searchsorted(self._long.ngrams, (number, number + 1)).tolist())
            items, place = self._long.items[entries], int(self._long.places[entries][0])
            words = self.item(int(items[0])).words[place : place + self.rule.ngram]
            row = {"ngram": " ".join(words), "documents": int(documents[number]), "items": len(np.unique(items))}
            rows.append(row)
        return sorted(rows, key=lambda row: (-row["documents"], row["ngram"]))[:count]

    def save(self, path: Path) -> None:
        """Write the index for other processes of the same run."""
        path.write_bytes(pickle.dumps(self))

    @staticmethod
    def read(path: Path) -> "Index":
        """What `save` wrote."""
        return pickle.loads(path.read_bytes())


def joined(document: str, blocks: list[Block], size: int) -> tuple[str, float]:
    """(the blocks' text, joined and with white space collapsed; its length over `size`, that of the item)."""
    text = " ".join("".join([document[at : at + length] for at, _, length in blocks]).split())
    return text, len(text) / size


def _shared(item: Item, hit: Hit) -> str:
    return " ".join(item.words[hit.place : hit.place + hit.size])


def _starts(words: list[str]) -> list[int]:
    """Where each word begins in the words joined by spaces."""
    return list(accumulate([len(word) + 1 for word in words], initial=0))
