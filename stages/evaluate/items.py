"""The items that a task is scored on."""

from pathlib import Path
from typing import Any

from cosmopedia.errors import ConfigError, DataError
from cosmopedia.rng import draw_sample
from cosmopedia.tables.contracts import BENCHMARK
from cosmopedia.tables.parquet import read_table

BENCHMARKS = Path("data/benchmarks")


def read_items(task: str, seed: int, max_items: int | None) -> list[dict[str, Any]]:
    """A task's BENCHMARK rows, or `max_items` of them, drawn by seed and item id."""
    path = BENCHMARKS / f"{task}.parquet"
    rows = read_table(path, BENCHMARK).to_pylist()
    if not rows:
        raise DataError(f"{path} has no items; repeat the benchmarks stage")
    if single := next((row["item_id"] for row in rows if len(row["choices"]) < 2), None):
        raise ConfigError(f"evaluate.tasks: {task} cannot be scored, {single} has no wrong answer next to the right")
    if empty := next((row["item_id"] for row in rows if not all(map(str.strip, row["choices"]))), None):
        raise DataError(f"{path}: {empty} has a choice without text; repeat the benchmarks stage")
    if max_items is None or len(rows) <= max_items:
        return rows
    drawn = set(draw_sample(seed, f"evaluate.{task}", (row["item_id"] for row in rows), max_items))
    return [row for row in rows if row["item_id"] in drawn]
