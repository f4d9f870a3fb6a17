"""Segments: the append-only files of the completion store, one per writing process.

A segment is a magic word and frames. A frame holds up to 64 completions: 16-byte keys, then their texts in one zstd
block, each part with a checksum. A crash while appending leaves a prefix of a frame at the end of a segment: it was
never done, and is ignored. Anything else that does not add up is damage, and is reported with the segment's name.
A writer holds a lock on its segment, so that nobody compacts a segment that still grows.
"""

import contextlib
import errno
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

from cosmopedia.core.errors import ClusterError, DataError
from cosmopedia.core.files import lock
from cosmopedia.generation.requests import Completion

SEGMENT_MAGIC = b"COSMOSG1"
FRAME_MAGIC = b"FRM1"
FRAME_ROWS = 64  # completions per frame: 250 kB of text, a third of a millisecond to decompress
IDLE_SECONDS = 600.0  # a segment that changed since is left alone even without a lock: some file systems have none

# magic, rows, bytes of payload, tokens, checksum of the keys, checksum of keys + payload; then CRC-32 of these
_HEAD = struct.Struct("<4sIIQ8s8s")
_CRC = struct.Struct("<I")
TOKENS = 2  # place in a row
READ_ONLY = (errno.EACCES, errno.EPERM, errno.EROFS)
HEAD_BYTES = _HEAD.size + _CRC.size


class FileRemoved(Exception):
    """A file of the store was there and no longer is: another process has compacted it."""


class Frame(NamedTuple):
    """A frame's header and keys; `start` and `end` are byte offsets in its segment."""

    start: int
    end: int
    tokens: int
    keys: bytes
    checksum: bytes


class SegmentWriter:
    """Appends bytes durably to a new segment that belongs to this process alone; `size` is what is durable."""

    def __init__(self, folder: Path):
        self.path = folder / new_name(".seg")
        self.size = 0
        with writing(self.path):
            folder.mkdir(parents=True, exist_ok=True)
            self._file = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND, 0o666)
            try:
                lock(self._file)
                self._write(SEGMENT_MAGIC)
                fsync(folder)
            except OSError:
                os.close(self._file)
                self.path.unlink(missing_ok=True)
                raise

    def append(self, content: bytes) -> int:
        """Write, fsync, and return the offset of the first byte."""
        start = self.size
        with writing(self.path):
            try:
                self._write(content)
            except OSError:
                with contextlib.suppress(OSError):  # a torn tail is ignored as well
                    os.ftruncate(self._file, start)
                raise
        return start

    def _write(self, content: bytes) -> None:
        view = memoryview(content)
        while view:
            view = view[os.write(self._file, view) :]
        os.fsync(self._file)
        self.size += len(content)

    def close(self) -> None:
        os.close(self._file)


@contextlib.contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turns an error of the disk into a `ClusterError` that says what to do."""
    try:
        yield
    except OSError as error:
        if error.errno in READ_ONLY:
            action = "make it writable for you, or copy its folder to one of yours and set COSMO_STORE to that"
        else:
            action = "make room or set COSMO_STORE to another folder"
        raise ClusterError(
            f"the completion store cannot write to {path} ({error.strerror or error}); {action}, then run again: every"
            " completion that was stored before is kept"
        ) from None


def encode(completions: list[Completion], compressor: zstandard.ZstdCompressor) -> bytes:
    """One frame. The text's checksum covers the keys too, so that no key can ever get another key's text.

    A count that is none is stored as the nearest that is: no row may keep the others from being stored.
    """
    keys = b"".join(bytes.fromhex(c.key) for c in completions)
    rows = [row_of(c) for c in completions]
    payload = compressor.compress(json.dumps(rows, separators=(",", ":")).encode())
    tokens = sum(row[TOKENS] for row in rows)
    head = _HEAD.pack(FRAME_MAGIC, len(completions), len(payload), tokens, checksum(keys), checksum(keys, payload))
    return b"".join([head, _CRC.pack(zlib.crc32(head)), keys, payload])


def row_of(completion: Completion) -> list:
    """[text, finish_reason, tokens, prompt_tokens, engine]."""
    tokens, prompt_tokens = count_within(completion.tokens), count_within(completion.prompt_tokens)
    return [completion.text, completion.finish_reason, tokens, prompt_tokens, completion.engine]


def count_within(number: int) -> int:
    """The nearest number that a parquet file's column takes."""
    return min(max(number, 0), 2**31 - 1)


def decode(stream: BinaryIO, path: Path, frame: Frame) -> list:
    """A frame's rows: [text, finish_reason, tokens, prompt_tokens, engine]. `DataError` when the checksum fails."""
    stream.seek(frame.start + HEAD_BYTES + len(frame.keys))
    payload = stream.read(frame.end - stream.tell())
    if checksum(frame.keys, payload) != frame.checksum:
        raise DataError(damage(path, "the texts do not match their checksum", frame.start))
    return json.loads(zstandard.ZstdDecompressor().decompress(payload))


def read_frames(path: Path, start: int = 0) -> Iterator[Frame]:
    """The frames of a segment from a byte offset on, without their texts, up to a torn tail."""
    with open_file(path) as stream:
        if start == 0:
            magic = stream.read(len(SEGMENT_MAGIC))
            if magic != SEGMENT_MAGIC[: len(magic)] and magic.strip(b"\0"):
                raise DataError(damage(path, "it does not begin as a segment of the completion store", 0))
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
        raise DataError(damage(path, "the frame's header does not match its checksum", start))
    _, rows, payload, tokens, keys_checksum, frame_checksum = _HEAD.unpack_from(head)
    end = start + HEAD_BYTES + 16 * rows + payload
    if end > size:
        return None
    keys = stream.read(16 * rows)
    if checksum(keys) != keys_checksum:
        raise DataError(damage(path, "the keys do not match their checksum", start))
    return Frame(start, end, tokens, keys, frame_checksum)


def _zeros_to_end(stream: BinaryIO) -> bool:
    while block := stream.read(1 << 20):
        if block.strip(b"\0"):
            return False
    return True


def checksum(*parts: bytes) -> bytes:
    """BLAKE2b of 8 bytes."""
    digest = blake2b(digest_size=8)
    for part in parts:
        digest.update(part)
    return digest.digest()


def open_file(path: Path) -> BinaryIO:
    """The file, to read. `FileRemoved` when it is not there any more."""
    try:
        return path.open("rb")
    except FileNotFoundError:
        raise FileRemoved(str(path)) from None


def fsync(path: Path) -> None:
    """Wait until a closed file, or the names in a folder, are on disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def damage(path: Path, reason: object, offset: int | None = None) -> str:
    """The sentence for a damaged file of the store."""
    place = "" if offset is None else f" at byte {offset}"
    return (
        f"{path} is damaged{place} ({' '.join(str(reason).split())[:200]}); run `cosmo store repair`, which keeps what"
        " is whole and sets the file aside, then run again: only what was lost is generated anew"
    )


def new_name(suffix: str) -> str:
    """A file name that no other process takes; names sort by time."""
    return f"{time.strftime('%Y%m%d-%H%M%S', time.gmtime())}-{os.getpid()}-{secrets.token_hex(4)}{suffix}"


def in_use(path: Path) -> bool:
    """Whether a writer may still append to the segment: it is locked, or changed within the last ten minutes by
    another machine (whose locks a network file system may not show)."""
    with open_file(path) as stream:
        try:
            return not lock(stream)
        except OSError:
            return time.time() - os.fstat(stream.fileno()).st_mtime < IDLE_SECONDS
