"""Stanford courses: outlines (course_title, course_description, outline)."""

import re
from typing import Any

from cosmopedia.core.params import Params
from cosmopedia.core.rng import content_hash
from stages.sources.reader import Reader, Rejected, Rows, SourceRow, text_of

UNIT_LINE = re.compile(r"^\s*(\d+)\.(\d+)\s+(.+?):\s+(.+?)\s*$")


class OutlineFilter(Params):
    min_units: int


def read(values: dict[str, Any], keep: OutlineFilter) -> Rows:
    """One outline (lines such as "2.1 Section: unit"), one row per unit."""
    course, outline = text_of(values, "course_title"), text_of(values, "outline")
    units = [m.groups() for line in outline.splitlines() if (m := UNIT_LINE.match(line))]
    if not course:
        yield Rejected("empty", "an outline without a course_title")
        return
    if len(units) < keep.min_units:
        yield Rejected("no_units", f"{course}: {len(units)} units")
        return
    description = str(values.get("course_description") or "")
    sections: list[str] = []
    for part, number, section, unit in units:
        if section not in sections:
            sections.append(section)
        context = {
            "course": course,
            "section": section,
            "covered_sections": sections[:-1],
            "covered_units": [u for p, _, _, u in units[: units.index((part, number, section, unit))] if p == part],
        }
        yield SourceRow(content_hash(course, part, number, unit), unit, description, context)


READER = Reader(read, OutlineFilter)
