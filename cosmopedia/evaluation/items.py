"""The items that a task is scored on, checked before a model is loaded."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cosmopedia.core.errors import ConfigError, DataError
from cosmopedia.core.rng import draw_sample, draw_u64
from cosmopedia.evaluation.encoding import Encoder, Sequence
from cosmopedia.tables.contracts import BENCHMARK
from cosmopedia.tables.parquet import read_table

BENCHMARKS = Path("data/benchmarks")
BETWEEN_SHOTS = "\n\n"


def read_items(task: str, seed: int, max_items: int | None, shots: int = 0) -> list[dict[str, Any]]:
    """A task's BENCHMARK rows, or `max_items` of them, drawn by seed and item id.

    With `shots`, each query follows as many other items of the task (of the group, where it has groups) with their
    right answers: the same for all items, except that none is its own example.
    """
    path = BENCHMARKS / f"{task}.parquet"
    if not path.is_file():
        raise ConfigError(f"evaluate.panels: {path} is missing; add {task} to benchmarks.tasks, or leave it out here")
    rows = read_table(path, BENCHMARK).to_pylist()
    if not rows:
        raise DataError(f"{path} has no items; repeat the benchmarks stage")
    for row in rows:
        _check(row, task, path)
    with_shots = _with_shots(rows, seed, shots) if shots else rows
    if max_items is None or len(rows) <= max_items:
        return with_shots
    drawn = set(draw_sample(seed, f"evaluate.{task}", (row["item_id"] for row in rows), max_items))
    return [row for row in with_shots if row["item_id"] in drawn]


def _check(row: dict[str, Any], task: str, path: Path) -> None:
    """An error that names the item when it cannot be scored."""
    name, choices = row["item_id"], row["choices"]
    if len(choices) < 2:
        raise ConfigError(f"evaluate.panels: {task} cannot be scored, {name} has no wrong answer next to the right")
    problem = None
    if not all(map(str.strip, choices)):
        problem = "a choice without text"
    elif not row["query"].strip():
        problem = "a query without text"
    elif row["gold"] >= len(choices):
        problem = f"gold {row['gold']}, wanted a position among its {len(choices)} choices"
    if problem is not None:
        raise DataError(f"{path}: {name} has {problem}; repeat the benchmarks stage")


def _with_shots(rows: list[dict[str, Any]], seed: int, shots: int) -> list[dict[str, Any]]:
    """The rows with examples before their queries."""
    groups: dict[str | None, list[dict[str, Any]]] = {}
    for row in rows:
        groups.setdefault(row["group"], []).append(row)
    for name, members in groups.items():
        if len(members) <= shots:
            of = f"{members[0]['task']}{f', {name},' if name else ''}"
            raise ConfigError(f"evaluate.shots: {of} has {len(members)} items, too few for {shots} examples of others")
    ranked = {
        name: sorted(members, key=lambda row: (draw_u64(seed, "evaluate.shots", row["item_id"]), row["item_id"]))
        for name, members in groups.items()
    }
    shown = []
    for row in rows:
        examples = [other for other in ranked[row["group"]][: shots + 1] if other is not row][:shots]
        before = "".join(f"{one['query']}{one['choices'][one['gold']]}{BETWEEN_SHOTS}" for one in examples)
        shown.append(row | {"query": before + row["query"]})
    return shown


@dataclass(frozen=True)
class EncodedItem:
    """An item as a model sees it: a sequence per choice, and whether one lost its beginning to fit the model."""

    item_id: str
    sequences: list[Sequence]
    cut: bool


def encode_items(encoder: Encoder, items: list[dict[str, Any]]) -> list[EncodedItem]:
    """The items, encoded. `DataError` for one with a choice of no tokens, or of more than the model takes."""
    encoded = []
    for item in items:
        sequences = encoder.choices(item["query"], item["choices"])
        for choice, sequence in zip(item["choices"], sequences, strict=True):
            if not 0 < sequence.scored <= encoder.positions:
                raise DataError(
                    f"{item['item_id']}: the choice {choice[:60]!r} has {sequence.scored} tokens, wanted 1 to"
                    f" {encoder.positions}, which is what the model in {encoder.folder} takes; remove the item from"
                    f" {BENCHMARKS}/{item['task']}.parquet's source, or leave {item['task']} out of evaluate.panels"
                )
        fitting = [encoder.fitting(one) for one in sequences]
        encoded.append(EncodedItem(item["item_id"], fitting, any(map(encoder.is_cut, sequences))))
    return encoded


def regroup(encoded: list[EncodedItem], values: Iterable[float]) -> list[list[float]]:
    """One value per sequence as a list per item."""
    values = iter(values)
    return [[next(values) for _ in item.sequences] for item in encoded]
