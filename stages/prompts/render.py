"""One cell of the prompt grid: which source rows it takes, and the prompts that it makes of them."""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.compute as pc

from cosmopedia.tables.contracts import PROMPT
from stages.prompts.ids import chosen, digests, draws, prompt_ids
from stages.prompts.slots import slot_columns
from stages.prompts.styles import PromptsParams, Style
from stages.prompts.templates import Template

DIGEST = ("digest.0", "digest.1")


@dataclass(frozen=True)
class Cell:
    """A style of a source, with its template."""

    source: str
    style_name: str
    style: Style
    template: Template

    @property
    def name(self) -> str:
        return f"{self.source}-{self.style_name}"

    @property
    def seed_data(self) -> str:
        """The column that the prompts quote."""
        if self.source == "ready":
            return "own.seed_data"
        return "slot.extract" if "extract" in self.template.slots else "title"


def prepared(source: str, rows: pl.DataFrame, extract_chars: int) -> pa.Table:
    """What prompts need of SOURCE rows with a `topic`: slots, lineage and digest."""
    filled = slot_columns(source, rows, extract_chars)
    kept = ["row_id", "title", "topic", "revision", "licence"]
    kept += [name for name in filled.columns if name.startswith(("slot.", "own."))]
    table = filled.select(kept).to_arrow(compat_level=pl.CompatLevel.oldest())
    for name, values in zip(DIGEST, digests(rows["row_id"]).T, strict=True):
        table = table.append_column(name, pa.array(np.ascontiguousarray(values)))
    return table


def order_of(rows: pa.Table) -> np.ndarray:
    """The places of prepared rows in the order of their digests, which is that of their prompts' ids."""
    return np.lexsort([rows[name].to_numpy() for name in reversed(DIGEST)])


def digests_of(rows: pa.Table) -> np.ndarray:
    """The digests of prepared rows."""
    return np.stack([rows[name].to_numpy() for name in DIGEST], axis=1)


def drawn(parts: Iterable[np.ndarray], cell: Cell, params: PromptsParams) -> np.ndarray:
    """Of all rows of a source (digests, in their order, in parts) whether the cell takes each.

    Each with probability `share`, at most `per_cell`, drawn from (seed, row, style).
    """
    masks = [np.zeros(0, dtype=bool)]
    ranked = [np.zeros(0, dtype=np.uint64)]
    for rows in parts:
        masks.append(chosen(rows, cell.style.share, params.seed, "share", cell.style_name))
        if params.per_cell is not None:
            ranked.append(draws(rows[masks[-1]], params.seed, "limit", cell.style_name))
    taken = np.concatenate(masks)
    ranks = np.concatenate(ranked)
    if params.per_cell is not None and len(ranks) > params.per_cell:
        places = np.flatnonzero(taken)
        taken[:] = False
        taken[places[np.argsort(ranks, kind="stable")[: params.per_cell]]] = True
    return taken


def topics_named(rows: pa.Table, cell: Cell, params: PromptsParams) -> pa.Array:
    """Whether each row's prompt names the topic: a draw from (seed, row, style), never without a topic."""
    if "in_topic" not in cell.template.slots:
        return pa.array(np.zeros(rows.num_rows, dtype=bool))
    drawn_rows = chosen(digests_of(rows), params.topic_probability, params.seed, "topic", cell.style_name)
    return pc.and_(pa.array(drawn_rows), pc.not_equal(_column(rows, "slot.in_topic"), ""))  # type: ignore[attr-defined]


def texts(rows: pa.Table, cell: Cell, named: pa.Array) -> pa.Array:
    """The prompts of prepared rows; `named`: whose prompts name the topic."""
    slots = {slot: _column(rows, f"slot.{slot}") for slot in set(cell.template.slots)}
    if "in_topic" in slots:
        slots["in_topic"] = pc.if_else(named, slots["in_topic"], "")  # type: ignore[attr-defined]
    return cell.template.render_column(slots)


def prompts_of(rows: pa.Table, cell: Cell, params: PromptsParams) -> pa.Table:
    """PROMPT rows of one cell, from prepared rows."""
    named = topics_named(rows, cell, params)
    same = {
        "source": cell.source,
        "style": cell.style_name,
        "format": cell.style.format,
        "audience": cell.style.audience,
        "template": cell.template.path.as_posix(),
        "template_hash": cell.template.digest,
    }
    columns = {name: pa.repeat(value, rows.num_rows) for name, value in same.items()}
    columns |= {
        "prompt_id": prompt_ids(digests_of(rows), cell.style_name, cell.style.audience),
        "prompt": texts(rows, cell, named),
        "topic": rows["topic"],
        "topic_named": named,
        "seed_id": rows["row_id"],
        "seed_data": rows[cell.seed_data],
        "seed_revision": rows["revision"],
        "seed_licence": rows["licence"],
    }
    if "own.format" in rows.column_names:
        columns |= {name: rows[f"own.{name}"] for name in ("format", "audience")}
    return PROMPT.conform(pa.table(columns), cell.name)


def _column(rows: pa.Table, name: str) -> pa.Array:
    return rows[name].combine_chunks()
