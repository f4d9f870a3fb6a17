"""Datatrove pipelines over the cells of a corpus.

A cell, `<source>-<style>`, is one file of DOCUMENT rows or several (tables/cell_files.py). A stage is a datatrove
pipeline: `ReadCells`, its own filters and blocks, `WriteCells`. Each file is read and written by exactly one task, so
the outputs' bytes depend on neither the number of tasks nor that of workers. Removed documents go through datatrove's
exclusion writers into parts, which `CorpusRun.settle` merges into one table by key and counts.
"""

import json
import shutil
from collections.abc import Callable, Iterator
from itertools import groupby
from pathlib import Path
from types import TracebackType
from typing import Any, cast

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
from datatrove.data import Document, DocumentsPipeline
from datatrove.pipeline.base import PipelineStep
from datatrove.pipeline.writers.parquet import ParquetWriter
from datatrove.utils.stats import PipelineStats

from cosmopedia.core.errors import DataError
from cosmopedia.core.files import clear_folder, replacing
from cosmopedia.core.row_counts import RowCounts
from cosmopedia.corpus.components import NATURAL, is_natural, synthetic_first
from cosmopedia.execution.compute import Data
from cosmopedia.execution.data_tasks import DataTasks
from cosmopedia.tables.cell_files import cell_of
from cosmopedia.tables.contracts import DOCUMENT, REMOVED
from cosmopedia.tables.external_sort import merge_sorted
from cosmopedia.tables.parquet import TableWriter, count_rows, read_batches, read_rows, tables_in

# A process is started for so much work at least: it needs 2-4 seconds to start, once for each pipeline of a stage.
WORTH_SECONDS = 10
MB_PER_SECOND = 5.0  # of a table's uncompressed bytes, that a worker passes over in a pipeline; measured
NOTE_EVERY = 100  # documents between two notes of a task's progress
IDS_AT_ONCE = 1 << 16  # read by `check_rows`
EVIDENCE_CHARS = 200  # of a removed document's evidence, in a message
REMOVED_AT_ONCE = 256  # rows of each cell's removed documents that are in memory while they are merged


class ReadCells(PipelineStep):
    """Yields the documents of every `world_size`-th file, in the order of completion ids within a file."""

    type = "READER"
    name = "cells"

    def __init__(self, cells: list[Path]):
        super().__init__()
        self.cells = cells

    def run(self, data: DocumentsPipeline = None, rank: int = 0, world_size: int = 1) -> Iterator[Document]:  # type: ignore[override]
        for cell in self.cells[rank::world_size]:
            for row in read_rows([cell], DOCUMENT):
                self.stat_update("documents")
                yield as_document(row, cell)


class NoteProgress(PipelineStep):
    """Passes documents through and writes to `<folder>/<rank>` how many have passed."""

    type = "PROGRESS"
    name = "count"

    def __init__(self, folder: Path):
        super().__init__()
        self.folder = folder

    def run(self, data: DocumentsPipeline, rank: int = 0, world_size: int = 1) -> Iterator[Document]:  # type: ignore[override]
        note, done = self.folder / str(rank), 0
        for done, document in enumerate(cast(Iterator[Document], data), 1):
            if done % NOTE_EVERY == 0:
                note.write_text(str(done))
            yield document
        note.write_text(str(done))


class WriteCells(PipelineStep):
    """Writes the documents that arrive to their files; a file of which none arrives is written empty.

    The files reach `out` when all tasks are done (`CorpusRun.run`).
    """

    type = "WRITER"
    name = "cells"

    def __init__(self, cells: list[Path], out: Path):
        super().__init__()
        self.cells, self.out = cells, out

    def run(self, data: DocumentsPipeline, rank: int = 0, world_size: int = 1) -> None:  # type: ignore[override]
        documents = cast(Iterator[Document], data)
        document = next(documents, None)
        for cell in self.cells[rank::world_size]:
            with TableWriter(self.out / cell.name, DOCUMENT) as writer:
                while document is not None and document.metadata["cell"] == cell.stem:
                    writer.write(as_row(document))
                    document = next(documents, None)


