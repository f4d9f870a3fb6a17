"""topics: reviewed decisions applied to clusters; web rows get their topic, or a reason why they are left out.

In: data/label/labels.parquet, data/cluster/assignments.parquet, curation/topics.yaml.
Out: data/topics/topics.parquet (TOPIC), data/topics/web.parquet (TOPIC_OF_ROW: rows kept), data/topics/removed.parquet
(REJECTED: noise, dropped_topic, low_score, unscored), metrics/topics.json.
Contract: rows in = rows kept + rows removed by reason.
Alone: python -m stages.topics
"""

import json
import shutil
from collections import Counter
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from cosmopedia.errors import DataError, run_stage
from cosmopedia.params import Params, load
from cosmopedia.tables.contracts import ASSIGNMENT, LABEL, REJECTED, TOPIC, TOPIC_OF_ROW
from cosmopedia.tables.parquet import TableWriter, read_batches, read_table, write_table
from cosmopedia.tables.row_counts import RowCounts, write_metrics
from stages.topics.decisions import Entry, Match, match, read_curation

LABELS, ASSIGNMENTS = Path("data/label/labels.parquet"), Path("data/cluster/assignments.parquet")
OUT = Path("data/topics")


class TopicsParams(Params):
    """What happens to clusters that nobody has reviewed."""

    min_keyword_matches: int = Field(ge=1)
    min_score: int = Field(ge=1, le=10)
    unscored: Literal["keep", "drop"]


def decide(label: dict[str, Any], entries: list[Entry], params: TopicsParams) -> tuple[dict[str, Any], Match | None]:
    """(the TOPIC row of a LABEL row, the reviewed entry that decided it, if one did)."""
    name = label["label"] if label["label_source"] == "model" else None
    found, score = match(entries, name, label["keywords"], params.min_keyword_matches), label["educational_score"]
    if found:
        topic, decision, reason = found.entry.topic, found.entry.decision, found.entry.reason
    elif score is None:
        topic, decision = label["label"], params.unscored
        reason = f"not reviewed, and the model gave no score (topics.unscored: {params.unscored})"
    else:
        topic, decision = label["label"], "keep" if score >= params.min_score else "drop"
        compared = "at least" if decision == "keep" else "below"
        reason = f"not reviewed; educational score {score}, {compared} {params.min_score}"
    row = {
        "cluster": label["cluster"],
        "topic": topic,
        "decision": decision,
        "reason": reason,
        "decided_by": found.by if found else "score",
        "size": label["size"],
        "educational_score": score,
    }
    return row, found


def removal(row: dict[str, Any], topic: dict[str, Any] | None) -> dict[str, Any]:
    """The REJECTED row of an ASSIGNMENT row in cluster -1 (`topic` None) or of a dropped topic."""
    if topic is None:
        reason, detail = "noise", "no cluster is similar enough"
    else:
        unreviewed = "unscored" if topic["educational_score"] is None else "low_score"
        reason = unreviewed if topic["decided_by"] == "score" else "dropped_topic"
        detail = f"{topic['topic']}: {topic['reason']}"
    place = {"cluster": row["cluster"], "similarity": round(row["similarity"], 6)}
    return {"row_id": row["row_id"], "reason": reason, "detail": detail, "row": json.dumps(place)}


def apply(topics: dict[int, dict[str, Any]]) -> RowCounts:
    """Write the kept and the removed rows, batch by batch; returns the account."""
    account = RowCounts("topics")
    with (
        TableWriter(OUT / "web.parquet", TOPIC_OF_ROW) as kept,
        TableWriter(OUT / "removed.parquet", REJECTED) as removed,
    ):
        for table in read_batches([ASSIGNMENTS], ASSIGNMENT, ["row_id", "cluster", "similarity"]):
            for row in table.to_pylist():
                account.rows_in += 1
                topic = topics.get(row["cluster"])
                if topic is None and row["cluster"] >= 0:
                    raise DataError(f"{LABELS} lacks cluster {row['cluster']} of {ASSIGNMENTS}; run label again")
                if topic is not None and topic["decision"] == "keep":
                    account.kept += 1
                    kept.write({"row_id": row["row_id"], "cluster": row["cluster"], "topic": topic["topic"]})
                else:
                    rejected = removal(row, topic)
                    account.remove(rejected["reason"])
                    removed.write(rejected)
    return account


def summary(account: RowCounts, topics: list[dict[str, Any]], matches: list[Match | None]) -> dict[str, Any]:
    """The stage's metrics."""
    kept = {t["topic"] for t in topics if t["decision"] == "keep"}
    dropped = {t["topic"] for t in topics if t["decision"] == "drop"}
    decided, rows_of = Counter(t["decided_by"] for t in topics), Counter()
    for topic in topics:
        rows_of[topic["topic"]] += topic["size"]
    return {
        **account.metrics(),
        "clusters": len(topics),
        "clusters_kept": sum(t["decision"] == "keep" for t in topics),
        "clusters_dropped": sum(t["decision"] == "drop" for t in topics),
        "topics_kept": len(kept),
        "topics_dropped": len(dropped),
        "decided_by": {by: decided[by] for by in ("label", "keywords", "score")},
        "labels_contradicted": sum(m is not None and m.contradicts_label for m in matches),
        "rows_by_topic": dict(sorted(rows_of.items())),
        "dropped": sorted(dropped - kept),
    }


def main() -> str:
    """Decide each cluster, then place each row; returns the summary line."""
    params, entries = load("topics", TopicsParams), read_curation()
    decided = [decide(label, entries, params) for label in read_table(LABELS, LABEL).to_pylist()]
    topics, matches = [row for row, _ in decided], [found for _, found in decided]
    shutil.rmtree(OUT, ignore_errors=True)
    write_table(OUT / "topics.parquet", topics, TOPIC)
    account = apply({topic["cluster"]: topic for topic in topics})
    metrics = summary(account, topics, matches)
    write_metrics("metrics/topics.json", metrics)
    reasons = ", ".join(f"{count} {reason}" for reason, count in metrics["removed"].items()) or "none"
    return (
        f"{metrics['topics_kept']} topics kept, {metrics['topics_dropped']} dropped; {account.kept} of"
        f" {account.rows_in} web rows kept; removed: {reasons}"
    )


if __name__ == "__main__":
    run_stage("topics", main)
