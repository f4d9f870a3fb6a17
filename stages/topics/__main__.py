"""topics: reviewed decisions applied to clusters; web rows get their topic, or a reason why they are left out.

In: data/label/labels.parquet, data/cluster/assignments.parquet, data/embed/vectors.parquet, curation/topics.yaml,
curation/clusters.jsonl.
Out: data/topics/topics.parquet (TOPIC), data/topics/web.parquet (TOPIC_OF_ROW: rows kept), data/topics/removed.parquet
(REJECTED: noise, dropped_topic, low_score, unscored), metrics/topics.json, metrics/plots/topics.png (the sample's
map with the topics' names), metrics/plots/topic_scores.png (sizes and scores as bars).
Contract: rows in = rows kept + rows removed by reason. A decision follows its reviewed cluster through new
clusterings; splits, merges and lost clusters are named.
Run: python -m stages.topics
"""

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np

from cosmopedia.core.errors import DataError
from cosmopedia.core.files import clear_folder
from cosmopedia.core.params import load
from cosmopedia.core.row_counts import RowCounts, write_metrics
from cosmopedia.execution.stage_process import run_stage
from cosmopedia.tables.contracts import ASSIGNMENT, LABEL, REJECTED, TOPIC, TOPIC_OF_ROW
from cosmopedia.tables.parquet import TableWriter, read_batches, read_table, write_table
from stages.topics.changes import changes, sentences
from stages.topics.decisions import (
    Entry,
    Match,
    TopicsParams,
    check_clusters,
    decide,
    owners_of,
    read_curation,
    removal,
    summary,
    topic_of_part,
)
from stages.topics.figures import draw_bars, draw_map
from stages.topics.reviewed import Overlap, overlap_with, read_reviewed

LABELS, ASSIGNMENTS = Path("data/label/labels.parquet"), Path("data/cluster/assignments.parquet")
OUT = Path("data/topics")
MAP, BARS = Path("metrics/plots/topics.png"), Path("metrics/plots/topic_scores.png")


def apply(
    topics: dict[int, dict[str, Any]], entries: list[Entry], overlap: Overlap | None
) -> tuple[RowCounts, Counter[str]]:
    """Write the kept and the removed rows, batch by batch; returns their counts, and the rows of each topic."""
    counts, rows_of = RowCounts("topics"), Counter()
    owners = owners_of(entries)
    with (
        TableWriter(OUT / "web.parquet", TOPIC_OF_ROW) as kept,
        TableWriter(OUT / "removed.parquet", REJECTED) as removed,
    ):
        for table in read_batches([ASSIGNMENTS], ASSIGNMENT, ["row_id", "cluster", "similarity"]):
            for row in table.to_pylist():
                topic = topics.get(row["cluster"])
                if topic is None and row["cluster"] >= 0:
                    raise DataError(f"{LABELS} lacks cluster {row['cluster']} of {ASSIGNMENTS}; run label again")
                if topic is not None and topic["mixed"] and overlap and overlap.nearest[counts.rows_in] >= 0:
                    topic = topic_of_part(topic, owners[overlap.ids[overlap.nearest[counts.rows_in]]])
                counts.rows_in += 1
                if topic is not None:
                    rows_of[topic["topic"]] += 1
                if topic is not None and topic["decision"] == "keep":
                    counts.kept += 1
                    kept.write({"row_id": row["row_id"], "cluster": row["cluster"], "topic": topic["topic"]})
                else:
                    rejected = removal(row, topic)
                    counts.remove(rejected["reason"])
                    removed.write(rejected)
    return counts, rows_of


def settings() -> tuple[TopicsParams, list[Entry]]:
    """The stage's params and the reviewed decisions, whose clusters are all there."""
    entries, reviewed = read_curation(), read_reviewed()
    check_clusters(entries, reviewed)
    return load("topics", TopicsParams), entries


def decided(
    params: TopicsParams, entries: list[Entry]
) -> tuple[list[dict[str, Any]], list[Match | None], Overlap | None]:
    """(the TOPIC row of each cluster, the entry that decided it, how the clusters lie to the reviewed ones)."""
    labels, reviewed = read_table(LABELS, LABEL).to_pylist(), read_reviewed()
    named = [reviewed[name] for name in sorted(owners_of(entries))]
    overlap = overlap_with(named, max((label["cluster"] for label in labels), default=-1) + 1) if named else None
    pairs = [decide(label, entries, params, overlap) for label in labels]
    return [row for row, _ in pairs], [matched for _, matched in pairs], overlap


def draw(topics: list[dict[str, Any]]) -> None:
    """The figures: the sample's map and the bars."""
    sample = [
        (row["x"], row["y"], row["cluster"])
        for table in read_batches([ASSIGNMENTS], ASSIGNMENT, ["row_id", "cluster", "x", "y"])
        for row in table.to_pylist()
        if row["x"] is not None
    ]
    places = np.array(sample, np.float64).reshape(-1, 3)
    draw_map(MAP, places[:, :2], places[:, 2].astype(np.int32), topics)
    scores = {row["cluster"]: row["scores"] for row in read_table(LABELS, LABEL, ["cluster", "scores"]).to_pylist()}
    draw_bars(BARS, topics, scores)


def main() -> str:
    """Decide each cluster, then place each row; returns the summary line."""
    params, entries = settings()
    topics, matches, overlap = decided(params, entries)
    clear_folder(OUT)
    write_table(OUT / "topics.parquet", topics, TOPIC)
    counts, rows_of = apply({topic["cluster"]: topic for topic in topics}, entries, overlap)
    listed = changes(entries, topics, matches, overlap)
    for sentence in sentences(listed):
        print(f"topics: {sentence}", flush=True)
    metrics = summary(counts, rows_of, topics, matches) | listed
    write_metrics("metrics/topics.json", metrics)
    draw(topics)
    reasons = ", ".join(f"{count} {reason}" for reason, count in metrics["removed"].items()) or "none"
    return (
        f"{metrics['topics_kept']} topics kept, {metrics['topics_dropped']} dropped; {counts.kept} of"
        f" {counts.rows_in} web rows kept; removed: {reasons}"
    )


if __name__ == "__main__":
    run_stage("topics", main)
