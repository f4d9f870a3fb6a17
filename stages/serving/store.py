"""The completion store: every completion that was ever paid for, by content key, outside DVC's outs.

In: completions as they arrive. Out: completions by key. A folder (`completions` in `lineage.store_root()`) of
append-only segments, one per writing process, so that several processes can write at once without a lock. A row is
done when `append` returns, which is after fsync. Run `python -m stages.serving.store` to see what it holds;
`... verify` reads every byte, `... salvage` sets damaged segments aside and keeps what is whole in them,
`... import FILES` takes completions over from data/generate/*.parquet.

A segment is a magic word and frames. A frame holds up to 64 completions: 16-byte keys, then their texts in one zstd
block, each part under a checksum. A crash while appending leaves a prefix of a frame at the end of a segment: it was
never done, and is ignored. Anything else that does not add up is damage, and is reported with the segment's name.
"""

import json
import os
import secrets
import struct
import sys
import time
import zlib
from collections import OrderedDict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np
import zstandard

from stages.errors import ClusterError, ConfigError, DataError, run_stage
from stages.lineage import store_root
from stages.serving.requests import Completion
from stages.tables.contracts import DOCUMENT
from stages.tables.parquet import read_batches

SEGMENT_MAGIC = b"COSMOSG1"
FRAME_MAGIC = b"FRM1"
FRAME_ROWS = 64  # completions a frame: 250 kB of text, a third of a millisecond to decompress
FRAMES_KEPT = 64  # decompressed frames in memory, about 16 MB
RECENT_ROWS = 100_000  # keys in the dictionary before they are merged into the sorted arrays
OFFSET_BITS = 40  # a place is segment number << 40 | byte offset of the frame

# magic, rows, bytes of payload, tokens, checksum of the keys, checksum of keys + payload; then CRC-32 of these
_HEAD = struct.Struct("<4sIIQ8s8s")
_CRC = struct.Struct("<I")
HEAD_BYTES = _HEAD.size + _CRC.size


class Frame(NamedTuple):
    """A frame's header and keys; `start` and `end` are byte offsets in its segment."""

    start: int
    end: int
    tokens: int
    keys: bytes
    check: bytes

    @property
    def rows(self) -> int:
        return len(self.keys) // 16

    def row_of(self, key: bytes) -> int | None:
        """The key's position, or None."""
        at = self.keys.find(key)
        while at >= 0 and at % 16:
            at = self.keys.find(key, at + 1)
        return at // 16 if at >= 0 else None


@dataclass
class Contents:
    """What a store holds; `completions` counts distinct keys."""

    completions: int
    tokens: int
    segments: int
    bytes: int


