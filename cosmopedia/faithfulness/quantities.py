"""Numbers of a text with their units, and whether those of a source support them.

A number is supported when the source has it, or a more precise one that rounds to it, or the same quantity in another
unit. Years are exact. Looking one up takes a few bisections, whatever the source is.
"""

import re
from bisect import bisect_left
from collections import defaultdict
from collections.abc import Iterable, Iterator
from typing import NamedTuple

from cosmopedia.faithfulness import number_words as spoken
from cosmopedia.faithfulness.units import CURRENCY, FRACTION, POUND, STERLING, Unit, converted, unit_at

# Digits with separators of thousands or without, decimals; no part of a word, a version number or an address.
NUMBER = re.compile(
    r"(?<![\w.,])(?:(?P<sign>[$€£¥]|(?<![\w)])[-−])[ ]?)?"
    r"(?P<digits>\d{1,3}(?:[,\u00a0\u202f ]\d{3})+(?!\d|[,\u00a0\u202f ]\d{3})|\d++)(?P<decimals>\.\d++)?"
    r"(?P<fraction>[½⅓⅔¼¾])?(?:(?P<ordinal>st|nd|rd|th)\b)?(?![\w]*+\.\d)"
)
GLYPH = re.compile(r"(?<![\w])[½⅓⅔¼¾]")
GLYPHS = {"½": 0.5, "⅓": 1 / 3, "⅔": 2 / 3, "¼": 0.25, "¾": 0.75}
SLASHED = re.compile(r"/(\d{1,3})(?![\d/.])")
SCALE = re.compile(
    r"[ \u00a0-]?(hundred|thousand|million|billion|trillion|dozen|mn|bn)(?![\w])|[ \u00a0]?(?-i:[MB])\b|(?-i:k)\b",
    re.IGNORECASE,
)
SCALES = {**spoken.SCALES, "mn": 10**6, "bn": 10**9, "k": 1000, "m": 10**6, "b": 10**9}
SHARE = re.compile(r"(?:[ ]\w{1,20})?[ ](?:out[ ]of(?:[ ]every)?|in(?:[ ]every)?)[ ]", re.IGNORECASE)
RANGE = re.compile(r"[ ]?(?:to|-|–|and|or|×|x|by)[ ]?", re.IGNORECASE)
HEDGE = re.compile(
    r"(?:about|around|roughly|approximately|approx\.|some|circa|c\.|ca\.|close to|near|"
    r"estimated(?: at)?|almost|nearly|just (?:over|under)|"
    r"or so|under|over|more than|less than|fewer than|at least|at most|up to|well over|~|≈|>|<) ?(?:an? |the )?\Z",
    re.IGNORECASE,
)
ABOVE = re.compile(
    r"(?:over|more than|at least|above|well over|exceed(?:s|ed|ing)?|>) ?(?:an? |the )?\Z", re.IGNORECASE
)
BELOW = re.compile(
    r"(?:under|less than|fewer than|at most|up to|below|almost|nearly|<) ?(?:an? |the )?\Z", re.IGNORECASE
)
HEDGE_CHARS = 26  # in front of a number
ORDINAL = re.compile(
    rf"(?<![\w])(?:{'|'.join(sorted(spoken.ORDINALS, key=len, reverse=True))})(?![\w])", re.IGNORECASE
)
PARTS = {"half": 0.5, "halves": 0.5, "halved": 0.5, "quarter": 0.25, "quarters": 0.75, "third": 1 / 3, "thirds": 2 / 3}
PART = re.compile(rf"(?<![\w])(?:{'|'.join(sorted(PARTS, key=len, reverse=True))})(?![\w])", re.IGNORECASE)
AND_PARTS = {"half": 0.5, "quarter": 0.25}
AND_PART = re.compile(r"[ ]and[ ]an?[ ](half|quarter)(?![\w])", re.IGNORECASE)
OF_A_SCALE = re.compile(r"[ ]of[ ]a[ ](hundred|thousand|million|billion|trillion)(?![\w])", re.IGNORECASE)
DIGITS = 15  # of a number; longer ones are codes
# How far a rounded or converted number may be from the precise one, as a share of it; and behind "about" and the like.
PLAIN, HEDGED = 0.025, 0.1
ONE_DIGIT = 0.25  # the same for a hedged number of one digit: "about 1" for 1.2
BEYOND = 1.25  # "more than 100" may stand for up to this many times as much


