"""Entries for clusters that nobody has decided about, written into curation/topics.yaml for a person to edit."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from cosmopedia.core.errors import ConfigError
from cosmopedia.core.files import replacing
from cosmopedia.corpus.keywords import words
from cosmopedia.tables.contracts import CENTROID, LABEL, SOURCE
from cosmopedia.tables.parquet import read_batches, read_table
from stages.topics.__main__ import LABELS, decided, settings
from stages.topics.changes import changes, sentences
from stages.topics.decisions import CURATION, fold, owners_of, read_curation
from stages.topics.reviewed import ReviewedCluster, read_reviewed, write_reviewed

CENTROIDS, WEB = Path("data/cluster/centroids.parquet"), Path("data/sources/web.parquet")
LINES, LINE_CHARS = 3, 110


def state() -> dict[str, Any]:
    """Each cluster's decision as curation/topics.yaml is now, and what changed."""
    params, entries = settings()
    topics, matches, overlap = decided(params, entries)
    listed = changes(entries, topics, matches, overlap)
    return {"clusters": topics, **listed, "sentences": sentences(listed)}


def propose(write: bool) -> dict[str, Any]:
    """New entries, the clusters that existing ones follow from now on, and what a person should look at.

    With `write`, both files of curation/ are written, after the result was checked as the stage checks it.
    """
    params, entries = settings()
    topics, matches, overlap = decided(params, entries)
    labels = {row["cluster"]: row for row in read_table(LABELS, LABEL).to_pylist()}
    centroids = read_table(CENTROIDS, CENTROID).to_pylist()
    clusters = {row["cluster"]: ReviewedCluster.of(row["centroid"]) for row in centroids}
    lines = _first_lines({row_id for row in labels.values() for row_id in row["examples"][:LINES]})
    taken = {fold(name) for entry in entries for name in (entry.topic, *entry.labels)}
    new: list[dict[str, Any]] = []
    added: dict[str, list[str]] = {}
    for topic, matched in zip(topics, matches, strict=True):
        cluster = clusters[topic["cluster"]]
        if matched is None:
            new.append(_entry(labels[topic["cluster"]], topic, cluster.id, lines, taken))
        elif matched.by != "cluster":
            added.setdefault(matched.entry.topic, []).append(cluster.id)
    if write and (new or added):
        _write(new, added, clusters.values())
    listed = changes(entries, topics, matches, overlap)
    return {"entries": new, "clusters_added": added, **listed, "sentences": sentences(listed)}


def _first_lines(row_ids: set[str]) -> dict[str, str]:
    """The beginnings of some web rows, each on one line."""
    return {
        row_id: " ".join(text[: 4 * LINE_CHARS].split())[:LINE_CHARS]
        for table in read_batches([WEB], SOURCE, ["row_id", "text"])
        for row_id, text in zip(table["row_id"].to_pylist(), table["text"].to_pylist(), strict=True)
        if row_id in row_ids
    }


def _entry(
    label: dict[str, Any], topic: dict[str, Any], cluster: str, lines: dict[str, str], taken: set[str]
) -> dict[str, Any]:
    """A proposed entry; its name is in `taken` afterwards."""
    name, score = label["label"], label["educational_score"]
    if fold(name) in taken:  # the keywords have denied an entry with that name
        name = f"{name} (cluster {cluster})"
    taken.add(fold(name))
    named = "named by the model" if label["label_source"] == "model" else "named by its keywords"
    return {
        "topic": name,
        "decision": topic["decision"],
        "reason": f"Proposed, {named}: {topic['reason']}.",
        "score": score,
        "labels": [],
        "keywords": [word for word in label["keywords"] if words(word) == {word}],
        "clusters": [cluster],
        "examples": [lines[row_id] for row_id in label["examples"][:LINES]],
    }


def _write(new: list[dict[str, Any]], added: dict[str, list[str]], clusters: Iterable[ReviewedCluster]) -> None:
    """Write both files of curation/; their comments and layout stay."""
    from ruamel.yaml import YAML
    from ruamel.yaml.comments import CommentedSeq

    yaml = YAML()
    yaml.preserve_quotes = True
    yaml.width = 100_000
    yaml.indent(mapping=2, sequence=4, offset=2)
    content = yaml.load(CURATION.read_text(encoding="utf-8"))
    for entry in content["topics"]:
        if entry["topic"] in added:
            ids = CommentedSeq([*entry.get("clusters", []), *added[entry["topic"]]])
            ids.fa.set_flow_style()
            entry["clusters"] = ids
    for entry in new:
        for key in ("labels", "keywords", "clusters"):
            entry = entry | {key: CommentedSeq(entry[key])}
            entry[key].fa.set_flow_style()
        content["topics"].append(entry)
        content["topics"].yaml_set_comment_before_after_key(len(content["topics"]) - 1, before="\n")
    kept = read_reviewed() | {cluster.id: cluster for cluster in clusters}
    with replacing(CURATION) as draft:
        with draft.open("w", encoding="utf-8") as stream:
            yaml.dump(content, stream)
        try:
            named = owners_of(read_curation(draft))
        except ConfigError as error:
            raise ConfigError(f"the proposals contradict {CURATION}, which is left as it was: {error}") from None
        write_reviewed(kept[name] for name in named)
