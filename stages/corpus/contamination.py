"""Contamination of documents by benchmark items: every pair that shares an n-gram, then the matched-block ratio.

The published rule (Cosmopedia, decontamination/decontaminate.py, after Phi-1's 10-grams): words are those of
`plain_words` and texts are these words joined by spaces. A document that shares a 10-gram with an item is a candidate;
it is contaminated when difflib's matching blocks of more than 5 characters, joined and with white space collapsed, are
longer than half the item. The published script looks at the first n-gram hit of a document alone, in the order of a
set; here all candidates of a document are tested. An item's text is its question and its right answer.

The index holds 64-bit hashes of the items' n-grams in sorted arrays; a hit is verified word by word, so that a
collision cannot make a candidate. Items of 5 to 9 words are found by the n-gram of all their words; shorter ones are
not checked, but counted.
"""

import difflib
import pickle
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from datatrove.data import Document
from datatrove.pipeline.filters.base_filter import BaseFilter
from datatrove.pipeline.writers.disk_base import DiskWriter
from pydantic import Field

from stages.corpus.cells import removal
from stages.corpus.words import plain_words
from stages.settings import Params

UNKNOWN = 0  # a word that no item has
BASE = np.uint64(0x9E3779B97F4A7C15)  # odd, so that every position of an n-gram counts


class DecontaminateParams(Params):
    """When a document counts as contaminated."""

    ngram: int = Field(ge=2)  # words that a document and an item must share in a row
    shortest_item: int = Field(
        ge=1
    )  # words; items below `ngram` are found by all their words, shorter ones are not checked
    min_block: int = Field(ge=0)  # characters; only longer matching blocks count
    max_ratio: float = Field(ge=0, le=1)  # matched characters over the item's; above it is contaminated


@dataclass(frozen=True)
class Item:
    """A benchmark item as it is matched."""

    item_id: str
    task: str
    text: str  # its words, joined by spaces


@dataclass(frozen=True)
class Match:
    """A candidate pair: the item, an n-gram that it shares with the document, and how much of it is there."""

    item: Item
    ngram: str
    matched: str
    ratio: float


class Index:
    """The n-grams of benchmark items, for looking documents up."""

    def __init__(self, items: Iterable[tuple[str, str, str]], rule: DecontaminateParams):
        """`items` are (item_id, task, text)."""
        self.rule, self.items, self.unchecked = rule, [], []
        self.vocabulary: dict[str, int] = {}
        self.words: list[np.ndarray] = []
        entries: dict[int, list[int]] = {}
        for item_id, task, text in sorted(items):
            words = plain_words(text)
            item = Item(item_id, task, " ".join(words))
            if len(words) < min(rule.shortest_item, rule.ngram):
                self.unchecked.append(item)
                continue
            numbers = [self.vocabulary.setdefault(word, len(self.vocabulary) + 1) for word in words]
            self.words.append(np.array(numbers, dtype=np.int64))
            entries.setdefault(min(rule.ngram, len(words)), []).append(len(self.items))
            self.items.append(item)
        self.short = sum(len(words) < rule.ngram for words in self.words)
        self._tables = {n: _Table.of(n, {i: self.words[i] for i in found}) for n, found in sorted(entries.items())}

    def candidates(self, words: list[str]) -> dict[int, tuple[int, int]]:
        """{item number: (position in the document, n)} for all items that share an n-gram, its first place."""
        get = self.vocabulary.get
        numbers = np.fromiter((get(word, UNKNOWN) for word in words), dtype=np.int64, count=len(words))
        found: dict[int, tuple[int, int]] = {}
        for n, wanted in _hashes(numbers, self._tables):
            for position, item, place in self._tables[n].lookup(wanted):
                gram = numbers[position : position + n]
                if item not in found and np.array_equal(self.words[item][place : place + n], gram):
                    found[item] = (position, n)
        return found

    def matches(self, text: str) -> list[Match]:
        """All candidate pairs of a document with their ratios, by item id."""
        words = plain_words(text)
        found = self.candidates(words)
        if not found:
            return []
        document = " ".join(words)
        return [
            Match(self.items[item], " ".join(words[at : at + n]), *matched(document, self.items[item].text, self.rule))
            for item, (at, n) in sorted(found.items())
        ]

    def contaminating(self, matches: list[Match]) -> list[Match]:
        """Those that the rule calls contamination."""
        return [match for match in matches if match.ratio > self.rule.max_ratio]

    def save(self, path: Path) -> None:
        """Write the index for other processes of the same run."""
        path.write_bytes(pickle.dumps(self))


