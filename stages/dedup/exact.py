"""What is removed before MinHash: documents that copy their own extract, and exact duplicates.

1. a pass over the cells measures how much of each document is in its extract, and writes the fingerprint (16 bytes) of
   every document that is kept, into parts by the fingerprint's first bytes;
2. the duplicates of each part are found on their own: of equal fingerprints the smallest completion id is kept.

A part holds about 260,000 documents, so memory does not grow with the corpus: 120 MB, half of them duplicates.
"""

import unicodedata
from collections.abc import Iterator
from pathlib import Path
from typing import cast

import numpy as np
import polars as pl
import pyarrow as pa
from datatrove.data import Document, DocumentsPipeline
from datatrove.pipeline.base import PipelineStep
from datatrove.pipeline.writers.parquet import ParquetWriter
from datatrove.utils.stats import PipelineStats

from cosmopedia.corpus.pipeline import CorpusRun, ReadCells, statistic
from cosmopedia.corpus.words import shingles
from cosmopedia.rng import content_hash
from cosmopedia.tables.cell_files import cell_of
from stages.dedup.removals import REMOVAL, write_removals

ROWS_PER_PART = 1 << 18
LEVELS = (0.5, 0.9)  # shares above which documents are counted
MILLION = 1_000_000  # shares are summed as millionths: a sum of whole numbers is the same in any order
FINGERPRINT = pa.schema([("cell", pa.string()), ("completion_id", pa.string()), ("fingerprint", pa.binary(16))])
COPY = pa.schema([("completion_id", pa.string()), ("similarity", pa.float64())])
EXACT = pl.Schema({"cell": pl.String, "completion_id": pl.String, "kept": pl.String})


def fingerprint(text: str) -> bytes:
    """16 bytes, equal for texts that differ only in case, white space or Unicode composition."""
    return bytes.fromhex(content_hash(" ".join(unicodedata.normalize("NFC", text).casefold().split())))


def extract_share(text: str, extract: str, n: int) -> float | None:
    """The share of a text's distinct word n-grams that are in its extract, 0-1; None when either has none."""
    quoted = shingles(extract, n)
    own = np.unique(shingles(text, n)) if quoted.size else quoted
    return float(np.isin(own, quoted).mean()) if own.size else None


class MeasureCopies(PipelineStep):
    """Counts how much of the documents is in their extracts; those above `max_share` (None: none) go to `folder`."""

    type = "DEDUP"
    name = "copies"

    def __init__(self, n_grams: int, max_share: float | None, folder: Path):
        super().__init__()
        self.n_grams, self.max_share = n_grams, max_share
        self._writer = ParquetWriter(str(folder), "${cell}.parquet", "zstd", _as_copy, schema=COPY, max_file_size=-1)

    def run(self, data: DocumentsPipeline, rank: int = 0, world_size: int = 1) -> Iterator[Document]:  # type: ignore[override]
        """Pass on the documents that are no copies."""
        with self._writer as writer:
            for document in cast(Iterator[Document], data):
                share = extract_share(document.text, document.metadata["seed_data"], self.n_grams)
                if share is not None:
                    cell = cell_of(document.metadata["cell"])
                    self.stat_update(f"copies.{cell}/documents")
                    self.stat_update(f"copies.{cell}/sum", value=round(share * MILLION))
                    for level in LEVELS:
                        self.stat_update(f"copies.{cell}/above_{level}", value=int(share > level))
                    if self.max_share is not None and share > self.max_share:
                        document.metadata["similarity"] = round(share, 4)
                        writer.write(document, rank)
                        continue
                yield document


class Fingerprint(PipelineStep):
    """Gives each document its fingerprint and the part that looks for its duplicates."""

    type = "DEDUP"
    name = "fingerprints"

    def __init__(self, parts: int):
        super().__init__()
        self.parts = parts

    def run(self, data: DocumentsPipeline, rank: int = 0, world_size: int = 1) -> Iterator[Document]:  # type: ignore[override]
        """Pass the documents on."""
        for document in cast(Iterator[Document], data):
            key = fingerprint(document.text)
            part = int.from_bytes(key[:4], "big") * self.parts >> 32
            document.metadata.update({"fingerprint": key, "part": f"{part:05d}"})
            yield document


