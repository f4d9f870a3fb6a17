"""The slots that each source offers to its templates, as columns.

Every source offers what its rows know, and one that is not listed here its title and extract; `$extract` is cut at a
word's end, the "already covered" sentence is empty for the first unit and keeps to a budget of names. `$references`
are the passages that the stage retrieve has for a row. Data can hold any character, since a slot's value is never
read as a template.
"""

import json
from collections.abc import Callable, Iterable
from typing import Any

import polars as pl

SLOTS: dict[str, tuple[str, ...]] = {
    "web": ("extract", "in_topic", "topic"),
    "stanford": ("course", "section", "unit", "covered"),
    "khanacademy": ("course", "unit", "chapter", "lesson", "covered"),
    "openstax": ("book", "chapter", "unit", "covered", "extract"),
    "wikihow": ("title",),
    "automathtext": ("extract",),
    "ultrachat": ("extract",),
    "openhermes": ("extract",),
    "ready": ("prompt",),
    "taxonomy": ("subject", "within", "touching"),
}
UNLISTED = ("title", "extract")  # of any other source
REFERENCES = "references"  # of every source
QUOTED = ("extract", "prompt")  # slots that hold a source row's text
NAMES_LISTED = 6  # covered units that are named: the last ones, since they are the nearest


def offered(source: str) -> tuple[str, ...]:
    """The slots that a source offers."""
    return (*SLOTS.get(source, UNLISTED), REFERENCES)


def naming_slots(slots: Iterable[str]) -> tuple[str, ...]:
    """Of a template's slots those that say what a prompt is about, sorted: without what was covered before."""
    return tuple(sorted(set(slots) - {"covered", "in_topic", REFERENCES}))


def covered_sentence(parts: list[str], units: list[str], part: str, unit: str) -> str:
    """ "We have already covered ..." for earlier parts (chapters) and units (lessons); "" for the very first.

    `part` and `unit` are the words for them.
    """
    sentences = []
    if parts:
        sentences.append(f"We have already covered the {_plural(part, len(parts))} {_listing(parts)}.")
    if units:
        before = "In this" if parts else "We have already covered, in this"
        joined = f"{before} {part}, the {_plural(unit, len(units))} {_listing(units)}"
        sentences.append(f"{joined} came before." if parts else f"{joined}.")
    return "".join(f" {sentence}" for sentence in sentences)


def extract(column: str, chars: int) -> pl.Expr:
    """The first `chars` characters of a column, cut back to the end of a word; a single longer word is cut inside."""
    text = pl.col(column).str.strip_chars()
    head = text.str.head(chars)
    inside_word = text.str.slice(chars, 1).str.contains(r"\S")
    cut = pl.when(inside_word).then(head.str.replace(r"\s+\S*\z", "")).otherwise(head)
    return pl.when(text.str.len_chars() <= chars).then(text).otherwise(cut).str.strip_chars_end()


def slot_columns(source: str, rows: pl.DataFrame, extract_chars: int) -> pl.DataFrame:
    """SOURCE rows (web rows with their `topic`, those of grounded cells with `references`) with one more column per
    slot: `slot.<name>`.

    Ready-made prompts bring a format, an audience and the data that they quote: `own.<name>`.
    """
    rows = rows.with_columns(extract("text", extract_chars).alias("slot.extract"))
    if REFERENCES in rows.columns:
        rows = rows.with_columns(pl.col(REFERENCES).fill_null("").alias(f"slot.{REFERENCES}"))
    if source == "web":
        named = pl.when(pl.col("topic").str.strip_chars() != "").then(
            pl.format(', within the context of "{}"', pl.col("topic"))
        )
        return rows.with_columns(named.fill_null("").alias("slot.in_topic"), pl.col("topic").alias("slot.topic"))
    if source == "ready":
        own = [json.loads(context) for context in rows["context"]]
        columns = [pl.Series(f"own.{n}", [o[n] for o in own], pl.String) for n in ("format", "audience", "seed_data")]
        return rows.with_columns(pl.col("text").alias("slot.prompt"), *columns)
    if source == "wikihow" or source not in SLOTS:
        return rows.with_columns(pl.col("title").alias("slot.title"))
    if source in FILLERS:
        filled = [FILLERS[source](t, json.loads(c)) for t, c in zip(rows["title"], rows["context"], strict=True)]
        names = [name for name in SLOTS[source] if name != "extract"]
        return rows.with_columns(pl.Series(f"slot.{name}", [f[name] for f in filled], pl.String) for name in names)
    return rows


def _stanford(title: str, context: dict[str, Any]) -> dict[str, str]:
    covered = covered_sentence(context["covered_sections"], context["covered_units"], "section", "unit")
    return {"course": context["course"], "section": context["section"], "unit": title, "covered": covered}


def _khanacademy(title: str, context: dict[str, Any]) -> dict[str, str]:
    covered = covered_sentence(context["covered_chapters"], context["covered_lessons"], "chapter", "lesson")
    return {**{k: context[k] for k in ("course", "unit", "chapter")}, "lesson": title, "covered": covered}


def _openstax(title: str, context: dict[str, Any]) -> dict[str, str]:
    covered = covered_sentence([], context["covered_units"], "section", "unit")
    chapter = ": ".join(context["trail"])
    return {"book": context["book"], "chapter": chapter, "unit": title, "covered": covered}


def _taxonomy(title: str, context: dict[str, Any]) -> dict[str, str]:
    """A topic within its field, or a subtopic within its topic; of a topic also what belongs to it."""
    above = context["topic"] if context["subtopic"] else context["field"]
    touching = f" It may touch on {', '.join(context['keywords'])}." if context["keywords"] else ""
    return {"subject": title, "within": f', within "{above}"' if above else "", "touching": touching}


FILLERS: dict[str, Callable[[str, dict[str, Any]], dict[str, str]]] = {
    "stanford": _stanford,
    "khanacademy": _khanacademy,
    "openstax": _openstax,
    "taxonomy": _taxonomy,
}


def _plural(word: str, count: int) -> str:
    return word if count == 1 else f"{word}s"


def _listing(names: list[str]) -> str:
    shown = ", ".join(f'"{name}"' for name in names[-NAMES_LISTED:])
    return shown if len(names) <= NAMES_LISTED else f"{shown} and {len(names) - NAMES_LISTED} before them"
