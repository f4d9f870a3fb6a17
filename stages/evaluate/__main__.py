"""Score each exported model on the nine benchmarks, zero-shot, in cloze form, by lighteval.

in   models/export/seed-<n>/, data/benchmarks/<task>.parquet (BENCHMARK)
out  metrics/evaluate.json (a task: acc, acc_norm, their standard errors, chance, items; and the average; means over
     seeds, with their standard deviation, and each seed's average), data/evaluate/seed-<n>.parquet (DETAIL, a row an
     item), metrics/plots/evaluate.csv
The same models, items and machine give the same scores. Each model is a run in MLflow with all params, the git
revision and the dataset's hash.
Alone: python -m stages.evaluate
"""

import csv
import json
import math
import shutil
import statistics
from pathlib import Path
from typing import Any

from pydantic import Field

from cosmopedia.errors import ConfigError, DataError, InternalError, run_stage
from cosmopedia.execution.mlflow_run import Run
from cosmopedia.lineage import hash_files
from cosmopedia.params import Params, load
from cosmopedia.rng import draw_sample
from cosmopedia.tables.contracts import BENCHMARK
from cosmopedia.tables.parquet import read_table, write_table
from cosmopedia.tables.row_counts import write_metrics
from stages.evaluate.lighteval_run import DETAIL, average, run_lighteval, summary

MODELS, BENCHMARKS, OUT = Path("models/export"), Path("data/benchmarks"), Path("data/evaluate")
METRICS, BARS = Path("metrics/evaluate.json"), Path("metrics/plots/evaluate.csv")


class EvaluateParams(Params):
    """What is evaluated."""

    seed: int
    tasks: list[str] = Field(min_length=1)
    max_items: int | None = Field(ge=2)  # of each benchmark
    batch_size: int = Field(ge=1)  # sequences scored together


def read_items(task: str, params: EvaluateParams) -> list[dict[str, Any]]:
    """A task's items, or a sample of them that the seed and their ids decide."""
    rows = read_table(BENCHMARKS / f"{task}.parquet", BENCHMARK).to_pylist()
    if not rows:
        raise DataError(f"{BENCHMARKS}/{task}.parquet has no items; repeat the benchmarks stage")
    if one := next((row["item_id"] for row in rows if len(row["choices"]) < 2), None):
        raise ConfigError(f"evaluate.tasks: {task} cannot be scored, {one} has no wrong answer beside the right one")
    if params.max_items is None or len(rows) <= params.max_items:
        return rows
    chosen = set(draw_sample(params.seed, f"evaluate.{task}", (row["item_id"] for row in rows), params.max_items))
    return [row for row in rows if row["item_id"] in chosen]


def check_agreement(task: str, ours: dict[str, Any], theirs: dict[str, Any]) -> None:
    """`InternalError` when the table of answers does not give the scores that lighteval reports."""
    for name in ("acc", "acc_norm"):
        if abs(ours[name] - float(theirs[name])) > 1e-9:
            raise InternalError(f"evaluate: {task} {name} is {theirs[name]} by lighteval, {ours[name]} by its details")


def write_bars(path: Path, metrics: dict[str, Any]) -> None:
    """The scores as DVC plots them."""
    path.parent.mkdir(parents=True, exist_ok=True)
    names = ("acc", "acc_stderr", "acc_norm", "acc_norm_stderr", "chance")
    with path.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.writer(stream, lineterminator="\n")
        writer.writerow(("task", *names))
        for task, scores in [*metrics["tasks"].items(), ("average", metrics["average"])]:
            writer.writerow((task, *("" if scores[n] is None else f"{scores[n]:.6g}" for n in names)))


def record(metrics: dict[str, Any], model: Path) -> None:
    """One MLflow run with the scores and the lineage."""
    training = json.loads((model / "training.json").read_text(encoding="utf-8"))
    weights = hash_files([model / "model.safetensors"])
    tags = {name: str(training[name]) for name in ("dataset_hash", "recipe_hash")} | {"weights_hash": weights}
    tags |= {"seed": model.name.removeprefix("seed-")}
    with Run("evaluate", tags) as run:
        for task, scores in [*metrics["tasks"].items(), ("average", metrics["average"])]:
            run.metrics({f"{task}/{name}": value for name, value in scores.items() if value is not None})


def over_seeds(found: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """Means over seeds of every score, and the standard deviation over seeds of the average's.

    A mean's `_stderr` is the mean of the seeds': they answer the same items, so it does not shrink with their number.
    """
    first = next(iter(found.values()))

    def mean(of: list[dict[str, Any]]) -> dict[str, Any]:
        names = ("acc", "acc_stderr", "acc_norm", "acc_norm_stderr")
        values = {name: [scores[name] for scores in of] for name in names}
        means = {n: None if None in v else math.fsum(v) / len(v) for n, v in values.items()}
        return means | {name: of[0][name] for name in ("chance", "items")}

    metrics: dict[str, Any] = {
        "average": mean([one["average"] for one in found.values()]),
        "tasks": {task: mean([one["tasks"][task] for one in found.values()]) for task in first["tasks"]},
        "seeds": {seed: {n: one["average"][n] for n in ("acc", "acc_norm")} for seed, one in found.items()},
    }
    if len(found) > 1:
        for name in ("acc", "acc_norm"):
            metrics["average"][f"{name}_sd"] = statistics.stdev(one["average"][name] for one in found.values())
    return metrics


def score(model: Path, params: EvaluateParams, items: dict[str, list[dict[str, Any]]]) -> dict[str, Any]:
    """One model's scores; its details are written."""
    if not (model / "config.json").is_file():
        raise DataError(f"{model} holds no model; run `dvc repro export`, or dvc pull")
    found = run_lighteval(model, items, params.batch_size)
    tasks = {}
    for task in params.tasks:
        tasks[task] = summary([row for row in found["details"] if row["task"] == task])
        check_agreement(task, tasks[task], found["scores"][task])
    write_table(OUT / f"{model.name}.parquet", found["details"], DETAIL)
    metrics = {"average": average(tasks), "tasks": tasks}
    record(metrics, model)
    return metrics


def main() -> str:
    params = load("evaluate", EvaluateParams)
    models = sorted(MODELS.glob("seed-*"), key=lambda path: int(path.name.removeprefix("seed-")))
    if not models:
        raise DataError(f"{MODELS} holds no model; run `dvc repro export`, or dvc pull")
    items = {task: read_items(task, params) for task in params.tasks}
    shutil.rmtree(OUT, ignore_errors=True)
    metrics = over_seeds({model.name.removeprefix("seed-"): score(model, params, items) for model in models})
    write_metrics(METRICS, metrics)
    write_bars(BARS, metrics)
    mean = metrics["average"]
    spread = f", sd over seeds {mean['acc_norm_sd']:.3f}" if "acc_norm_sd" in mean else ""
    return (
        f"{len(models)} model(s): acc {mean['acc']:.3f}, acc_norm {mean['acc_norm']:.3f} ±"
        f" {mean['acc_norm_stderr'] or 0:.3f}{spread} over {len(metrics['tasks'])} tasks, {mean['items']} items"
        f" (guessing: {mean['chance']:.3f})"
    )


if __name__ == "__main__":
    run_stage("evaluate", main)
