"""What differs between two versions of the corpus: rows, tokens, lengths, topics, openings, and some texts.

Rows are matched by completion id, which is made of the source row, style, audience and sample number and of nothing
else: an edited template, another model or another rule of cleaning changes a row, and does not replace it.
"""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from cosmopedia.core.errors import DataError
from cosmopedia.corpus.divergence import divergence
from cosmopedia.corpus.openings import Openings
from cosmopedia.dataset_diff.merge import ID, aligned, batches
from cosmopedia.execution.versions import Version
from cosmopedia.tables.cell_files import cell_of
from cosmopedia.tracing.corpus import DOCUMENTS, REMOVING

KINDS = ("added", "removed", "changed")
SMALL = [ID, "audience", "topic", "text_token_length"]
WHY = ["template_hash", "prompt", "model", "model_revision", "sampling", "key"]  # they say what changed a text
LONGEST = 1 << 16  # tokens; longer texts count as so long
GONE = "no document"  # neither there nor removed: not drawn, not generated, or its source row is not there
QUANTILES = (0.01, 0.05, 0.25, 0.5, 0.75, 0.95, 0.99)


@dataclass
class Side:
    """One version's rows of a cell."""

    rows: int = 0
    tokens: int = 0
    lengths: np.ndarray = field(default_factory=lambda: np.zeros(0, dtype=np.int64))  # rows by number of tokens
    topics: Counter[str] = field(default_factory=Counter)
    openings: Openings = field(default_factory=Openings)

    def add(self, rows: pl.DataFrame) -> None:
        """Count some rows."""
        lengths = rows["text_token_length"].to_numpy().clip(0, LONGEST)
        self.rows += rows.height
        self.tokens += int(rows["text_token_length"].cast(pl.Int64).sum())
        self.lengths = _sum(self.lengths, np.bincount(lengths))
        if "topic" in rows.columns:
            self.topics.update(dict(rows["topic"].drop_nulls().value_counts().iter_rows()))


@dataclass
class Cell:
    """The difference between two versions of a cell."""

    name: str
    sides: tuple[Side, Side] = field(default_factory=lambda: (Side(), Side()))
    groups: dict[str, Counter[str]] = field(default_factory=dict)  # by audience: rows_a, added, tokens_a, ...
    changed_by: Counter[str] = field(default_factory=Counter)
    fates: dict[str, Counter[str]] = field(default_factory=lambda: {"added": Counter(), "removed": Counter()})
    samples: list[dict[str, Any]] = field(default_factory=list)


def _sum(one: np.ndarray, two: np.ndarray) -> np.ndarray:
    longer, shorter = (one, two) if len(one) >= len(two) else (two, one)
    total = longer.copy()
    total[: len(shorter)] += shorter
    return total


def final_stage(versions: tuple[Version, Version], stage: str | None) -> str:
    """The stage whose documents are compared: the one named, else the last that both versions have."""
    stages = [stage] if stage else [*reversed(DOCUMENTS)]
    found = next((one for one in stages if all(version.has(f"data/{one}") for version in versions)), None)
    if found is None:
        raise DataError(
            f"{versions[0].name} and {versions[1].name} have no documents of the same stage"
            f" ({', '.join(f'data/{one}' for one in stages)}); run the pipeline there, or dvc pull"
        )
    return found


def cells_of(version: Version, stage: str) -> dict[str, list[Path]]:
    """A version's files by cell, in the order of their ids."""
    found: dict[str, list[Path]] = {}
    for name, path in version.files(f"data/{stage}").items():
        if "/" not in name and name.endswith(".parquet"):
            found.setdefault(cell_of(name), []).append(path)
    return found


def compare(versions: tuple[Version, Version], stage: str, samples: int) -> Iterator[Cell]:
    """The difference cell by cell, in the order of their names; `samples` texts of each kind and cell."""
    both = [cells_of(version, stage) for version in versions]
    removed = [removed_tables(version, stage) for version in versions]
    for name in sorted(both[0].keys() | both[1].keys()):
        paths = [cells.get(name, []) for cells in both]
        yield _same(name, paths[0]) if is_same(*paths) else _different(name, paths, removed, samples)


