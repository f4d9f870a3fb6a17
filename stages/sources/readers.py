"""One reader per source: a record of the public schema becomes source rows, or a reason why not.

A reader takes (record values, the source's filter params) and yields `SourceRow` and `Rejected`; what is missing
in a record it raises as `KeyError` or `TypeError`, which the stage counts as "malformed" with the key's name.

Public schemas: tiiuae/falcon-refinedweb (content) and HuggingFaceFW/fineweb (text, id, url, language, language_score);
Stanford outlines (course_title, course_description, outline); khan-dl (title, subunits);
HuggingFaceTB/openstax_paragraphs; WikiHow titles; math-ai/AutoMathText (url, text, meta); stingning/ultrachat
(id, data) and HuggingFaceTB/ultrachat_questions_about_world (and question, first_turn); teknium/OpenHermes-2.5
(conversations, source, category, language); HuggingFaceTB/cosmopedia-100k (prompt, seed_data, format, audience) or any
table of ready-made prompts. docs/sources.md has a section on each.
"""

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Annotated, Any

from pydantic import BeforeValidator

from cosmopedia.params import Params
from cosmopedia.rng import content_hash


def _compiled(pattern: Any) -> re.Pattern[str]:
    try:
        return re.compile(pattern, re.IGNORECASE)
    except (re.error, TypeError) as error:
        raise ValueError(f"no regular expression ({error})") from None


Pattern = Annotated[re.Pattern[str], BeforeValidator(_compiled)]  # case is ignored


@dataclass(frozen=True)
class SourceRow:
    """A row that a prompt can be made from. `context` holds the source's own slots (see stages/prompts/slots.py)."""

    original_id: str
    title: str
    text: str
    context: dict[str, Any] = field(default_factory=dict)
    url: str | None = None


@dataclass(frozen=True)
class Rejected:
    """A row left out, and why: `reason` is counted, `detail` is for a person."""

    reason: str
    detail: str = ""


class WebFilter(Params):
    text_column: str
    min_words: int
    max_words: int
    language: str
    min_language_score: float


class OutlineFilter(Params):
    min_units: int


class KhanFilter(Params):
    min_lessons: int


class OpenstaxFilter(Params):
    language: str
    drop_chapters: list[str]
    drop_sections: list[str]
    min_words: int


class WikihowFilter(Params):
    min_words: int


class MathFilter(Params):
    min_words: int


class UltrachatFilter(Params):
    min_words: int
    drop_requests: list[Pattern]
    concepts: dict[str, list[Pattern]]  # counted, never filtered: see `concepts_of`


class OpenhermesFilter(Params):
    languages: list[str]
    drop_sources: list[str]
    drop_categories: list[str]
    min_words: int


class ReadyFilter(Params):
    prompt_column: str
    min_words: int
    format: str  # of rows that name none
    audience: str


Rows = Iterator[SourceRow | Rejected]


def web(values: dict[str, Any], keep: WebFilter) -> Rows:
    """One page, one row."""
    text = _text(values, keep.text_column)
    words = len(text.split())
    language, score = values.get("language") or None, values.get("language_score")
    score = None if score in (None, "") else float(score)  # CSV knows text only
    if language not in (None, keep.language) or (score is not None and score < keep.min_language_score):
        yield Rejected("language", f"{language} at {score}")
    elif words == 0:
        yield Rejected("empty")
    elif not keep.min_words <= words <= keep.max_words:
        yield Rejected("length", f"{words} words")
    else:
        yield SourceRow(_id(values, text), "", text, {}, _url(values))


UNIT_LINE = re.compile(r"^\s*(\d+)\.(\d+)\s+(.+?):\s+(.+?)\s*$")


def stanford(values: dict[str, Any], keep: OutlineFilter) -> Rows:
    """One outline (lines such as "2.1 Section: unit"), one row per unit."""
    course, outline = _text(values, "course_title"), _text(values, "outline")
    units = [m.groups() for line in outline.splitlines() if (m := UNIT_LINE.match(line))]
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


def khanacademy(values: dict[str, Any], keep: KhanFilter) -> Rows:
    """One course tree, one row per lesson: course -> unit -> subunit -> lesson."""
    course = _text(values, "title").replace("_", " ")
    for unit in values["subunits"]:
        unit_title = _text(unit, "title").split(":", 1)[-1].strip()
        chapters = [_text(subunit, "title") for subunit in unit["subunits"]]
        for position, subunit in enumerate(unit["subunits"]):
            lessons = [str(lesson).strip() for lesson in subunit["lessons"]]
            if len(lessons) < keep.min_lessons:
                yield Rejected("no_lessons", f"{course} / {unit_title} / {chapters[position]}")
                continue
            for number, lesson in enumerate(lessons):
                context = {
                    "course": course,
                    "unit": unit_title,
                    "chapter": chapters[position],
                    "covered_chapters": chapters[:position],
                    "covered_lessons": lessons[:number],
                }
                yield SourceRow(content_hash(course, unit_title, chapters[position], lesson), lesson, "", context)


def openstax(values: dict[str, Any], keep: OpenstaxFilter) -> Rows:
    """One book, one row per section (the deepest level), chapters read recursively; prefaces dropped."""
    book = _text(values, "book_title")
    if values["language"] != keep.language:
        yield Rejected("language", f"{book}: {values['language']}")
        return
    for chapter in values["chapters"]:
        if any(name in chapter["title"].lower() for name in keep.drop_chapters):
            yield Rejected("dropped_chapter", f"{book} / {chapter['title']}")
        else:
            yield from _openstax_chapter(book, chapter, [], keep)


