"""Dates in a text: in digits, in words, with or without a day or a year; decades and centuries."""

import re
from collections.abc import Iterator
from typing import NamedTuple

from cosmopedia.faithfulness.number_words import ORDINALS

_MONTHS = "january february march april may june july august september october november december"
MONTHS = {name: n for n, name in enumerate(_MONTHS.split(), 1)}
MONTHS |= {name[:3]: n for name, n in MONTHS.items()} | {"sept": 9}
_MONTH = rf"(?:(?-i:{'|'.join(sorted((name.capitalize() for name in MONTHS), key=len, reverse=True))}))\.?"
_DAY = r"(?:3[01]|[12]\d|0?[1-9])(?:st|nd|rd|th)?"
_YEAR = r"(?:1\d{3}|20\d{2})"
_TENS = "|".join(sorted(ORDINALS, key=len, reverse=True))

PATTERN = re.compile(
    rf"""(?<![\w.,/-])(?:
      (?P<iso_y>{_YEAR})-(?P<iso_m>[01]\d)-(?P<iso_d>[0-3]\d)(?![\w-])
    | (?P<a>[0-3]?\d)[/.](?P<b>[0-3]?\d)[/.](?P<slash_y>{_YEAR})(?![\w])
    | (?P<dmy_d>{_DAY})[ ](?:of[ ])?(?P<dmy_m>{_MONTH})(?![\w])(?:,?[ ](?:of[ ])?(?P<dmy_y>{_YEAR})(?![\w]))?
    | (?P<mdy_m>{_MONTH})[ ](?:the[ ])?(?P<mdy_d>{_DAY})(?![\w])(?:,?[ ](?P<mdy_y>{_YEAR})(?![\w]))?
    | (?P<my_m>{_MONTH}),?[ ](?:of[ ])?(?P<my_y>{_YEAR})(?![\w])
    | (?:in|of|by|since|until|till|during|early|late|last|next|every|each|mid|from|to|between)[ -](?P<m>{_MONTH})
        (?![\w])(?!,?[ ](?:of[ ]|the[ ])?\d)
    | (?P<decade>(?:1\d\d|20\d)0)['’]?s(?![\w])
    | (?P<century>\d{{1,2}})(?:st|nd|rd|th)[ -]centur(?:y|ies)(?![\w])
    | (?P<century_word>{_TENS})[ -]centur(?:y|ies)(?![\w])
    | (?P<era_year>\d{{1,4}})[ ]?(?P<era>BCE|BC|AD|CE)(?![\w])
    )""",
    re.VERBOSE | re.IGNORECASE,
)


class Date(NamedTuple):
    """A date, as far as a text gives it. Years before Christ are negative."""

    start: int
    end: int
    year: int | None = None
    month: int | None = None
    day: int | None = None
    decade: int | None = None  # its first year
    century: int | None = None
    other: tuple[int, int] | None = None  # (month, day) by the other order of a date in digits

    def readings(self) -> Iterator[tuple[int | None, int | None, int | None]]:
        """(year, month, day), in each order that it may have."""
        yield self.year, self.month, self.day
        if self.other:
            yield self.year, *self.other


def dates_in(text: str) -> Iterator[Date]:
    """The dates of a text, in their order; years alone are numbers (quantities.py)."""
    for match in PATTERN.finditer(text):
        if date := _date(match):
            yield date


def _date(match: "re.Match[str]") -> Date | None:
    groups = {name: value for name, value in match.groupdict().items() if value}
    start, end = match.span()
    if "iso_y" in groups:
        return _checked(start, end, groups["iso_y"], int(groups["iso_m"]), groups["iso_d"])
    if "slash_y" in groups:
        return _in_digits(start, end, int(groups["slash_y"]), int(groups["a"]), int(groups["b"]))
    for form in ("dmy", "mdy", "my"):
        if month := groups.get(f"{form}_m"):
            return _checked(start, end, groups.get(f"{form}_y"), month_number(month), groups.get(f"{form}_d"))
    if month := groups.get("m"):
        return Date(match.start("m"), end, month=month_number(month))
    if "decade" in groups:
        return Date(start, end, decade=int(groups["decade"]))
    if "era" in groups:
        year = int(groups["era_year"])
        return Date(start, end, year=-year if groups["era"].upper() in ("BC", "BCE") else year)
    century = int(groups["century"]) if "century" in groups else ORDINALS[groups["century_word"].lower()]
    return Date(start, end, century=century)


def month_number(name: str) -> int:
    """1-12, of a name or its abbreviation."""
    return MONTHS[name.rstrip(".").lower()]


def _in_digits(start: int, end: int, year: int, a: int, b: int) -> Date | None:
    """12/3/1881, which is of March or of December."""
    orders = [(month, day) for day, month in ((a, b), (b, a)) if 1 <= month <= 12 and 1 <= day <= 31]
    if not orders:
        return None
    return Date(start, end, year, *orders[0], other=orders[1] if len(orders) > 1 else None)


def _checked(start: int, end: int, year: str | None, month: int, day: str | None) -> Date | None:
    number = int(re.sub(r"\D", "", day)) if day else None
    if not 1 <= month <= 12 or (number is not None and not 1 <= number <= 31):
        return None
    return Date(start, end, int(year) if year else None, month, number)


class Dates:
    """The dates and years that a source has; `has` says whether they hold another text's date."""

    def __init__(self, dates: list[Date], years: set[int]):
        self.years = years | {date.year for date in dates if date.year is not None}
        self.decades = {date.decade for date in dates if date.decade} | {year // 10 * 10 for year in self.years}
        self.centuries = {date.century for date in dates if date.century} | {
            (abs(y) - 1) // 100 + 1 for y in self.years
        }
        self.centuries |= {decade // 100 + 1 for decade in self.decades}
        self.parts: set[tuple[int | None, int | None, int | None]] = set()
        for date in dates:
            for year, month, day in date.readings():
                for part in ((year, month, day), (year, month, None), (None, month, day), (None, month, None)):
                    self.parts.add(part)
        self.parts.discard((None, None, None))
        self.days = {day for _, _, day in self.parts if day}

    def has(self, date: Date) -> bool:
        """Whether a date says no more than one of these."""
        if date.decade is not None:  # "the 1800s" may be the century
            return date.decade in self.decades or (date.decade % 100 == 0 and date.decade // 100 + 1 in self.centuries)
        if date.century is not None:
            return date.century in self.centuries
        if date.month is None:
            return date.year in self.years
        return any(reading in self.parts for reading in date.readings())
