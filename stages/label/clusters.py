"""What the model is shown of each cluster: examples and keywords, which stand in for a label that it does not give."""

from collections import Counter, defaultdict
from dataclasses import dataclass
from pathlib import Path

import polars as pl

from cosmopedia.core.errors import DataError
from cosmopedia.core.rng import draw_sample
from cosmopedia.corpus.keywords import english_stop_words, keywords, words
from cosmopedia.tables.contracts import ASSIGNMENT, SOURCE
from cosmopedia.tables.parquet import read_batches, read_table

ASSIGNMENTS, WEB = Path("data/cluster/assignments.parquet"), Path("data/sources/web.parquet")
STEM = 5  # letters


@dataclass(frozen=True)
class ClusterExamples:
    """Clusters by number: their rows, the texts that the model sees, their keywords."""

    rows: dict[int, list[str]]  # row ids
    draws: dict[int, list[list[str]]]  # of row ids, one list of examples per draw
    texts: dict[str, str]  # of the examples, by row id
    keywords: dict[int, list[str]]
    stems: frozenset[str]  # of the words that were counted


def stem(word: str) -> str:
    """As much of a word as its forms share."""
    return word.casefold()[:STEM]


def read_clusters() -> dict[int, list[str]]:
    """The row ids of each cluster, without noise."""
    rows = pl.DataFrame(read_table(ASSIGNMENTS, ASSIGNMENT, ["row_id", "cluster"])).filter(pl.col("cluster") >= 0)
    return dict(rows.group_by("cluster").agg(pl.col("row_id").sort()).sort("cluster").iter_rows())


def read_documents(shown: set[str], counted: dict[int, list[str]]) -> tuple[dict[str, str], dict[int, Counter[str]]]:
    """(texts of the `shown` rows; for each cluster, in how many of its `counted` rows a word occurs)."""
    cluster_of = {row_id: cluster for cluster, ids in counted.items() for row_id in ids}
    stop_words, texts = english_stop_words(), {}
    counts: dict[int, Counter[str]] = defaultdict(Counter)
    for table in read_batches([WEB], SOURCE, ["row_id", "text"]):
        for row_id, text in zip(table["row_id"].to_pylist(), table["text"].to_pylist(), strict=True):
            if row_id in shown:
                texts[row_id] = text
            if row_id in cluster_of:
                counts[cluster_of[row_id]].update(words(text, stop_words))
    if missing := sorted(shown - texts.keys()):
        raise DataError(f"{WEB} lacks the row {missing[0]!r} of {ASSIGNMENTS}; repeat embed and cluster (dvc repro)")
    return texts, counts


def draw_examples(seed: int, examples: int, draws: int, keyword_count: int, keyword_documents: int) -> ClusterExamples:
    """`draws` times `examples` texts of each cluster, and `keyword_count` words of `keyword_documents` of its rows."""
    rows = read_clusters()
    purposes = ["label", *(f"label {n}" for n in range(1, draws))]
    drawn = {
        cluster: [draw_sample(seed, purpose, ids, examples) for purpose in purposes] for cluster, ids in rows.items()
    }
    counted = {cluster: draw_sample(seed, "keywords", ids, keyword_documents) for cluster, ids in rows.items()}
    shown = {row_id for lists in drawn.values() for ids in lists for row_id in ids}
    texts, counts = read_documents(shown, counted)
    best = keywords(counts, {cluster: len(ids) for cluster, ids in counted.items()}, keyword_count)
    stems = frozenset(stem(word) for counter in counts.values() for word in counter)
    return ClusterExamples(rows, drawn, texts, best, stems)