class CompletionStore:
    """One process's view of the store, and its writer. One call at a time.

    Reads what the segments hold at opening; `refresh` takes in what other processes have added since.
    """

    def __init__(self, folder: Path | str | None = None):
        self.folder = Path(folder) if folder is not None else default_folder()
        self._segments: list[Path] = []
        self._read_to: list[int] = []  # bytes of each segment that are indexed
        self._prefixes = np.empty(0, np.uint64)  # first 8 bytes of each key, sorted
        self._places = np.empty(0, np.uint64)
        self._recent: dict[bytes, int] = {}
        self._frames: OrderedDict[int, tuple[Frame, list | None]] = OrderedDict()
        self._writer: _SegmentWriter | None = None
        self._own = -1  # number of the writer's segment
        self._compressor = zstandard.ZstdCompressor(level=3)
        self._decompressor = zstandard.ZstdDecompressor()
        self.refresh()

    def refresh(self) -> None:
        """Index what was added to the folder since the last look. `DataError` names a damaged segment."""
        known = set(self._segments)
        for path in sorted(self.folder.glob("*.seg")):
            if path not in known:
                self._segments.append(path)
                self._read_to.append(0)
        prefixes, places = [self._prefixes], [self._places]
        for number, path in enumerate(self._segments):
            for frame in read_frames(path, self._read_to[number]):
                prefixes.append(_prefixes(frame.keys))
                places.append(np.full(frame.rows, number << OFFSET_BITS | frame.start, np.uint64))
                self._read_to[number] = frame.end
        if len(places) > 1:
            self._merge(np.concatenate(prefixes), np.concatenate(places))

    def _merge(self, prefixes: np.ndarray, places: np.ndarray) -> None:
        order = np.argsort(prefixes, kind="stable")
        self._prefixes, self._places = prefixes[order], places[order]

    def __contains__(self, key: str) -> bool:
        return self._find(bytes.fromhex(key)) is not None

    def get(self, key: str) -> Completion | None:
        """The completion under a key, or None. `DataError` names the segment when its bytes are damaged."""
        found = self._find(bytes.fromhex(key))
        if found is None:
            return None
        place, frame, row = found
        rows = self._frames[place][1]
        if rows is None:
            rows = self._decode(self._segments[place >> OFFSET_BITS], frame)
            self._frames[place] = frame, rows
        return Completion(key, *rows[row])

    def _find(self, key: bytes) -> tuple[int, Frame, int] | None:
        for place in self._candidates(key):
            frame = self._frame(place)
            row = frame.row_of(key)
            if row is not None:
                return place, frame, row
        return None

    def _candidates(self, key: bytes) -> list[int]:
        if key in self._recent:
            return [self._recent[key]]
        prefix = _prefixes(key)[0]
        low = int(np.searchsorted(self._prefixes, prefix, "left"))
        high = low
        while high < len(self._prefixes) and self._prefixes[high] == prefix:
            high += 1
        return [int(place) for place in self._places[low:high]]

    def _frame(self, place: int) -> Frame:
        if place in self._frames:
            self._frames.move_to_end(place)
            return self._frames[place][0]
        path, offset = self._segments[place >> OFFSET_BITS], place & ((1 << OFFSET_BITS) - 1)
        with _open(path) as stream:
            frame = _read_frame(stream, path, offset)
        if frame is None:
            raise DataError(_damage(path, offset, "a frame that was there is gone"))
        self._frames[place] = frame, None
        if len(self._frames) > FRAMES_KEPT:
            self._frames.popitem(last=False)
        return frame

    def _decode(self, path: Path, frame: Frame) -> list:
        with _open(path) as stream:
            return decode(stream, path, frame, self._decompressor)

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
            self._writer = _SegmentWriter(self.folder)
            self._segments.append(self._writer.path)
            self._read_to.append(0)
            self._own = len(self._segments) - 1
        base = self._writer.append(b"".join(frames))
        self._read_to[self._own] = base + size
        for position, completion in enumerate(completions):
            place = self._own << OFFSET_BITS | base + starts[position // FRAME_ROWS]
            self._recent.setdefault(bytes.fromhex(completion.key), place)
        if len(self._recent) > RECENT_ROWS:
            keys = _prefixes(b"".join(self._recent))
            places = np.fromiter(self._recent.values(), np.uint64, len(self._recent))
            self._merge(np.concatenate([self._prefixes, keys]), np.concatenate([self._places, places]))
            self._recent.clear()

    def import_documents(self, paths: Iterable[Path | str]) -> int:
        """Take over the completions of data/generate/*.parquet that the store lacks; returns how many."""
        columns = ["key", "text", "finish_reason", "text_token_length", "prompt_tokens", "engine"]
        imported = 0
        for path in paths:
            if all(
                key in self for table in read_batches([path], DOCUMENT, ["key"]) for key in table["key"].to_pylist()
            ):
                continue
            for table in read_batches([path], DOCUMENT, columns):
                new = {}
                for row in table.to_pylist():
                    key, tokens = row.pop("key"), row.pop("text_token_length")
                    if key not in self:
                        new[key] = Completion(key=key, tokens=tokens, **row)
                self.append(list(new.values()))
                imported += len(new)
        return imported

    def contents(self) -> Contents:
        """Count what is there."""
        keys = np.concatenate([self._prefixes, _prefixes(b"".join(self._recent))])
        tokens = sum(frame.tokens for path in self._segments for frame in read_frames(path))
        size = sum(path.stat().st_size for path in self._segments)
        return Contents(len(np.unique(keys)), tokens, len(self._segments), size)

    def close(self) -> None:
        """Close this process's segment."""
        if self._writer is not None:
            self._writer.close()
            self._writer = None

    def __enter__(self) -> "CompletionStore":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class _SegmentWriter:
    """Appends bytes durably to a new segment that belongs to this process alone."""

    def __init__(self, folder: Path):
        name = f"{time.strftime('%Y%m%d-%H%M%S', time.gmtime())}-{os.getpid()}-{secrets.token_hex(4)}.seg"
        self.path, self._size = folder / name, 0
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._file = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND, 0o666)
            self._write(SEGMENT_MAGIC)
            directory = os.open(folder, os.O_RDONLY)
            os.fsync(directory)
            os.close(directory)
        except OSError as error:
            raise self._full(error) from None

    def append(self, content: bytes) -> int:
        """Write, fsync, and return the offset of the first byte."""
        start = self._size
        try:
            self._write(content)
        except OSError as error:
            os.ftruncate(self._file, start)
            raise self._full(error) from None
        return start

    def _write(self, content: bytes) -> None:
        view = memoryview(content)
        while view:
            view = view[os.write(self._file, view) :]
        os.fsync(self._file)
        self._size += len(content)

    def _full(self, error: OSError) -> ClusterError:
        return ClusterError(
            f"the completion store cannot write to {self.path} ({error.strerror}); make room or set COSMO_STORE to"
            " another folder, then run again: every completion that was stored before is kept"
        )

    def close(self) -> None:
        os.close(self._file)


