"""What a new clustering did to reviewed topics: splits, merges, and entries that lost their clusters. For a person."""

from collections import defaultdict
from typing import Any

from stages.topics.decisions import Entry, Match, owners_of
from stages.topics.reviewed import Overlap


def changes(
    entries: list[Entry], topics: list[dict[str, Any]], matches: list[Match | None], overlap: Overlap | None
) -> dict[str, Any]:
    """Lists by name, each with the numbers and labels of the clusters.

    splits: reviewed clusters that several clusters follow. merges: clusters with large parts of several entries'
    reviewed clusters. lost: reviewed clusters that none follows, and where most of their rows are now. new: clusters
    without an entry, which the score decides. without_cluster: entries that decide nothing.
    """
    used = {match.entry.topic for match in matches if match}
    return {
        **_followed(entries, topics, overlap),
        "new": [_named(row) for row, match in zip(topics, matches, strict=True) if match is None],
        "without_cluster": [entry.topic for entry in entries if entry.topic not in used],
    }


def sentences(listed: dict[str, Any]) -> list[str]:
    """The lists in words, a line per case; new clusters and entries without one only where reviewed clusters exist."""
    lines = [
        f"{row['topic']} is split: {', '.join(row['clusters'])} follow its cluster {row['id']}"
        for row in listed["splits"]
    ]
    lines += [
        f"cluster {row['cluster']} merges {', '.join(row['topics'])}"
        + ("; its rows are decided one by one" if row["mixed"] else "")
        for row in listed["merges"]
    ]
    for row in listed["lost"]:
        where = f"its rows are in {row['now_in']}" if row["now_in"] else "no row belongs to it"
        lines.append(f"{row['topic']} lost its cluster {row['id']}: {where}")
    return lines


def _followed(entries: list[Entry], topics: list[dict[str, Any]], overlap: Overlap | None) -> dict[str, Any]:
    splits: list[dict[str, Any]] = []
    merges: list[dict[str, Any]] = []
    lost: list[dict[str, Any]] = []
    if overlap is not None:
        owners, followers = owners_of(entries), defaultdict(list)
        for row in topics:
            if (followed := overlap.follows(row["cluster"])) is not None:
                followers[followed].append(row)
            names = sorted({owners[overlap.ids[part]].topic for part in overlap.parts(row["cluster"])})
            if len(names) > 1:
                merges.append({"cluster": _named(row), "topics": names, "mixed": row["mixed"]})
        for position, name in enumerate(overlap.ids):
            known = {"topic": owners[name].topic, "id": name}
            if len(followers[position]) > 1:
                splits.append(known | {"clusters": [_named(row) for row in followers[position]]})
            elif not followers[position]:
                counts = overlap.counts[:, position]
                by_number = {row["cluster"]: row for row in topics}
                lost.append(known | {"now_in": _named(by_number[int(counts.argmax())]) if counts.any() else None})
    return {"splits": splits, "merges": merges, "lost": lost}


def _named(row: dict[str, Any]) -> str:
    return f"{row['cluster']} ({row['label']})"
