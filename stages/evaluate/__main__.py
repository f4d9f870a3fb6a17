"""evaluate: each exported model scored on the benchmarks by lighteval, zero-shot, in cloze form.

In: models/export/seed-<n>/, data/benchmarks/<task>.parquet (BENCHMARK).
Out: metrics/evaluate.json (per task acc, acc_norm, their standard errors, chance, items; the average; means over seeds
with their standard deviation, and the average of each seed), data/evaluate/seed-<n>.parquet (DETAIL, a row per item),
metrics/plots/evaluate.csv.
Contract: the same models, items and machine give the same scores. Each model is a run in MLflow with all params, the
git revision and the dataset's hash.
Run: python -m stages.evaluate
"""

import json
from pathlib import Path
from typing import Any

from pydantic import Field

from cosmopedia.errors import DataError
from cosmopedia.execution.mlflow_run import Run
from cosmopedia.execution.stage_process import run_stage
from cosmopedia.files import clear_folder, write_text
from cosmopedia.lineage import hash_files
from cosmopedia.params import Params, load
from cosmopedia.seeds import seed_folders, seed_of
from cosmopedia.tables.contracts import DETAIL
from cosmopedia.tables.parquet import write_table
from cosmopedia.tables.row_counts import write_metrics
from stages.evaluate.items import read_items
from stages.evaluate.lighteval_run import run_lighteval
from stages.evaluate.scores import average, check_agreement, over_seeds, score_table, summary

MODELS, OUT = Path("models/export"), Path("data/evaluate")
METRICS, BARS = Path("metrics/evaluate.json"), Path("metrics/plots/evaluate.csv")


class EvaluateParams(Params):
    """What is evaluated."""

    seed: int
    tasks: list[str] = Field(min_length=1)
    max_items: int | None = Field(ge=2)  # of each benchmark
    batch_size: int = Field(ge=1)  # sequences scored together


def record(metrics: dict[str, Any], model: Path) -> None:
    """One MLflow run with a model's scores and lineage."""
    training = json.loads((model / "training.json").read_text(encoding="utf-8"))
    tags = {name: str(training[name]) for name in ("dataset_hash", "recipe_hash")}
    tags |= {"weights_hash": hash_files([model / "model.safetensors"]), "seed": str(seed_of(model))}
    with Run("evaluate", tags) as run:
        for task, scores in [*metrics["tasks"].items(), ("average", metrics["average"])]:
            run.metrics({f"{task}/{name}": value for name, value in scores.items() if value is not None})


def evaluate(model: Path, params: EvaluateParams, items: dict[str, list[dict[str, Any]]]) -> dict[str, Any]:
    """Score one model and write its details; returns its scores."""
    if not (model / "config.json").is_file():
        raise DataError(f"{model} holds no model; run `dvc repro export`, or dvc pull")
    results = run_lighteval(model, items, params.batch_size)
    tasks = {}
    for task in params.tasks:
        tasks[task] = summary([row for row in results["details"] if row["task"] == task])
        check_agreement(task, tasks[task], results["scores"][task])
    write_table(OUT / f"{model.name}.parquet", results["details"], DETAIL)
    metrics = {"average": average(tasks), "tasks": tasks}
    record(metrics, model)
    return metrics


def settings() -> EvaluateParams:
    """The stage's params."""
    return load("evaluate", EvaluateParams)


def main() -> str:
    params, models = settings(), seed_folders(MODELS)
    items = {task: read_items(task, params.seed, params.max_items) for task in params.tasks}
    clear_folder(OUT)
    metrics = over_seeds({str(seed_of(model)): evaluate(model, params, items) for model in models})
    write_metrics(METRICS, metrics)
    write_text(BARS, score_table(metrics))
    mean = metrics["average"]
    spread = f", sd over seeds {mean['acc_norm_sd']:.3f}" if "acc_norm_sd" in mean else ""
    return (
        f"{len(models)} model(s): acc {mean['acc']:.3f}, acc_norm {mean['acc_norm']:.3f} ±"
        f" {mean['acc_norm_stderr'] or 0:.3f}{spread} over {len(metrics['tasks'])} tasks, {mean['items']} items"
        f" (guessing: {mean['chance']:.3f})"
    )


if __name__ == "__main__":
    run_stage("evaluate", main)
