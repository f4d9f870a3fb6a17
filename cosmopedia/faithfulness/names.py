"""Names in a text, by capitals where grammar asks for none, and whether a source has them.

A capital at the beginning of a sentence, in a heading or in bold type shows no name by itself. A name is supported
word by word: a surname of a full name, an adjective of a country, an abbreviation of what the source spells out.
"""

import re
from collections.abc import Iterator
from typing import NamedTuple

from cosmopedia.corpus.words import folded
from cosmopedia.faithfulness.dates import MONTHS

WORD = re.compile(r"[^\W_]+(?:['’.-][^\W_]+)*")
# Between two words: where a sentence, an item, a quotation or an emphasis begins, so that a capital says nothing.
BREAK = re.compile(r"[.!?:;…\n\"“”‘«»*_#|(\[{>–—=]|(?:^|\s)['‘]|\s[-•]\s")
HEADING_WORDS = 12  # of a line without a full stop; such lines have capitals of their own
LINE = re.compile(r"[^\n]+")
BOLD = re.compile(r"\*\*[^*\n]{1,80}+\*\*|__[^_\n]{1,80}+__")
END = re.compile(r"[.!?…,;][\"”’')*_]{0,4}\s*+\Z")
_TITLES = (
    "mr mrs ms miss dr prof professor sir lord lady saint st president king queen prince princess captain general"
)
TITLES = frozenset([*_TITLES.split(), *"bc bce ad ce am pm".split()])  # noqa: SIM905
_FUNCTION = """a an the this that these those its their our your his her my each every any no some all many most much
few several both either neither another other such what which who whom whose when where why how if whether while
although though because since until unless after before once as and or but nor so yet for of in on at by to
from with without within into onto over under above below between among through during against about around
near beyond behind beside i you he she it we they me him us them myself yourself himself herself itself
ourselves themselves one two three four five six seven eight nine ten first second third next last then now
here there today tomorrow yesterday also however therefore thus hence moreover instead indeed perhaps maybe
let please yes no not never always often sometimes usually is are was were be been being am do does did have
has had can could may might must shall should will would just even only still too very more less like unlike
using given nobody everybody everyone someone somebody anyone nothing everything something anything god
internet web earth sun moon"""
FUNCTION = frozenset(_FUNCTION.split())
# What only somebody does: a capital in front of it names that somebody, also where a sentence begins.
_PERSONAL = """wrote said asked invented discovered painted founded argued replied married died smiled nodded explained
designed proposed composed published sailed taught suggested showed"""
PERSONAL = frozenset(_PERSONAL.split())
SPEAKER = re.compile(r"i['’]")  # I'm, I've
SUFFIXES = (
    "'s",
    "’s",
    "s",
    "es",
    "n",
    "an",
    "ian",
    "ean",
    "ese",
    "ish",
    "ic",
    "ns",
    "ans",
    "ians",
    "ist",
    "ists",
    "ism",
)
_PEOPLES = """france french | greece greek hellenic | spain spanish | netherlands dutch holland | wales welsh | ireland
irish | england english | britain british uk kingdom | america american us usa states | germany german |
switzerland swiss | poland polish | denmark danish | sweden swedish | finland finnish | turkey turkish ottoman
| portugal portuguese | rome roman | norway norwegian | iraq iraqi | israel israeli | thailand thai | scotland
scottish | europe european eu | soviet ussr | un nations | florence florentine | venice venetian | naples
neapolitan | vienna viennese"""
PEOPLES = {word: group.split() for group in _PEOPLES.split("|") for word in group.split()}


class Name(NamedTuple):
    """A word that is a name, or a part of one."""

    start: int
    end: int
    word: str  # folded


def names_in(text: str) -> Iterator[Name]:
    """The words of a text that are names, in their order."""
    plain = folded_words(text)
    quiet = list(_quiet(text))
    place, last = 0, None
    for match in WORD.finditer(text):
        while place < len(quiet) and quiet[place][1] <= match.start():
            place += 1
        first = last is None or _begins(text, last, match)
        last = match
        word = match.group()
        if not is_capital(word) or (place < len(quiet) and quiet[place][0] <= match.start()):
            continue
        form = without_possessive(folded(word))
        if form in FUNCTION or form in TITLES or form in MONTHS or len(form) < 2 or SPEAKER.match(form):
            continue
        if first and not _does_what_people_do(text, match):
            continue
        if form in plain and not word.isupper():
            continue  # elsewhere in this text it is a common word
        yield Name(match.start(), match.end(), form)


