"""The difference of two versions as one dictionary, for people's tables and for scripts."""

from collections import Counter
from collections.abc import Iterable
from typing import Any

import numpy as np

from cosmopedia.dataset_diff.compare import DOCUMENTS, KINDS, QUANTILES, Cell, Side, js_divergence, mix_of, quantiles
from cosmopedia.execution.versions import Version
from cosmopedia.tables.cell_files import source_and_style

TOPICS = 10  # those whose shares moved most
COUNTS = ("rows_a", "rows_b", *KINDS, "tokens_a", "tokens_b")
Row = dict[str, Any]
Mix = dict[str, tuple[int, int]]


def report(versions: tuple[Version, Version], stage: str, cells: Iterable[Cell], samples: int) -> Row:
    """All figures, and up to `samples` texts of each kind, from as many cells as possible."""
    cells = list(cells)
    groups = [
        {"source": source, "style": style, "audience": audience, **{name: group[name] for name in COUNTS}}
        for cell in cells
        for source, style in [source_and_style(cell.name)]
        for audience, group in sorted(cell.groups.items())
    ]
    totals = {name: sum(group[name] for group in groups) for name in COUNTS}
    sides = [_together([cell.sides[n] for cell in cells]) for n in (0, 1)]
    lengths = zip(QUANTILES, *(quantiles(side.lengths) for side in sides), strict=True)
    mixes = mix_rows(*map(mix_of, versions)) if stage == DOCUMENTS[-1] else []
    rates = [rates_of(version) for version in versions]
    return {
        "a": {"name": versions[0].name, "kind": versions[0].kind},
        "b": {"name": versions[1].name, "kind": versions[1].kind},
        "stage": stage,
        "same": not any(totals[kind] for kind in KINDS) and not mixes,
        "mix": mixes,
        "totals": totals,
        "groups": groups,
        "changed_by": dict(sum((cell.changed_by for cell in cells), Counter()).most_common()),
        "removed_in_b": dict(sum((cell.fates["removed"] for cell in cells), Counter()).most_common()),
        "added_were_in_a": dict(sum((cell.fates["added"] for cell in cells), Counter()).most_common()),
        "rates": {name: [rate.get("", {}).get(name) for rate in rates] for name in RATES},
        "lengths": {f"{q:.0%}": pair for q, *pair in lengths},
        "topics": topics(sides[0].topics, sides[1].topics),
        "cells": [cell_row(cell, rates) for cell in cells],
        "samples": spread([cell.samples for cell in cells], samples),
    }


def mix_rows(a: Mix | None, b: Mix | None) -> list[Row]:
    """Cells of which two mixes take other numbers of documents or copies; [] where one has no mix."""
    if a is None or b is None:
        return []
    names = sorted(name for name in a.keys() | b.keys() if a.get(name, (0, 0)) != b.get(name, (0, 0)))
    pairs = {name: list(zip(a.get(name, (0, 0)), b.get(name, (0, 0)), strict=True)) for name in names}
    return [{"cell": name, "documents": documents, "copies": copies} for name, (documents, copies) in pairs.items()]


RATES = ("duplicates", "contaminated", "removed by clean")


def rates_of(version: Version) -> dict[str, dict[str, float]]:
    """Shares of documents that stages removed, from their metrics, by cell; "" is all of them. {} without metrics."""
    found: dict[str, dict[str, float]] = {}
    for name, stage in zip(RATES, ("dedup", "decontaminate", "clean"), strict=True):
        metrics = (None if version.direct else version.json(f"metrics/{stage}.json")) or {}
        for cell, counts in {"": metrics, **metrics.get("cells", {})}.items():
            if counts.get("rows_in"):
                rate = counts.get("rate") if stage == "dedup" else None
                share = counts.get("rows_removed", 0) / counts["rows_in"] if rate is None else rate
                found.setdefault(cell, {})[name] = share
    return found


def topics(one: Counter[str], two: Counter[str]) -> Row:
    """The divergence of the topics' shares, and the topics that moved most."""
    totals = [max(side.total(), 1) for side in (one, two)]
    shares = [(name, one[name] / totals[0], two[name] / totals[1]) for name in one.keys() | two.keys()]
    moved = sorted(shares, key=lambda row: (-abs(row[1] - row[2]), row[0]))
    rows = [{"topic": name, "a": a, "b": b} for name, a, b in moved[:TOPICS] if a != b]
    return {"js_divergence": js_divergence(one, two), "moved": rows}


def cell_row(cell: Cell, rates: list[dict[str, dict[str, float]]]) -> Row:
    """A cell's lengths, openings, topics and rates on both sides."""
    openings = [side.openings.most_common() for side in cell.sides]
    return {
        "cell": cell.name,
        "median_tokens": [quantiles(side.lengths)[QUANTILES.index(0.5)] for side in cell.sides],
        "opening": [opening and opening[0] for opening in openings],
        "opening_share": [opening and opening[1] for opening in openings],
        "topic_divergence": js_divergence(cell.sides[0].topics, cell.sides[1].topics),
        **{name: [rate.get(cell.name, {}).get(name) for rate in rates] for name in RATES[:2]},
    }


def _together(sides: list[Side]) -> Side:
    total = Side()
    longest = max((len(side.lengths) for side in sides), default=0)
    total.lengths = np.zeros(longest, dtype=np.int64)
    for side in sides:
        total.lengths[: len(side.lengths)] += side.lengths
        total.topics.update(side.topics)
    return total


def spread(by_cell: list[list[Row]], samples: int) -> list[Row]:
    """Up to `samples` of each kind: the first of every cell, then the second, and so on."""
    chosen: list[Row] = []
    for kind in ("changed", "removed", "added"):
        lists = [[one for one in several if one["kind"] == kind] for several in by_cell]
        rounds = [several[n] for n in range(samples) for several in lists if n < len(several)]
        chosen += rounds[:samples]
    return chosen