class Quantity(NamedTuple):
    """A number in a text. `year`: four digits that may be one; `vague`: a word below ten."""

    start: int
    end: int
    value: float
    unit: Unit | None = None
    year: bool = False
    vague: bool = False
    hedge: str = ""  # "about", "above", "below"


def quantities_in(text: str, dates: Iterable[tuple[int, int]] = ()) -> list[Quantity]:
    """The numbers of a text outside of its dates (spans, ascending), by their place."""
    taken = list(dates)
    found = sorted([*_in_digits(text), *_in_words(text)], key=lambda one: (one.start, -one.end))
    kept: list[Quantity] = []
    place = 0
    for one in found:
        while place < len(taken) and taken[place][1] <= one.start:
            place += 1
        in_date = place < len(taken) and taken[place][0] < one.end
        if not in_date and not (kept and one.start < kept[-1].end):
            kept.append(one._replace(hedge=hedge_before(text, one.start)))
    return _with_shared_units(text, kept)


def hedge_before(text: str, start: int) -> str:
    """How the words in front of a number loosen it: "above", "below", "about" or ""."""
    before = text[max(0, start - HEDGE_CHARS) : start]
    for name, pattern in (("above", ABOVE), ("below", BELOW), ("about", HEDGE)):
        if pattern.search(before):
            return name
    return ""


def _in_digits(text: str) -> Iterator[Quantity]:
    for match in NUMBER.finditer(text):
        digits = re.sub(r"\D", "", match["digits"])
        if len(digits) > DIGITS or _is_code(text, match):
            continue
        value = float(digits + (match["decimals"] or "")) + GLYPHS.get(match["fraction"] or "", 0.0)
        start, end, unit = match.start(), match.end(), CURRENCY.get(match["sign"] or "")
        plain = len(digits) == len(match["digits"]) and not match["decimals"]
        slashed = SLASHED.match(text, end) if plain and value < 100 else None
        if slashed and 0 < value < float(slashed[1]):
            yield Quantity(start, slashed.end(), value / float(slashed[1]), FRACTION)
            continue
        if match["sign"] in ("-", "−"):
            value = -value
        if half := AND_PART.match(text, end):
            value, end, plain = value + AND_PARTS[half[1].lower()], half.end(), False
        if scale := SCALE.match(text, end):
            value *= SCALES[(scale[1] or scale.group()).strip().lower()]
            end = scale.end()
        elif unit is None and not match["ordinal"] and (measured := unit_at(text, end, signs=True)):
            unit, end = measured
        year = plain and len(digits) == 4 and unit is None and 1000 <= value < 2100 and not scale
        if scale and unit is None and (measured := unit_at(text, end, signs=True)):
            unit, end = measured
        yield Quantity(start, end, value, unit, year)
    for match in GLYPH.finditer(text):
        yield Quantity(match.start(), match.end(), GLYPHS[match.group()], FRACTION)


def _is_code(text: str, match: "re.Match[str]") -> bool:
    """Whether letters follow directly that are no unit: 3D, 5G. Then the word is looked up as a name is."""
    follows = text[match.end() : match.end() + 1]
    if not (follows.isalpha() or follows == "_"):
        return False
    return not (SCALE.match(text, match.end()) or unit_at(text, match.end(), signs=True))