def as_document(row: dict[str, Any], cell: Path) -> Document:
    """A datatrove document of a DOCUMENT row."""
    metadata = {name: value for name, value in row.items() if name not in ("text", "completion_id")}
    return Document(text=row["text"], id=row["completion_id"], metadata={**metadata, "cell": cell.stem})


def as_row(document: Document) -> dict[str, Any]:
    """A DOCUMENT row of a datatrove document."""
    own = {"completion_id": document.id, "text": document.text}
    return {name: own[name] if name in own else document.metadata[name] for name in DOCUMENT.schema.names}


def removal(reason: str, **evidence: Any) -> dict[str, str]:
    """Metadata of a document that a filter removes; the exclusion writer makes a REMOVED row of it."""
    return {"removed_for": reason, "evidence": json.dumps(evidence, ensure_ascii=False, sort_keys=True)}


def _as_removed(writer: object, document: Document) -> dict[str, Any]:
    return {
        "completion_id": document.id,
        "source": document.metadata["source"],
        "style": document.metadata["style"],
        "reason": document.metadata.get("removed_for", ""),
        "evidence": document.metadata.get("evidence", "{}"),
        "text": document.text,
    }


def removed_writer(folder: Path) -> ParquetWriter:
    """An exclusion writer: REMOVED rows, a part for each cell that loses documents."""
    return ParquetWriter(
        str(folder), "${cell}.parquet", "zstd", adapter=_as_removed, schema=REMOVED.schema, max_file_size=-1
    )


