"""Records become documents: DOCUMENT rows with nothing in them but the text and where it is from."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

from cosmopedia.core.rng import content_hash
from cosmopedia.core.row_counts import RowCounts
from cosmopedia.core.text import half_pair
from cosmopedia.corpus.components import NATURAL
from cosmopedia.fingerprints import Fingerprints
from cosmopedia.record_ids import row_id as row_id_of
from cosmopedia.records.reading import Record
from cosmopedia.tables.cell_files import shard_names
from cosmopedia.tables.contracts import DOCUMENT
from cosmopedia.tables.external_sort import SortingWriter
from cosmopedia.tables.parquet import ROW_GROUP, TableWriter, read_batches

SHARD_ROWS = 200_000  # documents of a file: a task of the stages that follow; 300 MB of pages of 4 kB
RAW_CHARS = 10_000  # of a rejected record that are kept


@dataclass(frozen=True)
class Component:
    """What is read as one component. Rows of a source bring their id, revision and licence themselves."""

    name: str
    text: str  # the column
    of_source: bool = False
    revision: str = ""
    licence: str = ""


@dataclass
class ReadCounts(RowCounts):
    """Row counts, and why the first row was left out."""

    first: str = ""


class LeftOut(Exception):
    """A record that is no document: (reason, detail)."""


def _blank(field: pa.Field) -> Any:
    if field.nullable:
        return None
    return "" if pa.types.is_string(field.type) else False if pa.types.is_boolean(field.type) else 0


BLANK = {field.name: _blank(field) for field in DOCUMENT.schema}


def as_document(component: Component, record: Record) -> dict[str, Any]:
    """The DOCUMENT row of a record. `LeftOut` when it has no text. clean counts the tokens."""
    if record.problem:
        raise LeftOut("unreadable", f"{record.place}: {record.problem}")
    values = record.values
    try:
        text = text_of(values, component.text)
        row_id = values["row_id"] if component.of_source else f"{component.name}/{row_id_of(values, text)}"
    except KeyError:
        found = f"column {component.text!r} is missing; found {sorted(values)}"
        raise LeftOut("malformed", f"{record.place}: {found}") from None
    except TypeError as error:
        raise LeftOut("malformed", f"{record.place}: {error}") from None
    if not text.strip():
        raise LeftOut("empty", record.place)
    if half := half_pair(text) or half_pair(row_id):
        raise LeftOut("unreadable", f"{record.place}: half of a surrogate pair ({half}), which is no text")
    return BLANK | {
        "completion_id": f"{component.name}/{content_hash(row_id)}",
        "text": text,
        "source": component.name,
        "style": NATURAL,
        "seed_id": row_id,
        "seed_revision": values["revision"] if component.of_source else component.revision,
        "seed_licence": values["licence"] if component.of_source else component.licence,
    }


def text_of(values: dict[str, Any], column: str) -> str:
    """A record's text. A list is a conversation, the user's turn first; it gets Llama 2's marks, as text."""
    value = values[column]
    if isinstance(value, str):
        return value
    if not isinstance(value, list):
        raise TypeError(f"{column} must be text or a list of turns, found {type(value).__name__}")
    turns = []
    for number, turn in enumerate(value):
        content, answers = turn, number % 2 == 1
        if isinstance(turn, dict):
            content, answers = turn.get("content"), turn.get("role") == "assistant"
        if not isinstance(content, str):
            raise TypeError(f"{column}: turn {number} has no text")
        turns.append(content.strip() if answers else f"[INST] {content.strip()} [/INST]")
    return "\n".join(turns)


def documents_of(
    component: Component, records: Iterator[Record], rejected: TableWriter, counts: ReadCounts
) -> Iterator:
    """The documents of a component; what is left out goes to `rejected`, and all is counted."""
    seen = Fingerprints()
    for record in records:
        counts.rows_in += 1
        try:
            row = as_document(component, record)
            mark = int(row["completion_id"][-16:], 16)  # 64 bits of the hash
            if mark in seen:
                raise LeftOut("duplicate_id", row["seed_id"])
        except LeftOut as left_out:
            reason, detail = (str(part).encode("utf-8", "replace").decode() for part in left_out.args)
            row_id = f"{component.name}/{sum(counts.removed.values()):09d}"
            raw = record.raw or json.dumps(record.values, ensure_ascii=False, default=str)
            raw = raw[:RAW_CHARS].encode("utf-8", "replace").decode()
            rejected.write({"row_id": row_id, "reason": reason, "detail": detail, "row": raw})
            counts.remove(reason)
            counts.first = counts.first or f"the first is {reason}: {detail}"
            continue
        seen.add(mark)
        counts.kept += 1
        yield row


def write_component(
    component: Component, records: Iterator[Record], folder: Path, rejected: TableWriter
) -> ReadCounts:
    """Write the cell of a component, sorted, in as many files as it takes."""
    counts = ReadCounts(f"natural/{component.name}")
    whole = folder / f"{component.name}-{NATURAL}.parquet"
    with SortingWriter(whole, DOCUMENT) as writer:
        for row in documents_of(component, records, rejected, counts):
            writer.write(row)
    split(whole, counts.kept)
    return counts


def split(whole: Path, rows: int) -> None:
    """Put a cell's file into files of `SHARD_ROWS` documents, if it has more."""
    names = shard_names(whole.stem, -(-rows // SHARD_ROWS))
    if len(names) < 2:
        return
    tables = read_batches([whole], DOCUMENT, batch_rows=min(ROW_GROUP, SHARD_ROWS))
    for name in names:
        with TableWriter(whole.with_name(name), DOCUMENT) as writer:
            while writer.rows < SHARD_ROWS and (table := next(tables, None)) is not None:
                writer.write_table(table)
    whole.unlink()