def _in_words(text: str) -> Iterator[Quantity]:
    for match in spoken.FRACTION.finditer(text):
        if fraction := spoken.fraction_of(match):
            scale = OF_A_SCALE.match(text, fraction.end)
            if scale:
                yield Quantity(fraction.start, scale.end(), fraction.value * SCALES[scale[1].lower()])
            else:
                yield Quantity(fraction.start, fraction.end, fraction.value, FRACTION)
    for match in spoken.HALF_OF.finditer(text):
        yield Quantity(match.start(), match.end() + len(match[1]), spoken.SCALES[match[1].lower()] / 2)
    for match in re.finditer(r"(?<![\w])half[ ]an?(?=[ ])", text, re.IGNORECASE):
        if measured := unit_at(text, match.end(), signs=False):
            yield Quantity(match.start(), measured[1], 0.5, measured[0])
    for run in spoken.RUN.finditer(text):
        for one in spoken.numbers_in(run):
            if half := AND_PART.match(text, one.end):
                one = one._replace(end=half.end(), value=one.value + AND_PARTS[half[1].lower()], single=False)
            measured = unit_at(text, one.end, signs=False)
            scaled = re.search("hundred|thousand", text[one.start : one.end], re.IGNORECASE)
            year = 1300 <= one.value < 2100 and not measured and not scaled
            unit, end = measured or (None, one.end)
            yield Quantity(one.start, end, one.value, unit, year, one.single)


def stated_in(text: str, dates: Iterable[tuple[int, int]] = ()) -> list[Quantity]:
    """The numbers that a source gives: also ordinals, halves and quarters, and both parts of "1 in 4"."""
    found = quantities_in(text, dates)
    for match in ORDINAL.finditer(text):
        found.append(Quantity(match.start(), match.end(), float(spoken.ORDINALS[match.group().lower()])))
    for match in PART.finditer(text):
        found.append(Quantity(match.start(), match.end(), PARTS[match.group().lower()], FRACTION))
    shares = [one for one in found if one.unit == FRACTION and one.end - one.start > 3]
    inside = (part for one in shares for part in NUMBER.finditer(text, one.start, one.end))
    found += [Quantity(*part.span(), float(re.sub(r"\D", "", part["digits"])[:DIGITS])) for part in inside]
    return sorted(found, key=lambda one: one.start)


def _with_shared_units(text: str, found: list[Quantity]) -> list[Quantity]:
    """ "5 to 10 km": the first has the unit of the second. "1 in 4": both are one share."""
    joined: list[Quantity] = []
    for one in found:
        if joined:
            last = joined[-1]
            between = text[last.end : one.start]
            plain_share = (
                between.count(" ") == 2 or last.value == 1
            )  # "one chick in three", and no "5 men in 20 boats"
            if (
                SHARE.fullmatch(between)
                and plain_share
                and 0 < last.value < one.value <= 1000
                and not last.unit
                and not one.year
            ):
                joined[-1] = Quantity(last.start, one.end, last.value / one.value, FRACTION, hedge=last.hedge)
                continue
            if last.unit is None and one.unit and not last.year and RANGE.fullmatch(between):
                joined[-1] = last._replace(unit=one.unit)
        joined.append(one)
    return joined


def significant(value: float) -> int:
    """Digits of a number without the zeros at its ends: 3 of 8,850."""
    return len(f"{abs(value):.12g}".split("e")[0].replace(".", "").strip("0")) or 1


def last_place(value: float) -> float:
    """What the last of these digits counts: 10 in 8,850, 0.1 in 2.5."""
    digits, _, exponent = f"{abs(value):.12g}".partition("e")
    whole, _, decimals = digits.partition(".")
    places = -len(decimals) if decimals else len(whole) - len(whole.rstrip("0"))
    return 10.0 ** (places + int(exponent or 0))


