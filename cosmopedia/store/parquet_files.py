"""Packs: what compaction makes of segments. Parquet that anything can read, with pages under checksums.

One row a completion, in the order of the segments; a row group is what one look-up reads. A pack appears under its
name only when it is whole and on disk, and the segments go after that: a crash leaves completions twice, never lost.
"""

import json
import os
from collections.abc import Iterable, Iterator
from hashlib import blake2b
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import zstandard

from cosmopedia.errors import ClusterError, DataError
from cosmopedia.generation.requests import Completion
from cosmopedia.store.segments import Gone, decode, in_use, new_name, open_file, read_frames

GROUP_ROWS = 512  # about 2 MB of text: 5 ms to read one of them
PACK_ROWS = 131_072  # a pack: about 200 MB
SCHEMA = pa.schema(
    [
        pa.field("key", pa.binary(16), nullable=False),
        pa.field("text", pa.string(), nullable=False),
        pa.field("finish_reason", pa.string(), nullable=False),
        pa.field("tokens", pa.int32(), nullable=False),
        pa.field("prompt_tokens", pa.int32(), nullable=False),
        pa.field("engine", pa.string(), nullable=False),
        pa.field("check", pa.binary(8), nullable=False),  # of the whole row: pages are checked, a footer is not
    ]
)


def open_pack(path: Path) -> pq.ParquetFile:
    """`Gone` when the file is no more, `DataError` with its name when it is no pack."""
    try:
        found = pq.ParquetFile(path, page_checksum_verification=True)
    except FileNotFoundError:
        raise Gone(str(path)) from None
    except (pa.ArrowException, OSError) as error:
        raise DataError(damage(path, error)) from None
    if found.schema_arrow.remove_metadata().names != SCHEMA.names:
        raise DataError(damage(path, f"its columns are {', '.join(found.schema_arrow.names)}"))
    return found


def read_group(path: Path, pack: pq.ParquetFile, group: int, columns: list[str] | None = None) -> pa.Table:
    """A row group. `DataError` when a page's checksum fails."""
    try:
        return pack.read_row_group(group, columns=columns, use_threads=False)
    except (pa.ArrowException, OSError) as error:
        raise DataError(damage(path, error)) from None


def keys_of(path: Path, pack: pq.ParquetFile, group: int) -> bytes:
    """The 16-byte keys of a row group, one after the other."""
    return _bytes_of(read_group(path, pack, group, ["key"])["key"])


def all_keys(path: Path, pack: pq.ParquetFile) -> bytes:
    """The keys of every row group, one after the other."""
    try:
        return _bytes_of(pack.read(columns=["key"], use_threads=False)["key"])
    except (pa.ArrowException, OSError) as error:
        raise DataError(damage(path, error)) from None


def _bytes_of(keys: pa.ChunkedArray) -> bytes:
    parts = [chunk for chunk in keys.chunks if len(chunk)]
    return b"".join(c.buffers()[1].to_pybytes()[16 * c.offset : 16 * (c.offset + len(c))] for c in parts)


def rows_of(path: Path, pack: pq.ParquetFile, group: int) -> list[list]:
    """[text, finish_reason, tokens, prompt_tokens, engine] of each row, as a segment's frame gives them.

    `DataError` when a row does not match its checksum, which covers the key: a text never answers to another key.
    """
    table = read_group(path, pack, group)
    rows = []
    for key, *row, check in zip(*(table[name].to_pylist() for name in SCHEMA.names), strict=True):
        if check_of(key, row) != check:
            raise DataError(damage(path, f"a row of group {group} does not match its checksum"))
        rows.append(row)
    return rows


def check_of(key: bytes, row: list) -> bytes:
    """The checksum of a row."""
    return blake2b(key + json.dumps(row).encode(), digest_size=8).digest()


