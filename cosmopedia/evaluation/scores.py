"""Scores: of one task, of panels and held-out sets, means over training seeds, and as a table for plots."""

import csv
import io
import math
import statistics
from collections import defaultdict
from collections.abc import Iterable
from typing import Any

from cosmopedia.evaluation.item_scores import (
    LOWER_IS_BETTER,
    METRICS,
    best,
    by_character,
    item_scores,
    without_space,
)
from cosmopedia.seeds import mean_and_sd

ERRORS = 3  # standard errors above the floor from which a score is informative
COLUMNS = ("bpb", "acc_norm", "acc")
Scores = dict[str, Any]


def detail_rows(items: list[dict[str, Any]], logprobs: list[list[float]]) -> list[dict[str, Any]]:
    """DETAIL rows of BENCHMARK rows and the log-probabilities of their choices."""
    rows = []
    for item, values in zip(items, logprobs, strict=True):
        predicted, normed = best(values), best(by_character(values, item["choices"]))
        rows.append(
            {name: item[name] for name in ("item_id", "task", "group", "gold", "choices")}
            | {"predicted": predicted, "predicted_norm": normed}
            | {"correct": predicted == item["gold"], "correct_norm": normed == item["gold"]}
            | {"bytes": [len(without_space(one).encode()) for one in item["choices"]], "logprobs": values}
        )
    return rows


def summary(details: list[dict[str, Any]]) -> Scores:
    """The mean of each metric over DETAIL rows, with its standard error (None for a single row), and `items`."""
    table = [item_scores(row) for row in details]
    scores: Scores = {"items": len(table)}
    for name in METRICS:
        scores |= _mean_and_error(name, [row[name] for row in table])
    return scores


def _mean_and_error(name: str, values: list[float]) -> Scores:
    error = statistics.stdev(values) / math.sqrt(len(values)) if len(values) > 1 else None
    return {name: math.fsum(values) / len(values), f"{name}_stderr": error}


def by_group(details: list[dict[str, Any]]) -> dict[str, Scores]:
    """The scores of each group (MMLU's subjects); none for a task without groups."""
    groups: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for row in details:
        if row["group"] is not None:
            groups[row["group"]].append(row)
    return {name: summary(rows) for name, rows in sorted(groups.items())}


def panel(tasks: Iterable[Scores]) -> Scores:
    """Mean over tasks, each with the same weight; the standard error treats tasks as independent."""
    tasks = list(tasks)
    scores: Scores = {"items": sum(task["items"] for task in tasks)}
    for name in METRICS:
        if all(name in task for task in tasks):
            scores[name] = math.fsum(task[name] for task in tasks) / len(tasks)
            scores[f"{name}_stderr"] = _error_of_mean(task[f"{name}_stderr"] for task in tasks)
    return scores


def _error_of_mean(errors: Iterable[float | None]) -> float | None:
    """The standard error of a mean of independent numbers; None where one has none."""
    known = list(errors)
    return None if None in known else math.hypot(*(error or 0.0 for error in known)) / len(known)


def heldout(rows: list[dict[str, Any]]) -> dict[str, Scores]:
    """Bits per byte of each set of HELDOUT rows, and of `together`: the mean over sets, each with the same weight.

    A set is one long text: its bits over its bytes. The standard error is that of a ratio, over documents.
    """
    sets: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for row in rows:
        sets[row["set"]].append(row)
    scores = {name: _bits_per_byte(members) for name, members in sets.items()}
    together: Scores = {name: sum(one[name] for one in scores.values()) for name in ("documents", "bytes", "tokens")}
    together["bpb"] = math.fsum(one["bpb"] for one in scores.values()) / len(scores)
    together["bpb_stderr"] = _error_of_mean(one["bpb_stderr"] for one in scores.values())
    return scores | {"together": together}


def _bits_per_byte(rows: list[dict[str, Any]]) -> Scores:
    count, size = len(rows), sum(row["bytes"] for row in rows)
    bits = [row["nats"] / math.log(2) for row in rows]
    ratio = math.fsum(bits) / size
    off = math.fsum((bit - ratio * row["bytes"]) ** 2 for bit, row in zip(bits, rows, strict=True))
    return {
        "documents": count,
        "bytes": size,
        "tokens": sum(row["tokens"] for row in rows),
        "bpb": ratio,
        "bpb_stderr": math.sqrt(off * count / (count - 1)) / size if count > 1 else None,
    }


def highest_floor(floors: list[Scores]) -> Scores:
    """The best that any of the floors reaches, metric by metric, with its standard error."""
    highest: Scores = {}
    for name in METRICS:
        better = min if name in LOWER_IS_BETTER else max
        best = better((floor for floor in floors if name in floor), key=lambda floor: floor[name])
        highest |= {name: best[name], f"{name}_stderr": best[f"{name}_stderr"]}
    return highest


def with_floor(scores: Scores, floor: Scores) -> Scores:
    """Scores with their `floor`, and the metrics that are `informative`: more than `ERRORS` standard errors better.

    The standard error is the score's or the floor's, whichever is greater. Where there is none (a single item),
    nothing is informative.
    """
    informative = []
    for name in METRICS:
        ahead = floor[name] - scores[name] if name in LOWER_IS_BETTER else scores[name] - floor[name]
        errors = [error for one in (scores, floor) if (error := one.get(f"{name}_stderr")) is not None]
        if errors and ahead > ERRORS * max(errors):
            informative.append(name)
    return scores | {"floor": {name: floor[name] for name in METRICS}, "informative": informative}


def over_seeds(seeds: dict[str, Any], sd: bool = False) -> Any:
    """The mean of every number over the seeds' scores, and with `sd` its standard deviation as `<name>_sd`.

    The mean of a `_stderr` is the mean of the seeds' standard errors: they answer the same items, so it does not
    shrink with the number of seeds.
    """
    first = next(iter(seeds.values()))
    if not isinstance(first, dict):
        return mean_and_sd(list(seeds.values()))[0] if isinstance(first, float) else first
    means: Scores = {}
    for name in first:
        values = {seed: scores[name] for seed, scores in seeds.items()}
        means[name] = over_seeds(values, sd)
        if sd and name in METRICS and len(seeds) > 1:
            means[f"{name}_sd"] = mean_and_sd(list(values.values()))[1]
    return means


def score_table(metrics: Scores) -> str:
    """The scores as a table for DVC's plots."""
    table = io.StringIO()
    writer = csv.writer(table, lineterminator="\n")
    writer.writerow(("task", *(column for name in COLUMNS for column in (name, f"{name}_stderr", f"{name}_floor"))))
    panels = [(f"average of {name}", scores) for name, scores in metrics["panels"].items()]
    for task, scores in [*metrics["tasks"].items(), *panels]:
        values = [
            value for name in COLUMNS for value in (scores[name], scores[f"{name}_stderr"], scores["floor"][name])
        ]
        writer.writerow((task, *("" if value is None else f"{value:.6g}" for value in values)))
    return table.getvalue()
