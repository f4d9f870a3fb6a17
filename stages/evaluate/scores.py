"""Scores: of one task, averaged over tasks, means over training seeds, and as a table for plots."""

import csv
import io
import math
from typing import Any

from cosmopedia.errors import InternalError
from cosmopedia.seeds import mean_and_sd

MEASURES = ("acc", "acc_norm")
COLUMNS = ("acc", "acc_stderr", "acc_norm", "acc_norm_stderr")


def summary(details: list[dict[str, Any]]) -> dict[str, Any]:
    """Scores of one task from its DETAIL rows: the means, their standard errors, and what guessing would give."""
    count = len(details)
    scores: dict[str, Any] = {}
    for name, column in (("acc", "correct"), ("acc_norm", "correct_norm")):
        mean = sum(row[column] for row in details) / count
        scores[name] = mean
        scores[f"{name}_stderr"] = math.sqrt(mean * (1 - mean) / (count - 1)) if count > 1 else None
    return scores | {"chance": sum(1 / len(row["choices"]) for row in details) / count, "items": count}


def average(tasks: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """Mean over tasks, each with the same weight; the standard error treats tasks as independent."""
    count, scores = len(tasks), {}
    for name in MEASURES:
        scores[name] = sum(task[name] for task in tasks.values()) / count
        errors = [task[f"{name}_stderr"] for task in tasks.values()]
        scores[f"{name}_stderr"] = None if None in errors else math.sqrt(sum(e * e for e in errors)) / count
    return scores | {
        "chance": sum(task["chance"] for task in tasks.values()) / count,
        "items": sum(task["items"] for task in tasks.values()),
    }


def check_agreement(task: str, ours: dict[str, Any], lighteval: dict[str, Any]) -> None:
    """`InternalError` when the table of answers does not give the scores that lighteval reports."""
    for name in MEASURES:
        if abs(ours[name] - float(lighteval[name])) > 1e-9:
            raise InternalError(
                f"evaluate: {task} {name} is {lighteval[name]} by lighteval, {ours[name]} by its details"
            )


def over_seeds(seeds: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """metrics/evaluate.json: the mean over seeds of every score, and the standard deviation of the average's.

    A mean's `_stderr` is the mean of the seeds' standard errors: they answer the same items, so it does not shrink
    with the number of seeds.
    """
    averages = [scores["average"] for scores in seeds.values()]
    metrics: dict[str, Any] = {
        "average": _mean(averages),
        "tasks": {
            task: _mean([scores["tasks"][task] for scores in seeds.values()])
            for task in next(iter(seeds.values()))["tasks"]
        },
        "seeds": {seed: {name: scores["average"][name] for name in MEASURES} for seed, scores in seeds.items()},
    }
    for name in MEASURES:
        _, sd = mean_and_sd([scores[name] for scores in averages])
        if sd is not None:
            metrics["average"][f"{name}_sd"] = sd
    return metrics


def _mean(scores: list[dict[str, Any]]) -> dict[str, Any]:
    """The mean over seeds of one task's scores."""
    means = {name: mean_and_sd([one[name] for one in scores])[0] for name in COLUMNS}
    return means | {name: scores[0][name] for name in ("chance", "items")}


def score_table(metrics: dict[str, Any]) -> str:
    """The scores as a table for DVC's plots."""
    table = io.StringIO()
    writer = csv.writer(table, lineterminator="\n")
    columns = (*COLUMNS, "chance")
    writer.writerow(("task", *columns))
    for task, scores in [*metrics["tasks"].items(), ("average", metrics["average"])]:
        writer.writerow((task, *("" if scores[name] is None else f"{scores[name]:.6g}" for name in columns)))
    return table.getvalue()
