"""Reviewed topic decisions, curation/topics.yaml: checked on reading, matched to clusters, applied to rows.

An entry decides a cluster that follows one of its reviewed clusters (stages/topics/reviewed.py), else one that the
model's label or its keywords name.
"""

import json
from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
from pydantic import Field

from cosmopedia.core.errors import ConfigError
from cosmopedia.core.params import Params, check, read_yaml
from cosmopedia.core.row_counts import RowCounts
from cosmopedia.corpus.keywords import words
from stages.topics.reviewed import REVIEWED, Overlap, ReviewedCluster

CURATION = Path("curation/topics.yaml")
COMPARED = 20  # a cluster's best keywords that are compared with an entry's


class TopicsParams(Params):
    """When an entry decides a cluster, and what happens to clusters that nobody has reviewed."""

    min_keyword_matches: int = Field(ge=1)
    min_agreement: float = Field(ge=0.5, le=1)
    min_score: int = Field(ge=1, le=10)
    unscored: Literal["keep", "drop"]


class Entry(Params):
    """One reviewed decision."""

    topic: str = Field(min_length=1)
    decision: Literal["keep", "drop"]
    reason: str = Field(min_length=1)
    labels: list[str]  # other names that models give the topic
    keywords: list[str]  # words that tell it from other topics
    clusters: list[str] = Field(default_factory=list)  # ids of reviewed clusters, in curation/clusters.jsonl
    score: float | None = None  # what the model gave when the entry was proposed
    examples: list[str] = Field(default_factory=list)  # lines of its pages, for whoever reviews it


@dataclass(frozen=True)
class Match:
    """The entry for a cluster and what decided it: "cluster", "label" or "keywords"."""

    entry: Entry
    by: str
    contradicts_label: bool = False  # the label named another entry
    mixed: bool = False  # its parts were reviewed with different decisions: its rows are decided one by one


def fold(name: str) -> str:
    """A topic's name as it is compared: case and spacing do not count."""
    return " ".join(name.casefold().split())


def read_curation(path: Path = CURATION) -> list[Entry]:
    """The entries. `ConfigError` names the entry that is wrong.

    Refused: a topic twice (with equal or opposite decisions), a name or a cluster that two entries claim, an unknown
    decision, a missing reason, a keyword that no text can match.
    """
    content = read_yaml(path)
    listed = content.get("topics")
    if not isinstance(listed, list) or content.keys() != {"topics"}:
        raise ConfigError(f"{path}: wanted one key, topics, with a list of entries; found {sorted(map(str, content))}")
    entries = [_entry(values, f"{path}: entry {number}") for number, values in enumerate(listed, 1)]
    seen: dict[str, Entry] = {}
    owners: dict[str, Entry] = {}
    for entry in entries:
        for cluster in dict.fromkeys(entry.clusters):
            owner = owners.setdefault(cluster, entry)
            if owner is not entry:
                raise ConfigError(
                    f"{path}: the cluster {cluster} is under {owner.topic!r} ({owner.decision}) and under"
                    f" {entry.topic!r} ({entry.decision}); leave it under one of them"
                )
        if (other := seen.get(fold(entry.topic))) and fold(other.topic) == fold(entry.topic):
            how = "twice" if other.decision == entry.decision else "both as keep and as drop"
            raise ConfigError(f"{path}: topic {entry.topic!r} is listed {how}; leave one of the two entries")
        for name in dict.fromkeys(map(fold, [entry.topic, *entry.labels])):
            if name in seen:
                raise ConfigError(
                    f"{path}: the name {name!r} is under {seen[name].topic!r} and under {entry.topic!r};"
                    " leave it under one of them"
                )
            seen[name] = entry
    return entries


def _entry(values: object, where: str) -> Entry:
    if not isinstance(values, dict):
        raise ConfigError(f"{where}: wanted topic, decision, reason, labels and keywords; found {values!r}")
    where = f"{where} ({values['topic']})" if values.get("topic") else where
    entry = check(values, Entry, where)
    if not entry.topic.strip() or not entry.reason.strip():
        raise ConfigError(f"{where}: topic and reason must say something; found {entry.topic!r} and {entry.reason!r}")
    for keyword in entry.keywords:
        if words(keyword) != {keyword}:
            raise ConfigError(
                f"{where}: keyword {keyword!r} can never match; write one word of three or more letters in lower case"
            )
    return entry


def match_reviewed(entries: list[Entry], overlap: Overlap, cluster: int, params: TopicsParams) -> Match | None:
    """The entry whose reviewed cluster a cluster follows, or None for a new cluster.

    It is mixed when less than `min_agreement` of its rows belong to reviewed clusters with one decision.
    """
    followed = overlap.follows(cluster)
    if followed is None:
        return None
    owners = owners_of(entries)
    drop = np.array([owners[name].decision == "drop" for name in overlap.ids])
    dropped = overlap.counts[cluster][drop].sum() / overlap.counts[cluster].sum()
    return Match(
        owners[overlap.ids[followed]], "cluster", mixed=bool(max(dropped, 1 - dropped) < params.min_agreement)
    )


