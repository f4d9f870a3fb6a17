"""The first pass over the documents: how much each copies of its extract, and the keys by which duplicates meet.

A document has one key for its fingerprint and, with at least n words, one for each bucket of its MinHash sketch.
Documents with an equal key are candidates (`pairs.py`). Keys go to disk in sorted runs, so memory does not grow with
the documents. A document's number is its place among all rows of all files, in the order of the files' names; it does
not depend on tasks.
"""

from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path

import numpy as np
import polars as pl
import pyarrow as pa
from datatrove.data import DocumentsPipeline
from datatrove.pipeline.base import PipelineStep
from datatrove.utils.stats import PipelineStats

from cosmopedia.core.rng import draw_u64
from cosmopedia.corpus.minhash import sketches
from cosmopedia.corpus.pipeline import statistic
from cosmopedia.hashing import GOLDEN, mix64
from cosmopedia.tables.cell_files import cell_of
from cosmopedia.tables.contracts import DOCUMENT
from cosmopedia.tables.parquet import count_rows, read_batches
from stages.dedup.words import ANY_NUMBER, Shingles, fingerprints, hashed_words, shares

RUN_KEYS = 1 << 21  # of a sorted run: 32 MB
LEVELS = (0.5, 0.9)  # shares of the extract above which documents are counted
MILLION = 1_000_000  # shares are summed as millionths: a sum of whole numbers is the same in any order
KEY = np.dtype([("key", "<u8"), ("document", "<i8")])


@dataclass(frozen=True)
class Buckets:
    """The MinHash sketch, and what may stand in it."""

    n_grams: int
    buckets: int
    hashes: int  # of a bucket; two documents meet where all of them agree
    seed: int
    numbers_count: tuple[str, ...]  # sources, or cells

    def with_numbers(self, cell: str) -> bool:
        """Whether numbers distinguish a cell's documents."""
        return not {cell, cell.partition("-")[0]}.isdisjoint(self.numbers_count)

    def keys(self, shingles: Shingles) -> np.ndarray:
        """One key per bucket; uint64, shape (texts, buckets)."""
        seed = np.uint64(draw_u64(self.seed, "sketch"))
        values = sketches(shingles.hashes, shingles.bounds, self.buckets * self.hashes, seed)
        keys = np.tile(np.arange(1, self.buckets + 1, dtype=np.uint64) * GOLDEN, (len(values), 1))
        for row in range(self.hashes):
            keys = mix64(keys + values[:, row :: self.hashes])
        return keys


def numbered(cells: list[Path]) -> list[tuple[Path, int]]:
    """Every file with the number of its first document."""
    sizes = [count_rows(cell) for cell in cells]
    return list(zip(cells, accumulate(sizes, initial=0), strict=False))  # the last sum is the end


class IndexDocuments(PipelineStep):
    """Writes `<keys>/<file>.<run>.npy` (KEY, sorted) and `<copies>/<file>.parquet` (document, similarity).

    Documents with more than `max_share` (None: none) of their n-grams in their extracts are copies and have no keys.
    """

    type = "DEDUP"
    name = "index"

    def __init__(self, cells: list[Path], buckets: Buckets, max_share: float | None, scratch: Path, notes: Path):
        super().__init__()
        self.cells, self.buckets, self.max_share, self.notes = numbered(cells), buckets, max_share, notes
        self.keys, self.copies = scratch / "keys", scratch / "copies"

    def run(self, data: DocumentsPipeline = None, rank: int = 0, world_size: int = 1) -> None:  # type: ignore[override]
        """Index every `world_size`-th file."""
        done = 0
        self.keys.mkdir(exist_ok=True)
        self.copies.mkdir(exist_ok=True)
        for cell, first in self.cells[rank::world_size]:
            runs = _Runs(self.keys / cell.stem)
            copies = []
            for table in read_batches([cell], DOCUMENT, ["completion_id", "text", "seed_data"]):
                copied = self._index(table, cell_of(cell), first, runs)
                copies.append(copied)
                first, done = first + table.num_rows, done + table.num_rows
                (self.notes / str(rank)).write_text(str(done))
            runs.flush()
            if (rows := pl.concat(copies)).height if copies else 0:
                rows.write_parquet(self.copies / f"{cell.stem}.parquet")

    def _index(self, table: pa.Table, cell: str, first: int, runs: "_Runs") -> pl.DataFrame:
        """Add the keys of a cell's documents to `runs`; the copies among them."""
        n = self.buckets.n_grams
        own = hashed_words(table["text"])
        shingles = Shingles.of(own, n)
        extracts = Shingles.of(hashed_words(table["seed_data"]), n)
        copied = shares(shingles.hashes, shingles.bounds, extracts.hashes, extracts.bounds)
        self._count(copied[~np.isnan(copied)], cell)
        copies = copied > (2.0 if self.max_share is None else self.max_share)
        documents = np.arange(first, first + table.num_rows)
        runs.add(fingerprints(table["text"], own)[~copies, :1], documents[~copies])
        if not self.buckets.with_numbers(cell):
            shingles = Shingles.of(hashed_words(table["text"], ANY_NUMBER), n)
        compared = ~copies & (np.diff(shingles.bounds) > 0)
        runs.add(self.buckets.keys(shingles)[compared], documents[compared])
        return pl.DataFrame({"document": documents[copies], "similarity": copied[copies].round(4)}).with_columns(
            reason=pl.lit("copy")
        )

    def _count(self, copied: np.ndarray, cell: str) -> None:
        self.stat_update(f"copies.{cell}/documents", value=len(copied))
        self.stat_update(f"copies.{cell}/sum", value=int((copied * MILLION).round().sum()))
        for level in LEVELS:
            self.stat_update(f"copies.{cell}/above_{level}", value=int((copied > level).sum()))


class _Runs:
    """Keys on their way to disk, in sorted runs."""

    def __init__(self, path: Path):
        self.path, self.written = path, 0
        self.pending: list[np.ndarray] = []

    def add(self, keys: np.ndarray, documents: np.ndarray) -> None:
        rows = np.empty(keys.shape, KEY)
        rows["key"], rows["document"] = keys, documents[:, None]
        self.pending.append(rows.ravel())
        if sum(map(len, self.pending)) >= RUN_KEYS:
            self.flush()

    def flush(self) -> None:
        if self.pending:
            rows = np.concatenate(self.pending)
            np.save(f"{self.path}.{self.written:05d}.npy", rows[np.argsort(rows["key"])])
            self.pending, self.written = [], self.written + 1


def copied(stats: PipelineStats, cells: list[str]) -> dict[str, dict]:
    """What `IndexDocuments` counted, overall and by cell: documents with an extract, mean share, above levels."""
    counts = statistic(stats, "copies.")

    def row_counts(*names: str) -> dict:
        total = {key: sum(counts.get(f"{name}/{key}", 0) for name in names) for key in _KEYS}
        documents = total["documents"]
        above = {key: total[key] / documents if documents else None for key in _KEYS[2:]}
        return {"documents": documents, "mean": total["sum"] / MILLION / documents if documents else None, **above}

    return {"all": row_counts(*cells), **{cell: row_counts(cell) for cell in cells}}


_KEYS = ("documents", "sum", *(f"above_{level}" for level in LEVELS))
