"""dedup: copies of the extract, exact duplicates, then near duplicates by MinHash.

In: data/clean/<source>-<style>.parquet (DOCUMENT).
Out: data/dedup/<source>-<style>.parquet (DOCUMENT), data/dedup/removed/removed.parquet (REMOVED: copy, exact, near;
evidence {"share"} of a copy, else {"kept": id, "kind": "exact" | "minhash", "jaccard": of the two texts' n-grams}),
metrics/dedup.json (`copies`: how much of the documents is in their extracts; `near`: candidates of MinHash, and those
that verification spared).
Contract: of a group the document with the smallest completion id is kept, for any number of tasks and workers; the
whole rule is in stages/dedup/verify.py, what counts as a word in stages/dedup/words.py. Of synthetic and natural text
the synthetic stays: what becomes of the synthetic part is the same with natural text and without. Natural text is in
`cells`, and in no total.
Run: python -m stages.dedup
"""

import sys
from pathlib import Path
from typing import Self

import numpy as np
from pydantic import Field, model_validator

from cosmopedia.core.errors import ConfigError
from cosmopedia.core.params import Params, load, section
from cosmopedia.core.row_counts import write_metrics
from cosmopedia.corpus.minhash import LONGEST_SKETCH
from cosmopedia.corpus.pipeline import CorpusRun, natural_rows, statistic
from cosmopedia.execution.compute import load_compute
from cosmopedia.execution.stage_process import run_stage
from cosmopedia.tables.cell_files import cell_of, source_and_style
from stages.dedup.clusters import KEYS_PER_PART, Clusters, FindPairs
from stages.dedup.index import Buckets, IndexDocuments, copied
from stages.dedup.verify import MEMBERS_PER_PART, Members, VerifyClusters, WriteKept

# About 20 with one process, measured; twice that, for each of six steps waits for the imports of a further one.
MB_PER_SECOND = 40


class DedupParams(Params):
    """MinHash's size, what it takes to be removed, and the goal."""

    n_grams: int = Field(ge=1)  # words of a shingle, also of those that are compared with the extract
    buckets: int = Field(ge=1)
    hashes: int = Field(ge=1)  # of a bucket; two documents meet where all of them agree
    seed: int  # of the hash function
    numbers_count: tuple[str, ...]  # sources, or cells, whose documents are no candidates when their numbers differ
    min_jaccard: float | None = Field(gt=0, le=1)  # with the document that is kept; null: MinHash alone decides
    max_extract_copy: float | None = Field(ge=0, le=1)  # share of n-grams that may be in the extract; null: all
    goal_rate: float = Field(ge=0, le=1)  # duplicates among documents above which the stage warns

    @model_validator(mode="after")
    def _sketch_is_small(self) -> Self:
        if self.buckets * self.hashes > LONGEST_SKETCH:
            raise ValueError(f"buckets times hashes is at most {LONGEST_SKETCH}, found {self.buckets * self.hashes}")
        return self


def settings() -> DedupParams:
    """The stage's params. `ConfigError` for a name in numbers_count that no source or component has."""
    params = load("dedup", DedupParams)
    known = set(section("sources")) - {"reading"} | set((section("natural") or {}).get("datasets") or {})
    unknown = [name for name in params.numbers_count if source_and_style(name)[0] not in known]
    if known and unknown:
        raise ConfigError(
            f"dedup.numbers_count: {unknown[0]!r} is neither a source nor a cell (<source>-<style>) of one; the"
            f" sources: {', '.join(sorted(known))}"
        )
    return params


def find_duplicates(run: CorpusRun, params: DedupParams) -> dict[str, int]:
    """Exact and near duplicates among what was indexed, into `verified`; near candidates, and those spared."""
    clusters, members = run.scratch / "clusters.npy", run.scratch / "members"
    parts = max(run.tasks, 1 + run.rows * (params.buckets + 1) // KEYS_PER_PART)
    run.run("pairs", [FindPairs(run.scratch / "keys", run.scratch / "pairs")], tasks=parts)
    run.run("clusters", [Clusters(run.scratch / "pairs", clusters, run.synthetic_rows)], tasks=1)
    run.arrays.check()
    counts: dict[str, int] = {}
    if size := len(np.load(clusters, mmap_mode="r")):
        parts = 1 + size // MEMBERS_PER_PART
        run.run("members", [Members(run.cells, clusters, members, parts)])
        verify = VerifyClusters(members, run.scratch / "verified", params.n_grams, params.min_jaccard)
        counts = statistic(run.run("verify", [verify], tasks=parts), "near.")
    return {"candidates": counts.get("candidates", 0), "spared": counts.get("spared", 0)}


def write_kept(run: CorpusRun) -> Path:
    """Write the cells without what is removed; the folder of that."""
    step = WriteKept(run.cells, run.out, run.scratch, run.arrays.notes("filter"))
    run.run("filter", [step], total=run.rows)
    return step.removed


def main() -> str:
    """Deduplicate all cells; returns the summary line."""
    params = settings()
    buckets = Buckets(params.n_grams, params.buckets, params.hashes, params.seed, params.numbers_count)
    with CorpusRun("dedup", "data/clean", "data/dedup", load_compute().data, MB_PER_SECOND) as run:
        index = IndexDocuments(run.cells, buckets, params.max_extract_copy, run.scratch, run.arrays.notes("index"))
        stats = run.run("index", [index], total=run.rows)
        near = find_duplicates(run, params)
        metrics, _ = run.settle([write_kept(run)], keep=False)
        synthetic = sorted(set(map(cell_of, run.synthetic)))
        copies = copied(stats, synthetic)
    for row_counts in [metrics, *metrics["cells"].values()]:
        duplicates = row_counts["rows_removed"] - row_counts["removed"].get("copy", 0)
        row_counts["rate"] = duplicates / max(row_counts["rows_in"], 1)
    rate, goal = metrics["rate"], params.goal_rate
    metrics |= {"near": near, "copies": copies, "goal_rate": goal, "within_goal": rate <= goal}
    write_metrics("metrics/dedup.json", metrics)
    if rate > goal:
        worst = max(synthetic, key=lambda cell: metrics["cells"][cell]["rate"])
        print(
            f"dedup: warning: {rate:.1%} duplicates, the goal is at most {goal:.1%}; most in {worst}"
            f" ({metrics['cells'][worst]['rate']:.1%}); see data/dedup/removed, and vary prompts or sampling",
            file=sys.stderr,
        )
    removed = metrics["removed"]
    copy = f", {removed['copy']} copies of their extracts" if "copy" in removed else ""
    return (
        f"{metrics['rows_kept']} of {metrics['rows_in']} documents kept; {removed.get('exact', 0)} exact and"
        f" {removed.get('near', 0)} near duplicates removed ({rate:.2%}){copy}{natural_rows(metrics)}"
    )


if __name__ == "__main__":
    run_stage("dedup", main)
