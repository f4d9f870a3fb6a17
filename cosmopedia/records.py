"""Records of a dataset, from the hub at a pinned revision or from local files of the same schema.

Local files: .jsonl, .json (an array), .parquet, .csv, .txt (one record per line, column `text`), each also with .gz or
.zst; a folder means all its files of those kinds, by name. Everything else is a hub dataset id, read through
`datasets` in streaming mode. No dataset is loaded into memory, except a .json array.

A row that cannot be read is a record with a problem; a file that is cut off or damaged is a `DataError`, since nobody
can say how many rows it has lost.
"""

import csv
import io
import json
import re
import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import pyarrow as pa
import pyarrow.parquet as pq

from cosmopedia.errors import ClusterError, ConfigError, DataError
from cosmopedia.lineage import content_revision

KINDS = (".jsonl", ".json", ".parquet", ".csv", ".txt")
WAITS_S = (1.0, 5.0, 25.0)  # before a hub stream that broke off is opened again
COMMIT = re.compile(r"[0-9a-f]{40}")
csv.field_size_limit(1 << 24)


@dataclass(frozen=True)
class Record:
    """One record: `values`, or the `problem` that kept it from being read; `place` is "file:line" or "id:row"."""

    place: str
    values: dict[str, Any]
    problem: str | None = None
    raw: str = ""


def read_records(
    dataset: str, subset: str | None, split: str | None, revision: str | None
) -> tuple[Iterator[Record], str]:
    """(records in the dataset's order, resolved revision).

    The revision is "sha256:<16 digits>" of local content, or the commit that a hub revision stands for.
    `ConfigError` when the dataset is neither a file nor a hub id that answers, `DataError` for an empty file.
    """
    if is_local(dataset):
        files = local_files(dataset)
        return _local_records(files), content_revision(files)
    resolved = resolve_revision("dataset", dataset, revision)
    return _hub_records(dataset, subset, split, resolved), resolved


def is_local(dataset: str) -> bool:
    """Whether a dataset names a file or folder here: it exists, is absolute or relative (`./`, `../`), or has a suffix
    of a kind that is read."""
    path = Path(dataset)
    return path.exists() or path.is_absolute() or dataset.startswith(".") or _kind(path) is not None


def local_files(dataset: str) -> list[Path]:
    """The files of a local dataset. `ConfigError` when there is none, `DataError` when one is empty."""
    path = Path(dataset)
    if not path.exists():
        raise ConfigError(f"{dataset} does not exist; correct the path in the profile, or put the file there")
    files = [path] if path.is_file() else sorted(p for p in path.iterdir() if p.is_file() and _kind(p))
    if not files or any(_kind(p) is None for p in files):
        raise ConfigError(f"{dataset}: wanted a file (or a folder of files) of {', '.join(KINDS)}, also .gz or .zst")
    for file in files:
        if file.stat().st_size == 0:
            raise DataError(f"{file} is empty; wanted at least one record")
    return files


def resolve_revision(kind: str, hub_id: str, revision: str | None) -> str:
    """The commit that a branch or tag of a hub dataset or model stands for; a commit is returned as it is.

    Warns on stderr when the profile does not pin one. `ConfigError` when the hub does not answer or does not know it.
    """
    if revision and COMMIT.fullmatch(revision):
        return revision
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError

    name = revision or "main"
    print(f"warning: {hub_id} is not pinned (revision: {name}); `cosmo pin` pins it", file=sys.stderr)
    try:
        api = HfApi()
        info = api.dataset_info(hub_id, revision=name) if kind == "dataset" else api.model_info(hub_id, revision=name)
    except (HfHubHTTPError, OSError, ValueError) as error:
        raise ConfigError(
            f"{kind} {hub_id} at revision {name} is not available from the hub ({type(error).__name__});"
            " check the id and the network, or give a local file or folder instead"
        ) from None
    if info.sha is None:
        raise ConfigError(f"{kind} {hub_id} at revision {name}: the hub names no commit; pin one in the profile")
    return info.sha


def _kind(path: Path) -> str | None:
    name = path.name.removesuffix(".gz").removesuffix(".zst")
    return next((kind for kind in KINDS if name.endswith(kind)), None)


@contextmanager
def _open(path: Path) -> Iterator[BinaryIO]:
    """A file's bytes, decompressed. `DataError` for one that is cut off or damaged, while it is being read.

    Arrow decompresses, since `zstandard` ends a cut-off file without an error.
    """
    compression = {".gz": "gzip", ".zst": "zstd"}.get(path.suffix)
    try:
        with pa.input_stream(str(path), compression=compression) as stream:
            yield io.BufferedReader(stream, 1 << 20)  # type: ignore[arg-type, type-var]
    except (pa.ArrowInvalid, OSError) as error:
        if isinstance(error, OSError) and error.errno is not None:  # the disk's or the network's fault
            raise
        raise DataError(f"{path}: cut off or damaged: {error}; fetch the file again") from None


def _local_records(files: list[Path]) -> Iterator[Record]:
    for file in files:
        kind = _kind(file)
        if kind == ".parquet":
            yield from _parquet_records(file)
        elif kind == ".json":
            yield from _array_records(file)
        elif kind == ".csv":
            yield from _csv_records(file)
        else:
            yield from _line_records(file, as_json=kind == ".jsonl")


