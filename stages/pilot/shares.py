"""What a share of a cell's texts has in common or does wrong: one pure function per measure.

Each gives, for the texts of a cell, the share that shows a fault, and an example of it. params.yaml has the limits;
perf/pilot.py measures how often healthy cells exceed them, and how often cells with planted faults do.
"""

import re
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from itertools import islice
from statistics import median
from typing import NamedTuple

from pydantic import Field, field_validator

from cosmopedia.core.params import Params
from cosmopedia.corpus.chat import Chat
from cosmopedia.corpus.sentences import HEADING, is_finished
from cosmopedia.faithfulness.names import FUNCTION
from cosmopedia.patterns import Pattern, compiled

RUN = 5  # words in a row by which repetition and copies are counted
REFUSAL_CHARS, REFUSAL_SENTENCES = 400, 2  # of a text's beginning, in which a refusal is looked for
QUOTE = re.compile(r"[\"“”]")
EXAMPLE_CHARS = 80
TEXTS = 1_000  # of a cell that are compared with each other; more would cost memory and say the same
WORD = re.compile(r"[^\W_]+(?:['’][^\W_]+)*")
SENTENCE = re.compile(r"(?<=[.!?…])[\"”’)*_]{0,4}\s+|\n+")
CAPITAL, LOWER = re.compile(r"\b[A-ZÀ-ÖØ-Þ][a-zß-öø-ÿ]{2,}\b"), re.compile(r"\b[a-zß-öø-ÿ]{3,}\b")
# Capitals within a sentence, and the word before them: "when Dr. Elara Chen" names somebody, "the Mayor" does not.
CAPITALS = re.compile(r"\b([a-z]+),? ((?:[A-ZÀ-ÖØ-Þ][a-zß-öø-ÿ]+\.? ?)+)")
# A capital that begins a sentence and its verb follows; a conjunction's does not.
SUBJECT = re.compile(r"(?:\A|[.!?:][\"”’)]? |\n)([A-ZÀ-ÖØ-Þ][a-zß-öø-ÿ]{2,}) (?:is|was|has|had|said|[a-z]{2,}ed)\b")
ARTICLE_WORDS = "a an the this that these those its their our your his her my every each any no some"
ARTICLES = set(ARTICLE_WORDS.split(" "))
TITLES = frozenset(["Mr", "Mrs", "Ms", "Miss", "Dr", "Prof", "Professor", "Sir", "Lord", "Lady", "Saint"])
NUMBER = re.compile(r"(?<![\w.,])\d[\d.,]*\d(?!\w)")


class Finding(NamedTuple):
    """The share of texts that show something, and an example of it."""

    share: float
    example: str = ""


class Written(NamedTuple):
    """A completion's text, what was asked for, and whether the model itself ended it."""

    text: str
    prompt: str = ""
    ended: bool = True


class RefusalForm(Params):
    """A sentence that refuses: somebody speaks, declines, and it is about the task. Patterns, searched for in each."""

    speaks: str
    declines: str
    task: str

    @field_validator("*")
    @classmethod
    def _compiles(cls, pattern: str) -> str:
        compiled(pattern)
        return pattern


class TextRules(Params):
    """When a text counts."""

    refusal: RefusalForm
    opening_words: int = Field(ge=1)  # that make an opening or a closing
    most_common: int = Field(ge=1)  # openings or closings that are counted together
    repeated: float = Field(ge=0, le=1)  # share of a text's runs of words that came before in it: a loop
    copied: float = Field(ge=0, le=1)  # share of a text's runs of words that other texts of the cell have: a copy
    short: float = Field(ge=0, le=1)  # words, over the median of the cell


def words(text: str) -> list[str]:
    """The words in lower case, without punctuation."""
    return WORD.findall(text.lower())


def first_words(text: str, count: int) -> str:
    """The first words, lower case, without punctuation: "have you ever"."""
    return " ".join(match.group() for match in islice(WORD.finditer(text.lower()), count))


def runs(text: str) -> list[tuple[str, ...]]:
    """Each run of `RUN` words."""
    found = words(text)
    return list(zip(*(found[start:] for start in range(RUN)), strict=False))


def example(text: str) -> str:
    """The beginning of a text on one line."""
    return " ".join(text[: 2 * EXAMPLE_CHARS].split())[:EXAMPLE_CHARS]


def ending(text: str) -> str:
    """The end of a text on one line, without the empty lines after it, which would show nothing."""
    return example(text.rstrip()[-EXAMPLE_CHARS:])


def those(texts: Sequence[Written], shows: Callable[[Written], str]) -> Finding:
    """The share of texts in which `shows` sees an example."""
    seen = [shown for shown in map(shows, texts) if shown]
    return Finding(len(seen) / max(len(texts), 1), seen[0] if seen else "")


def truncated(texts: Sequence[Written]) -> Finding:
    """Texts that ended at max_new_tokens."""
    return those(texts, lambda one: "" if one.ended else ending(one.text))


def unfinished(texts: Sequence[Written]) -> Finding:
    """Texts that the model ended where no sentence, item, verse or block ends."""

    def shows(one: Written) -> str:
        return ending(one.text) if one.ended and not is_finished(one.text) else ""

    return those(texts, shows)


class Refusals:
    """Forms of refusals: those that clean removes, and looser ones, which a share of a cell allows."""

    def __init__(self, form: RefusalForm, chat: Chat):
        self.chat = chat
        self.form = [Pattern(f"pilot.rules.refusal.{name}", p) for name, p in form.model_dump().items()]

    def refuses(self, text: str) -> bool:
        """Does a text begin by refusing the request, whatever comes after it? Other chat may come first."""
        start = text[:REFUSAL_CHARS].replace("’", "'").strip()
        sentences = [part for part in SENTENCE.split(start) if part and QUOTE.search(part) is None]
        loose = any(all(p.search(part) for p in self.form) for part in sentences[:REFUSAL_SENTENCES])
        return loose or any(self.chat.refusal(one) for one in (start, self.chat.strip_openings(start).text) if one)