class FindExactDuplicates(PipelineStep):
    """Task `n` finds the duplicates among the fingerprints of `<folder>/<n>/` and writes `<target>/<n>.parquet`."""

    type = "DEDUP"
    name = "exact duplicates"

    def __init__(self, folder: Path, target: Path):
        super().__init__()
        self.folder, self.target = folder, target

    def run(self, data: DocumentsPipeline = None, rank: int = 0, world_size: int = 1) -> None:  # type: ignore[override]
        """Of equal fingerprints the smallest id is kept."""
        files = sorted((self.folder / f"{rank:05d}").glob("*.parquet"))
        if files:
            rows = pl.read_parquet(files).with_columns(kept=pl.col("completion_id").min().over("fingerprint"))
            removed = rows.filter(pl.col("completion_id") != pl.col("kept")).select(EXACT.names())
            removed.sort("cell", "completion_id").write_parquet(self.target / f"{rank:05d}.parquet")


def find_exact_duplicates(run: CorpusRun, n_grams: int, max_share: float | None) -> tuple[Path, PipelineStats]:
    """Copies and exact duplicates: (the folder of their tables, the statistics of the pass)."""
    parts = 1 + run.rows // ROWS_PER_PART
    copies, fingerprints, duplicates = (run.scratch / name for name in ("copies", "fingerprints", "duplicates"))
    writer = ParquetWriter(
        str(fingerprints), "${part}/${rank}.parquet", "zstd", _as_fingerprint, schema=FINGERPRINT, max_file_size=-1
    )
    steps = [ReadCells(run.cells), MeasureCopies(n_grams, max_share, copies), Fingerprint(parts), writer]
    stats = run.run("exact", steps, total=run.rows)
    duplicates.mkdir()
    run.run("duplicates", [FindExactDuplicates(fingerprints, duplicates)], tasks=parts)
    run.arrays.check()
    removals = run.scratch / "removals"
    for cell in run.cells:
        rows = pl.DataFrame(schema=REMOVAL)
        if files := sorted(duplicates.glob("*.parquet")):
            own = pl.scan_parquet(files).filter(pl.col("cell") == cell.stem).collect()
            rows = pl.concat([rows, _as_removals(own, "exact").with_columns(similarity=pl.lit(1.0))])
        if (copied := copies / cell.name).is_file():
            rows = pl.concat([rows, _as_removals(pl.read_parquet(copied), "copy")])
        write_removals(removals, cell.stem, rows)
    return removals, stats


def _as_removals(rows: pl.DataFrame, reason: str) -> pl.DataFrame:
    missing = [pl.lit(None, kind).alias(name) for name, kind in REMOVAL.items() if name not in rows.columns]
    return rows.with_columns(missing).with_columns(reason=pl.lit(reason)).select(REMOVAL.names())


def copied(stats: PipelineStats, cells: list[str]) -> dict[str, dict]:
    """What `MeasureCopies` counted, overall and by cell: documents with an extract, mean share, those above levels."""
    counts = statistic(stats, "copies.")

    def row_counts(*names: str) -> dict:
        total = {key: sum(counts.get(f"{name}/{key}", 0) for name in names) for key in _KEYS}
        documents = total["documents"]
        shares = {key: total[key] / documents if documents else None for key in _KEYS[2:]}
        return {"documents": documents, "mean": total["sum"] / MILLION / documents if documents else None, **shares}

    return {"all": row_counts(*cells), **{cell: row_counts(cell) for cell in cells}}


_KEYS = ("documents", "sum", *(f"above_{level}" for level in LEVELS))


def _as_fingerprint(writer: object, document: Document) -> dict[str, object]:
    return {"completion_id": document.id, **{name: document.metadata[name] for name in ("cell", "fingerprint")}}


def _as_copy(writer: object, document: Document) -> dict[str, object]:
    return {"completion_id": document.id, "similarity": document.metadata["similarity"]}
