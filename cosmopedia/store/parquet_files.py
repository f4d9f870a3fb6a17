"""The parquet files of the completion store: what compaction makes of segments, for anything that reads parquet.

One row per completion, in the order of the segments; one look-up reads one row group. A file gets its name only when
it is whole and on disk, and the segments are removed after that: a crash leaves completions twice, never lost.
"""

import json
from collections.abc import Iterable
from itertools import chain, islice
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from cosmopedia.core.errors import ClusterError, DataError
from cosmopedia.core.files import replacing
from cosmopedia.store.segments import READ_ONLY, FileRemoved, checksum, count_within, damage, fsync, new_name

GROUP_ROWS = 512  # about 2 MB of text: 5 ms to read
FILE_ROWS = 131_072  # about 200 MB
SCHEMA = pa.schema(
    [
        pa.field("key", pa.binary(16), nullable=False),
        pa.field("text", pa.string(), nullable=False),
        pa.field("finish_reason", pa.string(), nullable=False),
        pa.field("tokens", pa.int32(), nullable=False),
        pa.field("prompt_tokens", pa.int32(), nullable=False),
        pa.field("engine", pa.string(), nullable=False),
        pa.field("check", pa.binary(8), nullable=False),  # of the whole row: pages have checksums, a footer has none
    ]
)


def open_parquet(path: Path) -> pq.ParquetFile:
    """`FileRemoved` when the file is not there any more, `DataError` with its name when it is none of the store's."""
    try:
        file = pq.ParquetFile(path, page_checksum_verification=True)
    except FileNotFoundError:
        raise FileRemoved(str(path)) from None
    except (pa.ArrowException, OSError) as error:
        raise DataError(damage(path, error)) from None
    if file.schema_arrow.remove_metadata().names != SCHEMA.names:
        raise DataError(damage(path, f"its columns are {', '.join(file.schema_arrow.names)}"))
    return file


def read_group(path: Path, file: pq.ParquetFile, group: int, columns: list[str] | None = None) -> pa.Table:
    """A row group. `DataError` when a page does not match its checksum."""
    try:
        return file.read_row_group(group, columns=columns, use_threads=False)
    except (pa.ArrowException, OSError) as error:
        raise DataError(damage(path, error)) from None


def keys_of(path: Path, file: pq.ParquetFile, group: int) -> bytes:
    """The 16-byte keys of a row group, one after the other."""
    return _bytes_of(read_group(path, file, group, ["key"])["key"])


def all_keys(path: Path, file: pq.ParquetFile) -> bytes:
    """The keys of every row group, one after the other."""
    try:
        return _bytes_of(file.read(columns=["key"], use_threads=False)["key"])
    except (pa.ArrowException, OSError) as error:
        raise DataError(damage(path, error)) from None


def _bytes_of(keys: pa.ChunkedArray) -> bytes:
    parts = [chunk for chunk in keys.chunks if len(chunk)]
    return b"".join(c.buffers()[1].to_pybytes()[16 * c.offset : 16 * (c.offset + len(c))] for c in parts)


def rows_of(path: Path, file: pq.ParquetFile, group: int) -> list[list]:
    """[text, finish_reason, tokens, prompt_tokens, engine] of each row, as a segment's frame gives them.

    `DataError` when a row does not match its checksum, which covers the key: no key ever gets another key's text.
    """
    table = read_group(path, file, group)
    rows = []
    for key, *row, stored in zip(*(table[name].to_pylist() for name in SCHEMA.names), strict=True):
        if row_checksum(key, row) != stored:
            raise DataError(damage(path, f"a row of group {group} does not match its checksum"))
        rows.append(row)
    return rows


def row_checksum(key: bytes, row: list) -> bytes:
    """The checksum of a row, its key included."""
    return checksum(key, json.dumps(row).encode())


def tokens_of(path: Path, file: pq.ParquetFile) -> int:
    """The sum of the column `tokens`."""
    groups = range(file.metadata.num_row_groups)
    return sum(sum(read_group(path, file, group, ["tokens"])["tokens"].to_pylist()) for group in groups)


def write_parquet_files(folder: Path, completions: Iterable[tuple[bytes, list]]) -> list[Path]:
    """Write (key, row) pairs, rows as `rows_of` gives them, to new files in a folder; their paths.

    `ClusterError` when the disk is full or fails: the file that was being written is then not there.
    """
    paths, rows = list[Path](), iter(completions)
    groups = iter(lambda: list(islice(rows, GROUP_ROWS)), [])
    per_file = -(-FILE_ROWS // GROUP_ROWS)
    for first in groups:
        path = folder / new_name(".parquet")
        try:
            with replacing(path) as draft:
                with pq.ParquetWriter(draft, SCHEMA, compression="zstd", write_page_checksum=True) as writer:
                    for group in chain([first], islice(groups, per_file - 1)):
                        writer.write_table(_table_of(group), row_group_size=GROUP_ROWS)
                fsync(draft)
            fsync(folder)
        except OSError as error:
            action = "make it writable for you" if error.errno in READ_ONLY else "make room"
            raise ClusterError(
                f"compaction cannot write to {folder} ({error.strerror or error}); {action} and run it again: the"
                " store holds what it held before"
            ) from None
        paths.append(path)
    return paths


def _table_of(completions: Iterable[tuple[bytes, list]]) -> pa.Table:
    rows = []
    for key, (text, finish_reason, tokens, prompt_tokens, engine) in completions:
        row = [text, finish_reason, count_within(tokens), count_within(prompt_tokens), engine]
        rows.append((key, *row, row_checksum(key, row)))
    columns = [pa.array(c, field.type) for c, field in zip(zip(*rows, strict=True), SCHEMA, strict=True)]
    return pa.Table.from_arrays(columns, schema=SCHEMA)