class Quantities:
    """The numbers of a source, arranged so that support for one is found by bisection."""

    def __init__(self, found: Iterable[Quantity]):
        # unit (None: all numbers, whatever their unit) -> significant digits -> values, ascending
        self._values: dict[Unit | None, dict[int, list[float]]] = defaultdict(lambda: defaultdict(list))
        self._bare: dict[int, list[float]] = defaultdict(list)
        self.years: set[int] = set()
        for one in [*found, *_sums(found)]:
            digits = significant(one.value)
            self._values[None][digits].append(one.value)
            if one.unit is None:
                self._bare[digits].append(one.value)
            else:
                self._values[one.unit][digits].append(one.value)
            if one.year:
                self.years.add(int(one.value))
        for by_digits in (*self._values.values(), self._bare):
            for values in by_digits.values():
                values.sort()
        self._units = defaultdict[str, list[Unit]](list)
        for unit in self._values:
            if unit is not None:
                self._units[unit.dimension].append(unit)

    def has(self, one: Quantity) -> bool:
        """Whether the source says as much."""
        if one.year and not one.hedge:
            return self.exact(one.value, None)
        groups = [self._values[None]] if one.unit is None else [self._values[one.unit], self._bare]
        if any(_rounds(by_digits, one) for by_digits in groups):
            return True
        if one.unit is None:
            return False
        if one.unit == POUND and _rounds(self._values[STERLING], one):
            return True
        others = (unit for unit in self._units[one.unit.dimension] if unit != one.unit)
        return any(self._converts(one, unit) for unit in others)

    def exact(self, value: float, unit: Unit | None) -> bool:
        """Whether a number is there as it is; without a unit, whatever its unit is there."""
        return _within(self._values[unit].get(significant(value), []), value, value)

    def _converts(self, one: Quantity, unit: Unit) -> bool:
        assert one.unit is not None
        if one.unit.dimension == "temperature":
            slack = 3.0 if one.hedge else max(0.6, min(1.0, last_place(one.value) / 2))
            low, high = one.value - slack, one.value + slack
        else:
            low, high = _bounds(one, HEDGED if one.hedge else PLAIN)
        ends = sorted((converted(low, one.unit, unit), converted(high, one.unit, unit)))
        return any(_within(values, *ends) for values in self._values[unit].values())


def _sums(found: Iterable[Quantity]) -> Iterator[Quantity]:
    """5 feet 10 inches as inches too, 1 hour 30 minutes as minutes: neighbours of one dimension, the smaller last."""
    last: Quantity | None = None
    for one in found:
        if last and last.unit and one.unit and one.start - last.end <= 5 and _is_part(one.unit, last.unit):
            value = converted(last.value, last.unit, one.unit) + one.value
            yield Quantity(last.start, one.end, value, one.unit)
        last = one


def _is_part(unit: Unit, larger: Unit) -> bool:
    return unit.dimension == larger.dimension != "temperature" and unit.factor < larger.factor


def _bounds(one: Quantity, tolerance: float) -> tuple[float, float]:
    """Between which values a precise number may be that a text gives as `one`."""
    slack = abs(one.value) * tolerance
    low, high = one.value - slack, one.value + slack
    if one.hedge == "above":
        high = max(high, one.value * BEYOND)
    if one.hedge == "below":
        low = min(low, one.value / BEYOND)
    return low, high


def _rounds(by_digits: dict[int, list[float]], one: Quantity) -> bool:
    """Whether a number is there as it is, or one with more digits that rounds to it."""
    own = significant(one.value)
    if _within(by_digits.get(own, []), one.value, one.value):
        return True
    hedged = ONE_DIGIT if own == 1 and abs(one.value) < 10 else HEDGED
    low, high = _bounds(one, hedged if one.hedge else PLAIN)
    if one.hedge in ("above", "below"):
        return any(_within(values, low, high) for values in by_digits.values())
    half = last_place(one.value) / 2
    low, high = max(low, one.value - half), min(high, one.value + half)
    return any(_within(values, low, high) for digits, values in by_digits.items() if digits > own)


def _within(values: list[float], low: float, high: float) -> bool:
    slack = 1e-9 * max(abs(low), abs(high))
    place = bisect_left(values, low - slack)
    return place < len(values) and values[place] <= high + slack
