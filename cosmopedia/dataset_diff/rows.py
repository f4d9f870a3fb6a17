"""The rows that differ between two versions of the corpus, one by one, with everything that a page shows of them."""

import heapq
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import polars as pl

from cosmopedia.dataset_diff.compare import GONE, cells_of, is_same, join, removals, removed_tables
from cosmopedia.dataset_diff.merge import ID, aligned, batches
from cosmopedia.execution.versions import Version
from cosmopedia.tables.cell_files import source_and_style

SHOWN = ("seed_id", "format", "topic", "prompt", "template", "template_hash", "model", "model_revision", "sampling")
SHOWN += ("finish_reason", "key")
NEEDED = (ID, "audience", "text", "text_token_length")


@dataclass(frozen=True)
class Differences:
    """Rows of kind added, removed or changed, by source, style and id.

    A row has `id, kind, reason, source, style, audience, tokens_a, tokens_b, text, text_b`, and of SHOWN what its
    tables have, `_b` of the second version. `reason` of an added or a removed row is what became of it on the other
    side.
    """

    rows: list[dict[str, Any]]
    total: int  # rows that there are


def differences(versions: tuple[Version, Version], stage: str, limit: int) -> Differences:
    """At most `limit` rows: those with the smallest ids, which are hashes, so that this is a draw."""
    total = 0

    def counted() -> Iterator[dict[str, Any]]:
        nonlocal total
        for row in _all(versions, stage):
            total += 1
            yield row

    chosen = heapq.nsmallest(limit, counted(), key=lambda row: row["id"])
    return Differences(sorted(chosen, key=lambda row: (row["source"], row["style"], row["id"])), total)


def _all(versions: tuple[Version, Version], stage: str) -> Iterator[dict[str, Any]]:
    cells = [cells_of(version, stage) for version in versions]
    removed = [removed_tables(version, stage) for version in versions]
    for name in sorted(cells[0].keys() | cells[1].keys()):
        paths = [side.get(name, []) for side in cells]
        if is_same(*paths):
            continue
        source, style = source_and_style(name)
        for pair in aligned(*(batches(side, [*NEEDED, *SHOWN]) for side in paths)):
            rows = join(*pair, also=SHOWN).filter(pl.col("kind") != "same")
            reasons = dict(rows.filter(pl.col("kind") == "changed").select(ID, "why").iter_rows())
            for kind, tables in (("added", removed[0]), ("removed", removed[1])):
                ids = rows.filter(pl.col("kind") == kind)[ID]
                reasons |= dict.fromkeys(ids, GONE) | removals(ids, tables)
            for row in rows.rename({ID: "id"}).iter_rows(named=True):
                yield row | {"source": source, "style": style, "reason": reasons[row["id"]]}
