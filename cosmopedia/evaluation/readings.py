"""An arm's answers, read from what the evaluate stage leaves: one table per training seed and checkpoint of it.

`Readings.tasks` and `.sets` hold sums over clusters (MMLU's subjects, else single items), which is all that a
comparison needs; memory and time do not grow with the number of resamples.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from cosmopedia.core.errors import DataError
from cosmopedia.core.rng import content_hash
from cosmopedia.evaluation.effects import Part
from cosmopedia.evaluation.item_scores import METRICS
from cosmopedia.tables.contracts import DETAIL, HELDOUT
from cosmopedia.tables.parquet import read_table

HELD_OUT = "held_out_bpb"  # bits per byte of held-out documents, next to the METRICS of items
COLUMNS = ["item_id", "task", "group", "gold", "choices", "bytes", "logprobs"]


@dataclass(frozen=True)
class Task:
    """A task or held-out set: for each measure the sums over clusters, and what identifies its items."""

    sums: Mapping[str, np.ndarray]  # measure -> [seeds, clusters]
    sizes: np.ndarray  # [clusters]
    items: pa.Table  # id and content of each item, in the order of their ids

    def part(self, measure: str) -> Part:
        return Part(self.sums[measure], self.sizes)

    def digest(self) -> str:
        """Names the items: equal for the same ids and contents."""
        return content_hash(*(tuple(row.values()) for row in self.items.to_pylist()), size=8)


@dataclass(frozen=True)
class Readings:
    """All that an arm's seeds answered."""

    seeds: tuple[int, ...]
    checkpoints: int  # of each seed, of whose scores the seed's are the means
    tasks: Mapping[str, Task]
    sets: Mapping[str, Task]  # held out; empty where there are none
    identities: tuple[pa.Table, pa.Table | None]  # of all items, and of all held-out documents


def read(name: str, answers: Mapping[int, Sequence[Path]], held_out: Mapping[int, Sequence[Path]]) -> Readings:
    """An arm's tables by seed, of each its checkpoints'. `DataError` when they answered different items."""
    seeds = tuple(sorted(answers))
    counts = {seed: len(answers[seed]) for seed in seeds}
    if len(set(counts.values())) > 1:
        raise DataError(f"{name}: its seeds have different numbers of checkpoints, {counts}; run evaluate again")
    tables = [[read_table(path, DETAIL, COLUMNS) for path in answers[seed]] for seed in seeds]
    documents = [[read_table(path, HELDOUT) for path in held_out[seed]] for seed in seeds if seed in held_out]
    if documents and len(documents) < len(seeds):
        missing = ", ".join(str(seed) for seed in seeds if seed not in held_out)
        raise DataError(f"{name}: seed {missing} has no held-out table, but others have; run evaluate again")
    for identity, several in ((_identity, tables), (_documents, documents)):
        for seed, checkpoints in zip(seeds, several, strict=False):  # there may be no documents
            for table in checkpoints:
                check_same(f"{name} seed {seeds[0]}", identity(several[0][0]), f"{name} seed {seed}", identity(table))
    identities = _identity(tables[0][0]), _documents(documents[0][0]) if documents else None
    return Readings(seeds, counts[seeds[0]], _tasks(tables), _sets(documents) if documents else {}, identities)


def _identity(table: pa.Table) -> pa.Table:
    return table.select(["item_id", "gold", "choices"])


def _documents(table: pa.Table) -> pa.Table:
    return table.select(["document_id", "bytes"])


def check_same(name: str, ours: pa.Table, other: str, theirs: pa.Table) -> None:
    """`DataError` with both counts and an example when two tables are not of the same items."""
    if ours.equals(theirs):
        return
    key = ours.column_names[0]
    ids, others = set(ours[key].to_pylist()), set(theirs[key].to_pylist())
    example = next(iter(sorted(ids ^ others)), None)
    if example is not None:
        what = f"for example {example} is only in {name if example in ids else other}"
    else:
        rows = zip(ours.to_pylist(), theirs.to_pylist(), strict=True)
        example = next((one[key] for one, two in rows if one != two), "none")
        what = f"for example {example} has another content"
    raise DataError(
        f"{name} has {len(ids):,} items and {other} {len(others):,}, and they are not the same: {what}; evaluate both"
        " with the same benchmarks and evaluate params"
    )


