"""Records become source rows or rejections, each counted; of rows with the same id or content the first stays."""

import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from typing import Any, Literal

from pydantic import Field

from cosmopedia.core.params import Params
from cosmopedia.core.row_counts import RowCounts
from cosmopedia.core.text import half_pair, has_controls, without_controls
from cosmopedia.fingerprints import Fingerprints, fingerprint
from cosmopedia.records.reading import Record
from stages.sources.reader import Reader, Rejected, SourceRow, reader_of

RAW_CHARS = 10_000  # of a rejected record that are kept


class SourceParams(Params):
    """Where one source comes from (profile) and what is kept of it (params.yaml: `keep`)."""

    dataset: str | None  # hub id, file or folder; null leaves the source out (an empty table)
    subset: str | None
    split: str | None
    revision: str | None  # commit of a hub dataset; null for local files
    limit: int | None  # records read at most
    licence: str
    keep: dict[str, Any]


class ReadingParams(Params):
    """How the records of every source are read."""

    max_record_mb: float = Field(gt=0, le=1024)  # a longer record is left out
    control_characters: Literal["remove", "keep"]


def checked(records: Iterator[Record], params: ReadingParams, seen: Counter[str]) -> Iterator[Record]:
    """The records, without control characters where the params say so; `seen` counts those that had some."""
    for record in records:
        try:
            if _any_controls(record.values):
                seen["control_characters"] += 1
                if params.control_characters == "remove":
                    record = replace(record, values=_without_controls(record.values))
        except RecursionError:
            record = Record(record.place, {}, "brackets nested too deep", record.raw)
        yield record


def _any_controls(value: Any) -> bool:
    if isinstance(value, str):
        return has_controls(value)
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return any(map(_any_controls, inner))


def _without_controls(value: Any) -> Any:
    if isinstance(value, str):
        return without_controls(value)
    if isinstance(value, dict):
        return {key: _without_controls(inner) for key, inner in value.items()}
    return [_without_controls(inner) for inner in value] if isinstance(value, list) else value


def rows_of(record: Record, reader: Reader, keep: Params) -> Iterator[SourceRow | Rejected]:
    """A record's source rows and rejections; a record that cannot be read is one rejection."""
    if record.problem:
        yield Rejected("unreadable", f"{record.place}: {record.problem}")
        return
    try:
        yield from reader.read(record.values, keep)
    except KeyError as error:
        yield Rejected("malformed", f"{record.place}: column {error} is missing; found {sorted(record.values)}")
    except (TypeError, AttributeError, IndexError, ValueError) as error:
        yield Rejected("malformed", f"{record.place}: {error}")


def normalise(
    source: str, records: Iterator[Record], params: SourceParams, keep: Params, revision: str, counts: RowCounts
) -> Iterator[tuple[dict | None, dict | None]]:
    """(SOURCE row, None) or (None, REJECTED row) for each row, in the dataset's order, counted in `counts`.

    A rejected row does not make a later one a duplicate.
    """
    ids, contents = Fingerprints(), Fingerprints()
    reader = reader_of(source)
    for record in records:
        for row in rows_of(record, reader, keep):
            counts.rows_in += 1
            if isinstance(row, SourceRow):
                row_id = f"{source}/{row.original_id}"
                context = json.dumps(row.context, ensure_ascii=False, sort_keys=True)
                try:
                    id_print = fingerprint(row_id)
                    content_print = fingerprint(row.title, row.text, context)
                    (row.url or "").encode()
                except UnicodeEncodeError as error:
                    half = half_pair(str(error.object))
                    row = Rejected(
                        "unreadable", f"{record.place}: half of a surrogate pair ({half}), which is no text"
                    )
                else:
                    if id_print in ids:
                        row = Rejected("duplicate_id", row_id)
                    elif content_print in contents:
                        row = Rejected("duplicate_text", row_id)
            if isinstance(row, Rejected):
                number = sum(counts.removed.values())
                counts.remove(row.reason)
                yield None, _rejected(f"{source}/{number:09d}", row, record)
                continue
            ids.add(id_print)
            contents.add(content_print)
            counts.kept += 1
            kept = {
                "row_id": row_id,
                "source": source,
                "original_id": row.original_id,
                "title": row.title,
                "text": row.text,
                "context": context,
                "url": row.url,
                "licence": params.licence,
                "revision": revision,
            }
            yield kept, None


def _rejected(row_id: str, row: Rejected, record: Record) -> dict:
    """A REJECTED row; what UTF-8 cannot hold becomes "?"."""
    raw = record.raw or json.dumps(record.values, ensure_ascii=False, default=str)
    detail, content = (text.encode("utf-8", "replace").decode() for text in (row.detail, raw[:RAW_CHARS]))
    return {"row_id": row_id, "reason": row.reason, "detail": detail, "row": content}


def nothing_kept(dataset: str, source: str, counts: RowCounts, causes: dict[str, str]) -> str:
    """The message for a dataset that gave no row: why most rows were left out, and the first of those in detail."""
    if not counts.rows_in:
        return f"{dataset} holds no record; give sources.{source} a dataset that has some, or null to leave it out"
    message = f"{dataset}: not one of {counts.rows_in} rows could be used for {source}"
    reason, count = counts.removed.most_common(1)[0]
    return f"{message}; {count} {reason}, the first: {causes[reason]}; correct sources.{source} or the dataset"
