"""dedup: exact duplicates, then near duplicates by datatrove's MinHash.

In: data/clean/<source>-<style>.parquet (DOCUMENT).
Out: data/dedup/<source>-<style>.parquet (DOCUMENT), data/dedup/removed/removed.parquet (REMOVED: exact, near; evidence
{"kept": id, "kind": "exact" | "minhash", "jaccard": of the two texts' n-grams}), metrics/dedup.json.
Of a group the document with the smallest completion id stays, for any number of tasks and workers. MinHash groups are
chains: two members may be less alike than each is to a third, which the evidence shows.
Alone: python -m stages.dedup
"""

import json
import sys

import polars as pl
from pydantic import Field

from stages.clusters import load_cluster
from stages.corpus.cells import CorpusRun
from stages.corpus.minhash import find_exact, find_near, jaccard, minhash_config, take_out, texts_of
from stages.errors import run_stage
from stages.settings import Params, load
from stages.tables.accounting import write_metrics

KINDS = {"exact": "exact", "near": "minhash"}


class DedupParams(Params):
    """MinHash's size, and the goal."""

    n_grams: int = Field(ge=1)  # words of a shingle
    buckets: int = Field(ge=1)
    hashes: int = Field(ge=1)  # of a bucket; two documents meet where all of them agree
    seed: int  # of the hash functions
    goal_rate: float = Field(ge=0, le=1)  # duplicates among documents above which the stage warns


def evidence_of(row: dict, kept: dict[str, str], texts: dict[str, str], n_grams: int) -> dict:
    """A removed row with its evidence: the document that stayed for it, and how alike they are."""
    stayed = kept[row["completion_id"]]
    alike = round(jaccard(row["text"], texts[stayed], n_grams), 4)
    evidence = {"kept": stayed, "kind": KINDS[row["reason"]], "jaccard": alike}
    return {**row, "evidence": json.dumps(evidence)}


def main() -> str:
    """Deduplicate all cells; returns the summary line."""
    params = load("dedup", DedupParams)
    config = minhash_config(params.n_grams, params.buckets, params.hashes, params.seed)
    with CorpusRun("dedup", "data/clean", "data/dedup", load_cluster().data) as run:
        exact = find_exact(run)
        near = find_near(run, exact, config)
        twins: dict[str, str] = dict(pl.read_parquet(exact).iter_rows())
        kept = near | {gone: near.get(first, first) for gone, first in twins.items()}
        texts = texts_of(run.cells, set(kept.values()))
        metrics, _ = run.settle(take_out(run, exact), lambda row: evidence_of(row, kept, texts, params.n_grams))
    for account in [metrics, *metrics["cells"].values()]:
        account["rate"] = account["rows_removed"] / max(account["rows_in"], 1)
    rate = metrics["rate"]
    write_metrics(
        "metrics/dedup.json", {**metrics, "goal_rate": params.goal_rate, "within_goal": rate <= params.goal_rate}
    )
    if rate > params.goal_rate:
        worst = max(metrics["cells"], key=lambda cell: metrics["cells"][cell]["rate"])
        print(
            f"dedup: warning: {rate:.1%} duplicates, the goal is at most {params.goal_rate:.1%}; most in {worst}"
            f" ({metrics['cells'][worst]['rate']:.1%}); see data/dedup/removed, and vary prompts or sampling",
            file=sys.stderr,
        )
    removed = metrics["removed"]
    return (
        f"{metrics['rows_kept']} of {metrics['rows_in']} documents kept; {removed.get('exact', 0)} exact and"
        f" {removed.get('near', 0)} near duplicates removed ({rate:.2%})"
    )


if __name__ == "__main__":
    run_stage("dedup", main)
