"""Rows in any order become one file in key order, in memory that does not grow with them."""

import heapq
import shutil
from collections.abc import Iterator
from contextlib import ExitStack
from itertools import islice
from pathlib import Path
from types import TracebackType

import pyarrow as pa

from cosmopedia.tables.contracts import Contract
from cosmopedia.tables.parquet import ROW_GROUP, TableWriter, table_of

RUN_ROWS = 50_000
RUN_CHARS = 64 << 20  # of text in a run; long pages end a run before it has RUN_ROWS rows
RUN_BATCH = 256  # rows that a merge holds of each run: 10 GB are 160 runs, 1 kB a row makes 40 MB


class SortingWriter:
    """Writes rows of one contract to one file, sorted by key; the file appears under its name only when complete.

    Full runs go to a scratch folder beside the file, sorted, and are merged at the end; few rows never leave memory.
    Use as a context manager; keys must be unique (`InternalError`). What a killed process left is removed by the next.
    """

    def __init__(self, path: Path | str, contract: Contract):
        self.path, self.contract, self.rows = Path(path), contract, 0
        self._scratch = self.path.with_name(f".{self.path.name}.runs")
        self._runs: list[Path] = []
        self._pending: list[dict] = []
        self._chars = 0

    def __enter__(self) -> "SortingWriter":
        shutil.rmtree(self._scratch, ignore_errors=True)
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
                with TableWriter(self.path, self.contract) as writer:
                    if not self._runs:
                        writer.write_table(self._sorted())
                        return
                    if self._pending:
                        self._spill()
                    for table in merged(self._runs, self.contract.key):
                        writer.write_table(table)
        finally:
            shutil.rmtree(self._scratch, ignore_errors=True)


def merged(runs: list[Path], key: str) -> Iterator[pa.Table]:
    """The rows of sorted Arrow streams in key order, in tables of `ROW_GROUP` rows."""
    with ExitStack() as files:
        rows = heapq.merge(*(_rows(n, files.enter_context(pa.OSFile(str(run))), key) for n, run in enumerate(runs)))
        while chunk := list(islice(rows, ROW_GROUP)):
            batches: dict[tuple[int, int], pa.RecordBatch] = {}
            for _, run, number, _, batch in chunk:
                batches.setdefault((run, number), batch)
            first, begins = 0, {}
            for name, batch in batches.items():
                begins[name] = first
                first += batch.num_rows
            places = pa.array([begins[run, number] + row for _, run, number, row, _ in chunk], pa.int64())
            yield pa.Table.from_batches(list(batches.values())).combine_chunks().take(places)


def _rows(run: int, file: pa.NativeFile, key: str) -> Iterator[tuple[str, int, int, int, pa.RecordBatch]]:
    """(key, run, batch, row, the batch): the first two differ between any two rows, so nothing else is compared."""
    for number, batch in enumerate(pa.ipc.open_stream(file)):
        for row, value in enumerate(batch.column(key).to_pylist()):
            yield value, run, number, row, batch
