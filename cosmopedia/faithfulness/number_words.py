"""Numbers in words: "twenty-three", "three hundred and five", "half a million", "two thirds", "nineteen ten"."""

import re
from collections.abc import Iterator
from typing import NamedTuple

_UNITS = (
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen"
)
SMALL = {word: n for n, word in enumerate([*_UNITS.split(), "eighteen", "nineteen"])}
TENS = {word: 10 * n for n, word in enumerate("twenty thirty forty fifty sixty seventy eighty ninety".split(), 2)}  # noqa: SIM905
SCALES = {"hundred": 100, "dozen": 12, "thousand": 1000, "million": 10**6, "billion": 10**9, "trillion": 10**12}
_PARTS = "half third quarter fifth sixth seventh eighth ninth tenth"
DENOMINATORS = {word: n for n, word in enumerate(_PARTS.split(), 2)} | {"halve": 2, "fourth": 4, "hundredth": 100}
_ORDINALS = "first second third fourth fifth sixth seventh eighth ninth tenth eleventh twelfth thirteenth fourteenth"
ORDINALS = {word: n for n, word in enumerate([*_ORDINALS.split(), "fifteenth", "sixteenth"], 1)} | {
    **{"seventeenth": 17, "eighteenth": 18, "nineteenth": 19, "twentieth": 20, "twenty-first": 21},
}
_PLAIN = "|".join([*SMALL, *TENS, *SCALES])
_WORD = rf"(?:{_PLAIN})(?![\w])"
# One run of number words; "and" may stand in it, and "a" before a scale.
RUN = re.compile(
    rf"(?<![\w])(?:an?[ ](?=(?:{'|'.join(SCALES)})(?![\w])))?{_WORD}(?:(?:[ -]|[ ]and[ ]){_WORD})*", re.IGNORECASE
)
FRACTION = re.compile(
    rf"(?<![\w])(an?|{'|'.join([*SMALL, *TENS])})[ -]({'|'.join(DENOMINATORS)})(s?)(?![\w])", re.IGNORECASE
)
HALF_OF = re.compile(rf"(?<![\w])half[ ]an?[ ](?=({'|'.join(SCALES)})(?![\w]))", re.IGNORECASE)
TOKEN = re.compile(r"\w+")


class Spoken(NamedTuple):
    """A number in words; `single`: one word below ten, which often counts nothing ("one of them")."""

    start: int
    end: int
    value: float
    single: bool = False


def numbers_in(run: "re.Match[str]") -> Iterator[Spoken]:
    """The numbers of a run: "two and three" are two, "two hundred and three" is one."""
    total, current, start, end, last = 0, 0, -1, -1, ""
    for match in TOKEN.finditer(run.group()):
        word = match.group().lower()
        if word in ("a", "an"):
            total, current, start, last = 0, 1, match.start(), "small"
        elif word in SCALES:
            if (SCALES[word] <= 100 and current >= 100) or total >= 10**15:  # "two hundred hundred" is no number
                yield _spoken(run, start, end, total + current)
                total, current, start = 0, 0, match.start()
            if word == "hundred" or word == "dozen":
                current = max(current, 1) * SCALES[word]
            else:
                total, current = total + max(current, 1) * SCALES[word], 0
            start, last = (match.start() if start < 0 else start), "scale"
        elif word in SMALL or word in TENS:
            value, kind = (SMALL[word], "small") if word in SMALL else (TENS[word], "tens")
            year = last in ("small", "tens") and not total and 13 <= current <= 20 and value >= 10
            joins = start < 0 or last == "scale" or (last in ("tens", "year") and 0 < value < 10)
            if not joins and not year:
                yield _spoken(run, start, end, total + current)
                total, current, start = 0, 0, match.start()
            current = current * 100 + value if year else current + value
            start, last = (match.start() if start < 0 else start), "year" if year and kind == "tens" else kind
        else:
            continue
        end = match.end()
    if start >= 0:
        yield _spoken(run, start, end, total + current)


def _spoken(run: "re.Match[str]", start: int, end: int, value: int) -> Spoken:
    start, end = run.start() + start, run.start() + end
    return Spoken(start, end, float(value), single=value < 10 and end - start <= 5)


def fraction_of(match: "re.Match[str]") -> Spoken | None:
    """ "two thirds"; None for an ordinal, as in "a third time"."""
    numerator = match[1].lower()
    top = 1 if numerator in ("a", "an", "one") else SMALL.get(numerator) or TENS.get(numerator) or 0
    many, bottom = bool(match[3]), DENOMINATORS[match[2].lower()]
    follows = match.string[match.end() : match.end() + 4].lower()
    if not 0 < top < bottom or (top > 1) != many or (top == 1 and bottom not in (2, 4) and follows != " of "):
        return None
    return Spoken(match.start(), match.end(), top / bottom)
