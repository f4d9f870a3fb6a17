"""Contamination of documents by benchmark items: every pair that shares an n-gram, then the matched-block ratio.

The published rule (Cosmopedia, decontamination/decontaminate.py, after Phi-1's 10-grams): texts are their words joined
by spaces. A document that shares a 10-gram with an item is a candidate; it is contaminated when difflib's matching
blocks of more than 5 characters, joined and with white space collapsed, are longer than half the item. The published
script looks only at the first n-gram hit of a document, in the order of a set, and an n-gram leads it to the last item
that has it; here all pairs are tested. An item's text is its question and its right answer.

`plain` is that ratio. It grows with the document: the more text, the more of an item's short phrases are somewhere in
it. `window` is the same ratio over only the part of the document where the item would be, if the shared n-gram were
where it is in the item: for an item of L characters that would begin at s, the characters s - window * L to
s + L + window * L. Of several such places the best counts, of equals the first.

Items of `shortest_item` words up to `ngram` - 1 are found by all their words. Shorter ones are everywhere and count
only where they are the whole document. A document that holds an item verbatim has ratio 1, whatever the parameters.

N-grams in more documents than `common_ngram` allows (legal phrases, templates) lead to no candidate, unless the
document holds the item verbatim.

Three detectors, each counted apart: `published` is the rule above, `forms` the same rule for every form of an item
(forms.py) and short items part by part (parts.py), `tolerant` finds edited items (tolerant.py).
"""

import pickle
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any, Literal

import numpy as np
from pydantic import Field

from cosmopedia.contamination.forms import QUESTION, QUESTION_ANSWER, Form, FormHashes, forms_of
from cosmopedia.contamination.matching_blocks import Block, Matcher
from cosmopedia.contamination.ngrams import NOT_COUNTED, NgramTable
from cosmopedia.contamination.parts import PartsTable
from cosmopedia.contamination.tolerant import Similar, TolerantTable
from cosmopedia.core.errors import DataError
from cosmopedia.core.params import Params
from cosmopedia.corpus.word_hashes import Texts, WordHashes, word_hashes
from cosmopedia.corpus.words import NORMAL, PUBLISHED
from cosmopedia.tables.contracts import BENCHMARK
from cosmopedia.tables.parquet import read_batches

RULES = ("plain", "window")
PUBLISHED_RULE, FORMS, TOLERANT = DETECTORS = ("published", "forms", "tolerant")
BLOCKS, PARTS, EDITED = "blocks", "parts", "edited"
NORMALISATIONS = {form.name: form for form in (NORMAL, PUBLISHED)}


class DecontaminateParams(Params):
    """When a document counts as contaminated."""

    published: Literal["remove", "report"]  # what is done with documents that each detector finds
    forms: Literal["remove", "report"] | None
    tolerant: Literal["remove", "report"] | None
    paraphrases: Literal["remove", "report"]  # with documents in which the stage paraphrases has found one
    ngram: int = Field(ge=2)  # words that a document and an item must share in a row
    shortest_item: int = Field(ge=1)  # words; shorter items are found only as whole documents
    min_block: int = Field(ge=0)  # characters; only longer matching blocks count
    max_ratio: float = Field(ge=0, lt=1)  # matched characters over the item's; above it is contaminated
    ratio: Literal["plain", "window"]  # which of the two decides
    window: float = Field(ge=0)  # the window's margin on each side, in lengths of the item
    normalisation: Literal["words", "published"]  # which of NORMALISATIONS makes words of a text
    shortest_form: int = Field(ge=2)  # words of a question, sentence or passage that is looked for alone
    gap: int = Field(ge=0)  # foreign words between two parts of an item
    tolerant_ngram: int = Field(ge=2)  # words
    tolerant_shortest: int = Field(ge=2)  # words; shorter forms are not looked for with edits
    tolerant_ratio: float = Field(gt=0, lt=1)  # of a form's words, weighted by rarity; above it is an edited copy
    tolerant_chance: float = Field(ge=0)  # words that agree by chance and are taken off
    common_ngram: float | None = Field(gt=0)  # documents, below 1 a share of them; n-grams in more make no candidate

    def removing(self) -> set[str]:
        """The detectors that remove."""
        return {name for name in DETECTORS if getattr(self, name) == "remove"}