def measures_of(table: pa.Table) -> dict[str, np.ndarray]:
    """The METRICS of every row of a DETAIL table; `item_scores` row by row gives the same."""
    rows = len(table)
    counts = pc.list_value_length(table["choices"]).to_numpy()  # type: ignore[attr-defined]
    logprobs = np.full((rows, int(counts.max(initial=1))), -np.inf)
    there = np.arange(logprobs.shape[1]) < counts[:, None]
    logprobs[there] = _flat(table["logprobs"]).to_numpy()
    choices = _flat(table["choices"])
    spaces = pc.starts_with(choices, " ").cast(pa.int32())  # type: ignore[attr-defined]
    characters, sizes = np.ones_like(logprobs), np.ones_like(logprobs)
    characters[there] = pc.subtract(pc.utf8_length(choices), spaces).to_numpy()  # type: ignore[attr-defined]
    sizes[there] = _flat(table["bytes"]).to_numpy()
    normed = logprobs / characters
    gold, line = table["gold"].to_numpy(), np.arange(rows)
    wrong = normed.copy()
    wrong[line, gold] = -np.inf
    return {
        "acc": (logprobs.argmax(axis=1) == gold).astype(float),
        "acc_norm": (normed.argmax(axis=1) == gold).astype(float),
        "bpb": -logprobs[line, gold] / (np.log(2) * sizes[line, gold]),
        "prob": _softmax(logprobs)[line, gold],
        "prob_norm": _softmax(normed)[line, gold],
        "margin": normed[line, gold] - wrong.max(axis=1),
    }


def _flat(lists: pa.ChunkedArray) -> pa.ChunkedArray:
    return pc.list_flatten(lists)  # type: ignore[attr-defined]


def _softmax(values: np.ndarray) -> np.ndarray:
    powers = np.exp(values - values.max(axis=1, keepdims=True))
    return powers / powers.sum(axis=1, keepdims=True)


def _tasks(tables: list[list[pa.Table]]) -> dict[str, Task]:
    """Sums by cluster: a task's groups, where it has some, else its items. Of a seed's tables the means are taken."""
    scores = [_mean([measures_of(table) for table in checkpoints]) for checkpoints in tables]
    first = tables[0][0]
    names = first["task"].to_numpy()
    clusters = pc.coalesce(first["group"], first["item_id"]).to_numpy()  # type: ignore[attr-defined]
    tasks = {}
    for task in sorted(set(names)):
        rows = np.flatnonzero(names == task)
        _, cluster = np.unique(clusters[rows].astype(str), return_inverse=True)
        tasks[task] = Task(
            {name: np.stack([np.bincount(cluster, one[name][rows]) for one in scores]) for name in METRICS},
            np.bincount(cluster).astype(float),
            _identity(first).take(rows),
        )
    return tasks


def _mean(scores: list[dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
    """The mean of each measure, row by row."""
    return {name: np.mean([one[name] for one in scores], axis=0) for name in scores[0]}


def _sets(tables: list[list[pa.Table]]) -> dict[str, Task]:
    first = tables[0][0]
    names = first["set"].to_numpy()
    sets = {}
    for name in sorted(set(names)):
        rows = np.flatnonzero(names == name)
        nats = [np.mean([table["nats"].to_numpy()[rows] for table in checkpoints], axis=0) for checkpoints in tables]
        bits = np.stack([one / np.log(2) for one in nats])
        items = _documents(first).take(rows)
        sets[name] = Task({HELD_OUT: bits}, items["bytes"].to_numpy().astype(float), items)
    return sets


@dataclass(frozen=True, order=True)
class Scope:
    """What a score is of."""

    kind: str  # held-out | panel | task, in the order in which they are shown
    name: str
    measure: str


ALL_SETS = "all sets"


def scopes(readings: Readings, panels: Mapping[str, list[str]]) -> dict[Scope, list[Task]]:
    """The tasks, panels and held-out sets of an arm, by measure; a panel that lacks tasks says how many it has."""
    found: dict[Scope, list[Task]] = {}
    for name, task in readings.sets.items():
        found[Scope("held-out", name, HELD_OUT)] = [task]
    if len(readings.sets) > 1:
        found[Scope("held-out", ALL_SETS, HELD_OUT)] = list(readings.sets.values())
    for panel, wanted in (panels or {"all tasks": list(readings.tasks)}).items():
        tasks = [readings.tasks[task] for task in wanted if task in readings.tasks]
        label = panel if len(tasks) == len(wanted) else f"{panel} ({len(tasks)} of {len(wanted)})"
        found |= {Scope("panel", label, measure): tasks for measure in METRICS if tasks}
    for name, task in readings.tasks.items():
        found |= {Scope("task", name, measure): [task] for measure in METRICS}
    return found


def parts(tasks: list[Task], measure: str) -> list[Part]:
    """A scope in the terms of `effects`."""
    return [task.part(measure) for task in tasks]
