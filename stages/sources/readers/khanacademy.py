"""Khan Academy: the course trees that khan-dl writes (title, subunits)."""

from typing import Any

from cosmopedia.core.params import Params
from cosmopedia.core.rng import content_hash
from stages.sources.reader import Reader, Rejected, Rows, SourceRow, text_of


class KhanFilter(Params):
    min_lessons: int


def read(values: dict[str, Any], keep: KhanFilter) -> Rows:
    """One course tree, one row per lesson: course -> unit -> subunit -> lesson."""
    course = text_of(values, "title").replace("_", " ")
    for unit in values["subunits"]:
        unit_title = text_of(unit, "title").split(":", 1)[-1].strip()
        chapters = [text_of(subunit, "title") for subunit in unit["subunits"]]
        for position, subunit in enumerate(unit["subunits"]):
            lessons = [str(lesson).strip() for lesson in subunit["lessons"]]
            if len(lessons) < keep.min_lessons:
                yield Rejected("no_lessons", f"{course} / {unit_title} / {chapters[position]}")
                continue
            for number, lesson in enumerate(lessons):
                if not lesson:
                    yield Rejected("empty", f"{course} / {unit_title} / {chapters[position]}: lesson {number + 1}")
                    continue
                context = {
                    "course": course,
                    "unit": unit_title,
                    "chapter": chapters[position],
                    "covered_chapters": chapters[:position],
                    "covered_lessons": [name for name in lessons[:number] if name],
                }
                yield SourceRow(content_hash(course, unit_title, chapters[position], lesson), lesson, "", context)


READER = Reader(read, KhanFilter)
