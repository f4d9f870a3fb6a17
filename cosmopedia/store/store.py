"""The completion store: every completion that was ever paid for, by content key, outside DVC's outs.

In: completions as they arrive. Out: completions by key. A folder of segments (append-only, one a writing process, so
that several write at once without a lock) and packs (parquet that compaction made of segments). A row is done when
`append` returns, which is after fsync. With COSMO_STORE=s3://bucket/prefix the folder is a mirror of the bucket.
`cosmo store` shows, verifies, compacts and repairs it.

The index in memory is one sorted array of 64-bit numbers: 40 bits of a key, 24 bits of the frame that may hold it.
A frame's own keys decide. 30 million keys take 240 MB.
"""

import mmap
import os
import sys
import time
from array import array
from collections import OrderedDict
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import zstandard

from cosmopedia.errors import ClusterError, DataError
from cosmopedia.generation.requests import Completion
from cosmopedia.lineage import main_checkout, store_root
from cosmopedia.store.bucket import Mirror
from cosmopedia.store.parquet_files import (
    all_keys,
    damage,
    files_in,
    keys_of,
    open_pack,
    rows_of,
    to_completion,
    tokens_of,
)
from cosmopedia.store.segments import FRAME_ROWS, Frame, Gone, SegmentWriter, decode, encode, open_file, read_frames
from cosmopedia.tables.contracts import DOCUMENT
from cosmopedia.tables.parquet import read_batches

FRAME_BITS = 24
FRAME_MASK = (1 << FRAME_BITS) - 1
KEYS_KEPT = 4096  # frames whose keys are in memory, about 6 MB
ROWS_KEPT = 64  # frames whose texts are in memory, about 16 MB
PACKS_OPEN = 16
MAP_BYTES = 8 << 20  # room for a million more; what is not used yet takes no memory
RECENT_ROWS = 100_000  # keys in the dictionary before they are merged into the sorted array


@dataclass
class Contents:
    """What a store holds; `completions` counts distinct keys."""

    completions: int
    tokens: int
    segments: int
    packs: int
    bytes: int


