"""dedup: copies of the extract, exact duplicates, then near duplicates by datatrove's MinHash.

In: data/clean/<source>-<style>.parquet (DOCUMENT).
Out: data/dedup/<source>-<style>.parquet (DOCUMENT), data/dedup/removed/removed.parquet (REMOVED: copy, exact, near;
evidence {"share"} of a copy, else {"kept": id, "kind": "exact" | "minhash", "jaccard": of the two texts' n-grams}),
metrics/dedup.json (`copies`: how much of the documents is in their extracts; `near`: candidates of MinHash, and those
that verification spared).
Contract: of a group the document with the smallest completion id is kept, for any number of tasks and workers; the
whole rule is in stages/dedup/minhash.py.
Run: python -m stages.dedup
"""

import sys

from datatrove.pipeline.dedup.minhash import MinhashConfig
from pydantic import Field

from cosmopedia.corpus.pipeline import CorpusRun
from cosmopedia.execution.compute import load_compute
from cosmopedia.execution.stage_process import run_stage
from cosmopedia.params import Params, load
from cosmopedia.tables.cell_files import cell_of
from cosmopedia.tables.row_counts import write_metrics
from stages.dedup.exact import copied, find_exact_duplicates
from stages.dedup.minhash import find_near_duplicates, write_kept


class DedupParams(Params):
    """MinHash's size, what it takes to be removed, and the goal."""

    n_grams: int = Field(ge=1)  # words of a shingle, also of those that are compared with the extract
    buckets: int = Field(ge=1)
    hashes: int = Field(ge=1)  # of a bucket; two documents meet where all of them agree
    seed: int  # of the hash functions
    min_jaccard: float | None = Field(gt=0, le=1)  # with the document that is kept; null: MinHash alone decides
    max_extract_copy: float | None = Field(ge=0, le=1)  # share of n-grams that may be in the extract; null: all
    goal_rate: float = Field(ge=0, le=1)  # duplicates among documents above which the stage warns


def settings() -> DedupParams:
    """The stage's params."""
    return load("dedup", DedupParams)


def main() -> str:
    """Deduplicate all cells; returns the summary line."""
    params = settings()
    config = MinhashConfig(params.n_grams, params.buckets, params.hashes, params.seed)
    with CorpusRun("dedup", "data/clean", "data/dedup", load_compute().data) as run:
        exact, stats = find_exact_duplicates(run, params.n_grams, params.max_extract_copy)
        plan, near = find_near_duplicates(run, exact, config, params.min_jaccard)
        metrics, _ = run.settle(write_kept(run, plan), keep=False)
        copies = copied(stats, sorted(set(map(cell_of, run.cells))))
    for row_counts in [metrics, *metrics["cells"].values()]:
        duplicates = row_counts["rows_removed"] - row_counts["removed"].get("copy", 0)
        row_counts["rate"] = duplicates / max(row_counts["rows_in"], 1)
    rate, goal = metrics["rate"], params.goal_rate
    metrics |= {"near": near, "copies": copies, "goal_rate": goal, "within_goal": rate <= goal}
    write_metrics("metrics/dedup.json", metrics)
    if rate > goal:
        worst = max(metrics["cells"], key=lambda cell: metrics["cells"][cell]["rate"])
        print(
            f"dedup: warning: {rate:.1%} duplicates, the goal is at most {goal:.1%}; most in {worst}"
            f" ({metrics['cells'][worst]['rate']:.1%}); see data/dedup/removed, and vary prompts or sampling",
            file=sys.stderr,
        )
    removed = metrics["removed"]
    copy = f", {removed['copy']} copies of their extracts" if "copy" in removed else ""
    return (
        f"{metrics['rows_kept']} of {metrics['rows_in']} documents kept; {removed.get('exact', 0)} exact and"
        f" {removed.get('near', 0)} near duplicates removed ({rate:.2%}){copy}"
    )


if __name__ == "__main__":
    run_stage("dedup", main)
