"""The files of a cell: its prompts in the order of their ids, cut at equal ranges of ids.

How many files there are depends on the number of prompts in the cell alone, so that neither machine nor memory moves a
byte. A file is finished or not there; beside it lie its counts and the prompts that were taken out.
"""

import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa

from cosmopedia.files import replacing
from cosmopedia.tables.cell_files import cell_of, shard_names, source_and_style
from cosmopedia.tables.contracts import PROMPT, REJECTED
from cosmopedia.tables.parquet import TableWriter, table_of
from stages.prompts.render import Cell, prompts_of
from stages.prompts.selection import EXACT, KEPT, NEAR, NOT_DRAWN
from stages.prompts.source_rows import Part, Seeds
from stages.prompts.styles import PromptsParams

SHARD_ROWS = 250_000  # prompts of a file, about, at most: 200 MB where they quote 1,000 characters
REASONS = {EXACT: "duplicate_prompt", NEAR: "near_duplicate_prompt"}
COUNTS = ("prompts", "topic_named", "duplicates", "near_duplicates")


def shards_of(prompts: int) -> int:
    """How many files a cell of so many prompts has: a power of two."""
    count = 1
    while prompts > SHARD_ROWS * count:
        count *= 2
    return count


def write_shards(
    seeds: Seeds,
    cell: Cell,
    fate: np.ndarray,
    like: np.ndarray,
    params: PromptsParams,
    folder: Path,
    note: Callable[[int], None],
) -> list[str]:
    """Write the files of a cell that are not there yet; the names of all. `fate` and `like`: see fates.py.

    Into `folder`: the prompts, `removed/` with the others as REJECTED rows, `counts/` of both by format and audience.
    `note` is told of seed rows done.
    """
    names = shard_names(cell.name, shards_of(int((fate == KEPT).sum())))
    step = max(len(seeds.parts) // len(names), 1)
    for number, name in enumerate(names):
        parts = seeds.parts[number * step : (number + 1) * step]
        counts = folder / "counts" / f"{name}.json"
        if not counts.exists():
            likes = _likes(seeds, parts, fate, like)
            found = _write(parts, cell, fate, likes, params, folder / name)
            with replacing(counts) as partial:
                partial.write_text(json.dumps(found))
        note(sum(part.rows for part in parts))
    return names


def _likes(seeds: Seeds, parts: list[Part], fate: np.ndarray, like: np.ndarray) -> dict[int, str]:
    """For the places of near duplicates in some parts the ids of the rows that they are like."""
    first, last = parts[0].first, parts[-1].first + parts[-1].rows
    places = np.flatnonzero(fate[first:last] == NEAR) + first
    ids = seeds.row_ids(like[places])
    return {place: ids[other] for place, other in zip(places.tolist(), like[places].tolist(), strict=True)}


def _write(
    parts: list[Part], cell: Cell, fate: np.ndarray, likes: dict[int, str], params: PromptsParams, path: Path
) -> list[tuple]:
    """Write one file, and beside it what was taken out; (format, audience, counts ...)."""
    found: dict[tuple[str, str], Counter[str]] = {}
    with TableWriter(path, PROMPT, 1) as kept, TableWriter(path.parent / "removed" / path.name, REJECTED) as removed:
        for part in parts:
            for places, rows in part.slices(np.flatnonzero(fate[part.first : part.first + part.rows] != NOT_DRAWN)):
                prompts, fates = prompts_of(rows, cell, params), fate[places + part.first]
                count(prompts, fates, found)
                gone = np.flatnonzero(fates != KEPT)
                kept.write_table(prompts.filter(pa.array(fates == KEPT)) if len(gone) else prompts)
                similar = [likes.get(place, "") for place in (places[gone] + part.first).tolist()]
                rejected = rejections(prompts.take(pa.array(gone)), fates[gone].tolist(), similar)
                removed.write_table(table_of(rejected, REJECTED, cell.name))
    return [(*key, *(some[name] for name in COUNTS)) for key, some in found.items()]


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


def count(prompts: pa.Table, fates: np.ndarray, found: dict[tuple[str, str], Counter[str]]) -> None:
    """Add prompts and what becomes of them to counts by (format, audience)."""
    kinds = prompts.select(["format", "audience", "topic_named"]).append_column("fate", pa.array(fates))
    for row in kinds.group_by(kinds.column_names).aggregate([([], "count_all")]).to_pylist():
        counter = found.setdefault((row["format"], row["audience"]), Counter())
        kind = {KEPT: "prompts", EXACT: "duplicates", NEAR: "near_duplicates"}[row["fate"]]
        counter[kind] += row["count_all"]
        if row["fate"] == KEPT and row["topic_named"]:
            counter["topic_named"] += row["count_all"]


def rejections(prompts: pa.Table, fates: list[int], similar: list[str]) -> list[dict]:
    """REJECTED rows of prompts that were taken out; `similar`: the seeds that near duplicates are like."""
    shown = ("source", "style", "seed_id", "prompt")
    rows = []
    for row, fate, other in zip(prompts.to_pylist(), fates, similar, strict=True):
        why = f"like {other}" if fate == NEAR else "the same text as another prompt"
        rows.append(
            {
                "row_id": row["prompt_id"],
                "reason": REASONS[fate],
                "detail": f"{row['source']}-{row['style']}, {row['seed_id']}: {why}",
                "row": json.dumps({name: row[name] for name in shown}, ensure_ascii=False)[:10_000],
            }
        )
    return rows
