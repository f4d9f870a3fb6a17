"""A table worked on in ranges of rows: task `n` of `tasks` makes part `n` of the result.

A range is a run of whole batches of 2,048 rows, counted from the table's first row. So a batch holds the same rows for
any number of tasks, and the parts, read batch by batch, give the bytes that one task would have written.
"""

from abc import abstractmethod
from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar

import pyarrow as pa
import pyarrow.parquet as pq
from datatrove.data import DocumentsPipeline
from datatrove.pipeline.base import PipelineStep
from datatrove.utils.stats import PipelineStats

from cosmopedia.core.errors import DataError
from cosmopedia.tables.contracts import Contract
from cosmopedia.tables.parquet import TableWriter, count_rows, read_batches

BATCH_ROWS = 2048


def checked_rows(path: Path, contract: Contract) -> int:
    """The rows of a table. `DataError` when the file is missing, not whole, or not of the contract."""
    next(read_batches([path], contract, batch_rows=1), None)
    return count_rows(path)


def range_of(rank: int, tasks: int, rows: int, batch_rows: int) -> range:
    """The rows of task `rank` of `tasks` in a table of `rows`; ranges differ by at most one batch."""
    batches = -(-rows // batch_rows)
    first, last = (batches * n // tasks * batch_rows for n in (rank, rank + 1))
    return range(min(first, rows), min(last, rows))


def read_range(
    path: Path, contract: Contract, columns: tuple[str, ...], row_range: range, batch_rows: int
) -> Iterator[pa.Table]:
    """The rows of a range in batches of `batch_rows`, only `columns` (the key among them), checked as they are read.

    Only the row groups that have rows of the range are read. `DataError` for a damaged file, and as `read_batches`.
    """
    wanted, last = contract.narrow(columns), None
    try:
        file = pq.ParquetFile(path, pre_buffer=False)
        groups, start, first = [], 0, 0
        for group in range(file.num_row_groups):
            end = first + file.metadata.row_group(group).num_rows
            if first < row_range.stop and end > row_range.start:
                start = start if groups else first
                groups.append(group)
            first = end
        pending = wanted.schema.empty_table()
        skip, left = row_range.start - start, len(row_range)
        for batch in file.iter_batches(batch_rows, groups, list(columns), use_threads=False):
            table = pa.Table.from_batches([batch])
            table, skip = table.slice(skip), max(skip - table.num_rows, 0)
            table = wanted.conform(table.slice(0, left), str(path))
            last = wanted.check_order(table[contract.key], last, str(path))
            left -= table.num_rows
            pending = pa.concat_tables([pending, table])
            while pending.num_rows >= batch_rows:
                yield pending.slice(0, batch_rows).combine_chunks()
                pending = pending.slice(batch_rows)
        if pending.num_rows:
            yield pending.combine_chunks()
    except (pa.ArrowInvalid, OSError) as error:
        raise DataError(f"{path}: damaged parquet file: {error}; run the stage that writes it again") from None


class RowRangeStep(PipelineStep):
    """A pipeline of one step: reads the task's range of a table, and writes what `tables` makes of it as a part.

    `parts` is the folder of the parts, `notes` that of the tasks' progress.
    """

    type = "ROW RANGE"
    reads: ClassVar[Contract]
    columns: ClassVar[tuple[str, ...]]
    writes: ClassVar[Contract]

    def __init__(self, source: Path, parts: Path, notes: Path):
        super().__init__()
        self.source, self.parts, self.notes, self.batch_rows = source, parts, notes, BATCH_ROWS

    @abstractmethod
    def tables(self, batches: Iterator[pa.Table], note: Path) -> Iterator[pa.Table]:
        """A table of `writes` for each batch of `reads`; writes to `note` how many rows are done."""

    def run(self, data: DocumentsPipeline = None, rank: int = 0, world_size: int = 1) -> None:  # type: ignore[override]
        row_range = range_of(rank, world_size, count_rows(self.source), self.batch_rows)
        batches = read_range(self.source, self.reads, self.columns, row_range, self.batch_rows)
        with TableWriter(part_of(self.parts, rank), self.writes) as writer:
            for table in self.tables(batches, self.notes / str(rank)):
                writer.write_table(table)


def tasks_for(rows: int, tasks: int) -> int:
    """How many of `tasks` have a batch to work on."""
    return min(tasks, -(-rows // BATCH_ROWS))


def part_of(parts: Path, rank: int) -> Path:
    """The file of a task's part."""
    return parts / f"{rank:05d}.parquet"


def read_parts(parts: Path, contract: Contract, tasks: int, rows: int) -> Iterator[pa.Table]:
    """The parts of `tasks` tasks over a table of `rows` rows, one after the other, in its batches.

    `DataError` names a part that is missing or does not have its range's rows, or that begins before its
    predecessor ends.
    """
    last = None
    for rank in range(tasks):
        part = part_of(parts, rank)
        wanted = len(range_of(rank, tasks, rows, BATCH_ROWS))
        content = f"{count_rows(part)} rows" if part.is_file() else "no file"
        if content != f"{wanted} rows":
            raise DataError(f"{part}: wanted the {wanted} rows of task {rank} of {tasks}, found {content}; run again")
        for table in read_batches([part], contract, batch_rows=BATCH_ROWS):
            last = contract.check_order(table[contract.key].slice(0, 1), last, str(part))
            yield table
            last = table[contract.key][-1].as_py()


def total(stats: PipelineStats, label: str) -> int:
    """The sum of a statistic over all steps and tasks."""
    return sum(int(step.stats[label].total) for step in stats.stats if label in step.stats)
