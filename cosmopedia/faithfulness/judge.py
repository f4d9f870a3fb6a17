"""What a text says beyond its source: numbers, units, dates and names that are not in it; how many of its words are.

Nothing is asked of a model, and nothing is understood: a number that the source has counts as supported wherever
the text puts it, and an invented sentence without numbers and names shows in `word_support` alone. Numbers that follow
from others by arithmetic are not in the source. Time is linear in the lengths of both.
"""

import re
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

from cosmopedia.corpus.words import words
from cosmopedia.faithfulness.dates import Date, Dates, dates_in
from cosmopedia.faithfulness.names import FUNCTION, Name, Names, names_in
from cosmopedia.faithfulness.quantities import Quantities, Quantity, quantities_in, stated_in

KINDS = ("number", "unit", "date", "name")
NGRAM = 3  # words
INITIALS = re.compile(r"[ ](?:[^\W\d_]\.[ ]?){1,3}")  # in the middle of a name
INITIALS = re.compile(r"[ ](?:[^\W\d_]\.[ ]?){1,3}")  # in the middle of a name
# Numbers that count or order the text's own parts: "Step 3", "2.", "three questions".
ITEM = re.compile(r"(?:\A|\n)[ \t>*#(-]{0,8}\Z")
ITEM_END = re.compile(r"(?:\.\d{1,2})?[.):](?:\s|\*|\Z)")
LABEL = re.compile(
    r"\b(?:step|part|question|q|problem|exercise|example|chapter|section|unit|lesson|figure|table|phase|stage|level|"
    r"option|method|tip|point|rule|equation|case|answer|variant|day|week|module|activity)s?[ #]{0,2}\Z",
    re.IGNORECASE,
)
COUNTED = re.compile(
    r"[ -](?:\w+[ -])?(?:steps?|parts?|questions?|problems?|exercises?|examples?|ways?|reasons?|points?|tips?|"
    r"sections?|things?|ideas?|facts?|kinds?|types?|of|more|or|different|main|key|other|such)\b",
    re.IGNORECASE,
)


class Span(NamedTuple):
    """A part of a text that its source does not support."""

    kind: str
    start: int
    end: int


@dataclass(frozen=True)
class Verdict:
    """What was looked at in a text and what of it is not in the source."""

    claims: Counter[str]  # by kind; what says the same is counted each time
    spans: list[Span]
    words: int
    word_support: float  # share of the text's different content words that the source has
    ngram_support: float  # share of its different n-grams of words

    @property
    def unsupported(self) -> Counter[str]:
        """Spans by kind."""
        return Counter(span.kind for span in self.spans)


@dataclass(frozen=True)
class Source:
    """A source, read once for all texts that are judged by it."""

    text: str

    @cached_property
    def quantities(self) -> Quantities:
        return Quantities(stated_in(self.text, [(d.start, d.end) for d in self._dates]))

    @cached_property
    def _dates(self) -> list[Date]:
        return list(dates_in(self.text))

    @cached_property
    def dates(self) -> Dates:
        return Dates(self._dates, self.quantities.years)

    @cached_property
    def names(self) -> Names:
        return Names(self.text)

    @cached_property
    def words(self) -> list[str]:
        return words(self.text)

    @cached_property
    def stems(self) -> set[str]:
        return {stem(word) for word in self.words}

    @cached_property
    def ngrams(self) -> set[tuple[str, ...]]:
        return ngrams(self.words)


def judge(text: str, source: Source, kinds: Iterable[str] = KINDS) -> Verdict:
    """What `text` says beyond `source`, by the kinds that are looked at."""
    judged = set(kinds)
    claims, spans = Counter[str](), list[Span]()
    dates = list(dates_in(text))
    for looked in (_dates(dates, source), _numbers(text, dates, source), _names(text, source)):
        for span, supported in looked:
            if span.kind in judged:
                claims["number" if span.kind == "unit" else span.kind] += 1
                if not supported:
                    spans.append(span)
    own = words(text)
    content = {stem(word) for word in own if len(word) > 2 and word not in FUNCTION}
    runs = ngrams(own)
    return Verdict(
        claims,
        sorted(spans, key=lambda span: (span.start, span.end)),
        len(own),
        len(content & source.stems) / len(content) if content else 1.0,
        len(runs & source.ngrams) / len(runs) if runs else 1.0,
    )


def stem(word: str) -> str:
    """A word without its commonest endings; enough to find "orbits" in "orbiting"."""
    for ending in ("ing", "ed", "es", "s", "ly"):
        if word.endswith(ending) and len(word) - len(ending) >= 3:
            return word[: -len(ending)].removesuffix("e")
    return word.removesuffix("e") if len(word) > 3 else word


def ngrams(of: list[str]) -> set[tuple[str, ...]]:
    """Each run of `NGRAM` words."""
    return set(zip(*(of[start:] for start in range(NGRAM)), strict=False))


Looked = Iterator[tuple[Span, bool]]


def _dates(dates: list[Date], source: Source) -> Looked:
    for date in dates:
        yield Span("date", date.start, date.end), source.dates.has(date)


def _numbers(text: str, dates: list[Date], source: Source) -> Looked:
    for one in quantities_in(text, [(date.start, date.end) for date in dates]):
        if _is_of_the_text(text, one):
            continue
        known = source.quantities
        if one.year:
            supported = known.has(one) or int(one.value) in source.dates.years
            yield Span("date", one.start, one.end), supported
            continue
        of_date = one.unit is None and one.value in source.dates.days  # "on the 15th"
        supported = known.has(one) or of_date
        other_unit = not supported and one.unit is not None and known.exact(one.value, None)
        yield Span("unit" if other_unit else "number", one.start, one.end), supported


def _is_of_the_text(text: str, one: Quantity) -> bool:
    """Whether a number orders or counts parts of the text, or is a word that often counts nothing."""
    if one.vague and (one.value < 2 or (one.unit is None and (one.value < 3 or COUNTED.match(text, one.end)))):
        return True
    before = text[max(0, one.start - 16) : one.start]
    if one.value < 100 and one.unit is None:
        if ITEM_END.match(text, one.end) and (ITEM.search(before) or (one.start < 8 and not before.strip(" \t>*#(-"))):
            return True
        if LABEL.search(before):
            return True
    return False


def _names(text: str, source: Source) -> Looked:
    """Names, each run of names as one."""
    run: list[Name] = []
    for name in names_in(text):
        if run and not _joins(text, run[-1], name):
            yield from _run(run, source)
            run = []
        run.append(name)
    yield from _run(run, source)


def _joins(text: str, last: Name, name: Name) -> bool:
    """Whether two names are one: John F. Kennedy, Bank of England."""
    between = text[last.end : name.start]
    return between in (" ", " of ", " of the ", " de ", " von ", " van ") or INITIALS.fullmatch(between) is not None


def _run(run: list[Name], source: Source) -> Looked:
    if not run:
        return
    unknown = [name for name in run if not source.names.has(name.word)]
    if unknown and source.names.spells_out([name.word for name in run]):
        unknown = []
    first, last = (unknown[0], unknown[-1]) if unknown else (run[0], run[-1])
    yield Span("name", first.start, last.end), not unknown