def default_folder() -> Path:
    """`<store root>/completions`. `ConfigError` for an address that is no folder."""
    if "://" in os.environ.get("COSMO_STORE", ""):
        raise ConfigError(
            f"COSMO_STORE={os.environ['COSMO_STORE']} is no folder; only local folders are supported yet"
        )
    return store_root() / "completions"


def encode(completions: list[Completion], compressor: zstandard.ZstdCompressor) -> bytes:
    """One frame. The text's checksum covers the keys too, so that a text can never answer to another key."""
    keys = b"".join(bytes.fromhex(c.key) for c in completions)
    rows = [[c.text, c.finish_reason, c.tokens, c.prompt_tokens, c.engine] for c in completions]
    payload = compressor.compress(json.dumps(rows, separators=(",", ":")).encode())
    tokens = sum(c.tokens for c in completions)
    head = _HEAD.pack(FRAME_MAGIC, len(completions), len(payload), tokens, _check(keys), _check(keys, payload))
    return b"".join([head, _CRC.pack(zlib.crc32(head)), keys, payload])


def decode(stream: BinaryIO, path: Path, frame: Frame, decompressor: zstandard.ZstdDecompressor) -> list:
    """A frame's rows: [text, finish_reason, tokens, prompt_tokens, engine]. `DataError` when the checksum fails."""
    stream.seek(frame.start + HEAD_BYTES + len(frame.keys))
    payload = stream.read(frame.end - stream.tell())
    if _check(frame.keys, payload) != frame.check:
        raise DataError(_damage(path, frame.start, "the texts' checksum does not match"))
    return json.loads(decompressor.decompress(payload))


def read_frames(path: Path, start: int = 0) -> Iterator[Frame]:
    """The frames of a segment from a byte offset on, without their texts; a torn tail ends it."""
    with _open(path) as stream:
        if start == 0:
            magic = stream.read(len(SEGMENT_MAGIC))
            if magic != SEGMENT_MAGIC[: len(magic)] and magic.strip(b"\0"):
                raise DataError(_damage(path, 0, "it does not begin as a segment of the completion store"))
            start = len(SEGMENT_MAGIC)
        while (frame := _read_frame(stream, path, start)) is not None:
            yield frame
            start = frame.end


def _read_frame(stream: BinaryIO, path: Path, start: int) -> Frame | None:
    """The frame at an offset, or None at the end or at a torn tail (part of a frame, or zeros after a power cut)."""
    size = os.fstat(stream.fileno()).st_size
    stream.seek(start)
    head = stream.read(HEAD_BYTES)
    if len(head) < HEAD_BYTES:
        return None
    if zlib.crc32(head[: _HEAD.size]) != _CRC.unpack_from(head, _HEAD.size)[0] or head[:4] != FRAME_MAGIC:
        if not head.strip(b"\0") and _zeros_to_end(stream):
            return None
        raise DataError(_damage(path, start, "the frame's header does not match its checksum"))
    _, rows, payload, tokens, keys_check, check = _HEAD.unpack_from(head)
    end = start + HEAD_BYTES + 16 * rows + payload
    if end > size:
        return None
    keys = stream.read(16 * rows)
    if _check(keys) != keys_check:
        raise DataError(_damage(path, start, "the keys' checksum does not match"))
    return Frame(start, end, tokens, keys, check)


