"""Removals that are decided before the documents are read again: one table per cell, read along with its documents.

A cell's documents come in the order of their ids and its table is in that order too, so memory does not grow.
"""

from collections.abc import Iterator
from pathlib import Path

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
from datatrove.data import Document
from datatrove.pipeline.filters.base_filter import BaseFilter
from datatrove.pipeline.writers.disk_base import DiskWriter

from cosmopedia.corpus.pipeline import removal
from cosmopedia.errors import InternalError

REMOVAL = pl.Schema(
    {
        "completion_id": pl.String,
        "reason": pl.String,  # copy | exact | near
        "kept": pl.String,  # the document that is kept for it; null for a copy
        "similarity": pl.Float64,  # Jaccard, with `kept`; of a copy the share that is in its extract
    }
)
KINDS = {"exact": "exact", "near": "minhash"}
ROWS = 10_000  # read at a time


def write_removals(folder: Path, cell: str, rows: pl.DataFrame) -> int:
    """Write a cell's table (REMOVAL, in any order); returns how many documents it removes."""
    folder.mkdir(exist_ok=True)
    rows = rows.select(REMOVAL.names()).cast(REMOVAL).sort("completion_id")
    if (twice := rows.filter(pl.col("completion_id").is_duplicated())).height:
        reasons = twice["reason"].to_list()
        raise InternalError(f"{folder}: {twice['completion_id'][0]!r} is to be removed twice: {reasons}")
    rows.write_parquet(folder / f"{cell}.parquet", row_group_size=ROWS)
    return rows.height


class Removals:
    """The removals of `<folder>/<cell>.parquet`, looked up document after document."""

    def __init__(self, folder: Path):
        self.folder, self._cell = folder, ""
        self._rows: Iterator[dict] = iter(())
        self._next: dict | None = None

    def of(self, document: Document) -> dict | None:
        """The REMOVAL row of a document, None if it is kept. `InternalError` when one in the table did not come."""
        if (cell := document.metadata["cell"]) != self._cell:
            self._refuse_left(before=None)
            path = self.folder / f"{cell}.parquet"
            self._cell, self._rows = cell, _rows(path) if path.is_file() else iter(())
            self._next = next(self._rows, None)
        self._refuse_left(before=document.id)
        if self._next is None or self._next["completion_id"] != document.id:
            return None
        row = self._next
        self._next = next(self._rows, None)
        return row

    def _refuse_left(self, before: str | None) -> None:
        if self._next is not None and (before is None or self._next["completion_id"] < before):
            raise InternalError(
                f"{self.folder / self._cell}.parquet removes {self._next['completion_id']!r}, which is not in the cell"
            )


def _rows(path: Path) -> Iterator[dict]:
    for batch in pq.ParquetFile(path).iter_batches(batch_size=ROWS, use_threads=False):
        yield from pa.Table.from_batches([batch]).to_pylist()


class PlannedFilter(BaseFilter):
    """Removes what `folder` lists for one of `reasons`; what it lists for another is marked and passes."""

    name = "planned removals"

    def __init__(self, folder: Path, reasons: tuple[str, ...], exclusion_writer: DiskWriter | None = None):
        super().__init__(exclusion_writer)  # type: ignore[arg-type]
        self.reasons, self._removals = reasons, Removals(folder)

    def filter(self, doc: Document) -> bool:
        """Whether the document passes."""
        if (removed := self._removals.of(doc)) is None:
            return True
        if removed["reason"] == "copy":
            evidence = {"share": removed["similarity"]}
        else:
            evidence = {"kept": removed["kept"], "kind": KINDS[removed["reason"]], "jaccard": removed["similarity"]}
        doc.metadata.update(removal(removed["reason"], **evidence))
        return removed["reason"] not in self.reasons