def owners_of(entries: list[Entry]) -> dict[str, Entry]:
    """The entry of each reviewed cluster."""
    return {cluster: entry for entry in entries for cluster in entry.clusters}


def check_clusters(entries: list[Entry], reviewed: dict[str, ReviewedCluster]) -> None:
    """`ConfigError` for a reviewed cluster that an entry names and that is not there."""
    for name, entry in owners_of(entries).items():
        if name not in reviewed:
            raise ConfigError(
                f"{CURATION}: {entry.topic!r} names the cluster {name}, which {REVIEWED} lacks; restore that file with"
                " git, or remove the id"
            )


def named_by(entries: list[Entry], label: str | None) -> Entry | None:
    """The entry that has a label among its names."""
    return next((e for e in entries if label and fold(label) in map(fold, [e.topic, *e.labels])), None)


def match(entries: list[Entry], label: str | None, keywords: list[str], min_matches: int) -> Match | None:
    """The entry that a cluster's words name, or None.

    By the model's `label` (None if it gave none), else by keywords: at least `min_matches` of the cluster's best 20
    are in the entry, and in no other entry as many. When label and keywords name different entries, the keywords
    decide: they are the words of the texts, and a model can err.
    """
    by_label = named_by(entries, label)
    best = set(keywords[:COMPARED])
    shared = Counter({n: len(best & set(entry.keywords)) for n, entry in enumerate(entries)})
    ranked = [(n, count) for n, count in shared.most_common(2) if count >= min_matches]
    by_keywords = None
    if len(ranked) == 1 or (ranked and ranked[0][1] > ranked[1][1]):
        by_keywords = entries[ranked[0][0]]
    if by_label is None:
        return Match(by_keywords, "keywords") if by_keywords else None
    if by_keywords is None or by_keywords is by_label:
        return Match(by_label, "label")
    return Match(by_keywords, "keywords", contradicts_label=True)


def decide(
    label: dict[str, Any], entries: list[Entry], params: TopicsParams, overlap: Overlap | None = None
) -> tuple[dict[str, Any], Match | None]:
    """(the TOPIC row of a LABEL row, the reviewed entry that decided it, if one did)."""
    matched = match_reviewed(entries, overlap, label["cluster"], params) if overlap else None
    if matched:
        named = named_by(entries, label["topic"])
        matched = replace(matched, contradicts_label=named is not None and named is not matched.entry)
    else:
        matched = match(entries, label["topic"], label["keywords"], params.min_keyword_matches)
    score = label["educational_score"]
    if matched:
        topic, decision, reason = matched.entry.topic, matched.entry.decision, matched.entry.reason
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
        "label": label["label"],
        "decision": decision,
        "reason": reason,
        "decided_by": matched.by if matched else "score",
        "mixed": matched is not None and matched.mixed,
        "size": label["size"],
        "educational_score": score,
    }
    return row, matched


def removal(row: dict[str, Any], topic: dict[str, Any] | None) -> dict[str, Any]:
    """The REJECTED row of an ASSIGNMENT row in cluster -1 (`topic` None) or of a dropped topic."""
    if topic is None:
        reason, detail = "noise", "no cluster is similar enough"
    else:
        unreviewed = "unscored" if topic["educational_score"] is None else "low_score"
        reason = unreviewed if topic["decided_by"] == "score" else "dropped_topic"
        detail = f"{topic['topic']}: {topic['reason']}"
    assignment = {"cluster": row["cluster"], "similarity": round(row["similarity"], 6)}
    return {"row_id": row["row_id"], "reason": reason, "detail": detail, "row": json.dumps(assignment)}


def topic_of_part(topic: dict[str, Any], entry: Entry) -> dict[str, Any]:
    """The TOPIC row of a mixed cluster, for its rows that belong to a reviewed cluster of `entry`."""
    return topic | {"topic": entry.topic, "decision": entry.decision, "reason": entry.reason}


def summary(
    counts: RowCounts, rows_of: Counter[str], topics: list[dict[str, Any]], matches: list[Match | None]
) -> dict[str, Any]:
    """The stage's metrics; `rows_of` counts the rows of each topic, kept or not."""
    kept = {t["topic"] for t in topics if t["decision"] == "keep"}
    dropped = {t["topic"] for t in topics if t["decision"] == "drop"}
    decided = Counter(t["decided_by"] for t in topics)
    return {
        **counts.metrics(),
        "clusters": len(topics),
        "clusters_kept": sum(t["decision"] == "keep" for t in topics),
        "clusters_dropped": sum(t["decision"] == "drop" for t in topics),
        "topics_kept": len(kept),
        "topics_dropped": len(dropped),
        "decided_by": {by: decided[by] for by in ("cluster", "label", "keywords", "score")},
        "labels_contradicted": sum(m is not None and m.contradicts_label for m in matches),
        "rows_by_topic": [{"topic": topic, "rows": rows} for topic, rows in sorted(rows_of.items())],
        "dropped": sorted(dropped - kept),
    }