def _zeros_to_end(stream: BinaryIO) -> bool:
    while block := stream.read(1 << 20):
        if block.strip(b"\0"):
            return False
    return True


def verify(folder: Path) -> list[str]:
    """Read every byte of every segment; one sentence for each damaged one."""
    problems, decompressor = [], zstandard.ZstdDecompressor()
    for path in sorted(folder.glob("*.seg")):
        try:
            with _open(path) as stream:
                for frame in read_frames(path):
                    decode(stream, path, frame, decompressor)
        except DataError as error:
            problems.append(str(error))
    return problems


def salvage(folder: Path) -> tuple[int, int]:
    """Copy what is whole in damaged segments to new ones, rename those to *.damaged; (segments, completions kept)."""
    segments = kept = 0
    for path in sorted(folder.glob("*.seg")):
        whole, damaged = _whole_frames(path)
        if damaged:
            writer = _SegmentWriter(folder)
            with _open(path) as stream:
                for frame in whole:
                    stream.seek(frame.start)
                    writer.append(stream.read(frame.end - frame.start))
            writer.close()
            path.rename(path.with_suffix(".damaged"))
            segments, kept = segments + 1, kept + sum(frame.rows for frame in whole)
    return segments, kept


def _whole_frames(path: Path) -> tuple[list[Frame], bool]:
    """(frames whose bytes are right, whether others are not)."""
    content, whole, damaged, at = path.read_bytes(), [], False, len(SEGMENT_MAGIC)
    decompressor = zstandard.ZstdDecompressor()
    with _open(path) as stream:
        if not content.startswith(SEGMENT_MAGIC[: len(content)]):
            damaged = True
        while at >= 0:
            try:
                frame = _read_frame(stream, path, at)
                if frame is None:
                    break
                decode(stream, path, frame, decompressor)
                whole.append(frame)
                at = frame.end
            except DataError:
                damaged, at = True, content.find(FRAME_MAGIC, at + 1)
    return whole, damaged


def _check(*parts: bytes) -> bytes:
    digest = blake2b(digest_size=8)
    for part in parts:
        digest.update(part)
    return digest.digest()


def _prefixes(keys: bytes) -> np.ndarray:
    return np.frombuffer(keys, dtype=np.uint64)[::2] if keys else np.empty(0, np.uint64)


def _open(path: Path) -> BinaryIO:
    try:
        return path.open("rb")
    except FileNotFoundError:
        raise DataError(f"{path} was removed while the completion store was in use; run again") from None


def _damage(path: Path, offset: int, what: str) -> str:
    return (
        f"{path} is damaged at byte {offset} ({what}); run `python -m stages.serving.store salvage`, which keeps what"
        " is whole and sets the segment aside, then run again: only what was lost is generated anew"
    )


def main() -> str:
    """The command: contents (default), verify, salvage, import FILES."""
    command, *files = sys.argv[1:] or ["contents"]
    folder = default_folder()
    if command == "verify" and not files:
        if problems := verify(folder):
            raise DataError("; ".join(problems))
        return f"{len(list(folder.glob('*.seg')))} segments in {folder}, every checksum right"
    if command == "salvage" and not files:
        segments, kept = salvage(folder)
        return f"{segments} damaged segments set aside, {kept} completions kept from them"
    if command == "import" and files:
        with CompletionStore(folder) as store:
            return f"{store.import_documents(files)} completions imported into {folder}"
    if command != "contents" or files:
        raise ConfigError(f"unknown command {' '.join(sys.argv[1:])!r}; use contents, verify, salvage or import FILES")
    found = CompletionStore(folder).contents()
    return (
        f"{found.completions:,} completions, {found.tokens:,} tokens, {found.segments} segments,"
        f" {found.bytes:,} bytes in {folder}"
    )


if __name__ == "__main__":
    run_stage("store", main)
