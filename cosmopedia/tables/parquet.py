"""Streaming parquet: checked on the way in and out, written whole or not at all, equal bytes for equal rows."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType

import pyarrow as pa
import pyarrow.parquet as pq

from cosmopedia.core.errors import DataError, InternalError
from cosmopedia.core.files import replacing
from cosmopedia.tables.cell_files import in_name
from cosmopedia.tables.contracts import Contract

ROW_GROUP = 10_000  # rows; a group of 2 kB texts is about 20 MB in memory


class TableWriter:
    """Writes rows of one contract to one file, in key order; the file appears under its name only when complete.

    Use as a context manager. `InternalError` when rows come out of order or twice, `DataError` when they break the
    contract. `level` is zstd's.
    """

    def __init__(self, path: Path | str, contract: Contract, level: int = 3):
        self.path, self.contract, self.level, self.rows = Path(path), contract, level, 0
        self._last: object = None
        self._pending: list[dict] = []
        self._file = self._open()

    @contextmanager
    def _open(self) -> Iterator[None]:
        with (
            replacing(self.path) as draft,
            pq.ParquetWriter(
                draft,
                self.contract.schema,
                compression="zstd",
                compression_level=self.level,
                write_page_checksum=True,
            ) as self._writer,
        ):
            yield
            self._flush()

    def __enter__(self) -> "TableWriter":
        self._file.__enter__()
        return self

    def write(self, row: dict) -> None:
        """Add one row (a dict with the contract's columns)."""
        self._pending.append(row)
        if len(self._pending) >= ROW_GROUP:
            self._flush()

    def write_table(self, table: pa.Table) -> None:
        """Add a table's rows."""
        self._flush()
        self._write(table)

    def _flush(self) -> None:
        if self._pending:
            rows, self._pending = self._pending, []
            self._write(table_of(rows, self.contract, str(self.path)))

    def _write(self, table: pa.Table) -> None:
        table = self.contract.conform(table, str(self.path))
        try:
            self._last = self.contract.check_order(table.column(self.contract.key), self._last, str(self.path))
        except DataError as error:
            raise InternalError(f"a stage wrote rows out of order: {error}") from None
        self._writer.write_table(table, row_group_size=ROW_GROUP)
        self.rows += table.num_rows

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None):
        self._file.__exit__(kind, error, trace)


def table_of(rows: list[dict], contract: Contract, where: str) -> pa.Table:
    """Rows as a table of the contract; `DataError` names the first row with a missing or extra column, or a value that
    is no value of its column."""
    names = set(contract.schema.names)
    for row in rows:
        if row.keys() != names:
            raise DataError(
                f"{where}: a row of {contract.name} ({row.get(contract.key)!r}) has the columns {sorted(row)},"
                f" wanted {sorted(names)}"
            )
    arrays = []
    for field in contract.schema:
        values = [row[field.name] for row in rows]
        try:
            arrays.append(pa.array(values, type=field.type))
        except (pa.ArrowInvalid, pa.ArrowTypeError, UnicodeEncodeError, OverflowError) as error:
            wrong = next(number for number, value in enumerate(values) if not _is_value(value, field.type))
            column = f"{contract.name}.{field.name}"
            raise DataError(f"{where}: {column} of {rows[wrong].get(contract.key)!r}: {error}; correct it") from None
    return pa.Table.from_arrays(arrays, schema=contract.schema)


def _is_value(value: object, kind: pa.DataType) -> bool:
    try:
        pa.array([value], type=kind)
    except (pa.ArrowInvalid, pa.ArrowTypeError, UnicodeEncodeError, OverflowError):
        return False
    return True


def write_table(path: Path | str, rows: Iterable[dict] | pa.Table, contract: Contract) -> int:
    """Sort rows by key and write them to one file; returns the number of rows. For tables that fit in memory."""
    table: pa.Table = rows if isinstance(rows, pa.Table) else table_of(list(rows), contract, str(path))
    with TableWriter(path, contract) as writer:
        writer.write_table(table.sort_by(contract.key))
    return writer.rows


def read_batches(
    paths: Iterable[Path | str], contract: Contract, columns: list[str] | None = None, batch_rows: int = 2048
) -> Iterator[pa.Table]:
    """Stream files in the order given, checked against the contract, `batch_rows` rows at a time.

    `DataError` for a file that is missing, no parquet file, or breaks the contract. Uniqueness and order are checked
    within each file, when the key is among `columns`.
    """
    wanted = contract if columns is None else contract.narrow(columns)
    for path in paths:
        file = _open(Path(path), contract)
        last, first, names = None, 0, in_name(path)
        try:
            for batch in file.iter_batches(batch_size=batch_rows, columns=columns, use_threads=False):
                table = pa.Table.from_batches([batch])
                table = wanted.conform(table, str(path), first)
                wanted.check_name(table, names, str(path), first)
                first += table.num_rows
                if contract.key in table.column_names:
                    last = contract.check_order(table.column(contract.key), last, str(path))
                yield table
        except (pa.ArrowInvalid, OSError) as error:
            raise DataError(f"{path}: damaged parquet file: {error}; run the stage that writes it again") from None


def read_table(path: Path | str, contract: Contract, columns: list[str] | None = None) -> pa.Table:
    """One file as a table, checked against its contract."""
    schema = contract.schema if columns is None else contract.narrow(columns).schema
    return pa.concat_tables([schema.empty_table(), *read_batches([path], contract, columns, batch_rows=ROW_GROUP)])


def read_rows(paths: Iterable[Path | str], contract: Contract) -> Iterator[dict]:
    """Stream files as dicts, one per row."""
    for table in read_batches(paths, contract):
        yield from table.to_pylist()


def count_rows(path: Path | str) -> int:
    """Rows in a parquet file, from its footer."""
    return pq.read_metadata(path).num_rows


def tables_in(folder: Path | str) -> list[Path]:
    """The parquet files directly in a folder, sorted by name. `DataError` when there is none."""
    paths = sorted(Path(folder).glob("*.parquet"))
    if not paths:
        raise DataError(f"{folder} has no parquet file; run the stage that writes it (dvc repro), or dvc pull")
    return paths


def _open(path: Path, contract: Contract) -> pq.ParquetFile:
    try:
        file = pq.ParquetFile(path, pre_buffer=False, page_checksum_verification=True)  # one column chunk at a time
    except FileNotFoundError:
        raise DataError(f"{path} is missing ({contract.name}); run the stage that writes it, or dvc pull") from None
    except (pa.ArrowInvalid, OSError) as error:
        raise DataError(f"{path}: not a whole parquet file: {error}; run the stage that writes it again") from None
    contract.conform(file.schema_arrow.empty_table(), str(path))
    return file
