"""OpenStax books: HuggingFaceTB/openstax_paragraphs."""

from typing import Any

from cosmopedia.core.params import Params
from cosmopedia.core.rng import content_hash
from stages.sources.reader import Reader, Rejected, Rows, SourceRow, text_of


class OpenstaxFilter(Params):
    language: str
    drop_chapters: list[str]
    drop_sections: list[str]
    min_words: int


def read(values: dict[str, Any], keep: OpenstaxFilter) -> Rows:
    """One book, one row per section (the deepest level), chapters read recursively; prefaces dropped."""
    book = text_of(values, "book_title")
    if values["language"] != keep.language:
        yield Rejected("language", f"{book}: {values['language']}")
        return
    for chapter in values["chapters"]:
        if any(name in chapter["title"].lower() for name in keep.drop_chapters):
            yield Rejected("dropped_chapter", f"{book} / {chapter['title']}")
        else:
            yield from _openstax_chapter(book, chapter, [], keep)


def _openstax_chapter(book: str, chapter: dict[str, Any], trail: list[str], keep: OpenstaxFilter) -> Rows:
    trail = [*trail, text_of(chapter, "title")]
    covered: list[str] = []
    for section in chapter.get("sections") or []:
        title, text = text_of(section, "title"), str(section.get("paragraph") or "").strip()
        if not title:
            yield Rejected("empty", f"{book} / {' / '.join(trail)}: a section without a title")
            continue
        if title.lower() in keep.drop_sections:
            yield Rejected("dropped_section", f"{book} / {' / '.join(trail)} / {title}")
            continue
        if len(text.split()) < keep.min_words:
            yield Rejected("length", f"{book} / {' / '.join(trail)} / {title}: {len(text.split())} words")
            continue
        context = {"book": book, "trail": trail, "covered_units": list(covered)}
        covered.append(title)
        yield SourceRow(content_hash(book, *trail, title, text), title, text, context)
    for inner in chapter.get("chapters") or []:
        yield from _openstax_chapter(book, inner, trail, keep)


READER = Reader(read, OpenstaxFilter)
