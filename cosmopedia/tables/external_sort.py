"""Rows in any order become one file in key order, in memory that does not grow with them."""

import heapq
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from itertools import accumulate, islice
from pathlib import Path
from types import TracebackType

import pyarrow as pa

from cosmopedia.core.files import discard, remove
from cosmopedia.tables.contracts import Contract
from cosmopedia.tables.parquet import ROW_GROUP, TableWriter, table_of

RUN_ROWS = 50_000
RUN_CHARS = 64 << 20  # of text in a run; long pages end a run before it has RUN_ROWS rows
RUN_BATCH = 256  # rows of each run that are in memory in a merge: 10 GB are 160 runs, 40 MB at 1 kB per row


class SortingWriter:
    """Writes rows of one contract to one file, sorted by key; the file appears under its name only when complete.

    Full runs go to a scratch folder next to the file, sorted, and are merged at the end; few rows never leave memory.
    Use as a context manager; keys must be unique (`InternalError`). What a killed process left is removed by the next.
    """

    def __init__(self, path: Path | str, contract: Contract):
        self.path, self.contract, self.rows = Path(path), contract, 0
        self._scratch = self.path.with_name(f".{self.path.name}.runs")
        self._runs: list[Path] = []
        self._pending: list[dict] = []
        self._chars = 0

    def __enter__(self) -> "SortingWriter":
        remove(self._scratch)
        return self

    def write(self, row: dict) -> None:
        """Add one row (a dict with the contract's columns)."""
        self._pending.append(row)
        self._chars += sum(len(value) for value in row.values() if isinstance(value, str))
        self.rows += 1
        if len(self._pending) >= RUN_ROWS or self._chars >= RUN_CHARS:
            self._spill()

    def _sorted(self) -> pa.Table:
        rows, self._pending, self._chars = self._pending, [], 0
        rows.sort(key=lambda row: row[self.contract.key])
        return table_of(rows, self.contract, str(self.path))

    def _spill(self) -> None:
        self._scratch.mkdir(parents=True, exist_ok=True)
        self._runs.append(self._scratch / f"{len(self._runs):06d}.arrow")
        options = pa.ipc.IpcWriteOptions(compression="lz4")
        with pa.ipc.new_stream(self._runs[-1], self.contract.schema, options=options) as run:
            run.write_table(self._sorted(), max_chunksize=RUN_BATCH)

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None):
        try:
            if kind is None:
                with TableWriter(self.path, self.contract) as writer, ExitStack() as files:
                    if not self._runs:
                        writer.write_table(self._sorted())
                        return
                    if self._pending:
                        self._spill()
                    runs = [_tables(files.enter_context(pa.OSFile(str(run)))) for run in self._runs]
                    for table in merge_sorted(runs, self.contract.key):
                        writer.write_table(table)
        finally:
            discard(self._scratch)


def _tables(file: pa.NativeFile) -> Iterator[pa.Table]:
    return (pa.Table.from_batches([batch]) for batch in pa.ipc.open_stream(file))


def merge_sorted(streams: Iterable[Iterator[pa.Table]], key: str) -> Iterator[pa.Table]:
    """The rows of streams of tables, each sorted by `key`, in key order, in tables of `ROW_GROUP` rows.

    Memory: the tables of the streams that the rows of one result come from. Equal keys come out in the order of the
    streams.
    """
    rows = heapq.merge(*(_keyed_rows(number, stream, key) for number, stream in enumerate(streams)))
    while chunk := list(islice(rows, ROW_GROUP)):
        tables = {(stream, number): table for _, stream, number, _, table in chunk}
        joined = pa.concat_tables(tables.values()).combine_chunks()
        starts = accumulate((table.num_rows for table in tables.values()), initial=0)
        first_rows = dict(zip(tables, starts, strict=False))  # the last start is the end
        positions = [first_rows[stream, number] + row for _, stream, number, row, _ in chunk]
        yield joined.take(pa.array(positions, pa.int64()))


def _keyed_rows(stream: int, tables: Iterator[pa.Table], key: str) -> Iterator[tuple[str, int, int, int, pa.Table]]:
    """(key, stream, number of the table, row in it, the table): the first four differ between any two rows."""
    for number, table in enumerate(tables):
        for row, value in enumerate(table[key].to_pylist()):
            yield value, stream, number, row, table
