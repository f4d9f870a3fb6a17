"""One file of a dataset as records: JSON lines, a JSON array, parquet, CSV, lines of text; also compressed.

A row that cannot be read, or is longer than the limit, is a record with a problem; a file that is cut off or damaged
is a `DataError`, since nobody can say how many rows it has lost. A byte-order mark is no part of the text. NaN, which
pandas writes for what is missing, is None.

Memory is bounded by the limit: a longer line is skipped as it is read, a JSON array is read record by record, and a
parquet file in batches that cannot outgrow `PARQUET_RECORDS` limits (but a single cell is decompressed as a whole).
"""

import csv
import io
import json
import lzma
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, BinaryIO

import pyarrow as pa
import pyarrow.parquet as pq

from cosmopedia.core.errors import DataError
from cosmopedia.core.text import half_pair
from cosmopedia.records.dataset_folders import kind_of

BOM = b"\xef\xbb\xbf"
CHUNK = 1 << 20
RAW_CHARS = 10_000  # of a line that is too long
PARQUET_RECORDS = 16  # limits that a batch can take
SPACE = re.compile(r"\s*")
JSON = json.JSONDecoder(parse_constant=lambda _: None)


@dataclass(frozen=True)
class Record:
    """One record: `values`, or the `problem` that kept it from being read; `place` is "file:line" or "id:row"."""

    place: str
    values: dict[str, Any]
    problem: str | None = None
    raw: str = ""


def file_records(file: Path, limit: int) -> Iterator[Record]:
    """The records of one file, in its order. `limit`: bytes of a record, at most."""
    kind = kind_of(file)
    if kind == "parquet":
        yield from _parquet_records(file, limit)
        return
    with _open(file) as stream:
        if kind == "json":
            yield from _json_records(file, stream, limit)
        elif kind == "csv":
            yield from _csv_records(file, stream, limit)
        else:
            yield from _line_records(file, stream, limit, as_json=kind == "jsonl")


def too_long(limit: int) -> str:
    """The problem of a record above the limit."""
    return f"longer than {limit / (1 << 20):g} MB (sources.reading.max_record_mb)"


@contextmanager
def _open(path: Path) -> Iterator[BinaryIO]:
    """A file's bytes, decompressed, after its byte-order mark. `DataError` for one that is cut off or damaged, while
    it is being read.

    Arrow decompresses, since `zstandard` ends a cut-off file without an error; it has no xz.
    """
    codec = {".gz": "gzip", ".zst": "zstd", ".bz2": "bz2"}.get(path.suffix.lower())
    try:
        with lzma.open(path) if path.suffix.lower() == ".xz" else pa.input_stream(str(path), codec) as bytes_in:
            stream = io.BufferedReader(bytes_in, CHUNK)  # type: ignore[arg-type, type-var]
            start = stream.peek(len(BOM))
            if start.startswith(BOM):
                stream.read(len(BOM))
            elif start[:2] in (b"\xff\xfe", b"\xfe\xff"):
                raise DataError(f"{path} is UTF-16; save it as UTF-8")
            yield stream
    except (pa.ArrowInvalid, OSError, EOFError, lzma.LZMAError) as error:
        if isinstance(error, OSError) and error.errno is not None:  # the disk's or the network's fault
            raise
        raise DataError(f"{path}: cut off or damaged: {error}; fetch the file again") from None


def _lines(stream: BinaryIO, limit: int) -> Iterator[tuple[bytes, bool]]:
    """(a line, whether it is whole): of a line above the limit only the beginning, the rest is skipped."""
    while line := stream.readline(limit + 1):
        whole = len(line) <= limit or line.endswith(b"\n")
        yield line, whole
        rest = b"" if whole else stream.readline(CHUNK)
        while rest and not rest.endswith(b"\n"):
            rest = stream.readline(CHUNK)