@dataclass(frozen=True)
class Item:
    """A benchmark item in one of its forms."""

    item_id: str
    task: str
    form: str
    words: list[str]
    text: str  # as it is matched


@dataclass(frozen=True)
class Hit:
    """Words that a document and an item share."""

    at: int  # the first one, in the document
    place: int  # and in the item
    size: int  # words
    ngram: int  # its number, or NOT_COUNTED


@dataclass(frozen=True)
class Match:
    """A document has something in common with an item in one of its forms, and how much of it."""

    item: Item
    kind: Literal["blocks", "parts", "edited"]
    ngram: str  # the first words that they share
    matched: str  # by the rule that decides
    plain: float  # of other forms the window's; of an edited copy, in both, the weighted share of its words
    window: float

    def published(self, params: DecontaminateParams, rule: str | None = None) -> bool:
        """The published detector's verdict by one of RULES; by default by the one that decides."""
        ratio = getattr(self, rule or params.ratio)
        return self.kind == BLOCKS and self.item.form == QUESTION_ANSWER and ratio > params.max_ratio

    def detectors(self, params: DecontaminateParams) -> list[str]:
        """Those of DETECTORS that find the item. Of the other forms the window's ratio decides."""
        several = [PUBLISHED_RULE] if self.published(params) else []
        if params.forms is not None and self.kind != EDITED and self.window > params.max_ratio:
            several.append(FORMS)
        return [*several, TOLERANT] if self.kind == EDITED else several


@dataclass(frozen=True)
class Findings:
    """What a document has in common with the items."""

    pairs: int  # candidates: items that share an n-gram with it
    common_only: int  # items that share only common n-grams and are not in it verbatim: not candidates
    matches: list[Match]  # the candidates that may be above max_ratio by either rule


