"""topics: reviewed decisions applied to clusters; web rows get their topic, or a reason why they are left out.

In: data/label/labels.parquet, data/cluster/assignments.parquet, curation/topics.yaml.
Out: data/topics/topics.parquet (TOPIC), data/topics/web.parquet (TOPIC_OF_ROW: rows kept), data/topics/removed.parquet
(REJECTED: noise, dropped_topic, low_score, unscored), metrics/topics.json.
Contract: rows in = rows kept + rows removed by reason.
Run: python -m stages.topics
"""

from pathlib import Path
from typing import Any

from cosmopedia.errors import DataError
from cosmopedia.execution.stage_process import run_stage
from cosmopedia.files import clear_folder
from cosmopedia.params import load
from cosmopedia.tables.contracts import ASSIGNMENT, LABEL, REJECTED, TOPIC, TOPIC_OF_ROW
from cosmopedia.tables.parquet import TableWriter, read_batches, read_table, write_table
from cosmopedia.tables.row_counts import RowCounts, write_metrics
from stages.topics.decisions import Entry, TopicsParams, decide, read_curation, removal, summary

LABELS, ASSIGNMENTS = Path("data/label/labels.parquet"), Path("data/cluster/assignments.parquet")
OUT = Path("data/topics")


def apply(topics: dict[int, dict[str, Any]]) -> RowCounts:
    """Write the kept and the removed rows, batch by batch; returns their counts."""
    counts = RowCounts("topics")
    with (
        TableWriter(OUT / "web.parquet", TOPIC_OF_ROW) as kept,
        TableWriter(OUT / "removed.parquet", REJECTED) as removed,
    ):
        for table in read_batches([ASSIGNMENTS], ASSIGNMENT, ["row_id", "cluster", "similarity"]):
            for row in table.to_pylist():
                counts.rows_in += 1
                topic = topics.get(row["cluster"])
                if topic is None and row["cluster"] >= 0:
                    raise DataError(f"{LABELS} lacks cluster {row['cluster']} of {ASSIGNMENTS}; run label again")
                if topic is not None and topic["decision"] == "keep":
                    counts.kept += 1
                    kept.write({"row_id": row["row_id"], "cluster": row["cluster"], "topic": topic["topic"]})
                else:
                    rejected = removal(row, topic)
                    counts.remove(rejected["reason"])
                    removed.write(rejected)
    return counts


def settings() -> tuple[TopicsParams, list[Entry]]:
    """The stage's params and the reviewed decisions."""
    return load("topics", TopicsParams), read_curation()


def main() -> str:
    """Decide each cluster, then place each row; returns the summary line."""
    params, entries = settings()
    decided = [decide(label, entries, params) for label in read_table(LABELS, LABEL).to_pylist()]
    topics = [row for row, _ in decided]
    matches = [entry for _, entry in decided]
    clear_folder(OUT)
    write_table(OUT / "topics.parquet", topics, TOPIC)
    counts = apply({topic["cluster"]: topic for topic in topics})
    metrics = summary(counts, topics, matches)
    write_metrics("metrics/topics.json", metrics)
    reasons = ", ".join(f"{count} {reason}" for reason, count in metrics["removed"].items()) or "none"
    return (
        f"{metrics['topics_kept']} topics kept, {metrics['topics_dropped']} dropped; {counts.kept} of"
        f" {counts.rows_in} web rows kept; removed: {reasons}"
    )


if __name__ == "__main__":
    run_stage("topics", main)