def matched(document: str, item: str, rule: DecontaminateParams) -> tuple[str, float]:
    """(the parts of the item that the document holds, joined; their length over the item's)."""
    if item in document and len(item) > rule.min_block:
        return item, 1.0  # what difflib finds too: no block can be longer
    matcher = difflib.SequenceMatcher(None, document, item, autojunk=False)
    blocks = [document[a : a + size] for a, _, size in matcher.get_matching_blocks() if size > rule.min_block]
    text = " ".join("".join(blocks).split())
    return text, len(text) / len(item)


@dataclass(frozen=True)
class _Table:
    """The n-grams of one length: hashes ascending, the item and the place in it of each, and a sieve for misses."""

    hashes: np.ndarray
    items: np.ndarray
    places: np.ndarray
    sieve: np.ndarray  # whether any hash begins with these bits
    shift: np.uint64

    @classmethod
    def of(cls, n: int, words: dict[int, np.ndarray]) -> "_Table":
        """The table of items' n-grams, from {item: its words as numbers}."""
        grams = {item: next(_hashes(numbers, [n]))[1] for item, numbers in words.items()}
        hashes = np.concatenate(list(grams.values()))
        items = np.concatenate([np.full(len(h), item, dtype=np.int32) for item, h in grams.items()])
        places = np.concatenate([np.arange(len(h), dtype=np.int32) for h in grams.values()])
        order = np.lexsort((places, items, hashes))
        bits = max(10, int(len(hashes) * 16).bit_length())
        sieve, shift = np.zeros(1 << bits, dtype=bool), np.uint64(64 - bits)
        sieve[hashes >> shift] = True
        return cls(hashes[order], items[order], places[order], sieve, shift)

    def lookup(self, wanted: np.ndarray) -> Iterator[tuple[int, int, int]]:
        """(position in `wanted`, item, place in the item) of every equal hash, by position."""
        maybe = np.flatnonzero(self.sieve[wanted >> self.shift])
        left = np.searchsorted(self.hashes, wanted[maybe], "left")
        right = np.searchsorted(self.hashes, wanted[maybe], "right")
        for position, first, last in zip(maybe.tolist(), left.tolist(), right.tolist(), strict=True):
            for entry in range(first, last):
                yield position, int(self.items[entry]), int(self.places[entry])


def _hashes(numbers: np.ndarray, lengths: Iterable[int]) -> Iterator[tuple[int, np.ndarray]]:
    """(n, hashes of all n-grams) for ascending lengths n: polynomials in BASE modulo 2**64 over mixed word numbers."""
    values = _mix(numbers.astype(np.uint64))
    total, k = np.zeros(len(values), dtype=np.uint64), 0
    for n in lengths:
        if n > len(values):
            return
        while k < n:
            total = total[: len(values) - k] * BASE + values[k:]
            k += 1
        yield n, _mix(total)


def _mix(values: np.ndarray) -> np.ndarray:
    """SplitMix64's finaliser."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))


class ContaminationFilter(BaseFilter):
    """Removes contaminated documents; the evidence names each item: task, n-gram, matched text, ratio."""

    name = "contamination"

    def __init__(self, index: Path, exclusion_writer: DiskWriter):
        super().__init__(exclusion_writer)
        self.index = index
        self._loaded: Index | None = None

    def filter(self, doc: Document) -> bool:
        if self._loaded is None:
            self._loaded = pickle.loads(self.index.read_bytes())
            assert self._loaded is not None
        matches = self._loaded.matches(doc.text)
        if matches:
            self.stat_update("candidate.documents")
            self.stat_update("candidate.pairs", value=len(matches))
        guilty = self._loaded.contaminating(matches)
        if not guilty:
            return True
        items = [
            {
                "task": match.item.task,
                "item_id": match.item.item_id,
                "ngram": match.ngram,
                "matched": match.matched,
                "ratio": round(match.ratio, 4),
            }
            for match in guilty
        ]
        doc.metadata.update(removal("contaminated", items=items))
        return False