class Index:
    """The n-grams of benchmark items, for looking documents up."""

    def __init__(self, forms: Iterable[Form], rule: DecontaminateParams):
        self.rule, self.forms = rule, sorted(forms)
        self._item: dict[int, Item] = {}
        self._normalisation = NORMALISATIONS[rule.normalisation]
        hashed = FormHashes(self.forms, self._normalisation)
        hashed.choose(rule.shortest_item, rule.shortest_form, rule.forms is None)
        self._question_of = hashed.question_of
        words, sizes, published = hashed.words, hashed.sizes, hashed.names == QUESTION_ANSWER
        as_they_are, by_parts = hashed.as_they_are, hashed.by_parts
        short = min(rule.shortest_item, rule.ngram)
        long, in_a_row = as_they_are & (sizes >= rule.ngram), as_they_are & (sizes >= short) & (sizes < rule.ngram)
        questions = self._question_of[self._question_of >= 0]
        self.by_form = dict(sorted(Counter(hashed.names[as_they_are].tolist()).items())) | {QUESTION: len(questions)}
        self.items = int(published.sum())
        self.checked, self.short = int((long & published).sum()), int((in_a_row & published).sum())
        self.shortest = self.items - self.checked - self.short
        at, grams = words.ngrams(rule.ngram)
        form = np.searchsorted(words.bounds, at, "right") - 1
        at, grams, form = at[long[form]], grams[long[form]], form[long[form]]
        self._long = NgramTable.of(words, rule.ngram, grams, form, at - words.bounds[form])
        in_a_row[questions] = sizes[questions] < rule.ngram
        middle = np.flatnonzero(in_a_row)
        first = words.runs(words.bounds[middle], np.full_like(middle, short))
        self._short = NgramTable.of(words, short, first, middle, np.zeros_like(middle), sizes[middle])
        self._parts = PartsTable(hashed, np.flatnonzero(by_parts), rule.gap)
        self._tolerant = rule.tolerant and TolerantTable(
            hashed, rule.tolerant_shortest, rule.tolerant_ngram, rule.tolerant_ratio, rule.tolerant_chance
        )
        self._whole: dict[str, list[int]] = {}
        for number in np.flatnonzero(published & (sizes > 0) & (sizes < short)).tolist():
            self._whole.setdefault(self.item(number).text, []).append(number)
        self._shortest_item = short
        self.common = np.zeros(self.ngrams, dtype=bool)

    def item(self, number: int) -> Item:
        """An item in one of its forms, by the form's number."""
        if number not in self._item:
            form = self.forms[number]
            words = self._normalisation.words(" ".join(form.parts))
            self._item[number] = Item(form.item_id, form.task, form.name, words, " ".join(words))
        return self._item[number]

    def hits(self, texts: Texts) -> Iterator[tuple[int, list[str], dict[int, list[Hit]]]]:
        """(number of a text, its words, the hits of each form by number), for the texts with any, in their order."""
        for text, near in sorted(self._near(word_hashes(texts, self._normalisation)).items()):
            words = self._normalisation.words(str(texts[text]))
            if hits := self._verified(words, near):
                yield text, words, hits

    def _near(self, hashes: WordHashes) -> dict[int, list[tuple[int, int, int, int]]]:
        """(place in the text, form, place in the form, n-gram) of equal hashes, by the number of the text."""
        near: dict[int, list[tuple[int, int, int, int]]] = {}
        for table in (self._long, self._short):
            columns = table.matches(hashes)
            for text, *hit in zip(*(column.tolist() for column in columns), strict=True):
                near.setdefault(text, []).append((hit[0], hit[1], hit[2], hit[3]))
        sizes = np.diff(hashes.bounds)
        for text in np.flatnonzero((sizes > 0) & (sizes < self._shortest_item)).tolist():
            near.setdefault(text, [])
        return near

    def _verified(self, words: list[str], near: list[tuple[int, int, int, int]]) -> dict[int, list[Hit]]:
        hits: dict[int, list[Hit]] = {}
        for at, form, place, ngram in sorted(near):
            wanted = self.item(form).words
            size = len(wanted) if ngram == NOT_COUNTED else self.rule.ngram
            if words[at : at + size] == wanted[place : place + size]:
                hits.setdefault(form, []).append(Hit(at, place, size, ngram))
        if len(words) < self._shortest_item:
            for form in self._whole.get(" ".join(words), []):
                hits[form] = [Hit(0, 0, len(words), NOT_COUNTED)]
        return dict(sorted(hits.items()))

    def findings(self, texts: Texts) -> Iterator[tuple[int, Findings]]:
        """(number of a text, its findings), for the texts that have something in common with an item."""
        hashes = word_hashes(texts, self._normalisation)
        near = self._near(hashes)
        similar = self._tolerant.lookup(hashes) if self._tolerant else {}
        parts: dict[int, list[tuple[int, int, int]]] = {}
        for text, start, end, number in self._parts.lookup(hashes):
            parts.setdefault(text, []).append((number, start, end))
        for text in sorted({*near, *similar, *parts}):
            words = self._normalisation.words(str(texts[text]))
            hits = self._verified(words, near.get(text, []))
            candidates, common_only, matches = self._compared(words, hits)
            matches += self._in_parts(words, sorted(parts.get(text, [])))
            edited = self._edited(words, similar.get(text, []))
            matches += [match for match in edited if match.item.item_id not in common_only]
            if hits or matches:
                matches.sort(key=lambda match: match.item.item_id)
                yield text, Findings(len(candidates), len(common_only), matches)

    def _compared(self, words: list[str], hits: dict[int, list[Hit]]) -> tuple[set[str], set[str], list[Match]]:
        """(the candidates' item ids, those of items that share only common n-grams, the matches by the ratios)."""
        document = " ".join(words)
        rare: dict[int, str] = {}  # forms that are not in it verbatim, with the first n-gram that is not common
        matches: list[Match] = []
        for number, several in hits.items():
            item = self.item(number)
            if item.text in document:
                matches.append(Match(item, BLOCKS, _shared(item, several[0]), item.text, 1.0, 1.0))
            elif first := next((hit for hit in several if not self.common[hit.ngram]), None):
                rare[number] = _shared(item, first)
        candidates = {match.item.item_id for match in matches} | {self.item(number).item_id for number in rare}
        common_only = {self.item(number).item_id for number in hits} - candidates
        matches += self._rated(document, words, rare, hits)
        matches += self._questions(document, words, hits, matches)
        return candidates, common_only, matches

    def _questions(
        self, document: str, words: list[str], hits: dict[int, list[Hit]], matches: list[Match]
    ) -> Iterator[Match]:
        """The questions alone of those items that a document shares an n-gram of the question with."""
        found = {match.item.item_id for match in matches if FORMS in match.detectors(self.rule)}
        shared: dict[int, str] = {}
        of_question: dict[int, list[Hit]] = {}
        for number, several in hits.items():
            question = int(self._question_of[number])
            if question < 0 or question in hits or self.item(number).item_id in found:
                continue
            item = self.item(question)
            inside = [hit for hit in several if hit.place + hit.size <= len(item.words)]
            if inside and item.text in document:
                yield Match(item, BLOCKS, _shared(item, inside[0]), item.text, 1.0, 1.0)
            elif first := next((hit for hit in inside if not self.common[hit.ngram]), None):
                shared[question], of_question[question] = _shared(item, first), inside
        yield from self._rated(document, words, shared, of_question)

    def _in_parts(self, words: list[str], found: list[tuple[int, int, int]]) -> Iterator[Match]:
        """The forms that a document has part by part from one word to another."""
        last = -1
        for number, start, end in found:
            item, rest = self.item(number), iter(words[start:end])
            if number != last and all(word in rest for word in item.words):
                last = number
                yield Match(item, PARTS, " ".join(words[start:end]), " ".join(words[start:end]), 1.0, 1.0)

    def _edited(self, words: list[str], found: list[Similar]) -> Iterator[Match]:
        """The forms of which a document has an edited copy, each where most of it is."""
        best: dict[int, Match] = {}
        size = self.rule.tolerant_ngram
        for one in sorted(found, key=lambda one: one.share, reverse=True):
            item = self.item(one.form)
            shared, start = words[one.at : one.at + size], one.at - one.place
            if one.form not in best and shared == item.words[one.place : one.place + size]:
                copy = " ".join(words[max(0, start) : start + len(item.words)])
                best[one.form] = Match(item, EDITED, " ".join(shared), copy, one.share, one.share)
        return iter(best.values())

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
            rated = [joined(document, runs.blocks(low, high), size) for low, high in sorted(different.values())]
            best, window = max(rated, key=lambda pair: pair[1])
            if item.form != QUESTION_ANSWER:
                yield Match(item, BLOCKS, words_shared, best, window, window)
                continue
            matched, plain = joined(document, runs.blocks(0, len(document)), size)
            yield Match(item, BLOCKS, words_shared, matched if rule.ratio == "plain" else best, plain, window)

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
            row = {
                "ngram": " ".join(words),
                "documents": int(documents[number]),
                "items": len({self.item(n).item_id for n in items.tolist()}),
            }
            rows.append(row)
        return sorted(rows, key=lambda row: (-row["documents"], row["ngram"]))[:count]

    def save(self, path: Path) -> None:
        """Write the index for other processes of the same run."""
        path.write_bytes(pickle.dumps(self))

    @staticmethod
    def read(path: Path) -> "Index":
        """What `save` wrote."""
        return pickle.loads(path.read_bytes())


def item_forms(tables: list[Path], published_only: bool) -> Iterator[Form]:
    """Every benchmark item in all its forms, or in the published one. `DataError` for an id in two files."""
    columns = ["item_id", "task", "choices", "question", "answer", "other_forms"]
    seen: dict[str, Path] = {}
    for table in tables:
        for rows in read_batches([table], BENCHMARK, columns):
            for row in rows.to_pylist():
                if (first := seen.setdefault(row["item_id"], table)) is not table:
                    raise DataError(
                        f"{table}: item {row['item_id']!r} is in {first} too; run the benchmarks stage again"
                    )
                yield from forms_of(row, published_only)


def joined(document: str, blocks: list[Block], size: int) -> tuple[str, float]:
    """(the blocks' text, joined and with white space collapsed; its length over `size`, that of the item)."""
    text = " ".join("".join([document[at : at + length] for at, _, length in blocks]).split())
    return text, len(text) / size


def _shared(item: Item, hit: Hit) -> str:
    return " ".join(item.words[hit.place : hit.place + hit.size])


def _starts(words: list[str]) -> list[int]:
    """Where each word begins in the words joined by spaces."""
    return list(accumulate([len(word) + 1 for word in words], initial=0))