def is_same(one: list[Path], two: list[Path]) -> bool:
    """Whether both are the same files, as DVC's cache has those of equal content."""
    return len(one) == len(two) and all(a.samefile(b) for a, b in zip(one, two, strict=True))


def _same(name: str, paths: list[Path]) -> Cell:
    """A cell that is the same on both sides: counted, and not compared; texts are read as far as openings are."""
    cell, side = Cell(name), Side()
    for rows in batches(paths, SMALL):
        side.add(rows)
        same = rows.select("audience", kind=pl.lit("same"), tokens_a="text_token_length", tokens_b="text_token_length")
        _count(cell, same)
    for rows in batches(paths, [ID, "text"]):
        side.openings.add(rows["text"])
        if side.openings.complete:
            break
    cell.sides = (side, side)
    return cell


def _different(name: str, paths: list[list[Path]], removed: list[dict[str, Path]], samples: int) -> Cell:
    cell = Cell(name)
    columns = [*SMALL, "text", *WHY]
    for pair in aligned(*(batches(side, columns) for side in paths)):
        for side, rows in zip(cell.sides, pair, strict=True):
            if rows is not None:
                side.add(rows)
                side.openings.add(rows["text"])
        joined = join(*pair)
        _count(cell, joined)
        changed = joined.filter(pl.col("kind") == "changed")
        cell.changed_by.update(dict(changed["why"].value_counts().iter_rows()))
        for kind, tables in (("added", removed[0]), ("removed", removed[1])):
            lost = joined.filter(pl.col("kind") == kind)[ID]
            if len(lost):
                cell.fates[kind].update(fates(lost, tables))
        _sample(cell, joined, samples)
    return cell


def join(one: pl.DataFrame | None, two: pl.DataFrame | None, also: Sequence[str] = ()) -> pl.DataFrame:
    """Rows of a range matched by id: `kind` (added, removed, changed, same), `why` of a changed one, both texts.

    Of the columns `also` those that a side has are kept, `_b` of the second one.
    """
    empty = next(rows for rows in (one, two) if rows is not None).clear()
    first, second = (empty if rows is None else rows for rows in (one, two))
    first, second = first.with_columns(in_a=pl.lit(True)), second.with_columns(in_b=pl.lit(True))
    joined = first.join(second, on=ID, how="full", coalesce=True, suffix="_b")

    def differs(*names: str) -> pl.Expr:
        here = [name for name in names if name in first.columns and name in second.columns]
        return pl.any_horizontal(pl.lit(False), *(pl.col(n).ne_missing(pl.col(f"{n}_b")) for n in here))

    kind = pl.when(pl.col("in_a").is_null()).then(pl.lit("added")).when(pl.col("in_b").is_null())
    kind = kind.then(pl.lit("removed")).when(differs("text")).then(pl.lit("changed")).otherwise(pl.lit("same"))
    why = pl.when(~differs("key")).then(pl.lit("cleaning")).when(differs("template_hash")).then(pl.lit("template"))
    why = why.when(differs("prompt")).then(pl.lit("prompt")).when(differs("model", "model_revision", "sampling"))
    why = why.then(pl.lit("model or sampling")).otherwise(pl.lit("written anew"))
    audience = pl.coalesce("audience", "audience_b")
    return joined.select(
        ID,
        audience,
        "text",
        "text_b",
        kind=kind,
        why=why,
        tokens_a="text_token_length",
        tokens_b="text_token_length_b",
        **{name: name for name in also if name in first.columns},
        **{f"{name}_b": f"{name}_b" if name in first.columns else name for name in also if name in second.columns},
    )


