"""benchmarks: every evaluation set, once, for decontaminate and evaluate alike.

In: hub datasets at pinned revisions, or local files of the same schemas (profile: benchmarks.tasks.<task>).
Out: data/benchmarks/<task>.parquet (BENCHMARK) for each task, metrics/benchmarks.json with the resolved revisions.
Contract: a row that cannot be used is an error, not a loss: scores are comparable only over the same items.
Run: python -m stages.benchmarks
"""

from collections.abc import Iterable
from pathlib import Path

from pydantic import Field

from cosmopedia.core.errors import ConfigError, DataError
from cosmopedia.core.files import clear_folder
from cosmopedia.core.params import Params, load
from cosmopedia.core.rng import draw_sample
from cosmopedia.core.row_counts import write_metrics
from cosmopedia.execution.stage_process import run_stage
from cosmopedia.records.dataset_folders import dataset_files
from cosmopedia.records.pins import is_local
from cosmopedia.records.reading import Record, read_records
from cosmopedia.tables.contracts import BENCHMARK
from cosmopedia.tables.parquet import write_table
from stages.benchmarks.cloze import FORMS, Fields, checked

OUT = Path("data/benchmarks")


class TaskSource(Params):
    """Where one evaluation set comes from."""

    dataset: str  # hub id, file or folder
    subset: str | None
    split: str | None  # null for local files
    revision: str | None  # commit of a hub dataset; null for local files


class BenchmarksParams(Params):
    """Which evaluation sets, and how much of each."""

    seed: int  # of the draw, where `limit` takes a part
    limit: int | None = Field(ge=1)  # items of a task; null: all
    tasks: dict[str, TaskSource]


def items_of(task: str, records: Iterable[Record], revision: str) -> list[dict]:
    """BENCHMARK rows of a task's records, in their order. `DataError` names the first record that does not fit."""
    rows = []
    for position, record in enumerate(records):
        if record.problem:
            raise DataError(f"{record.place}: {record.problem}; fix or remove the row")
        item = checked(FORMS[task](Fields(record.values, record.place)), record.place)
        rows.append(
            {
                "item_id": f"{task}/{position:06d}",
                "task": task,
                "group": item.group,
                "query": item.query,
                "choices": item.choices,
                "gold": item.gold,
                "question": item.question,
                "answer": item.answer,
                "other_forms": [{"form": form, "text": text} for form, text in item.other_forms.items()],
                "revision": revision,
            }
        )
    return rows


def drawn(task: str, rows: list[dict], limit: int | None, seed: int) -> list[dict]:
    """`limit` of a task's rows, drawn from (seed, item id); all when limit is None."""
    if limit is None:
        return rows
    sample = set(draw_sample(seed, f"benchmarks/{task}", [row["item_id"] for row in rows], limit))
    return [row for row in rows if row["item_id"] in sample]


def settings() -> BenchmarksParams:
    """The stage's params."""
    params = load("benchmarks", BenchmarksParams)
    if unknown := sorted(params.tasks.keys() - FORMS.keys()):
        raise ConfigError(f"benchmarks.tasks: unknown task(s) {', '.join(unknown)}; known: {', '.join(FORMS)}")
    return params


def main() -> str:
    """Read and normalise every task; returns the summary line."""
    params = settings()
    clear_folder(OUT)
    metrics: dict[str, dict] = {}
    unread = ""
    for task, source in params.tasks.items():
        records, revision = read_records(source.dataset, source.subset, source.split, source.revision)
        if is_local(source.dataset):
            unread += dataset_files(source.dataset, source.subset, source.split).note
        rows = items_of(task, records, revision)
        if not rows:
            raise DataError(f"{source.dataset}: no record for benchmark {task}; check benchmarks.tasks.{task}")
        kept = write_table(OUT / f"{task}.parquet", drawn(task, rows, params.limit, params.seed), BENCHMARK)
        metrics[task] = {"items": kept, "available": len(rows), "dataset": source.dataset, "revision": revision}
    total = sum(task["items"] for task in metrics.values())
    write_metrics("metrics/benchmarks.json", {"items": total, "tasks": metrics})
    return f"{total} items of {len(metrics)} tasks{unread}"


if __name__ == "__main__":
    run_stage("benchmarks", main)