def folded_words(text: str) -> set[str]:
    """The words that a text has in lower case."""
    return {folded(word) for word in WORD.findall(text) if word[0].islower()}


def is_capital(word: str) -> bool:
    """Whether a word is written as a name or a code: Curie, NASA, McCoy, B12."""
    return (word[0].isupper() and (len(word) > 1)) or (word[0].isalpha() and any(map(str.isdigit, word)))


def without_possessive(word: str) -> str:
    return word.removesuffix("'s").removesuffix("’s").rstrip("'’")


def _begins(text: str, last: "re.Match[str]", match: "re.Match[str]") -> bool:
    """Whether something begins between two words. A full stop behind an initial or a title ends nothing."""
    between = text[last.end() : match.start()]
    if between in (". ", ".") and (
        (len(last.group()) == 1 and last.group().isalpha()) or folded(last.group()) in TITLES
    ):
        return False
    return BREAK.search(between[:200]) is not None


def _does_what_people_do(text: str, match: "re.Match[str]") -> bool:
    """ "Lovelace wrote ...", where a sentence begins; several people ("Critics argued") have no name."""
    word = match.group()
    follows = WORD.search(text, match.end(), match.end() + 24)
    if follows is None or word.endswith("s") or text[match.end() : follows.start()] != " ":
        return False
    return follows.group() in PERSONAL


def _quiet(text: str) -> Iterator[tuple[int, int]]:
    """Headings and bold type, in which capitals say nothing; ascending."""
    for line in LINE.finditer(text):
        content = line.group()
        words = content.split(None, HEADING_WORDS + 1)
        if 0 < len(words) <= HEADING_WORDS and not END.search(content[-8:]) and _mostly_capitals(words):
            yield line.span()
        else:
            for bold in BOLD.finditer(content):
                yield line.start() + bold.start(), line.start() + bold.end()


def _mostly_capitals(words: list[str]) -> bool:
    bare = [word.strip("#*_>-:|()[]\"'“”‘’") for word in words]
    long = [word for word in bare if len(word) > 3]
    return 2 * sum(word[0].isupper() for word in long) >= len(long) or words[0].startswith("#")


class Names:
    """The words of a source, under which another text's names are looked up."""

    def __init__(self, text: str):
        forms = {form for word in WORD.findall(text) for form in _parts(folded(word))}
        self._forms = forms | {other for form in forms for other in PEOPLES.get(form, ())}
        self._stems = {stem for form in self._forms for stem in _stems(form)}
        self._initials = set(_initials(text))
        self._acronyms = {folded(word) for word in WORD.findall(text) if word.isupper() and 2 <= len(word) <= 6}

    def has(self, word: str) -> bool:
        """Whether the source has a name, in whatever form."""
        bare = word.replace(".", "")
        if word in self._forms or bare in self._forms or bare in self._initials:
            return True
        if any(stem in self._stems for stem in _stems(word)):
            return True
        return "-" in word and all(len(piece) < 2 or self.has(piece) for piece in word.split("-"))

    def spells_out(self, words: list[str]) -> bool:
        """Whether some words in a row are what an abbreviation of the source stands for."""
        return len(words) > 1 and "".join(word[0] for word in words) in self._acronyms


def _parts(word: str) -> list[str]:
    """A word as it is looked up, and its halves at a dash."""
    whole = without_possessive(word)
    return [whole, *(piece for piece in whole.split("-") if len(piece) > 2)] if "-" in whole else [whole]


def _stems(word: str) -> Iterator[str]:
    """A word without what makes an adjective or a plural of it: egypt, egypti(an)."""
    if len(word) < 4:
        return
    yield word
    for suffix in SUFFIXES:
        stem = word.removesuffix(suffix)
        if stem != word and len(stem) >= 4:
            yield stem
    if word[-1] in "aeoy" and len(word) > 4:
        yield word[:-1]


def _initials(text: str) -> Iterator[str]:
    """The abbreviations that the names of a text have: "who" of World Health Organization. Of at most six words."""
    run: list[str] = []
    for match in WORD.finditer(text):
        word = match.group()
        if word[0].isupper():
            run = [*run, word[0].lower()][-6:]
            for length in range(2, len(run) + 1):
                yield "".join(run[-length:])
        elif word not in ("of", "the", "and", "for"):
            run = []