def _line_records(file: Path, as_json: bool) -> Iterator[Record]:
    with _open(file) as stream:
        for number, line in enumerate(stream, 1):
            place = f"{file}:{number}"
            try:
                text = line.decode("utf-8").rstrip("\r\n")
            except UnicodeDecodeError as error:
                yield Record(place, {}, f"invalid UTF-8 at byte {error.start}", line.decode("utf-8", "replace"))
                continue
            if not as_json:
                yield Record(place, {"text": text}, raw=text)
                continue
            if not text.strip():
                continue
            try:
                values = json.loads(text)
            except json.JSONDecodeError as error:
                yield Record(place, {}, f"no JSON: {error.msg} at column {error.colno}", text)
                continue
            except (ValueError, RecursionError) as error:  # a number of thousands of digits; thousands of brackets
                yield Record(place, {}, f"no JSON: {error}", text)
                continue
            yield _record(place, values, text)


def _array_records(file: Path) -> Iterator[Record]:
    with _open(file) as stream:
        try:
            content = json.loads(stream.read().decode("utf-8"))
        except (UnicodeDecodeError, json.JSONDecodeError) as error:
            raise DataError(f"{file} is no JSON: {error}; wanted an array of records") from None
    if not isinstance(content, list):
        raise DataError(f"{file}: wanted an array of records, found {type(content).__name__}")
    for number, values in enumerate(content):
        yield _record(f"{file}:[{number}]", values, "")


def _csv_records(file: Path) -> Iterator[Record]:
    # surrogateescape carries bytes that are no UTF-8 into their row, where they are noticed
    options = {"encoding": "utf-8-sig", "errors": "surrogateescape", "newline": ""}
    with _open(file) as stream, io.TextIOWrapper(stream, **options) as text:  # type: ignore[arg-type]
        try:
            for number, values in enumerate(csv.DictReader(text), 2):
                extra = values.pop(None, None)  # type: ignore[call-overload]
                problem = f"{len(extra)} value(s) more than columns" if extra else None
                if not is_text("".join(value for value in values.values() if value)):
                    problem = "invalid UTF-8"
                yield Record(f"{file}:{number}", dict(values), problem)
        except csv.Error as error:
            raise DataError(f"{file}: not readable as CSV: {error}") from None


def is_text(value: str) -> bool:
    """Whether UTF-8 can hold a string: JSON and CSV can smuggle in halves of surrogate pairs."""
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True


def _parquet_records(file: Path) -> Iterator[Record]:
    number = 0
    try:
        # without pre_buffer a row group is not in memory as a whole
        for batch in pq.ParquetFile(file, pre_buffer=False).iter_batches(batch_size=1024, use_threads=False):
            for record in _batch_records(batch, file, number):
                yield record
                number += 1
    except (pa.ArrowInvalid, OSError) as error:
        raise DataError(f"{file}: not a whole parquet file: {error}; fetch the file again") from None


def _batch_records(batch: pa.RecordBatch, file: Path, first: int) -> Iterator[Record]:
    try:
        rows = batch.to_pylist()
    except (ValueError, OverflowError) as error:  # one bad value spoils the batch: find it
        if batch.num_rows > 1:
            for row in range(batch.num_rows):
                yield from _batch_records(batch.slice(row, 1), file, first + row)
            return
        problem = "invalid UTF-8" if isinstance(error, UnicodeDecodeError) else str(error)
        yield Record(f"{file}:{first}", {}, problem)
        return
    for row, values in enumerate(rows):
        yield Record(f"{file}:{first + row}", values)


def _record(place: str, values: Any, raw: str) -> Record:
    if isinstance(values, dict):
        return Record(place, values, raw=raw)
    return Record(place, {}, f"wanted a JSON object, found {type(values).__name__}", raw)


def _hub_records(dataset: str, subset: str | None, split: str | None, revision: str) -> Iterator[Record]:
    """A hub dataset's rows. When the stream breaks off it is opened again at the row where it was.

    `ConfigError` when it cannot be opened at all, `ClusterError` when it breaks off at one row again and again.
    """
    from aiohttp import ClientError
    from datasets import load_dataset

    def opened(skipped: int) -> Iterable[dict[str, Any]]:
        stream = load_dataset(dataset, name=subset, split=split, revision=revision, streaming=True)
        return stream.skip(skipped) if skipped else stream  # type: ignore[union-attr]

    try:
        stream = opened(0)
    except (OSError, ValueError, RuntimeError) as error:
        reason = _reason(error)
        raise ConfigError(f"hub dataset {dataset} (subset {subset}, split {split}) at {revision}: {reason}") from None
    row, waits = 0, iter(WAITS_S)
    while True:
        try:
            for values in opened(row) if stream is None else stream:
                yield Record(f"{dataset}:{row}", dict(values))
                row, waits = row + 1, iter(WAITS_S)
            return
        except (OSError, EOFError, ValueError, RuntimeError, ClientError) as error:  # what network and decoders raise
            wait, stream = next(waits, None), None
            problem = f"the stream of {dataset} at {revision} broke off at row {row}: {_reason(error)}"
            if wait is None:
                raise ClusterError(
                    f"{problem}; tried {len(WAITS_S) + 1} times. Check the network and run the stage again, or give"
                    " sources a local copy of the dataset"
                ) from None
            print(f"warning: {problem}; opened again in {wait:g} s", file=sys.stderr, flush=True)
            time.sleep(wait)


def _reason(error: Exception) -> str:
    return " ".join(f"{type(error).__name__} {error}".split())[:300]
