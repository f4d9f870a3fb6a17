"""The completion store: every completion that was ever paid for, by content key, outside DVC's outs.

In: completions as they arrive. Out: completions by key. It is a folder of segments (append-only, one per writing
process, so that several write at once without a lock) and parquet files (which compaction made of segments). A
completion is done when `append` returns, which is after fsync. With COSMO_STORE=s3://bucket/prefix the folder is a
local copy of the bucket. `cosmo store` shows, verifies, compacts and repairs it.
"""

import os
import tempfile
import time
from array import array
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import zstandard

from cosmopedia.core.errors import ClusterError, DataError
from cosmopedia.core.lineage import main_checkout, store_root
from cosmopedia.execution.redaction import say
from cosmopedia.generation.requests import Completion
from cosmopedia.store.bucket import Bucket
from cosmopedia.store.documents import Table, completions_in, table_at
from cosmopedia.store.folder import files_in, split_keys
from cosmopedia.store.index import FRAME_MASK, RECENT_ROWS, KeyIndex, prefix
from cosmopedia.store.parquet_files import all_keys, keys_of, open_parquet, rows_of, tokens_of
from cosmopedia.store.segments import (
    FRAME_ROWS,
    FileRemoved,
    Frame,
    SegmentWriter,
    damage,
    decode,
    encode,
    open_file,
    read_frames,
    writing,
)

CACHED_KEYS = 4096  # frames whose keys are in memory, about 6 MB
CACHED_ROWS = 64  # frames whose texts are in memory, about 16 MB
OPEN_FILES = 16  # parquet files
WRITABLE_BYTES = 1 << 20  # that must fit before anything is sent


@dataclass
class Contents:
    """What a store holds; `completions` counts distinct keys."""

    completions: int
    tokens: int
    segments: int
    parquet_files: int
    bytes: int


