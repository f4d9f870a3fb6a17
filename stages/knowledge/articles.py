"""Articles become passages: records of a dataset, checked, cut, with their lineage."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from cosmopedia.core.row_counts import RowCounts
from cosmopedia.core.text import half_pair, without_controls
from cosmopedia.fingerprints import Fingerprints, fingerprint
from cosmopedia.record_ids import row_id
from cosmopedia.records.reading import Record
from cosmopedia.tables.parquet import TableWriter
from stages.knowledge.cutting import passages

RAW_CHARS = 10_000  # of a rejected article that are kept


@dataclass(frozen=True)
class Columns:
    """Where an article's title and text are, and what all articles have in common."""

    title: str | None
    text: str
    revision: str
    licence: str


class LeftOut(Exception):
    """An article that gives no passage: (reason, detail)."""


def passages_of_articles(
    articles: Iterator[Record], columns: Columns, words: int, min_words: int, rejected: TableWriter, counts: RowCounts
) -> Iterator[dict[str, Any]]:
    """The PASSAGE rows of all articles. What is left out goes to `rejected`, and everything is counted."""
    seen = Fingerprints()
    for record in articles:
        counts.rows_in += 1
        try:
            article = read_article(record, columns)
            if (mark := fingerprint(article["id"])) in seen:
                raise LeftOut("duplicate_id", f"{record.place}: an earlier article is called {article['id']!r}")
            seen.add(mark)
        except LeftOut as left_out:
            rejected.write(_rejection(record, *left_out.args, number=sum(counts.removed.values())))
            counts.remove(left_out.args[0])
            continue
        counts.kept += 1
        for number, text in enumerate(passages(article["text"], words, min_words)):
            yield {
                "passage_id": f"{article['id']}/{number:04d}",
                "title": article["title"],
                "text": text,
                "article": article["address"],
                "revision": columns.revision,
                "licence": columns.licence,
            }


def read_article(record: Record, columns: Columns) -> dict[str, str]:
    """An article's id, title, text and address (its url, or else its id). `LeftOut` when it has no text."""
    if record.problem:
        raise LeftOut("unreadable", f"{record.place}: {record.problem}")
    values = record.values
    title = "" if columns.title is None else _text(record, columns.title)
    text = _text(record, columns.text)
    if not text:
        raise LeftOut("empty", f"{record.place}: no text")
    try:
        own = row_id(values, text)
    except TypeError as error:
        raise LeftOut("malformed", f"{record.place}: {error}") from None
    url = values.get("url")
    found = {"id": own, "title": " ".join(title.split()), "text": text, "address": str(url) if url else own}
    if half := next((half for value in found.values() if (half := half_pair(value))), None):
        raise LeftOut("unreadable", f"{record.place}: half of a surrogate pair ({half}), which is no text")
    return found


def _text(record: Record, column: str) -> str:
    """A column's text without control characters; "" for null."""
    if column not in record.values:
        raise LeftOut("malformed", f"{record.place}: no column {column!r}; found {sorted(record.values)}")
    value = record.values[column]
    if value is not None and not isinstance(value, str):
        raise LeftOut("malformed", f"{record.place}: {column} must be text, found {type(value).__name__}")
    return without_controls(value or "").strip()


def _rejection(record: Record, reason: str, detail: str, number: int) -> dict[str, str]:
    raw = record.raw or json.dumps(record.values, ensure_ascii=False, default=str)
    kept = {"reason": reason, "detail": detail, "row": raw[:RAW_CHARS]}
    clean = {name: value.encode("utf-8", "replace").decode() for name, value in kept.items()}
    return {"row_id": f"{number:09d}", **clean}
