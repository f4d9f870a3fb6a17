"""One cell of the prompt grid: which source rows it takes, and the prompts that it makes of them."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from itertools import repeat
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.compute as pc

from cosmopedia.core.errors import ConfigError
from cosmopedia.tables.contracts import PROMPT
from stages.prompts.ids import chosen, digests, draws, prompt_ids
from stages.prompts.slots import REFERENCES, slot_columns
from stages.prompts.styles import PromptsParams, Style, WithoutPassage
from stages.prompts.templates import Template, read_template

DIGEST = ("digest.0", "digest.1")
GROUNDED = "grounded_"  # before the name of the style that a style with references is made after


@dataclass(frozen=True)
class Cell:
    """A style of a source, with its template; `plain`: what rows without passages get instead, if they get one."""

    source: str
    style_name: str
    style: Style
    template: Template
    plain: Template | None = None

    @property
    def quotes_passages(self) -> bool:
        return REFERENCES in self.template.slots

    @property
    def skips_rows(self) -> bool:
        """Whether rows without passages get no prompt."""
        return self.quotes_passages and self.plain is None

    @property
    def drawn_as(self) -> str:
        """The name by which rows are drawn: a grounded style has the rows and topics of the one it is made after."""
        return plain_name(self.style_name)

    @property
    def name(self) -> str:
        return f"{self.source}-{self.style_name}"

    @property
    def seed_data(self) -> str:
        """The column that the prompts quote."""
        if self.source == "ready":
            return "own.seed_data"
        return "slot.extract" if "extract" in self.template.slots else "title"


def read_cell(source: str, name: str, style: Style, without_passage: WithoutPassage) -> Cell:
    """A style with its templates. `ConfigError` for a wrong one, or where `plain` has no template to fall back to."""
    template = read_template(source, name)
    if REFERENCES not in template.slots or without_passage != "plain":
        return Cell(source, name, style, template)
    plain = read_template(source, plain_name(name))
    if REFERENCES in plain.slots:
        raise ConfigError(
            f"prompts.without_passage is plain, but {plain.path} quotes $references too; call the style of {source}"
            f" {GROUNDED}<name of a style without them>, or set without_passage to skip"
        )
    return Cell(source, name, style, template, plain)


def plain_name(style: str) -> str:
    """The style that a grounded one is made after; any other style is that itself."""
    return style.removeprefix(GROUNDED)


def prepared(source: str, rows: pl.DataFrame, extract_chars: int) -> pa.Table:
    """What prompts need of SOURCE rows with a `topic`: slots, lineage and digest."""
    filled = slot_columns(source, rows, extract_chars)
    kept = ["row_id", "title", "topic", "revision", "licence"]
    kept += [name for name in filled.columns if name == "passages" or name.startswith(("slot.", "own."))]
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


def has_passages(rows: pa.Table) -> np.ndarray:
    """Whether each of some prepared rows has references."""
    return pc.not_equal(_column(rows, f"slot.{REFERENCES}"), "").to_numpy(zero_copy_only=False)  # type: ignore[attr-defined]


def drawn(
    parts: Iterable[np.ndarray],
    cell: Cell,
    params: PromptsParams,
    usable: Iterable[np.ndarray | None] = repeat(None),
) -> np.ndarray:
    """Of all rows of a source (digests, in their order, in parts) whether the cell takes each.

    Each with probability `share`, at most `per_cell`, drawn from (seed, row, style); of each part only those that are
    `usable` (None: all).
    """
    masks = [np.zeros(0, dtype=bool)]
    ranked = [np.zeros(0, dtype=np.uint64)]
    for rows, allowed in zip(parts, usable, strict=False):
        mask = chosen(rows, cell.style.share, params.seed, "share", cell.drawn_as)
        masks.append(mask if allowed is None else mask & allowed)
        if params.per_cell is not None:
            ranked.append(draws(rows[masks[-1]], params.seed, "limit", cell.drawn_as))
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
    drawn_rows = chosen(digests_of(rows), params.topic_probability, params.seed, "topic", cell.drawn_as)
    return pc.and_(pa.array(drawn_rows), pc.not_equal(_column(rows, "slot.in_topic"), ""))  # type: ignore[attr-defined]


def texts(rows: pa.Table, cell: Cell, named: pa.Array) -> pa.Array:
    """The prompts of prepared rows; `named`: whose prompts name the topic."""

    def rendered(template: Template) -> pa.Array:
        slots = {slot: _column(rows, f"slot.{slot}") for slot in set(template.slots)}
        if "in_topic" in slots:
            slots["in_topic"] = pc.if_else(named, slots["in_topic"], "")  # type: ignore[attr-defined]
        return template.render_column(slots)

    return _of_template(rows, cell, rendered)


def _of_template(rows: pa.Table, cell: Cell, value: Callable[[Template], Any]) -> pa.Array:
    """A value of the template of each row: the cell's, or `plain` where a row has no passages."""
    if cell.plain is None:
        made = value(cell.template)
        return made if isinstance(made, pa.Array) else pa.repeat(made, rows.num_rows)
    quoting = pa.array(has_passages(rows))
    return pc.if_else(quoting, value(cell.template), value(cell.plain))  # type: ignore[attr-defined]


def prompts_of(rows: pa.Table, cell: Cell, params: PromptsParams) -> pa.Table:
    """PROMPT rows of one cell, from prepared rows."""
    named = topics_named(rows, cell, params)
    same = {
        "source": cell.source,
        "style": cell.style_name,
        "format": cell.style.format,
        "audience": cell.style.audience,
    }
    columns = {name: pa.repeat(value, rows.num_rows) for name, value in same.items()}
    columns |= {
        "prompt_id": prompt_ids(digests_of(rows), cell.style_name, cell.style.audience),
        "prompt": texts(rows, cell, named),
        "template": _of_template(rows, cell, lambda template: template.path.as_posix()),
        "template_hash": _of_template(rows, cell, lambda template: template.digest),
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