class CompletionStore:
    """One process's view of the store, and its writer. For one thread at a time.

    Reads what the files hold at opening; `refresh` takes in what other processes have added since.
    """

    def __init__(self, folder: Path | str | None = None, bucket: Bucket | None = None):
        if folder is None and bucket is None:
            bucket = default_bucket()
        self.bucket = bucket
        self.folder = bucket.folder if bucket else Path(folder) if folder is not None else default_folder()
        self._writer: SegmentWriter | None = None
        self._compressor = zstandard.ZstdCompressor(level=3)
        if bucket:
            bucket.pull()
        self._reload()

    def _reload(self) -> None:
        """Forget the index and read the files again."""
        self._files: list[Path] = []
        self._known: set[str] = set()
        self._indexed_to: dict[int, int] = {}  # file number of each segment -> bytes of it that are indexed
        self._index = KeyIndex()
        # Of each frame: the number of its file, and its byte offset (segment) or row group (parquet file).
        self._frame_file, self._frame_place = array("I"), array("Q")
        self._keys_of_frame = lru_cache(CACHED_KEYS)(self._read_keys)
        self._rows_of_frame = lru_cache(CACHED_ROWS)(self._read_rows)
        self._open_parquet = lru_cache(OPEN_FILES)(open_parquet)
        self.refresh()

    def refresh(self) -> bool:
        """Index what was added since the last look; whether there was any. `DataError` names a damaged file."""
        frames = len(self._frame_file)
        folders = [self.folder, self.bucket.spool] if self.bucket else [self.folder]
        for path in (path for folder in folders for path in files_in(folder)):
            if path.name in self._known:
                continue
            number = self._add_file(path)
            if self._writer is not None and path == self._writer.path:
                self._own = number
            if path.suffix == ".parquet":
                self._index_parquet(number)
            else:
                self._indexed_to[number] = 0
        for number, start in list(self._indexed_to.items()):
            try:
                self._index_segment(number, start)
            except FileRemoved:
                del self._indexed_to[number]
        self._index.sort()
        return len(self._frame_file) > frames

    def _add_file(self, path: Path) -> int:
        self._known.add(path.name)
        self._files.append(path)
        return len(self._files) - 1

    def _index_segment(self, number: int, start: int) -> None:
        for frame in read_frames(self._files[number], start):
            self._index.add(frame.keys, self._add_frame(number, frame.start))
            self._indexed_to[number] = frame.end
        self._index.flush()

    def _index_parquet(self, number: int) -> None:
        path = self._files[number]
        file = open_parquet(path)
        groups = range(file.metadata.num_row_groups)
        frames = np.array([self._add_frame(number, group) for group in groups], np.uint64)
        rows = [file.metadata.row_group(group).num_rows for group in groups]
        keys = all_keys(path, file)
        if len(keys) != 16 * sum(rows):
            raise DataError(damage(path, f"{len(keys) // 16} keys for {sum(rows)} rows"))
        self._index.add(keys, np.repeat(frames, rows))
        self._index.flush()

    def _add_frame(self, file: int, place: int) -> int:
        frame = len(self._frame_file)
        if frame > FRAME_MASK:
            raise DataError(f"{self.folder} holds more than {FRAME_MASK:,} frames; run `cosmo store compact`")
        self._frame_file.append(file)
        self._frame_place.append(place)
        return frame

    def __contains__(self, key: str) -> bool:
        return self.present([bytes.fromhex(key)])[0]

    def present(self, keys: list[bytes]) -> list[bool]:
        """Whether each 16-byte key is in the store; many at once read each frame once."""
        try:
            return self._present(keys)
        except FileRemoved:
            self._reload()
            return self._present(keys)

    def _present(self, keys: list[bytes]) -> list[bool]:
        present = [key in self._index.recent for key in keys]
        for number in self._index.possible(keys):
            present[number] = present[number] or self._find(keys[number]) is not None
        return present

    def get(self, key: str) -> Completion | None:
        """The completion under a key, or None. `DataError` names the file when its bytes are damaged."""
        try:
            return self._get(key)
        except FileRemoved:
            self._reload()
            return self._get(key)

    def _get(self, key: str) -> Completion | None:
        position = self._find(bytes.fromhex(key))
        if position is None:
            return None
        frame, row = position
        return Completion(key, *self._rows_of_frame(frame)[row])

    def _find(self, key: bytes) -> tuple[int, int] | None:
        """(frame, row) of a key."""
        for frame in self._index.frames(key):
            keys = self._keys_of_frame(frame)
            start = keys.find(key)
            while start >= 0 and start % 16:  # across the border of two keys
                start = keys.find(key, start + 1)
            if start >= 0:
                return frame, start // 16
        return None

    def _read_keys(self, frame: int) -> bytes:
        path, place = self._place(frame)
        if path.suffix == ".parquet":
            return keys_of(path, self._open_parquet(path), place)
        return self._segment_frame(path, place).keys

    def _read_rows(self, frame: int) -> list:
        path, place = self._place(frame)
        if path.suffix == ".parquet":
            return rows_of(path, self._open_parquet(path), place)
        with open_file(path) as stream:
            return decode(stream, path, self._segment_frame(path, place))

    def _place(self, frame: int) -> tuple[Path, int]:
        """(file, offset or row group) of a frame; an uploaded segment has moved out of the bucket's spool."""
        number = self._frame_file[frame]
        if self.bucket and not self._files[number].exists():
            self._files[number] = self.bucket.folder / self._files[number].name
        return self._files[number], self._frame_place[frame]

    def _segment_frame(self, path: Path, offset: int) -> Frame:
        frame = next(read_frames(path, offset), None)
        if frame is None:
            raise DataError(damage(path, "a frame that was there is not there any more", offset))
        return frame

    def append(self, completions: list[Completion]) -> None:
        """Write completions and fsync; they are done when this returns.

        `ClusterError` when the disk is full or fails; the store then holds what it held before.
        """
        if not completions:
            return
        batches = [completions[first : first + FRAME_ROWS] for first in range(0, len(completions), FRAME_ROWS)]
        frames = [encode(batch, self._compressor) for batch in batches]
        if self._writer is None:
            self._begin_segment()
        assert self._writer is not None
        offset = self._writer.append(b"".join(frames))
        for batch, content in zip(batches, frames, strict=True):
            frame = self._add_frame(self._own, offset)
            offset += len(content)
            for completion in batch:
                self._index.add_recent(bytes.fromhex(completion.key), frame)
        if len(self._index.recent) > RECENT_ROWS:
            self._index.merge_recent()
        if self.bucket and self.bucket.upload_is_due(self._writer.size, self._began):
            self._writer.close()
            self.bucket.push_later(self._writer.path)
            self._writer = None

    def check_writable(self) -> None:
        """`ClusterError` unless a completion could be stored now: it is better to know before one was paid for."""
        folder = self.bucket.spool if self.bucket else self.folder
        with writing(folder):
            folder.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=folder) as file:
                file.write(bytes(WRITABLE_BYTES))
                file.flush()
                os.fsync(file.fileno())

    def _begin_segment(self) -> None:
        self._writer = SegmentWriter(self.bucket.spool if self.bucket else self.folder)
        self._began = time.monotonic()
        self._own = self._add_file(self._writer.path)

    def import_documents(self, tables: Iterable[Table | Path | str], wanted: np.ndarray | None = None) -> int:
        """Copy the completions of tables (data/generate/*.parquet) that the store lacks; returns how many.

        With `wanted`, the sorted first 16 hex digits of keys as uint64, only those, and no file is opened once each of
        them has been found.
        """
        imported = 0
        for table in tables:
            if wanted is not None and imported >= len(wanted):
                break
            for completions in completions_in(table if isinstance(table, Table) else table_at(Path(table)), wanted):
                present = self.present([bytes.fromhex(one.key) for one in completions])
                new = {one.key: one for one, is_here in zip(completions, present, strict=True) if not is_here}
                self.append(list(new.values()))
                imported += len(new)
        return imported

    def contents(self) -> Contents:
        """Count what is there."""
        self._index.merge_recent()
        paths = [path for path in self._files if path.exists()]
        segments = [path for path in paths if path.suffix == ".seg"]
        parquet_files = [path for path in paths if path.suffix == ".parquet"]
        tokens = sum(frame.tokens for path in segments for frame in read_frames(path))
        tokens += sum(tokens_of(path, open_parquet(path)) for path in parquet_files)
        size = sum(path.stat().st_size for path in paths)
        return Contents(self._distinct(), tokens, len(segments), len(parquet_files), size)

    def _distinct(self) -> int:
        """Distinct keys; those that share their first 40 bits are compared whole."""
        count, prefixes, frames = self._index.ambiguous()
        keys = (key for frame in frames for key in split_keys(self._keys_of_frame(frame)))
        return len(self._index) - count + len({key for key in keys if prefix(key) in prefixes})

    def close(self) -> None:
        """Close this process's segment; with a bucket, upload it."""
        if self._writer is not None:
            self._writer.close()
            self._writer = None
        if self.bucket:
            try:
                self.bucket.push()
            except ClusterError as error:  # nothing is lost: it is in the spool
                say(f"warning: {error}")

    def __enter__(self) -> "CompletionStore":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def default_folder() -> Path:
    """`<store root>/completions`."""
    return store_root() / "completions"


def default_bucket() -> Bucket | None:
    """The bucket of `$COSMO_STORE` when that is an address (s3://bucket/prefix); None when it is a folder."""
    address = os.environ.get("COSMO_STORE", "")
    return Bucket(address, main_checkout() / ".store") if "://" in address else None
