"""decontaminate: remove documents that contain benchmark items.

In: data/dedup/<source>-<style>.parquet (DOCUMENT), data/benchmarks/<task>.parquet (BENCHMARK),
data/paraphrases/pairs.parquet (PARAPHRASE).
Out: data/decontaminate/<source>-<style>.parquet (DOCUMENT), data/decontaminate/removed/removed.parquet (REMOVED, with
benchmark, item, form, detectors, shared n-gram, matched text and both ratios of every item found),
metrics/decontaminate.json, and the article's table, contaminated documents and distinct items by source and benchmark,
in metrics/decontaminate.md and metrics/plots/contamination.csv.
Contract: the rule is in cosmopedia/contamination/index.py. Shards, the order of documents and PYTHONHASHSEED change
nothing. Natural text is searched too; it is in `cells` and among what was removed, and in no total and no table.
Run: python -m stages.decontaminate
"""

import csv
from pathlib import Path

from cosmopedia.contamination.index import DETECTORS, RULES, DecontaminateParams, Index, item_forms
from cosmopedia.core.params import load
from cosmopedia.core.row_counts import write_metrics
from cosmopedia.corpus.components import NATURAL
from cosmopedia.corpus.pipeline import CorpusRun, ReadCells, natural_rows, removed_writer, statistic
from cosmopedia.execution.compute import load_compute
from cosmopedia.execution.stage_process import run_stage
from cosmopedia.tables.parquet import tables_in
from stages.decontaminate.paraphrases import paraphrase_metrics, read_paraphrases
from stages.decontaminate.pipeline import CountNgrams, RemoveContaminated, merged_counts
from stages.decontaminate.report import (
    SHOWN,
    Common,
    by_form,
    contamination_table,
    markdown,
    merged_pairs,
    side_by_side,
)

REPORT, PLOT = Path("metrics/decontaminate.md"), Path("metrics/plots/contamination.csv")


def leave_common_out(run: CorpusRun, index: Index, allowed: float | None) -> Common:
    """Count the items' n-grams in all synthetic documents, and mark in the index those that are in too many."""
    if allowed is None:
        return Common(None, 0, [])
    max_documents = int(allowed * run.synthetic_rows if allowed < 1 else allowed)
    counts = run.scratch / "counts"
    index.save(run.scratch / "counted.pickle")
    steps = [ReadCells(run.synthetic), CountNgrams(run.scratch / "counted.pickle", counts)]
    run.run("count", steps, total=run.synthetic_rows)
    documents = merged_counts(counts, index.ngrams)
    index.common = documents > max_documents
    return Common(max_documents, int(index.common.sum()), index.commonest(documents, SHOWN))


def settings() -> DecontaminateParams:
    """The stage's params."""
    return load("decontaminate", DecontaminateParams)


def main() -> str:
    """Decontaminate all cells; returns the summary line."""
    params = settings()
    tables = tables_in("data/benchmarks")
    with CorpusRun("decontaminate", "data/dedup", "data/decontaminate", load_compute().data) as run:
        index = Index(item_forms(tables, params.forms is None), params)
        common = leave_common_out(run, index, params.common_ngram)
        index.save(run.scratch / "index.pickle")
        parts = run.scratch / "removed"
        pairs = run.scratch / "pairs"
        notes = run.arrays.notes("decontaminate")
        index_file = run.scratch / "index.pickle"
        step = RemoveContaminated(run.cells, run.out, index_file, pairs, removed_writer(parts), notes)
        stats = run.run("decontaminate", [step], total=run.rows)
        metrics, _ = run.settle([parts])
        rows = [row for row in merged_pairs(pairs) if row.pop("style") != NATURAL]
    paraphrases = read_paraphrases()
    table = contamination_table(rows, params.removing())
    by_source: dict[str, dict[str, dict[str, int]]] = {}
    for row in table:
        by_source.setdefault(row["source"], {})[row["task"]] = {k: row[k] for k in ("documents", "items")}
    candidates = statistic(stats, "candidate.")
    metrics |= {
        "benchmark_items": {"checked": index.checked, "short": index.short, "shortest": index.shortest},
        "candidates": {name: candidates.get(name, 0) for name in ("documents", "pairs", "common_only")},
        "common_ngrams": {"allowed_documents": common.max_documents, "left_out": common.ngrams},
        "detectors": side_by_side(rows, "detectors", DETECTORS),
        "forms": by_form(rows),
        "indexed_forms": index.by_form,
        "paraphrases": paraphrase_metrics(paraphrases, {row["completion_id"] for row in rows if row["detectors"]}),
        "rules": side_by_side(rows, "rules", RULES),
        "contamination": by_source,
    }
    PLOT.parent.mkdir(parents=True, exist_ok=True)
    with PLOT.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, ["source", "task", "documents", "items"], lineterminator="\n")
        writer.writeheader()
        writer.writerows(table)
    write_metrics("metrics/decontaminate.json", metrics)
    REPORT.write_text(markdown(metrics, rows, params, [path.stem for path in tables], common), encoding="utf-8")
    return (
        f"{metrics['rows_kept']} of {metrics['rows_in']} documents kept; {metrics['rows_removed']} contaminated of"
        f" {candidates.get('documents', 0)} that share an n-gram with one of {index.items} benchmark items"
        f"{natural_rows(metrics)}"
    )


if __name__ == "__main__":
    run_stage("decontaminate", main)
