"""decontaminate: take documents out that hold benchmark items.

In: data/dedup/<source>-<style>.parquet (DOCUMENT), data/benchmarks/<task>.parquet (BENCHMARK).
Out: data/decontaminate/<source>-<style>.parquet (DOCUMENT), data/decontaminate/removed/removed.parquet (REMOVED, with
benchmark, item, shared n-gram, matched text and ratio of every item found), metrics/decontaminate.json, and the
article's table in metrics/plots/contamination.csv: contaminated documents and distinct items by source and task.
The rule is in stages/corpus/contamination.py. Neither shards nor the order of documents nor PYTHONHASHSEED matter.
Alone: python -m stages.decontaminate
"""

import csv
import json
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

from stages.clusters import load_cluster
from stages.corpus.cells import CorpusRun, ReadCells, WriteCells, removed_writer, statistic
from stages.corpus.contamination import ContaminationFilter, DecontaminateParams, Index
from stages.errors import run_stage
from stages.settings import load
from stages.tables.accounting import write_metrics
from stages.tables.contracts import BENCHMARK
from stages.tables.parquet import read_rows, tables_in

PLOT = Path("metrics/plots/contamination.csv")


def item_texts(tables: list[Path]) -> Iterator[tuple[str, str, str]]:
    """(item_id, task, question and right answer) of every benchmark item."""
    for row in read_rows(tables, BENCHMARK):
        yield row["item_id"], row["task"], f"{row['question']} {row['answer']}"


def contamination_table(removed: list[dict]) -> list[dict]:
    """Contaminated documents and distinct items by source and task, from REMOVED rows."""
    documents: dict[tuple[str, str], set[str]] = defaultdict(set)
    items: dict[tuple[str, str], set[str]] = defaultdict(set)
    for row in removed:
        for item in json.loads(row["evidence"])["items"]:
            key = (row["source"], item["task"])
            documents[key].add(row["completion_id"])
            items[key].add(item["item_id"])
    return [
        {"source": source, "task": task, "documents": len(documents[source, task]), "items": len(items[source, task])}
        for source, task in sorted(documents)
    ]


def main() -> str:
    """Decontaminate all cells; returns the summary line."""
    params = load("decontaminate", DecontaminateParams)
    tables = tables_in("data/benchmarks")
    with CorpusRun("decontaminate", "data/dedup", "data/decontaminate", load_cluster().data) as run:
        index = Index(item_texts(tables), params)
        index.save(run.scratch / "index.pickle")
        parts = run.scratch / "removed"
        steps = [
            ReadCells(run.cells),
            ContaminationFilter(run.scratch / "index.pickle", removed_writer(parts)),
            WriteCells(run.cells, run.out),
        ]
        stats = run.run("decontaminate", steps, total=run.rows)
        metrics, removed = run.settle([parts])
    table = contamination_table(removed)
    PLOT.parent.mkdir(parents=True, exist_ok=True)
    with PLOT.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, ["source", "task", "documents", "items"], lineterminator="\n")
        writer.writeheader()
        writer.writerows(table)
    found = statistic(stats, "candidate.")
    checked = {"checked": len(index.items), "short": index.short, "unchecked": len(index.unchecked)}
    by_source: dict[str, dict[str, dict[str, int]]] = {}
    for row in table:
        by_source.setdefault(row["source"], {})[row["task"]] = {k: row[k] for k in ("documents", "items")}
    candidates = {name: found.get(name, 0) for name in ("documents", "pairs")}
    extra = {"benchmark_items": checked, "candidates": candidates, "contamination": by_source}
    write_metrics("metrics/decontaminate.json", {**metrics, **extra})
    return (
        f"{metrics['rows_kept']} of {metrics['rows_in']} documents kept; {metrics['rows_removed']} contaminated of"
        f" {candidates['documents']} that share an n-gram with one of {len(index.items)} benchmark items"
    )


if __name__ == "__main__":
    run_stage("decontaminate", main)