def _count(cell: Cell, joined: pl.DataFrame) -> None:
    """Add rows and tokens by audience and kind."""
    tokens = (pl.col(name).cast(pl.Int64).sum() for name in ("tokens_a", "tokens_b"))
    sums = joined.group_by("audience", "kind").agg(pl.len(), *tokens)
    for audience, kind, rows, tokens_a, tokens_b in sums.iter_rows():
        group = cell.groups.setdefault(audience, Counter())
        group.update({kind: rows, "tokens_a": tokens_a, "tokens_b": tokens_b})
        group.update({"rows_a": rows * (kind != "added"), "rows_b": rows * (kind != "removed")})


def _sample(cell: Cell, joined: pl.DataFrame, samples: int) -> None:
    """Keep the first rows of each kind: ids are hashes, so these are drawn at random."""
    for kind in KINDS:
        missing = samples - sum(one["kind"] == kind for one in cell.samples)
        if missing <= 0:
            continue
        for row in joined.filter(pl.col("kind") == kind).head(missing).iter_rows(named=True):
            why = row["why"] if kind == "changed" else None
            texts = {"a": row["text"], "b": row["text_b"]}
            cell.samples.append({"kind": kind, "cell": cell.name, "id": row[ID], "why": why, **texts})


def removed_tables(version: Version, stage: str) -> dict[str, Path]:
    """The tables of removed documents of the stages up to one, by stage."""
    stages = [one for one in REMOVING if DOCUMENTS.index(one) <= DOCUMENTS.index(stage)]
    tables: dict[str, Path] = {}
    for one in stages:
        if version.has(f"data/{one}") and not version.direct:
            try:
                path = version.files(f"data/{one}").get("removed/removed.parquet")
            except DataError:  # not in the cache: the rows' fates are not known
                continue
            tables |= {one: path} if path else {}
    return tables


def fates(ids: pl.Series, tables: Mapping[str, Path]) -> Counter[str]:
    """What became of documents where they are not: "clean: short", or GONE for those that nothing removed."""
    found = Counter(removals(ids, tables).values())
    rest = len(ids) - found.total()
    return found + Counter({GONE: rest}) if rest and tables else found


def removals(ids: pl.Series, tables: Mapping[str, Path]) -> dict[str, str]:
    """The stage and the reason with which documents were removed, by id; of those that were."""
    found: dict[str, str] = {}
    for stage, path in tables.items() if len(ids) else ():
        in_range = pl.col(ID).is_between(pl.lit(ids.min()), pl.lit(ids.max()))
        part = pl.scan_parquet(path, glob=False).filter(in_range).select(ID, "reason").collect()
        matched = part.filter(pl.col(ID).is_in(ids.implode()))
        found |= {one: f"{stage}: {reason}" for one, reason in matched.iter_rows()}
    return found


def mix_of(version: Version) -> dict[str, tuple[int, int]] | None:
    """Documents that a version's mix takes, and their copies together, by cell; None without a mix."""
    if version.direct or not version.has("data/mix"):
        return None
    cells = cells_of(version, "mix")
    sums = {
        name: pl.scan_parquet(paths, glob=False).select(pl.len(), pl.col("copies").sum())
        for name, paths in cells.items()
    }
    return {name: frame.collect().row(0) for name, frame in sums.items()}


def js_divergence(one: Mapping[str, int], two: Mapping[str, int]) -> float | None:
    """Jensen-Shannon divergence of two distributions in bits: 0 equal, 1 nothing shared; None when one is empty."""
    names = sorted(one.keys() | two.keys())
    counts = np.array([[side.get(name, 0) for name in names] for side in (one, two)], dtype=float)
    if not names or not counts.sum(axis=1).all():
        return None
    return divergence(*counts)


def quantiles(lengths: np.ndarray) -> list[int | None]:
    """The lengths at QUANTILES, exact up to LONGEST; None without rows."""
    if not lengths.sum():
        return [None] * len(QUANTILES)
    below = np.cumsum(lengths)
    return [int(np.searchsorted(below, q * below[-1], side="left")) for q in QUANTILES]
