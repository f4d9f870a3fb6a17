"""Maintenance of a completion store's folder: verify every byte, compact segments, repair damage, drop the unused."""

import contextlib
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

from cosmopedia.core.errors import ClusterError, DataError
from cosmopedia.store.folder import closed, files_in, keys_in, read_file, split_keys
from cosmopedia.store.parquet_files import keys_of, open_parquet, rows_of, write_parquet_files
from cosmopedia.store.segments import (
    FRAME_MAGIC,
    SEGMENT_MAGIC,
    damage,
    decode,
    in_use,
    open_file,
    read_frame,
    read_frames,
)

DRAFT_SECONDS = 3600.0  # a draft this old was left by a process that was killed


class Compaction(NamedTuple):
    """What compaction did: files written, files that these replace, completions kept and left out."""

    new: list[Path]
    old: list[Path]
    kept: int
    left_out: int
    in_use: int  # segments left alone because a writer still appends to them


class Repair(NamedTuple):
    """What repair did: files written, files renamed to *.damaged, completions kept from those."""

    new: list[Path]
    damaged: list[Path]
    kept: int


def verify(folder: Path) -> list[str]:
    """Read every byte of every segment and parquet file; one sentence per damaged one."""
    problems = []
    for path in files_in(folder):
        try:
            for _ in read_file(path):
                pass
        except DataError as error:
            problems.append(str(error))
            continue
        if path.suffix == ".seg" and _tail(path) and _whole_in_segment(path)[1]:
            problems.append(damage(path, "whole completions lie behind one that was torn, where no reader finds them"))
    return problems


def torn_tails(folder: Path) -> dict[Path, int]:
    """The bytes at the end of segments that are no whole completion: a write that never ended. They are ignored."""
    tails = {}
    for path in files_in(folder):
        with contextlib.suppress(DataError):  # `verify` has a sentence for that
            if path.suffix == ".seg" and not in_use(path) and (left := _tail(path)):
                tails[path] = left
    return tails


def _tail(path: Path) -> int:
    """The bytes behind the last frame that a reader finds."""
    size = path.stat().st_size
    return size - max((frame.end for frame in read_frames(path)), default=min(size, len(SEGMENT_MAGIC)))


def compact(folder: Path, wanted: Callable[[bytes], bool] | None = None) -> Compaction:
    """Write what closed segments hold to parquet files, each key once; the caller removes `old` once `new` is safe.

    With `wanted`, parquet files are rewritten too, and completions whose key it rejects are left out. `DataError`
    names a damaged file; the store then holds what it held before.
    """
    _remove_old_drafts(folder)
    everything = files_in(folder)
    old = [path for path in closed(everything) if wanted is not None or path.suffix == ".seg"]
    in_use = [path for path in everything if path.suffix == ".seg" and path not in old]
    rest = [path for path in everything if path.suffix == ".parquet" and path not in old]

    # Only keys that occur twice need a set, and they are few.
    repeated = _repeated([*rest, *old])
    seen = {key for path in rest for keys in keys_in(path) for key in split_keys(keys) if _number(key) in repeated}
    kept = left_out = 0

    def completions() -> Iterator[tuple[bytes, list]]:
        nonlocal kept, left_out
        for path in old:
            for key, row in read_file(path):
                if (wanted is not None and not wanted(key)) or key in seen:
                    left_out += 1
                    continue
                if _number(key) in repeated:
                    seen.add(key)
                kept += 1
                yield key, row

    new = write_parquet_files(folder, completions())
    written = sum(open_parquet(path).metadata.num_rows for path in new)
    if written != kept:
        raise ClusterError(f"{folder}: {kept} completions were written, {written} are there; nothing was removed")
    return Compaction(new, old, kept, left_out, len(in_use))


def _remove_old_drafts(folder: Path) -> None:
    for path in folder.glob("*"):
        if path.suffix in (".partial", ".draft") and time.time() - path.stat().st_mtime > DRAFT_SECONDS:
            path.unlink(missing_ok=True)


def _number(key: bytes) -> int:
    return int.from_bytes(key[:8], "big")


def _repeated(paths: list[Path]) -> set[int]:
    """The first 64 bits of the keys that occur more than once. Takes 8 bytes per completion."""
    parts = [np.frombuffer(keys, ">u8")[::2].astype(np.uint64) for path in paths for keys in keys_in(path)]
    numbers, counts = np.unique(np.concatenate([np.empty(0, np.uint64), *parts]), return_counts=True)
    return {int(number) for number in numbers[counts > 1]}


def repair(folder: Path) -> Repair:
    """Copy what is whole in damaged files to new parquet files, and rename the damaged ones to *.damaged."""
    damaged: list[Path] = []

    def whole_completions() -> Iterator[tuple[bytes, list]]:
        for path in files_in(folder):
            whole, broken = _whole_in_segment(path) if path.suffix == ".seg" else _whole_in_parquet(path)
            if broken:
                damaged.append(path)
                yield from whole

    new = write_parquet_files(folder, whole_completions())
    for path in damaged:
        path.rename(path.with_suffix(".damaged"))
    return Repair(new, damaged, sum(open_parquet(path).metadata.num_rows for path in new))


def _whole_in_segment(path: Path) -> tuple[list[tuple[bytes, list]], bool]:
    """((key, row) of every frame that matches its checksums, whether other bytes do not)."""
    content = path.read_bytes()
    whole: list[tuple[bytes, list]] = []
    broken = not content.startswith(SEGMENT_MAGIC[: len(content)]) and bool(content.strip(b"\0"))
    start = len(SEGMENT_MAGIC)
    torn = False
    with open_file(path) as stream:
        while 0 <= start < len(content):
            try:
                frame = read_frame(stream, path, start)
                rows = decode(stream, path, frame) if frame else []
            except DataError:
                frame, broken = None, broken or not torn  # what looks like a frame inside a torn one need not be one
            if frame is None:
                torn, start = True, content.find(FRAME_MAGIC, start + 1)
                continue
            whole += zip(split_keys(frame.keys), rows, strict=True)
            broken |= torn  # a whole frame behind: no reader finds it
            start = frame.end
    return whole, broken


def _whole_in_parquet(path: Path) -> tuple[list[tuple[bytes, list]], bool]:
    """((key, row) of every row group that matches its checksums, whether others do not)."""
    whole: list[tuple[bytes, list]] = []
    broken = False
    try:
        file = open_parquet(path)
    except DataError:
        return whole, True
    for group in range(file.metadata.num_row_groups):
        try:
            whole += zip(split_keys(keys_of(path, file, group)), rows_of(path, file, group), strict=True)
        except DataError:
            broken = True
    return whole, broken