class CorpusRun:
    """One stage's pass over cells: its arrays of tasks, their scratch folder (outside DVC's outs), its row counts.

    `mb_per_second` is how fast a worker of the stage is, where it is far from the others: with the bytes of the input
    it decides how many tasks and workers pay, up to what the compute file allows. Results do not depend on it.

    `natural` is a second folder, of natural text; later stages find its cells among their others. `synthetic` are the
    cells that are not, `synthetic_rows` their documents: every total is theirs (corpus/components.py).

    A context manager: empties `out` on entry; on exit removes the scratch folder, unless tasks failed or the run was
    stopped (see `DataTasks`). Pipelines write to `scratch`, and cells through `WriteCells`.
    """

    def __init__(
        self,
        stage: str,
        folder: Path | str,
        out: Path | str,
        data: Data,
        mb_per_second: float = MB_PER_SECOND,
        natural: Path | str | None = None,
    ):
        self.stage, self.out, self.data = stage, Path(out), data
        self.cells = tables_in(folder) if natural is None else _of_both(tables_in(folder), Path(natural))
        self.cells = synthetic_first(self.cells)
        self.synthetic = [cell for cell in self.cells if not is_natural(cell)]
        footers = [_checked_footer(cell) for cell in self.cells]
        self.rows = sum(footer.num_rows for footer in footers)
        self.synthetic_rows = sum(footer.num_rows for footer in footers[: len(self.synthetic)])
        if not self.synthetic_rows:
            raise DataError(
                f"{folder}: no row in {len(self.synthetic)} file(s), so there is nothing for {stage}; see"
                f" metrics/{Path(folder).name}.json for what became of the rows, and run {Path(folder).name} again"
            )
        check_rows(self.cells)
        per_process = max(1, int(mb_per_second * 1e6 * WORTH_SECONDS))  # bytes
        worth = max(1, sum(map(uncompressed_bytes, footers)) // per_process)
        self.tasks, self.workers = min(data.tasks, len(self.cells), worth), min(data.workers, worth)
        self.arrays = DataTasks(stage, data, self.tasks)

    def __enter__(self) -> "CorpusRun":
        clear_folder(self.out)
        self.scratch = self.arrays.__enter__().workdir
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None):
        self.arrays.__exit__(kind, error, trace)

    def run(
        self, name: str, steps: list[PipelineStep | Callable], tasks: int | None = None, total: int | None = None
    ) -> PipelineStats:
        """Run a pipeline through the compute file's executor; datatrove's statistics of its steps.

        `tasks` where the number is fixed by the work itself. `total` documents make a progress bar; a pipeline of one
        step notes by itself how many it has done. `DataError` when a cell that a task should have written is missing.
        """
        if total is not None and len(steps) > 1:
            steps = [steps[0], NoteProgress(self.arrays.notes(name)), *steps[1:]]
        writers = [step for step in steps if isinstance(step, WriteCells)]
        for writer in writers:
            writer.out = self.scratch / "cells"
        stats = self.arrays.run(name, steps, tasks or self.tasks, self.workers, total)
        for cell in (cell for writer in writers for cell in writer.cells):
            written = self.scratch / "cells" / cell.name
            if not written.is_file():
                raise DataError(f"{written}: not written, though its task is marked as done; run {self.stage} again")
            self.arrays.put_away(written)
            with replacing(self.out / cell.name) as draft:
                shutil.move(written, draft)
        return stats

    def settle(self, parts: list[Path], keep: bool = True) -> tuple[dict[str, Any], list[dict]]:
        """Merge the exclusion writers' folders into `removed/removed.parquet` and balance the row counts.

        Returns metrics (rows of the synthetic part and by cell, removed rows by reason) and, with `keep`, the removed
        rows without their texts. Memory does not grow with the rows, except for those that are kept. `DataError` when
        no row of the synthetic part is left.
        """
        self.arrays.check()
        counts = {cell: RowCounts(cell) for cell in map(cell_of, self.cells)}
        removed_parts = [
            _counted(list(files), counts[cell])
            for folder in parts
            for cell, files in groupby(sorted(folder.glob("*.parquet")), key=cell_of)
        ]
        removed_rows: list[dict] = []
        with TableWriter(self.out / "removed" / "removed.parquet", REMOVED) as writer:
            for table in merge_sorted(removed_parts, REMOVED.key):
                writer.write_table(table)
                if keep:
                    removed_rows += table.drop_columns("text").to_pylist()
        for cell in self.cells:
            counts[cell_of(cell)].rows_in += count_rows(cell)
            counts[cell_of(cell)].kept += count_rows(self.out / cell.name)
        total = RowCounts(self.stage)
        for count in (counts[cell] for cell in sorted(set(map(cell_of, self.synthetic)))):
            total.rows_in += count.rows_in
            total.kept += count.kept
            total.removed.update(count.removed)
        if not total.kept:
            raise DataError(self._nothing_left(total))
        cells = {cell: count.metrics() for cell, count in counts.items()}
        return {**total.metrics(), "cells": cells}, removed_rows

    def _nothing_left(self, counts: RowCounts) -> str:
        """The message for a corpus that is removed as a whole: which rule took most, and an example of it."""
        table = self.out / "removed" / "removed.parquet"
        reason, removed = counts.removed.most_common(1)[0]
        rows = (row for row in read_rows([table], REMOVED) if row["style"] != NATURAL)
        row = next(row for row in rows if row["reason"] == reason)
        cell = f"{row['source']}-{row['style']}"
        return (
            f"{self.out}: none of {counts.rows_in} documents is left; {reason!r} took {removed}"
            f" ({removed / counts.rows_in:.0%}), for example {row['completion_id']!r} of {cell} (evidence:"
            f" {row['evidence'][:EVIDENCE_CHARS]}); read some in {table}, then change {self.stage} in params.yaml or"
            " the profile, or the stage before"
        )


def _counted(files: list[Path], counts: RowCounts) -> Iterator[pa.Table]:
    """The removed rows of a cell, each counted by its reason as it passes."""
    for table in read_batches(files, REMOVED, batch_rows=REMOVED_AT_ONCE):
        counts.removed.update(table["reason"].to_pylist())
        yield table