def tokens_of(path: Path, pack: pq.ParquetFile) -> int:
    """The sum of the column `tokens`."""
    groups = range(pack.metadata.num_row_groups)
    return sum(sum(read_group(path, pack, group, ["tokens"])["tokens"].to_pylist()) for group in groups)


def damage(path: Path, what: object) -> str:
    """The sentence for a damaged pack."""
    return (
        f"{path} is damaged ({' '.join(str(what).split())[:200]}); run `cosmo store repair`, which"
        " keeps what is whole and sets the pack aside, then run again: only what was lost is generated anew"
    )


class PackWriter:
    """Writes completions to new packs in a folder; use as a context manager, and take `paths` after it."""

    def __init__(self, folder: Path):
        self.folder, self.paths, self.rows = folder, list[Path](), 0
        self._rows: list[tuple] = []
        self._draft: Path | None = None
        self._in_draft = 0

    def write(self, key: bytes, row: list) -> None:
        """One completion, as [text, finish_reason, tokens, prompt_tokens, engine]."""
        self._rows.append((key, *row, check_of(key, row)))
        self.rows += 1
        if len(self._rows) == GROUP_ROWS:
            self._flush()
            if self._in_draft >= PACK_ROWS:
                self._finish()

    def _flush(self) -> None:
        if not self._rows:
            return
        try:
            if self._draft is None:
                self._draft = self.folder / new_name(".draft")
                self._writer = pq.ParquetWriter(self._draft, SCHEMA, compression="zstd", write_page_checksum=True)
            columns = [pa.array(c, field.type) for c, field in zip(zip(*self._rows, strict=True), SCHEMA, strict=True)]
            self._writer.write_table(pa.Table.from_arrays(columns, schema=SCHEMA), row_group_size=GROUP_ROWS)
        except OSError as error:
            raise self._full(error) from None
        self._in_draft += len(self._rows)
        self._rows = []

    def _finish(self) -> None:
        self._flush()
        if self._draft is None:
            return
        try:
            self._writer.close()
            descriptor = os.open(self._draft, os.O_RDONLY)
            os.fsync(descriptor)
            os.close(descriptor)
            path = self._draft.with_suffix(".parquet")
            self._draft.rename(path)
            directory = os.open(self.folder, os.O_RDONLY)
            os.fsync(directory)
            os.close(directory)
        except OSError as error:
            raise self._full(error) from None
        self.paths.append(path)
        self._draft, self._in_draft = None, 0

    def _full(self, error: OSError) -> ClusterError:
        return ClusterError(
            f"compaction cannot write to {self.folder} ({error.strerror or error}); make room and run it again: the"
            " store holds what it held before"
        )

    def __enter__(self) -> "PackWriter":
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None:
            self._finish()
        elif self._draft is not None:
            self._draft.unlink(missing_ok=True)


def read_file(path: Path) -> Iterator[tuple[bytes, list]]:
    """(key, row) of every completion in a segment or a pack, every checksum tested."""
    if path.suffix == ".seg":
        decompressor = zstandard.ZstdDecompressor()
        with open_file(path) as stream:
            for frame in read_frames(path):
                rows = decode(stream, path, frame, decompressor)
                for number, row in enumerate(rows):
                    yield frame.keys[16 * number : 16 * number + 16], row
        return
    pack = open_pack(path)
    for group in range(pack.metadata.num_row_groups):
        keys, rows = keys_of(path, pack, group), rows_of(path, pack, group)
        for number, row in enumerate(rows):
            yield keys[16 * number : 16 * number + 16], row


def files_in(folder: Path) -> list[Path]:
    """The segments and packs of a folder, in the order of their names."""
    return sorted(path for path in folder.glob("*") if path.suffix in (".seg", ".parquet"))


def closed(paths: Iterable[Path]) -> list[Path]:
    """Those that no writer appends to any more."""
    return [path for path in paths if path.suffix == ".parquet" or not in_use(path)]


def to_completion(key: str, row: list) -> Completion:
    """A row of a frame or a pack as a completion."""
    return Completion(key, *row)
