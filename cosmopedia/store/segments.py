"""Segments: the append-only files of the completion store, one a writing process.

A segment is a magic word and frames. A frame holds up to 64 completions: 16-byte keys, then their texts in one zstd
block, each part under a checksum. A crash while appending leaves a prefix of a frame at the end of a segment: it was
never done, and is ignored. Anything else that does not add up is damage, and is reported with the segment's name.
A writer holds a lock on its segment, so that nothing is done to a segment that still grows.
"""

import fcntl
import json
import os
import secrets
import struct
import time
import zlib
from collections.abc import Iterator
from hashlib import blake2b
from pathlib import Path
from typing import BinaryIO, NamedTuple

import zstandard

from cosmopedia.errors import ClusterError, DataError
from cosmopedia.generation.requests import Completion

SEGMENT_MAGIC = b"COSMOSG1"
FRAME_MAGIC = b"FRM1"
FRAME_ROWS = 64  # completions a frame: 250 kB of text, a third of a millisecond to decompress
IDLE_SECONDS = 600.0  # a segment that changed since is left alone even without a lock: some file systems have none

# magic, rows, bytes of payload, tokens, checksum of the keys, checksum of keys + payload; then CRC-32 of these
_HEAD = struct.Struct("<4sIIQ8s8s")
_CRC = struct.Struct("<I")
HEAD_BYTES = _HEAD.size + _CRC.size


class Gone(Exception):
    """A file of the store was there and is no more: another process has compacted it."""


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


class SegmentWriter:
    """Appends bytes durably to a new segment that belongs to this process alone; `size` is what is durable."""

    def __init__(self, folder: Path):
        self.path, self.size = folder / new_name(".seg"), 0
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._file = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND, 0o666)
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            self._write(SEGMENT_MAGIC)
            directory = os.open(folder, os.O_RDONLY)
            os.fsync(directory)
            os.close(directory)
        except OSError as error:
            raise self._full(error) from None

    def append(self, content: bytes) -> int:
        """Write, fsync, and return the offset of the first byte."""
        start = self.size
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
        self.size += len(content)

    def _full(self, error: OSError) -> ClusterError:
        return ClusterError(
            f"the completion store cannot write to {self.path} ({error.strerror}); make room or set COSMO_STORE to"
            " another folder, then run again: every completion that was stored before is kept"
        )

    def close(self) -> None:
        os.close(self._file)


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
        raise DataError(damage(path, frame.start, "the texts' checksum does not match"))
    return json.loads(decompressor.decompress(payload))


def read_frames(path: Path, start: int = 0) -> Iterator[Frame]:
    """The frames of a segment from a byte offset on, without their texts; a torn tail ends it."""
    with open_file(path) as stream:
        if start == 0:
            magic = stream.read(len(SEGMENT_MAGIC))
            if magic != SEGMENT_MAGIC[: len(magic)] and magic.strip(b"\0"):
                raise DataError(damage(path, 0, "it does not begin as a segment of the completion store"))
            start = len(SEGMENT_MAGIC)
        while (frame := read_frame(stream, path, start)) is not None:
            yield frame
            start = frame.end


def read_frame(stream: BinaryIO, path: Path, start: int) -> Frame | None:
    """The frame at an offset, or None at the end or at a torn tail (part of a frame, or zeros after a power cut)."""
    size = os.fstat(stream.fileno()).st_size
    stream.seek(start)
    head = stream.read(HEAD_BYTES)
    if len(head) < HEAD_BYTES:
        return None
    if zlib.crc32(head[: _HEAD.size]) != _CRC.unpack_from(head, _HEAD.size)[0] or head[:4] != FRAME_MAGIC:
        if not head.strip(b"\0") and _zeros_to_end(stream):
            return None
        raise DataError(damage(path, start, "the frame's header does not match its checksum"))
    _, rows, payload, tokens, keys_check, check = _HEAD.unpack_from(head)
    end = start + HEAD_BYTES + 16 * rows + payload
    if end > size:
        return None
    keys = stream.read(16 * rows)
    if _check(keys) != keys_check:
        raise DataError(damage(path, start, "the keys' checksum does not match"))
    return Frame(start, end, tokens, keys, check)


def _zeros_to_end(stream: BinaryIO) -> bool:
    while block := stream.read(1 << 20):
        if block.strip(b"\0"):
            return False
    return True


def _check(*parts: bytes) -> bytes:
    digest = blake2b(digest_size=8)
    for part in parts:
        digest.update(part)
    return digest.digest()


def open_file(path: Path) -> BinaryIO:
    """`Gone` when the file is no more."""
    try:
        return path.open("rb")
    except FileNotFoundError:
        raise Gone(str(path)) from None


def damage(path: Path, offset: int, what: str) -> str:
    """The sentence for a damaged segment."""
    return (
        f"{path} is damaged at byte {offset} ({what}); run `cosmo store repair`, which keeps what"
        " is whole and sets the segment aside, then run again: only what was lost is generated anew"
    )


def new_name(suffix: str) -> str:
    """A file name that no other process takes, in the order of time."""
    return f"{time.strftime('%Y%m%d-%H%M%S', time.gmtime())}-{os.getpid()}-{secrets.token_hex(4)}{suffix}"


def in_use(path: Path) -> bool:
    """Whether a writer may still append to the segment: it is locked, or changed within the last ten minutes by
    another machine (whose locks a network file system may not show)."""
    with open_file(path) as stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        except OSError:
            return time.time() - os.fstat(stream.fileno()).st_mtime < IDLE_SECONDS
    return False
