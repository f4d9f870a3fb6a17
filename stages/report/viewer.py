"""data/report/viewer.html: every completion with its prompt, what cleaning cut, and why it was removed.

Rows (what the list shows and filters) are one block; whole texts are in blocks of their own, which the page unpacks
when a document is opened or searched.
"""

import heapq
import re
from collections.abc import Iterator
from dataclasses import dataclass
from difflib import SequenceMatcher
from itertools import pairwise
from pathlib import Path
from typing import Any

import polars as pl

from cosmopedia.core.rng import draw_u64
from cosmopedia.corpus.components import is_natural
from cosmopedia.tables.contracts import DOCUMENT
from cosmopedia.tables.parquet import count_rows, read_batches, tables_in
from cosmopedia.tracing.changes import LARGEST, Piece, evidence_of, word_diff
from stages.report.facts import DATA, FILTERS
from stages.report.packed import coded, packed, script_page, text_blocks
from stages.report.page import number

KEPT = "kept"
FACETS = ("source", "format", "audience", "topic", "state")  # what the page filters by
LINEAGE = (
    "prompt_id", "seed_id", "seed_revision", "seed_licence", "style", "topic_named", "template", "template_hash",
    "model", "model_revision", "sampling", "sampling_seed", "engine", "finish_reason", "prompt_tokens", "key",
)  # fmt: skip
EXCERPT = 150  # characters of a document in the list
MIN_WORDS = 3  # of a piece of matched text that is marked
WORD = re.compile(r"\w+")


@dataclass(frozen=True)
class Documents:
    """Completions with what became of them, by source, style and id."""

    rows: list[dict[str, Any]]  # DOCUMENT's columns, `state`, `evidence` (JSON or None) and `clean` (text or None)
    total: int  # completions that there are


def drawn(seed: int, limit: int | None) -> Documents:
    """At most `limit` of the synthetic completions, drawn by the seed and their ids; None: all."""
    cells = [table for table in tables_in(DATA / "generate") if not is_natural(table)]
    total = sum(map(count_rows, cells))
    chosen = None if limit is None or total <= limit else _draw(cells, seed, limit)
    removed = {
        row["completion_id"]: row | {"state": f"{stage}: {row['reason'].replace('_', ' ')}"}
        for stage in FILTERS
        for row in _read(DATA / stage / "removed" / "removed.parquet", chosen, ["reason", "evidence"])
    }
    rows = []
    for cell in cells:
        clean = {row["completion_id"]: row["text"] for row in _read(DATA / "clean" / cell.name, chosen, ["text"])}
        for row in _read(cell, chosen, [name for name in DOCUMENT.schema.names if name != "completion_id"]):
            gone = removed.get(row["completion_id"], {"state": KEPT, "evidence": None})
            row |= {"state": gone["state"], "evidence": gone["evidence"], "clean": clean.get(row["completion_id"])}
            rows.append(row)
    return Documents(sorted(rows, key=lambda row: (row["source"], row["style"], row["completion_id"])), total)


def _draw(cells: list[Path], seed: int, limit: int) -> pl.Series:
    ids = (
        id for table in read_batches(cells, DOCUMENT, ["completion_id"]) for id in table["completion_id"].to_pylist()
    )
    return pl.Series([id for _, id in heapq.nsmallest(limit, ((draw_u64(seed, "viewer", id), id) for id in ids))])


def _read(path: Path, chosen: pl.Series | None, columns: list[str]) -> Iterator[dict[str, Any]]:
    """Rows with the chosen ids; none where a stage has written no such table, as for a cell that lost all its rows."""
    if not path.is_file():
        return
    rows = pl.scan_parquet(path).select("completion_id", *columns)
    if chosen is not None:
        rows = rows.filter(pl.col("completion_id").is_in(chosen.implode()))
    yield from rows.collect().iter_rows(named=True)


def render_viewer(documents: Documents, profile: str) -> str:
    """The page."""
    rows = documents.rows
    starts, blocks = text_blocks(rows, lambda row: len(row["prompt"]) + len(row["text"]), whole)
    columns = {
        "ids": [row["completion_id"] for row in rows],
        "tokens": [row["text_token_length"] for row in rows],
        "excerpts": [" ".join((row["clean"] or row["text"])[: 4 * EXCERPT].split())[:EXCERPT] for row in rows],
        "starts": starts,
        "facets": {name: coded([row[name] for row in rows]) for name in FACETS},
    }
    bound = "" if len(rows) == documents.total else f" of {number(documents.total)}, drawn by id (report.viewer_rows)"
    title = f"{number(len(rows))} documents{bound}"
    return script_page("viewer", {"rows": packed(columns)} | blocks, browse=True, profile=profile, title=title)


def whole(row: dict[str, Any]) -> dict[str, Any]:
    """A document as the page shows it: texts as pieces ("=" in both, "-" cut, "+" put in, "!" evidence)."""
    clean = row["text"] if row["clean"] is None else row["clean"]
    pieces = [("=", clean)] if clean == row["text"] else word_diff(row["text"], clean)
    shown = {name: row[name] for name in LINEAGE} | {"prompt": row["prompt"], "pieces": pieces}
    if row["evidence"] is not None:
        evidence = evidence_of(row["evidence"])
        shown |= {"evidence": evidence, "pieces": marked(pieces, spans(clean, strings(evidence)))}
    return shown


def strings(value: Any) -> list[str]:
    """All texts in a removal's evidence."""
    if isinstance(value, dict | list):
        return [text for part in (value.values() if isinstance(value, dict) else value) for text in strings(part)]
    return [value] if isinstance(value, str) else []


def spans(text: str, matched: list[str]) -> list[tuple[int, int]]:
    """Where words of the matched texts are in `text`, in whatever case and punctuation: all of them in one place, or
    else each run of at least MIN_WORDS."""
    words = [*WORD.finditer(text)]
    own, places = [word[0].casefold() for word in words], set[int]()
    for part in sorted(set(matched)):
        wanted = [word.casefold() for word in WORD.findall(part)]
        least = min(MIN_WORDS, len(wanted))
        if not wanted or len(wanted) * len(own) > LARGEST:
            continue
        for start, _, size in SequenceMatcher(None, own, wanted, autojunk=False).get_matching_blocks():
            if size >= least:
                places.update(range(start, start + size))
    found: list[tuple[int, int]] = []
    for place in sorted(places):
        start, end = words[place].span()
        joins = found and place - 1 in places
        found[-1:] = [(found[-1][0], end)] if joins else [*found[-1:], (start, end)]
    return found


def marked(pieces: list[Piece], marks: list[tuple[int, int]]) -> list[Piece]:
    """The pieces with the parts in `marks`, places in the new text, as "!"."""
    result: list[Piece] = []
    at = 0
    for kind, text in pieces:
        if kind == "-":
            result.append((kind, text))
            continue
        cuts = sorted({0, len(text)} | {edge - at for mark in marks for edge in mark if 0 < edge - at < len(text)})
        for start, end in pairwise(cuts):
            inside = any(low <= at + start and at + end <= high for low, high in marks)
            result.append(("!" if inside else kind, text[start:end]))
        at += len(text)
    return result