def _openstax_chapter(book: str, chapter: dict[str, Any], trail: list[str], keep: OpenstaxFilter) -> Rows:
    trail = [*trail, _text(chapter, "title")]
    covered: list[str] = []
    for section in chapter.get("sections") or []:
        title, text = _text(section, "title"), str(section.get("paragraph") or "").strip()
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


def wikihow(values: dict[str, Any], keep: WikihowFilter) -> Rows:
    """One title, one row."""
    title = " ".join(_text(values, "text").split())
    if len(title.split()) < keep.min_words:
        yield Rejected("length" if title else "empty", title)
    else:
        yield SourceRow(content_hash(title.casefold()), title, "")


def automathtext(values: dict[str, Any], keep: MathFilter) -> Rows:
    """One web page on mathematics, one row."""
    text = _text(values, "text")
    if len(text.split()) < keep.min_words:
        yield Rejected("length" if text else "empty", f"{len(text.split())} words")
    else:
        yield SourceRow(content_hash(text), "", text, {}, _url(values))


def ultrachat(values: dict[str, Any], keep: UltrachatFilter) -> Rows:
    """One conversation, one row: its first question. Requests to write something are dropped, questions stay.

    HuggingFaceTB's subset has a column `first_turn`, which the published prompts quote (Cosmopedia,
    build_ultrachat_stories_prompts.py): where a row has it, it is the text, and `context` keeps the question.
    """
    turns = values["data"]
    if not isinstance(turns, list):
        raise TypeError(f"data must be a list of turns, found {type(turns).__name__}")
    question = _text({"data[0]": turns[0] or ""}, "data[0]") if turns else ""
    if not question:
        yield Rejected("empty", str(values.get("id")))
    elif len(question.split()) < keep.min_words:
        yield Rejected("length", question)
    elif any(pattern.search(question) for pattern in keep.drop_requests):
        yield Rejected("writing_request", question[:80])
    else:
        turn = _text(values, "first_turn") if values.get("first_turn") else ""
        yield SourceRow(_id(values, question), "", turn or question, {"question": question} if turn else {})


def concepts_of(question: str, concepts: dict[str, list[re.Pattern[str]]]) -> list[str]:
    """The concepts that a question touches, by the words of `concepts`; ["other"] where it touches none."""
    touched = [name for name, patterns in concepts.items() if any(pattern.search(question) for pattern in patterns)]
    return touched or ["other"]


def openhermes(values: dict[str, Any], keep: OpenhermesFilter) -> Rows:
    """One conversation, one row: the first human turn and its answer."""
    category, source = str(values.get("category") or "").lower(), str(values.get("source") or "").lower()
    if values.get("language") not in (None, *keep.languages):
        yield Rejected("language", str(values["language"]))
    elif source in keep.drop_sources:
        yield Rejected("dropped_source", source)
    elif category in keep.drop_categories:
        yield Rejected("dropped_category", category)
    else:
        turns = [(turn["from"], _text({"value": turn["value"] or ""}, "value")) for turn in values["conversations"]]
        first = next((n for n, (speaker, _) in enumerate(turns) if speaker == "human"), None)
        if first is None or first + 1 >= len(turns) or turns[first + 1][0] != "gpt":
            yield Rejected("no_exchange")
            return
        question, answer = turns[first][1], turns[first + 1][1]
        if len(question.split()) < keep.min_words:
            yield Rejected("length" if question else "empty", question)
            return
        text = f"{question}\n{answer}"
        yield SourceRow(_id(values, text), "", text)


def ready(values: dict[str, Any], keep: ReadyFilter) -> Rows:
    """One ready-made prompt, one row: `text` is the prompt, to the last space."""
    _text(values, keep.prompt_column)
    prompt = values[keep.prompt_column]
    words = len(prompt.split())
    if words < keep.min_words:
        yield Rejected("length" if words else "empty", prompt.strip())
        return
    defaults = {"seed_data": "", "format": keep.format, "audience": keep.audience}
    context = {name: _text(values, name) if values.get(name) else default for name, default in defaults.items()}
    yield SourceRow(_id(values, prompt), "", prompt, context)


def _id(values: dict[str, Any], text: str) -> str:
    """The row's own id, or the hash of its text where it has none."""
    own = values.get("id")
    return content_hash(text) if own is None or own == "" else str(own)


def _url(values: dict[str, Any]) -> str | None:
    return _text(values, "url") if values.get("url") is not None else None


def _text(values: dict[str, Any], key: str) -> str:
    value = values[key]
    if not isinstance(value, str):
        raise TypeError(f"{key} must be text, found {type(value).__name__}")
    return value.strip()


@dataclass(frozen=True)
class Reader:
    """A source's reader and the model of its filter params."""

    read: Callable[[dict[str, Any], Any], Rows]
    keep: type[Params]


READERS: dict[str, Reader] = {
    "web": Reader(web, WebFilter),
    "stanford": Reader(stanford, OutlineFilter),
    "khanacademy": Reader(khanacademy, KhanFilter),
    "openstax": Reader(openstax, OpenstaxFilter),
    "wikihow": Reader(wikihow, WikihowFilter),
    "automathtext": Reader(automathtext, MathFilter),
    "ultrachat": Reader(ultrachat, UltrachatFilter),
    "openhermes": Reader(openhermes, OpenhermesFilter),
    "ready": Reader(ready, ReadyFilter),
}
