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

from stages.launch.scratch import made
from stages.prompting.cells import Cell, prompts_of
from stages.prompting.recipe import PromptsParams
from stages.prompting.seeds import Seeds
from stages.tables.cells import cell_of, shard_names, source_and_style
from stages.tables.contracts import PROMPT, REJECTED
from stages.tables.parquet import TableWriter, table_of

SHARD_ROWS = 250_000  # prompts of a file, about, at most: 150 MB where they quote 1,000 characters
NOT_DRAWN, KEPT, EXACT, NEAR = range(4)  # what becomes of a seed row in a cell
REASONS = {EXACT: "duplicate_prompt", NEAR: "near_duplicate_prompt"}
COUNTS = ("prompts", "topic_named", "duplicates", "near_duplicates")


def shards_of(prompts: int) -> int:
    """How many files a cell of so many prompts has: a power of two."""
    count = 1
    while prompts > SHARD_ROWS * count:
        count *= 2
    return count


def fate_of(members: np.ndarray, repeated: np.ndarray, like: np.ndarray) -> np.ndarray:
    """What becomes of each seed row: `members` are drawn; places of exact duplicates; near duplicates' like or -1."""
    fate = np.where(members, np.uint8(KEPT), np.uint8(NOT_DRAWN))
    fate[like >= 0] = NEAR
    fate[repeated] = EXACT
    return fate


def write_shard(
    seeds: Seeds,
    cell: Cell,
    fate: np.ndarray,
    like: np.ndarray,
    number: int,
    params: PromptsParams,
    folder: Path,
    note: Callable[[int], None],
) -> str:
    """Write one file of a cell, unless it is there; its name. `fate` and `like` have a value for each seed row.

    Into `folder`: the prompts, `removed/` with the others as REJECTED rows, `counts/` of both by format and audience.
    """
    names = shard_names(cell.name, shards_of(int((fate == KEPT).sum())))
    path = folder / names[number]
    counts = folder / "counts" / f"{path.name}.json"
    step = max(len(seeds.parts) // len(names), 1)
    parts = seeds.parts[number * step : (number + 1) * step]
    if counts.exists() and path.exists():
        note(int((fate[parts[0].first : parts[-1].first + parts[-1].rows] != NOT_DRAWN).sum()))
        return path.name
    found: dict[tuple[str, str], Counter[str]] = {}
    with TableWriter(path, PROMPT, level=1) as kept, TableWriter(folder / "removed" / path.name, REJECTED) as removed:
        for part in parts:
            fates = fate[part.first : part.first + part.rows]
            for places, rows in part.slices(np.flatnonzero(fates != NOT_DRAWN)):
                prompts, ends = prompts_of(rows, cell, params), fates[places]
                count(prompts, ends, found)
                gone = np.flatnonzero(ends != KEPT)
                kept.write_table(prompts.filter(pa.array(ends == KEPT)) if len(gone) else prompts)
                said = details(seeds, places[gone] + part.first, like)
                rejected = rejections(prompts.take(pa.array(gone)), ends[gone], said)
                removed.write_table(table_of(rejected, REJECTED, cell.name))
                note(len(places))
    with made(counts) as partial:
        partial.write_text(json.dumps([[*key, *(some[name] for name in COUNTS)] for key, some in found.items()]))
    return path.name


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


def details(seeds: Seeds, places: np.ndarray, like: np.ndarray) -> list[str]:
    """Why seeds at some places went: the seed that each is like, "" where it is like none."""
    others = like[places]
    ids = seeds.row_ids(others[others >= 0])
    return [f"like {ids[other]}" if other >= 0 else "" for other in others.tolist()]


def rejections(prompts: pa.Table, fates: np.ndarray, similar: list[str]) -> list[dict]:
    """REJECTED rows of prompts that were taken out."""
    shown = ("source", "style", "seed_id", "prompt")
    said = [
        detail if fate == NEAR else "the same text as another prompt"
        for fate, detail in zip(fates, similar, strict=True)
    ]
    return [
        {
            "row_id": row["prompt_id"],
            "reason": REASONS[int(fate)],
            "detail": f"{row['source']}-{row['style']}, {row['seed_id']}: {detail}",
            "row": json.dumps({name: row[name] for name in shown}, ensure_ascii=False)[:10_000],
        }
        for row, fate, detail in zip(prompts.to_pylist(), fates, said, strict=True)
    ]
