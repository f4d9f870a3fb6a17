"""label: the model names each cluster and rates how educational it is.

In: data/cluster/assignments.parquet, data/sources/web.parquet, models/generator/, curation/label.txt.
Out: data/label/labels.parquet (LABEL), metrics/label.json.
Contract: a cluster whose answer does not parse, or whose prompt the model cannot take, gets its c-TF-IDF keywords as
label, marked in `label_source`, and no score. A server's failure stops the stage: a later run would do better.
Alone: python -m stages.label (what is in the completion store is not sent again)
"""

import shutil
from collections import Counter, defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl
from pydantic import Field

from cosmopedia.corpus.keywords import english_stop_words, keywords, words
from cosmopedia.errors import ClusterError, ConfigError, DataError, run_stage
from cosmopedia.execution.sending import Send
from cosmopedia.generation.complete import PromptRequests, complete
from cosmopedia.generation.model import GenerationModel
from cosmopedia.generation.requests import Completion, Failure, Sampling
from cosmopedia.params import Params, load
from cosmopedia.rng import draw_sample
from cosmopedia.store.store import CompletionStore
from cosmopedia.tables.contracts import ASSIGNMENT, LABEL, SOURCE
from cosmopedia.tables.parquet import read_batches, read_table, write_table
from cosmopedia.tables.row_counts import write_metrics
from stages.label.answers import labelling_prompt, parse_answer, read_label_template

ASSIGNMENTS, WEB, OUT = Path("data/cluster/assignments.parquet"), Path("data/sources/web.parquet"), Path("data/label")
WORDS_IN_LABEL = 3  # keywords that stand in for a name
ANSWERED = {"too_long", "empty", "validation"}  # failures that every run would see again


class LabelParams(Params):
    """What the model is shown, and how it answers."""

    seed: int
    examples: int = Field(ge=1)
    example_chars: int = Field(ge=20)
    keywords: int = Field(ge=1)
    keyword_documents: int = Field(ge=1)
    sampling: Sampling


def read_clusters() -> dict[int, list[str]]:
    """The row ids of each cluster, without noise."""
    rows = pl.DataFrame(read_table(ASSIGNMENTS, ASSIGNMENT, ["row_id", "cluster"])).filter(pl.col("cluster") >= 0)
    return dict(rows.group_by("cluster").agg(pl.col("row_id").sort()).sort("cluster").iter_rows())


def read_documents(
    examples: dict[int, list[str]], counted: dict[int, list[str]]
) -> tuple[dict[str, str], dict[int, Counter[str]]]:
    """(texts of the `examples` rows; for each cluster, in how many of its `counted` rows a word occurs)."""
    shown = {row_id for ids in examples.values() for row_id in ids}
    cluster_of = {row_id: cluster for cluster, ids in counted.items() for row_id in ids}
    stop_words, texts = english_stop_words(), {}
    counts: dict[int, Counter[str]] = defaultdict(Counter)
    for table in read_batches([WEB], SOURCE, ["row_id", "text"]):
        for row_id, text in zip(table["row_id"].to_pylist(), table["text"].to_pylist(), strict=True):
            if row_id in shown:
                texts[row_id] = text
            if row_id in cluster_of:
                counts[cluster_of[row_id]].update(words(text, stop_words))
    if gone := sorted(shown - texts.keys()):
        raise DataError(f"{WEB} lacks the row {gone[0]!r} of {ASSIGNMENTS}; run embed and cluster again (dvc repro)")
    return texts, counts


def label_row(
    cluster: int, size: int, examples: list[str], found: list[str], result: Completion | Failure
) -> dict[str, Any]:
    """The LABEL row of one cluster, from its keywords and the model's answer."""
    text = result.text if isinstance(result, Completion) else ""
    answer = parse_answer(text)
    return {
        "cluster": cluster,
        "size": size,
        "label": answer.topic if answer else ", ".join(found[:WORDS_IN_LABEL]) or f"cluster {cluster}",
        "label_source": "model" if answer else "keywords",
        "educational_score": answer.score if answer else None,
        "keywords": found,
        "examples": examples,
        "answer": text,
    }


def check_results(results: list[Completion | Failure]) -> None:
    """`ClusterError` when a cluster has no answer for a reason that lies with the servers, `ConfigError` when not one
    prompt fits the model."""
    if results and all(isinstance(r, Failure) and r.reason == "too_long" for r in results):
        raise ConfigError(
            f"not one of {len(results)} labelling prompts fits the model; lower label.example_chars in the profile"
        )
    failures = [r for r in results if isinstance(r, Failure) and r.reason not in ANSWERED]
    if failures:
        last = failures[-1]
        raise ClusterError(
            f"{len(failures)} of {len(results)} clusters got no answer from the servers (the last: {last.reason},"
            f" {last.detail}); run it again: answers that came are in the store"
        )


def summary(rows: list[dict[str, Any]], failed: Counter[str]) -> dict[str, Any]:
    """The stage's metrics."""
    scores = [row["educational_score"] for row in rows if row["educational_score"] is not None]
    return {
        "clusters": len(rows),
        "labelled_by_model": len(scores),
        "labelled_by_keywords": len(rows) - len(scores),
        "without_answer": dict(sorted(failed.items())),
        "mean_educational_score": sum(scores) / len(scores) if scores else None,
        "scores": {score: scores.count(score) for score in sorted(set(scores))},
    }


@dataclass(frozen=True)
class Questions:
    """What is asked of each cluster, and from what; mappings by cluster number."""

    clusters: dict[int, list[str]]  # ids of its rows
    examples: dict[int, list[str]]  # ids of the texts that the model sees
    keywords: dict[int, list[str]]
    requests: PromptRequests


def questions(params: LabelParams, model: GenerationModel) -> Questions:
    """A labelling request for each cluster."""
    template, clusters = read_label_template(), read_clusters()
    examples = {c: draw_sample(params.seed, "label", ids, params.examples) for c, ids in clusters.items()}
    counted = {c: draw_sample(params.seed, "keywords", ids, params.keyword_documents) for c, ids in clusters.items()}
    texts, counts = read_documents(examples, counted)
    found = keywords(counts, {c: len(ids) for c, ids in counted.items()}, params.keywords)
    prompts = [
        (f"cluster-{c}", labelling_prompt([texts[i] for i in examples[c]], template, params.example_chars))
        for c in clusters
    ]
    return Questions(clusters, examples, found, PromptRequests(prompts, model, params.seed, samples=1))


def main() -> str:
    """Ask for a label for each cluster; returns the summary line."""
    params, model = load("label", LabelParams), GenerationModel.read()
    asked = questions(params, model)
    with CompletionStore() as store:
        run = complete("label", asked.requests, model, params.sampling, store, Send())
    results = [result for _, result in run.results]
    check_results(results)
    rows = [
        label_row(c, len(ids), asked.examples[c], asked.keywords[c], result)
        for (c, ids), result in zip(asked.clusters.items(), results, strict=True)
    ]
    shutil.rmtree(OUT, ignore_errors=True)
    write_table(OUT / "labels.parquet", rows, LABEL)
    metrics = summary(rows, Counter(r.reason for r in results if isinstance(r, Failure)))
    write_metrics("metrics/label.json", metrics)
    named, rest = metrics["labelled_by_model"], metrics["labelled_by_keywords"]
    return f"{named} clusters named by {model.model}, {rest} by their keywords"


if __name__ == "__main__":
    run_stage("label", main)