def _line_records(file: Path, stream: BinaryIO, limit: int, as_json: bool) -> Iterator[Record]:
    for number, (line, whole) in enumerate(_lines(stream, limit), 1):
        place = f"{file}:{number}"
        if not whole:
            yield Record(place, {}, too_long(limit), line[:RAW_CHARS].decode("utf-8", "replace"))
            continue
        try:
            text = line.removeprefix(BOM).decode("utf-8").rstrip("\r\n")  # files that were joined have a mark each
        except UnicodeDecodeError as error:
            yield Record(place, {}, f"invalid UTF-8 at byte {error.start}", line.decode("utf-8", "replace"))
            continue
        if not as_json:
            yield Record(place, {"text": text}, raw=text)
        elif text.strip():
            yield _json_record(place, text)


def _json_record(place: str, text: str) -> Record:
    try:
        return _record(place, JSON.decode(text), text)
    except (ValueError, RecursionError) as error:
        return Record(place, {}, f"no JSON: {json_problem(error)}", text)


def json_problem(error: Exception) -> str:
    """What is wrong with JSON, from what Python raises for it."""
    if isinstance(error, json.JSONDecodeError):
        return f"{error.msg} at column {error.colno}"
    return "brackets nested too deep" if isinstance(error, RecursionError) else "a number with thousands of digits"


def _record(place: str, values: Any, raw: str) -> Record:
    if isinstance(values, dict):
        return Record(place, values, raw=raw)
    return Record(place, {}, f"wanted a JSON object, found {type(values).__name__}", raw)


def _json_records(file: Path, stream: BinaryIO, limit: int) -> Iterator[Record]:
    """The records of an array, or of JSON lines under an array's suffix, which `datasets` reads too."""
    start = stream.peek(CHUNK).lstrip()[:1]  # type: ignore[attr-defined]
    if start == b"[":
        with io.TextIOWrapper(stream, encoding="utf-8") as text:
            try:
                for number, values in enumerate(_elements(file, text, limit)):
                    yield _record(f"{file}:[{number}]", values, "")
            except UnicodeDecodeError as error:
                raise DataError(f"{file} is not UTF-8 ({error.reason}); save it as UTF-8") from None
        return
    records = _line_records(file, stream, limit, as_json=True)
    first, second = next(records, None), next(records, None)
    if first is None or second is None or first.problem:
        found = "nothing" if first is None else first.problem or "dict"
        raise DataError(f"{file}: wanted an array of records, found {found}; one record per line is a .jsonl file")
    yield first
    yield second
    yield from records


def _elements(file: Path, text: IO[str], limit: int) -> Iterator[Any]:
    """The elements of a JSON array, one at a time. `DataError` for one that is too long or does not parse."""
    buffer, number = text.read(CHUNK), 0
    at = buffer.index("[") + 1
    while True:
        at = SPACE.match(buffer, at).end()  # type: ignore[union-attr]
        mark, end = buffer[at : at + 1], at
        problem = ""
        if mark != "]" or number:
            try:
                value, end = JSON.raw_decode(buffer, at)
                end = SPACE.match(buffer, end).end()  # type: ignore[union-attr]
                mark = buffer[end : end + 1]
                problem = "" if mark in ("]", ",") else "wanted a comma or ]"
            except json.JSONDecodeError as error:
                problem, end = error.msg, len(buffer)
            except (ValueError, RecursionError) as error:
                raise DataError(
                    f"{file}:[{number}]: no JSON: {json_problem(error)}; fix or remove the record"
                ) from None
        if end - at > limit:
            raise DataError(f"{file}:[{number}]: {too_long(limit)}, or no JSON; fix or remove the record")
        if problem:  # perhaps because the record goes on
            more = text.read(max(CHUNK, len(buffer) - at))
            if not more:
                raise DataError(f"{file}:[{number}]: no JSON: {problem}; fix the record, or fetch the file again")
            buffer, at = buffer[at:] + more, 0
            continue
        if end > at:
            yield value
            number += 1
        at = end + 1
        if mark == "]":
            break
    if buffer[at:].strip() or text.read(CHUNK).strip():
        raise DataError(f"{file}: text after the array's last bracket; wanted one array of records")


