"""The files of a cell: its prompts in the order of their ids, cut at equal ranges of ids.

How many files there are depends only on the number of prompts in the cell, so that neither machine nor memory changes
a byte. A file is finished or not there; next to it are its counts and the prompts that were removed.
"""

import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa

from cosmopedia.core.files import write_text
from cosmopedia.tables.cell_files import cell_of, shard_names, source_and_style
from cosmopedia.tables.contracts import PROMPT, REFERENCES, REJECTED
from cosmopedia.tables.parquet import TableWriter, table_of
from stages.prompts.render import Cell, has_passages, prompts_of
from stages.prompts.selection import EXACT, KEPT, NEAR, NOT_DRAWN
from stages.prompts.source_rows import Part, SourceRows
from stages.prompts.styles import PromptsParams

SHARD_ROWS = 250_000  # prompts of a file at most, about: 200 MB where they quote 1,000 characters
REASONS = {EXACT: "duplicate_prompt", NEAR: "near_duplicate_prompt"}
COUNTS = ("prompts", "topic_named", "duplicates", "near_duplicates")


def shard_count(prompts: int) -> int:
    """How many files a cell of so many prompts has: a power of two."""
    count = 1
    while prompts > SHARD_ROWS * count:
        count *= 2
    return count


def write_shards(
    rows: SourceRows,
    cell: Cell,
    selection: np.ndarray,
    near_duplicate_of: np.ndarray,
    params: PromptsParams,
    folder: Path,
    advance: Callable[[int], None],
) -> list[str]:
    """Write the files of a cell that are not there yet; the names of all. The arrays are those of `selection.select`.

    Into `folder`: the prompts, `removed/` with the others as REJECTED rows, `counts/` of both by format and audience,
    and for a cell whose template quotes passages `references/` with their ids.
    `advance` is called with source rows done.
    """
    names = shard_names(cell.name, shard_count(int((selection == KEPT).sum())))
    step = max(len(rows.parts) // len(names), 1)
    for number, name in enumerate(names):
        parts = rows.parts[number * step : (number + 1) * step]
        counts = folder / "counts" / f"{name}.json"
        if not counts.exists():
            originals = _originals(rows, parts, selection, near_duplicate_of)
            shard_counts = _write_shard(parts, cell, selection, originals, params, folder / name)
            write_text(counts, json.dumps(shard_counts))
        advance(sum(part.rows for part in parts))
    return names


def _originals(
    rows: SourceRows, parts: list[Part], selection: np.ndarray, near_duplicate_of: np.ndarray
) -> dict[int, str]:
    """For the places of near duplicates in some parts the ids of the rows that they duplicate."""
    first = parts[0].first
    last = parts[-1].first + parts[-1].rows
    places = np.flatnonzero(selection[first:last] == NEAR) + first
    originals = near_duplicate_of[places]
    ids = rows.row_ids(originals)
    return {place: ids[original] for place, original in zip(places.tolist(), originals.tolist(), strict=True)}


def _write_shard(
    parts: list[Part], cell: Cell, selection: np.ndarray, originals: dict[int, str], params: PromptsParams, path: Path
) -> list[tuple]:
    """Write one file, and next to it what was removed; (format, audience, counts ...)."""
    counts: dict[tuple[str, str], Counter[str]] = {}
    with (
        TableWriter(path, PROMPT, 1) as kept,
        TableWriter(path.parent / "removed" / path.name, REJECTED) as removed,
        TableWriter(path.parent / "references" / path.name, REFERENCES) as references,
    ):
        for part in parts:
            drawn = np.flatnonzero(selection[part.first : part.first + part.rows] != NOT_DRAWN)
            for places, rows in part.slices(drawn):
                prompts = prompts_of(rows, cell, params)
                selected = selection[places + part.first]
                count(prompts, selected, counts)
                others = np.flatnonzero(selected != KEPT)
                kept.write_table(prompts.filter(pa.array(selected == KEPT)) if len(others) else prompts)
                if cell.quotes_passages:
                    quoting = pa.array((selected == KEPT) & has_passages(rows))
                    pairs = pa.table({"prompt_id": prompts["prompt_id"], "passages": rows["passages"]})
                    references.write_table(pairs.filter(quoting))
                duplicated = [originals.get(place, "") for place in (places[others] + part.first).tolist()]
                rejected = rejections(prompts.take(pa.array(others)), selected[others].tolist(), duplicated)
                removed.write_table(table_of(rejected, REJECTED, cell.name))
    return [(*key, *(counter[name] for name in COUNTS)) for key, counter in counts.items()]


def counts_in(folder: Path, names: list[str], cells: list[Cell]) -> list[tuple]:
    """(source, style, format, audience, counts ...) of the files in a folder; zeros for a cell that has no prompt."""
    rows = []
    for name in names:
        counts = json.loads((folder / "counts" / f"{name}.json").read_text())
        rows += [(*source_and_style(cell_of(name)), *row) for row in counts]
    seen = {row[:2] for row in rows}
    empty = [c for c in cells if (c.source, c.style_name) not in seen]
    zeros = (0,) * len(COUNTS)
    return rows + [(c.source, c.style_name, c.style.format, c.style.audience, *zeros) for c in empty]


def count(prompts: pa.Table, selected: np.ndarray, counts: dict[tuple[str, str], Counter[str]]) -> None:
    """Add prompts, by whether they are kept or why they are not, to counts by (format, audience)."""
    kinds = prompts.select(["format", "audience", "topic_named"]).append_column("selected", pa.array(selected))
    for row in kinds.group_by(kinds.column_names).aggregate([([], "count_all")]).to_pylist():
        counter = counts.setdefault((row["format"], row["audience"]), Counter())
        kind = {KEPT: "prompts", EXACT: "duplicates", NEAR: "near_duplicates"}[row["selected"]]
        counter[kind] += row["count_all"]
        if row["selected"] == KEPT and row["topic_named"]:
            counter["topic_named"] += row["count_all"]


def rejections(prompts: pa.Table, selected: list[int], originals: list[str]) -> list[dict]:
    """REJECTED rows of prompts that were removed; `originals`: the ids of the rows that near duplicates duplicate."""
    shown = ("source", "style", "seed_id", "prompt")
    rows = []
    for row, kind, original in zip(prompts.to_pylist(), selected, originals, strict=True):
        why = f"like {original}" if kind == NEAR else "the same text as another prompt"
        rows.append(
            {
                "row_id": row["prompt_id"],
                "reason": REASONS[kind],
                "detail": f"{row['source']}-{row['style']}, {row['seed_id']}: {why}",
                "row": json.dumps({name: row[name] for name in shown}, ensure_ascii=False)[:10_000],
            }
        )
    return rows