def refused(texts: Sequence[Written], refusals: Refusals) -> Finding:
    """Texts that begin by refusing the request."""
    return those(texts, lambda one: example(one.text) if refusals.refuses(one.text) else "")


def short(texts: Sequence[Written], below: float) -> Finding:
    """Texts far shorter than their cell's median, as refusals are in whatever words."""
    sizes = [len(one.text.split()) for one in texts]
    limit = below * median(sizes) if sizes else 0
    return those(texts, lambda one: example(one.text) if len(one.text.split()) < limit else "")


def repeated(texts: Sequence[Written], above: float) -> Finding:
    """Texts that repeat themselves."""

    def shows(one: Written) -> str:
        seen = Counter(runs(one.text))
        again = seen.total() - len(seen)
        return " ".join(seen.most_common(1)[0][0]) if again > above * max(seen.total(), 1) else ""

    return those(texts, shows)


def copied(texts: Sequence[Written], above: float) -> Finding:
    """Texts whose runs of words are mostly those of other texts: copies, near copies, bodies under another title."""
    sets = [set(runs(one.text)) for one in texts]
    spread = Counter(run for some in sets for run in some)
    shared = [sum(spread[run] > 1 for run in some) > above * max(len(some), 1) for some in sets]
    copies = [one.text for one, is_copy in zip(texts, shared, strict=True) if is_copy]
    return Finding(len(copies) / max(len(texts), 1), example(copies[0]) if copies else "")


def alike(keys: Sequence[str], most_common: int) -> Finding:
    """The share of texts that have one of the most common keys, of those that two texts or more have."""
    counts = sorted(Counter(filter(None, keys)).items(), key=lambda item: (-item[1], item[0]))
    top = [(key, count) for key, count in counts[:most_common] if count > 1]
    return Finding(sum(count for _, count in top) / max(len(keys), 1), " | ".join(key for key, _ in top))


def openings(texts: Sequence[Written], rules: TextRules) -> Finding:
    """Few ways to begin: the text, or what comes after its headings."""
    plain, below = [], []
    for one in texts:
        lines = [line for line in one.text.splitlines() if line.strip()]
        bodies = [line for line in lines if not HEADING.match(line) and len(line.split()) > 2 * rules.opening_words]
        plain.append(first_words(one.text, rules.opening_words))
        below.append(first_words(bodies[0] if bodies else one.text, rules.opening_words))
    return max(alike(keys, rules.most_common) for keys in (plain, below))


def closings(texts: Sequence[Written], rules: TextRules) -> Finding:
    """Few ways to end: the first words of the last sentence, those of the last paragraph, or the last words."""
    sentences, paragraphs, ends = [], [], []
    for one in texts:
        text = one.text.strip()
        spoken = [part for part in SENTENCE.split(text) if WORD.search(part)]
        sentences.append(first_words(spoken[-1] if spoken else "", rules.opening_words))
        paragraphs.append(first_words(text.splitlines()[-1] if text else "", rules.opening_words))
        ends.append(" ".join(words(text)[-rules.opening_words :]))
    return max(alike(keys, rules.most_common) for keys in (sentences, paragraphs, ends))


def names(texts: Sequence[Written]) -> Finding:
    """The name that most texts have, of those that their prompts did not give them.

    A name is a word that more texts have with a capital (within a sentence, or as its subject) than in lower case or
    behind an article, and no function word: short texts may have "This is" and no "this".
    """
    named, common = Counter[str](), Counter[str]()
    for one in texts:
        capitals = {True: set[str](), False: set(SUBJECT.findall(one.text))}
        for before, some in CAPITALS.findall(one.text):
            capitals[before in ARTICLES].update(CAPITAL.findall(some))
        named.update(capitals[False])
        common.update(capitals[True].union(map(str.capitalize, LOWER.findall(one.text))))
    found = {name for name, count in named.items() if count > common[name] and name.lower() not in FUNCTION} - TITLES
    return recurring(texts, lambda text: found.intersection(CAPITAL.findall(text)))


def numbers(texts: Sequence[Written]) -> Finding:
    """The number that most texts have and that their prompts did not give them; not below 10, and no round one."""
    return recurring(texts, lambda text: (n for n in NUMBER.findall(text) if n[-1] not in "05"))


def recurring(texts: Sequence[Written], parts: Callable[[str], Iterable[str]]) -> Finding:
    """The part that most texts have and their prompts lack."""
    spread = Counter(part for one in texts for part in set(parts(one.text)) if part not in one.prompt)
    part, count = min(spread.items(), key=lambda item: (-item[1], item[0]), default=("", 0))
    return Finding(count / max(len(texts), 1), part)


def shares(texts: Sequence[Written], rules: TextRules, refusals: Refusals) -> dict[str, Finding]:
    """Every measure of a cell's texts, by name; of many texts, every second, third, ... is taken."""
    texts = texts[:: -(-len(texts) // TEXTS) or 1]
    return {
        "truncated": truncated(texts),
        "unfinished": unfinished(texts),
        "refused": refused(texts, refusals),
        "short": short(texts, rules.short),
        "repeated": repeated(texts, rules.repeated),
        "copied": copied(texts, rules.copied),
        "openings": openings(texts, rules),
        "closings": closings(texts, rules),
        "name": names(texts),
        "number": numbers(texts),
    }
