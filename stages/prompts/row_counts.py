"""What the prompts stage counts: prompts and duplicates by source, style, format and audience, and their rates."""

import polars as pl

from cosmopedia.core.row_counts import RowCounts

CELL = ("source", "style", "format", "audience")
WORST = 5  # cells that a warning names


def counts_table(rows: list[tuple]) -> pl.DataFrame:
    """One row per source, style, format and audience, of rows with CELL and the counts."""
    counts = ("prompts", "topic_named", "duplicates", "near_duplicates")
    schema = {**dict.fromkeys(CELL, pl.String), **dict.fromkeys(counts, pl.Int64)}
    table = pl.DataFrame(rows, schema=schema, orient="row")
    return table.group_by(CELL).agg(pl.col(counts).sum()).sort(CELL)


def row_counts_of(table: pl.DataFrame, rows: int, without_passage: int = 0) -> RowCounts:
    """The stage's row counts; `rows`: source rows x styles. `not_drawn` are those that no style took, and
    `without_passage` those that a grounded style could not take."""
    kept, same, near = (int(n) for n in table.select("prompts", "duplicates", "near_duplicates").sum().row(0))
    row_counts = RowCounts("prompts", rows, kept)
    removed = {
        "duplicate_prompt": same,
        "near_duplicate_prompt": near,
        "not_drawn": rows - kept - same - near - without_passage,
    }
    removed |= {"without_passage": without_passage} if without_passage else {}
    for reason, number in removed.items():
        row_counts.remove(reason, number)
    return row_counts


def duplicate_rates(table: pl.DataFrame) -> dict:
    """Exact and near duplicates over the prompts drawn, overall and by cell."""
    counts = pl.col("prompts", "duplicates", "near_duplicates")
    drawn = pl.col("prompts") + pl.col("duplicates") + pl.col("near_duplicates")
    rate = (pl.col("duplicates", "near_duplicates") / drawn).fill_nan(0.0)
    whole = table.select(counts.sum()).select(rate).row(0)
    cells = table.group_by("source", "style").agg(counts.sum()).sort("source", "style")
    rows = cells.select(pl.concat_str("source", pl.lit("-"), "style"), rate).iter_rows()
    by_cell = {name: {"duplicate_rate": same, "near_duplicate_rate": near} for name, same, near in rows}
    return {"duplicate_rate": whole[0], "near_duplicate_rate": whole[1], "cells": by_cell}


def complaint(rates: dict, goal: float, removed: str) -> str:
    """The warning: the rate, the cells above the goal, the next action."""
    cells = {name: rate["duplicate_rate"] + rate["near_duplicate_rate"] for name, rate in rates["cells"].items()}
    worst = sorted(((-rate, name) for name, rate in cells.items() if rate > goal))
    named = ", ".join(f"{name} ({-rate:.1%})" for rate, name in worst[:WORST])
    more = f" and {len(worst) - WORST} more" if len(worst) > WORST else ""
    return (
        f"{rates['duplicate_rate']:.1%} duplicates and {rates['near_duplicate_rate']:.1%} near duplicates were drawn,"
        f" the goal is at most {goal:.1%}; most in {named}{more}; see {removed}, and filter these sources' rows"
    )


def sums(table: pl.DataFrame) -> dict:
    """Prompts by source, format and audience."""
    return {
        f"by_{column}": dict(table.group_by(column).agg(pl.col("prompts").sum()).sort(column).iter_rows())
        for column in ("source", "format", "audience")
    }
