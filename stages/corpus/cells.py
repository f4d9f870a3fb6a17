"""Datatrove pipelines over the cells of a corpus.

A cell is one file `<source>-<style>.parquet` of DOCUMENT rows. A stage is a datatrove pipeline: `ReadCells`, its own
filters and blocks, `WriteCells`. Each cell is read and written by exactly one task, so the outputs' bytes depend on
neither the number of tasks nor that of workers. Removed documents go through datatrove's exclusion writers into parts,
which `CorpusRun.settle` merges into one table by key while it counts them.
"""

import heapq
import json
import shutil
from collections.abc import Callable, Iterator
from itertools import repeat
from pathlib import Path
from types import TracebackType
from typing import Any, cast

import pyarrow as pa
from datatrove.data import Document, DocumentsPipeline
from datatrove.pipeline.base import PipelineStep
from datatrove.pipeline.writers.parquet import ParquetWriter
from datatrove.utils.stats import PipelineStats

from stages.clusters import Data
from stages.errors import DataError
from stages.launch.arrays import Arrays
from stages.tables.accounting import RowAccount
from stages.tables.contracts import DOCUMENT, REMOVED
from stages.tables.parquet import TableWriter, count_rows, read_rows, tables_in

ROWS_PER_TASK = 5000  # fewer rows than this are not worth a process of their own
COUNT_EVERY = 100  # documents between two notes of a task's progress


class ReadCells(PipelineStep):
    """Yields the documents of every `world_size`-th cell, in the order of completion ids within a cell."""

    type = "READER"
    name = "cells"

    def __init__(self, cells: list[Path]):
        super().__init__()
        self.cells = cells

    def run(self, data: DocumentsPipeline = None, rank: int = 0, world_size: int = 1) -> Iterator[Document]:  # type: ignore[override]
        for cell in self.cells[rank::world_size]:
            for row in read_rows([cell], DOCUMENT):
                text, completion_id = row.pop("text"), row.pop("completion_id")
                self.stat_update("documents")
                yield Document(text=text, id=completion_id, metadata={**row, "cell": cell.stem})


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
            if done % COUNT_EVERY == 0:
                note.write_text(str(done))
            yield document
        note.write_text(str(done))


class WriteCells(PipelineStep):
    """Writes the documents that arrive to their cells' files; a cell of which none arrives gets an empty file.

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
    """One stage's pass over cells: its arrays of tasks, their scratch folder (outside DVC's outs), its accounts.

    A context manager: empties `out` on entry; on exit removes the scratch folder, unless tasks failed or the run was
    stopped (see `Arrays`). Pipelines write to `scratch`, and cells through `WriteCells`.
    """

    def __init__(self, stage: str, folder: Path | str, out: Path | str, data: Data):
        self.stage, self.out, self.data = stage, Path(out), data
        self.cells = tables_in(folder)
        self.rows = sum(_checked_rows(cell) for cell in self.cells)
        self.tasks = max(1, min(data.tasks, len(self.cells), self.rows // ROWS_PER_TASK))
        self.arrays = Arrays(stage, data, self.tasks)

    def __enter__(self) -> "CorpusRun":
        shutil.rmtree(self.out, ignore_errors=True)
        self.out.mkdir(parents=True)
        self.scratch = self.arrays.__enter__().scratch
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None):
        self.arrays.__exit__(kind, error, trace)

    def run(
        self, name: str, steps: list[PipelineStep | Callable], tasks: int | None = None, total: int | None = None
    ) -> PipelineStats:
        """Run a pipeline through the cluster's executor; datatrove's statistics of its steps.

        `tasks` where the number is fixed by the work itself. `total` documents make a progress bar. `DataError` when
        a cell that a task should have written is missing.
        """
        if total is not None:
            steps = [steps[0], NoteProgress(self.arrays.notes(name)), *steps[1:]]
        writers = [step for step in steps if isinstance(step, WriteCells)]
        for writer in writers:
            writer.out = self.scratch / "cells"
        found = self.arrays.run(name, steps, tasks or self.tasks, 1 if self.tasks == 1 else None, total)
        for cell in (cell for writer in writers for cell in writer.cells):
            if not (written := self.scratch / "cells" / cell.name).is_file():
                raise DataError(f"{written}: not written, though its task is marked as done; run {self.stage} again")
            shutil.move(written, self.out / cell.name)
        return found

    def settle(
        self, parts: list[Path], finish: Callable[[dict], dict] = lambda row: row
    ) -> tuple[dict[str, Any], list[dict]]:
        """Merge the exclusion writers' folders into `removed/removed.parquet` and balance the accounts.

        Returns metrics (rows overall and by cell, removed rows by reason) and the removed rows without their texts.
        `finish` completes a row on its way.
        """
        files = sorted((p for folder in parts for p in folder.glob("*.parquet")), key=lambda p: (p.stem, str(p)))
        total, accounts = RowAccount(self.stage), {cell.stem: RowAccount(cell.stem) for cell in self.cells}
        seen: list[dict] = []
        before: tuple[str, str] = ("", "")  # completion id and cell
        with TableWriter(self.out / "removed" / "removed.parquet", REMOVED) as writer:
            rows = [zip(read_rows([file], REMOVED), repeat(file.stem)) for file in files]
            for row, cell in heapq.merge(*rows, key=lambda pair: pair[0]["completion_id"]):
                if row["completion_id"] == before[0]:
                    raise DataError(f"completion_id {before[0]!r} is in {before[1]} and in {cell}; ids must be unique")
                before = row["completion_id"], cell
                row = finish(row)
                writer.write(row)
                total.remove(row["reason"])
                accounts[cell].remove(row["reason"])
                seen.append({name: value for name, value in row.items() if name != "text"})
        for cell in self.cells:
            account = accounts[cell.stem]
            account.rows_in, account.kept = count_rows(cell), count_rows(self.out / cell.name)
            total.rows_in += account.rows_in
            total.kept += account.kept
        cells = {cell: account.metrics() for cell, account in accounts.items()}
        return {**total.metrics(), "cells": cells}, seen


def statistic(stats: PipelineStats, prefix: str) -> dict[str, int]:
    """Totals of the steps' statistics whose label begins with `prefix`, by the rest of the label; sorted."""
    found: dict[str, int] = {}
    for step in stats.stats:
        for label, value in step.stats.items():
            if label.startswith(prefix):
                name = label.removeprefix(prefix)
                found[name] = found.get(name, 0) + int(value.total)
    return dict(sorted(found.items()))


def _checked_rows(cell: Path) -> int:
    """Rows of an input cell; `DataError` when its name or its footer is wrong."""
    if "-" not in cell.stem:
        raise DataError(f"{cell}: a cell's file is named <source>-<style>.parquet; rename or remove it")
    try:
        return count_rows(cell)
    except (pa.ArrowInvalid, OSError) as error:
        raise DataError(f"{cell}: not a whole parquet file: {error}; run the stage that writes it again") from None