def statistic(stats: PipelineStats, prefix: str) -> dict[str, int]:
    """Totals of the steps' statistics whose label begins with `prefix`, by the rest of the label; sorted."""
    totals: dict[str, int] = {}
    for step in stats.stats:
        for label, value in step.stats.items():
            if label.startswith(prefix):
                name = label.removeprefix(prefix)
                totals[name] = totals.get(name, 0) + int(value.total)
    return dict(sorted(totals.items()))


def natural_rows(metrics: dict[str, Any]) -> str:
    """ "; web-natural 324 of 334", for a summary line; "" without natural text. `metrics`: what `settle` returns."""
    cells = {cell: counts for cell, counts in metrics["cells"].items() if is_natural(cell)}
    return "".join(f"; {cell} {counts['rows_kept']} of {counts['rows_in']}" for cell, counts in cells.items())


def check_rows(cells: list[Path]) -> None:
    """Check everything but the texts, before anything works; takes 8 bytes per document.

    `DataError` when a completion id is missing, out of order (also between the files of a cell) or in two places, a
    number is negative, or a row is not of the cell that its file is named after.
    """
    columns, hashes = [DOCUMENT.key, *DOCUMENT.in_name, *DOCUMENT.least], [np.empty(0, dtype=np.uint64)]
    last: dict[str, str] = {}  # cell -> id
    for cell in cells:
        for table in read_batches([cell], DOCUMENT, columns, batch_rows=IDS_AT_ONCE):
            first, name = table[DOCUMENT.key][0].as_py(), cell_of(cell)
            if first < last.get(name, ""):
                raise DataError(
                    f"{cell}: completion_id {first!r} comes after {last[name]!r} of the file before; the files of a"
                    " cell are one table in the order of ids: run the stage that writes them again"
                )
            last[name] = table[DOCUMENT.key][-1].as_py()
            hashes.append(cast(pl.DataFrame, pl.from_arrow(table))[DOCUMENT.key].hash().to_numpy())
    joined = np.concatenate(hashes)
    joined.sort()
    twice = np.unique(joined[1:][joined[1:] == joined[:-1]])
    if twice.size:
        _refuse_shared_id(cells, twice)


def _refuse_shared_id(cells: list[Path], twice: np.ndarray) -> None:
    """`DataError` that names an id in two files. `twice` are hashes that two ids have, perhaps different ones."""
    first: dict[str, Path] = {}
    for cell in cells:
        for table in read_batches([cell], DOCUMENT, [DOCUMENT.key], batch_rows=IDS_AT_ONCE):
            ids = cast(pl.DataFrame, pl.from_arrow(table))[DOCUMENT.key]
            for completion_id in ids.filter(pl.Series(np.isin(ids.hash().to_numpy(), twice))):
                other = first.setdefault(completion_id, cell)
                if other != cell:
                    raise DataError(
                        f"{cell.parent}: completion_id {completion_id!r} is in more than one file ({other.name},"
                        f" {cell.name}); ids must be unique over all cells: run the stage that writes them again, or"
                        " remove one of the files"
                    )


def _of_both(written: list[Path], natural: Path) -> list[Path]:
    """The cells of completions and those of natural text; `DataError` where a style has the name of the latter."""
    if wrong := [cell for cell in written if is_natural(cell)]:
        raise DataError(
            f"{wrong[0]}: no style may be named {NATURAL!r}, the cells of natural text are; rename the template"
        )
    return [*written, *natural.glob("*.parquet")]


def _checked_footer(cell: Path) -> pq.FileMetaData:
    """The footer of an input cell; `DataError` when its name or its footer is wrong."""
    if "-" not in cell.stem:
        raise DataError(f"{cell}: a cell's file is named <source>-<style>[.<number>].parquet; rename or remove it")
    try:
        return pq.read_metadata(cell)
    except (pa.ArrowInvalid, OSError) as error:
        raise DataError(f"{cell}: not a whole parquet file: {error}; run the stage that writes it again") from None


def uncompressed_bytes(footer: pq.FileMetaData) -> int:
    """Bytes of a parquet file's columns before compression."""
    return sum(footer.row_group(number).total_byte_size for number in range(footer.num_row_groups))