class _CsvLines:
    """The lines that a CSV reader asks for. `DataError` once those of one record exceed the limit: a quote may never
    close."""

    def __init__(self, file: Path, text: IO[str], limit: int):
        self.file, self.text, self.limit = file, text, limit
        self.number, self.used = 0, 0  # `used`: characters since the reader's last record

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        line = self.text.readline(self.limit + 1)
        self.number, self.used = self.number + 1, self.used + len(line)
        if self.used > self.limit:
            raise DataError(f"{self.file}:{self.number}: a record is {too_long(self.limit)}; is a quote left open?")
        if not line:
            raise StopIteration
        return line


def _csv_records(file: Path, stream: BinaryIO, limit: int) -> Iterator[Record]:
    # surrogateescape carries bytes that are no UTF-8 into their row, where they are noticed
    options = {"encoding": "utf-8", "errors": "surrogateescape", "newline": ""}
    csv.field_size_limit(limit)
    with io.TextIOWrapper(stream, **options) as text:  # type: ignore[arg-type]
        lines = _CsvLines(file, text, limit)
        try:
            reader = csv.DictReader(lines)
            _check_names(file, list(reader.fieldnames or ()))
            for number, values in enumerate(reader, 2):
                lines.used = 0
                extra = values.pop(None, None)  # type: ignore[call-overload]
                problem = f"{len(extra)} value(s) more than columns" if extra else None
                if half_pair("".join(value for value in values.values() if value)):
                    problem = "invalid UTF-8"
                yield Record(f"{file}:{number}", dict(values), problem)
        except csv.Error as error:
            raise DataError(f"{file}: not readable as CSV: {error}") from None


def _check_names(file: Path, names: list[str]) -> None:
    """`DataError` for a column that is there more than once: a record would keep the last, without a word."""
    repeated = sorted({name for name in names if name and names.count(name) > 1})
    if repeated:
        raise DataError(f"{file}: more than one column is named {', '.join(repeated)}; rename or drop one")


def _parquet_records(file: Path, limit: int) -> Iterator[Record]:
    number = 0
    try:
        # without pre_buffer a row group is not in memory as a whole
        parquet = pq.ParquetFile(file, pre_buffer=False)
        _check_names(file, parquet.schema_arrow.names)
        groups = [parquet.metadata.row_group(n).total_byte_size for n in range(parquet.num_row_groups)]
        # A dictionary can hold one long text for every row, so a batch may take as often a whole row group's bytes.
        rows = PARQUET_RECORDS * limit // max(*groups, 1, 1)
        for batch in parquet.iter_batches(batch_size=min(max(rows, 1), 1024), use_threads=False):
            for record in _batch_records(batch, file, number, limit):
                yield record
                number += 1
    except (pa.ArrowInvalid, OSError) as error:
        raise DataError(f"{file}: not a whole parquet file: {error}; fetch the file again") from None


def _batch_records(batch: pa.RecordBatch, file: Path, first: int, limit: int) -> Iterator[Record]:
    if batch.nbytes > limit and batch.num_rows > 1:
        for row in range(batch.num_rows):
            yield from _batch_records(batch.slice(row, 1), file, first + row, limit)
        return
    if batch.nbytes > limit:
        yield Record(f"{file}:{first}", {}, too_long(limit))
        return
    try:
        rows = batch.to_pylist()
    except (ValueError, OverflowError, KeyError) as error:  # one bad value spoils the batch: find it
        if batch.num_rows > 1:
            for row in range(batch.num_rows):
                yield from _batch_records(batch.slice(row, 1), file, first + row, limit)
            return
        problem = "invalid UTF-8" if isinstance(error, UnicodeDecodeError) else str(error)
        if isinstance(error, KeyError):
            problem = f"unknown time zone {error}"
        yield Record(f"{file}:{first}", {}, problem)
        return
    for row, values in enumerate(rows):
        yield Record(f"{file}:{first + row}", without_nan(values))


def without_nan(values: dict[str, Any]) -> dict[str, Any]:
    """A record with None for NaN."""
    return {name: None if isinstance(value, float) and value != value else value for name, value in values.items()}