class CompletionStore:
    """One process's view of the store, and its writer. One call at a time.

    Reads what the files hold at opening; `refresh` takes in what other processes have added since.
    """

    def __init__(self, folder: Path | str | None = None, mirror: Mirror | None = None):
        if folder is None and mirror is None:
            mirror = default_mirror()
        self.mirror = mirror
        self.folder = mirror.folder if mirror else Path(folder) if folder is not None else default_folder()
        self._writer: SegmentWriter | None = None
        self._compressor = zstandard.ZstdCompressor(level=3)
        self._decompressor = zstandard.ZstdDecompressor()
        if mirror:
            mirror.pull()
        self._reload()

    def _reload(self) -> None:
        """Forget the index and read the files again."""
        self._files: list[Path] = []
        self._known: set[str] = set()
        self._read_to: dict[int, int] = {}  # bytes of each segment that are indexed
        self._frame_file, self._frame_at = array("I"), array("Q")  # of each frame: its file, its offset or row group
        self._memory = mmap.mmap(-1, MAP_BYTES, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)  # shared ones cannot grow
        self._packed = np.frombuffer(self._memory, np.uint64, 0)
        self._unsettled: list[np.ndarray] = []
        self._recent: dict[bytes, int] = {}
        self._keys: OrderedDict[int, bytes] = OrderedDict()
        self._rows: OrderedDict[int, list] = OrderedDict()
        self._packs: OrderedDict[Path, pq.ParquetFile] = OrderedDict()
        self.refresh()

    def refresh(self) -> None:
        """Index what was added since the last look. `DataError` names a damaged file."""
        folders = [self.folder, self.mirror.spool] if self.mirror else [self.folder]
        for path in (path for folder in folders for path in files_in(folder)):
            if path.name not in self._known:
                self._known.add(path.name)
                self._files.append(path)
                if self._writer is not None and path == self._writer.path:
                    self._own = len(self._files) - 1
                if path.suffix == ".parquet":
                    self._index_pack(len(self._files) - 1)
                else:
                    self._read_to[len(self._files) - 1] = 0
        for number, start in list(self._read_to.items()):
            try:
                self._index_segment(number, start)
            except Gone:
                del self._read_to[number]
        self._packed.sort()  # in place

    def _index_segment(self, number: int, start: int) -> None:
        for frame in read_frames(self._files[number], start):
            self._add(frame.keys, self._new_frame(number, frame.start))
            self._read_to[number] = frame.end
        self._settle()

    def _index_pack(self, number: int) -> None:
        path = self._files[number]
        pack = open_pack(path)
        groups = range(pack.metadata.num_row_groups)
        frames = np.array([self._new_frame(number, group) for group in groups], np.uint64)
        rows = [pack.metadata.row_group(group).num_rows for group in groups]
        prefixes = _prefixes(all_keys(path, pack))
        if len(prefixes) != sum(rows):
            raise DataError(damage(path, f"{len(prefixes)} keys for {sum(rows)} rows"))
        self._unsettled.append(prefixes | np.repeat(frames, rows))
        self._settle()

    def _new_frame(self, number: int, at: int) -> int:
        frame = len(self._frame_file)
        if frame > FRAME_MASK:
            raise DataError(f"{self.folder} holds more than {FRAME_MASK:,} frames; run `cosmo store compact`")
        self._frame_file.append(number)
        self._frame_at.append(at)
        return frame

    def _add(self, keys: bytes, frame: int) -> None:
        self._unsettled.append(_prefixes(keys) | np.uint64(frame))
        if len(self._unsettled) > 1024:
            self._settle()

    def _settle(self) -> None:
        """Append to the index, which the caller sorts. Its memory is a map of its own, and grows without a copy."""
        if self._unsettled:
            new = np.concatenate(self._unsettled)
            self._unsettled = []
            size, needed = len(self._packed), 8 * (len(self._packed) + len(new))
            if needed > len(self._memory):
                del self._packed  # a map that is looked at cannot grow
                self._memory.resize(needed + MAP_BYTES)
            self._packed = np.frombuffer(self._memory, np.uint64, needed // 8)
            self._packed[size:] = new

    def __contains__(self, key: str) -> bool:
        return self.present([bytes.fromhex(key)])[0]

    def present(self, keys: list[bytes]) -> list[bool]:
        """Whether each 16-byte key is in the store; many at once read each frame once."""
        try:
            return self._present(keys)
        except Gone:
            self._reload()
            return self._present(keys)

    def _present(self, keys: list[bytes]) -> list[bool]:
        found = [key in self._recent for key in keys]
        if len(self._packed) and keys:
            prefixes = _prefixes(b"".join(keys))
            places = np.searchsorted(self._packed, prefixes)
            near = self._packed[np.minimum(places, len(self._packed) - 1)]
            hits = np.flatnonzero((near & ~np.uint64(FRAME_MASK)) == prefixes)
            for number in hits[np.argsort(near[hits] & np.uint64(FRAME_MASK))]:  # frame by frame, as they lie on disk
                found[number] = found[number] or self._find(keys[number]) is not None
        return found

    def get(self, key: str) -> Completion | None:
        """The completion under a key, or None. `DataError` names the file when its bytes are damaged."""
        try:
            return self._get(key)
        except Gone:
            self._reload()
            return self._get(key)

    def _get(self, key: str) -> Completion | None:
        found = self._find(bytes.fromhex(key))
        if found is None:
            return None
        frame, row = found
        if (rows := self._rows.get(frame)) is None:
            rows = self._rows[frame] = self._read_rows(frame)
            if len(self._rows) > ROWS_KEPT:
                self._rows.popitem(last=False)
        return to_completion(key, rows[row])

    def _find(self, key: bytes) -> tuple[int, int] | None:
        """(frame, row) of a key."""
        for frame in self._candidates(key):
            keys = self._frame_keys(frame)
            at = keys.find(key)
            while at >= 0 and at % 16:
                at = keys.find(key, at + 1)
            if at >= 0:
                return frame, at // 16
        return None

    def _candidates(self, key: bytes) -> list[int]:
        if key in self._recent:
            return [self._recent[key]]
        prefix = _prefixes(key)[0]
        low = int(np.searchsorted(self._packed, prefix))
        high = int(np.searchsorted(self._packed, prefix | np.uint64(FRAME_MASK), "right"))
        return [int(packed) & FRAME_MASK for packed in self._packed[low:high]]

    def _frame_keys(self, frame: int) -> bytes:
        if frame in self._keys:
            self._keys.move_to_end(frame)
            return self._keys[frame]
        path, at = self._place(frame)
        packed = path.suffix == ".parquet"
        keys = keys_of(path, self._pack(path), at) if packed else self._segment_frame(path, at).keys
        self._keys[frame] = keys
        if len(self._keys) > KEYS_KEPT:
            self._keys.popitem(last=False)
        return keys

    def _place(self, frame: int) -> tuple[Path, int]:
        """(file, offset or row group) of a frame; an uploaded segment has moved from the spool to the mirror."""
        number = self._frame_file[frame]
        if self.mirror and not self._files[number].exists():
            self._files[number] = self.mirror.folder / self._files[number].name
        return self._files[number], self._frame_at[frame]

    def _segment_frame(self, path: Path, at: int) -> Frame:
        frame = next(read_frames(path, at), None)
        if frame is None:
            raise DataError(f"{path}: a frame that was there at byte {at} is gone; run `cosmo store`")
        return frame

    def _read_rows(self, frame: int) -> list:
        path, at = self._place(frame)
        if path.suffix == ".parquet":
            return rows_of(path, self._pack(path), at)
        with open_file(path) as stream:
            return decode(stream, path, self._segment_frame(path, at), self._decompressor)

    def _pack(self, path: Path) -> pq.ParquetFile:
        if path not in self._packs:
            self._packs[path] = open_pack(path)
            if len(self._packs) > PACKS_OPEN:
                self._packs.popitem(last=False)
        self._packs.move_to_end(path)
        return self._packs[path]

    def append(self, completions: list[Completion]) -> None:
        """Write completions and fsync; they are done when this returns.

        `ClusterError` when the disk is full or fails; the store then holds what it held before.
        """
        if not completions:
            return
        frames, starts, size = [], [], 0
        for first in range(0, len(completions), FRAME_ROWS):
            frames.append(encode(completions[first : first + FRAME_ROWS], self._compressor))
            starts.append(size)
            size += len(frames[-1])
        if self._writer is None:
            self._begin_segment()
        assert self._writer is not None
        base = self._writer.append(b"".join(frames))
        numbers = [self._new_frame(self._own, base + start) for start in starts]
        for position, completion in enumerate(completions):
            self._recent.setdefault(bytes.fromhex(completion.key), numbers[position // FRAME_ROWS])
        if len(self._recent) > RECENT_ROWS:
            self._merge_recent()
        if self.mirror and self.mirror.wants(self._writer.size, self._began):
            self._hand_over()

    def _begin_segment(self) -> None:
        self._writer = SegmentWriter(self.mirror.spool if self.mirror else self.folder)
        self._began = time.monotonic()
        self._files.append(self._writer.path)
        self._known.add(self._writer.path.name)
        self._own = len(self._files) - 1

    def _hand_over(self) -> None:
        """Close the own segment and let the mirror upload it."""
        assert self._writer is not None and self.mirror is not None
        self._writer.close()
        self.mirror.push_later(self._writer.path)
        self._writer = None

    def _merge_recent(self) -> None:
        frames = np.fromiter(self._recent.values(), np.uint64, len(self._recent))
        self._unsettled = [_prefixes(b"".join(self._recent)) | frames]
        self._settle()
        self._packed.sort(kind="stable")  # two sorted runs, nearly: a merge
        self._recent.clear()

    def import_documents(self, paths: Iterable[Path | str]) -> int:
        """Take over the completions of data/generate/*.parquet that the store lacks; returns how many."""
        columns = ["key", "text", "finish_reason", "text_token_length", "prompt_tokens", "engine"]
        imported = 0
        for path in paths:
            for table in read_batches([path], DOCUMENT, columns):
                keys = table["key"].to_pylist()
                here = self.present([bytes.fromhex(key) for key in keys])
                if all(here):
                    continue
                new = {}
                for row, known in zip(table.to_pylist(), here, strict=True):
                    key, tokens = row.pop("key"), row.pop("text_token_length")
                    if not known:
                        new[key] = Completion(key=key, tokens=tokens, **row)
                self.append(list(new.values()))
                imported += len(new)
        return imported

    def contents(self) -> Contents:
        """Count what is there."""
        self._merge_recent()
        tokens, paths = 0, [path for path in self._files if path.exists()]
        for path in paths:
            if path.suffix == ".parquet":
                tokens += tokens_of(path, open_pack(path))
            else:
                tokens += sum(frame.tokens for frame in read_frames(path))
        packs = sum(path.suffix == ".parquet" for path in paths)
        size = sum(path.stat().st_size for path in paths)
        return Contents(self._distinct(), tokens, len(paths) - packs, packs, size)

    def _distinct(self) -> int:
        """Distinct keys; those that share their first 40 bits are looked at whole."""
        prefixes = self._packed & ~np.uint64(FRAME_MASK)
        alike = np.flatnonzero(prefixes[1:] == prefixes[:-1])
        if not len(alike):
            return len(prefixes)
        unsure = np.unique(np.concatenate([alike, alike + 1]))
        whole: set[bytes] = set()
        wanted = {int(prefix) for prefix in prefixes[unsure]}
        for frame in np.unique(self._packed[unsure] & np.uint64(FRAME_MASK)):
            keys = self._frame_keys(int(frame))
            parts = [keys[at : at + 16] for at in range(0, len(keys), 16)]
            whole |= {key for key, prefix in zip(parts, _prefixes(keys), strict=True) if int(prefix) in wanted}
        return len(prefixes) - len(unsure) + len(whole)

    def close(self) -> None:
        """Close this process's segment; a mirrored one is uploaded."""
        if self._writer is not None:
            self._writer.close()
            self._writer = None
        if self.mirror:
            try:
                self.mirror.push()
            except ClusterError as error:  # nothing is lost: it lies in the spool
                print(f"warning: {error}", file=sys.stderr, flush=True)

    def __enter__(self) -> "CompletionStore":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _prefixes(keys: bytes) -> np.ndarray:
    """The first 40 bits of each 16-byte key, in the upper bits of a uint64."""
    return np.frombuffer(keys, ">u8")[::2].astype(np.uint64) & ~np.uint64(FRAME_MASK)


def default_folder() -> Path:
    """`<store root>/completions`."""
    return store_root() / "completions"


def default_mirror() -> Mirror | None:
    """The mirror of `$COSMO_STORE` when that is an address (s3://bucket/prefix); None when it is a folder."""
    address = os.environ.get("COSMO_STORE", "")
    return Mirror(address, main_checkout() / ".store") if "://" in address else None
