"""Upkeep of a completion store's folder: reading every byte, packing segments, setting damage aside, removing."""

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import zstandard

from cosmopedia.errors import ClusterError, DataError
from cosmopedia.store.parquet_files import PackWriter, closed, files_in, keys_of, open_pack, read_file, rows_of
from cosmopedia.store.segments import FRAME_MAGIC, SEGMENT_MAGIC, Frame, decode, open_file, read_frame, read_frames

DRAFT_SECONDS = 3600.0  # a draft this old was left by a process that was killed


class Repacked(NamedTuple):
    """What compaction did: the packs that it wrote, the files that they replace, completions kept and left out."""

    new: list[Path]
    old: list[Path]
    kept: int
    left_out: int
    in_use: int  # segments left alone, since a writer still appends to them


def verify(folder: Path) -> list[str]:
    """Read every byte of every segment and pack; one sentence for each damaged one."""
    problems = []
    for path in files_in(folder):
        try:
            for _ in read_file(path):
                pass
        except DataError as error:
            problems.append(str(error))
    return problems


def compact(folder: Path, wanted: Callable[[bytes], bool] | None = None) -> Repacked:
    """Write what the closed segments hold into packs, each key once; the caller removes `old` when `new` is safe.

    With `wanted`, packs are rewritten too, and completions whose key it refuses are left out. `DataError` names a
    damaged file, before anything was written under its name.
    """
    for draft in folder.glob("*.draft"):
        if time.time() - draft.stat().st_mtime > DRAFT_SECONDS:
            draft.unlink(missing_ok=True)
    everything = files_in(folder)
    old = [path for path in closed(everything) if wanted is not None or path.suffix == ".seg"]
    in_use = sum(path.suffix == ".seg" for path in everything) - sum(path.suffix == ".seg" for path in old)
    rest = [path for path in everything if path not in old and path.suffix == ".parquet"]
    repeated = _repeated([*rest, *old])
    seen = {key for path in rest for keys in keys_in(path) for key in split(keys) if _number(key) in repeated}
    left_out = 0
    with PackWriter(folder) as writer:
        for path in old:
            for key, row in read_file(path):
                if (wanted is not None and not wanted(key)) or key in seen:
                    left_out += 1
                    continue
                if _number(key) in repeated:
                    seen.add(key)
                writer.write(key, row)
    kept = sum(open_pack(path).metadata.num_rows for path in writer.paths)
    if kept != writer.rows:
        raise ClusterError(f"{folder}: {writer.rows} completions were written, {kept} are there; nothing was removed")
    return Repacked(writer.paths, old, kept, left_out, in_use)


def keys_in(path: Path) -> Iterator[bytes]:
    """The keys of a file, one after the other, a frame or row group at a time."""
    if path.suffix == ".seg":
        yield from (frame.keys for frame in read_frames(path))
        return
    pack = open_pack(path)
    for group in range(pack.metadata.num_row_groups):
        yield keys_of(path, pack, group)


def split(keys: bytes) -> Iterator[bytes]:
    """Each of keys that lie one after the other."""
    return (keys[at : at + 16] for at in range(0, len(keys), 16))


def _number(key: bytes) -> int:
    return int.from_bytes(key[:8], "big")


def _repeated(paths: list[Path]) -> set[int]:
    """The first 64 bits of keys that occur more than once: the few that need a set. 8 bytes a completion."""
    parts = [np.frombuffer(keys, ">u8")[::2].astype(np.uint64) for path in paths for keys in keys_in(path)]
    found, counts = np.unique(np.concatenate([np.empty(0, np.uint64), *parts]), return_counts=True)
    return {int(number) for number in found[counts > 1]}


def salvage(folder: Path) -> tuple[list[Path], list[Path], int]:
    """Copy what is whole in damaged files to new packs and rename those to *.damaged; (packs, damaged, rows kept)."""
    damaged = []
    with PackWriter(folder) as writer:
        for path in files_in(folder):
            whole, broken = _whole_segment(path) if path.suffix == ".seg" else _whole_pack(path)
            if broken:
                damaged.append(path)
                for key, row in whole:
                    writer.write(key, row)
    for path in damaged:
        path.rename(path.with_suffix(".damaged"))
    return writer.paths, damaged, writer.rows


def _whole_segment(path: Path) -> tuple[list[tuple[bytes, list]], bool]:
    """(key and row of every frame whose bytes are right, whether others are not)."""
    content, whole, broken, at = path.read_bytes(), [], False, len(SEGMENT_MAGIC)
    decompressor = zstandard.ZstdDecompressor()
    with open_file(path) as stream:
        if not content.startswith(SEGMENT_MAGIC[: len(content)]) and content.strip(b"\0"):
            broken = True
        while at >= 0:
            try:
                frame: Frame | None = read_frame(stream, path, at)
                if frame is None:
                    break
                rows = decode(stream, path, frame, decompressor)
                whole += [(frame.keys[16 * n : 16 * n + 16], row) for n, row in enumerate(rows)]
                at = frame.end
            except DataError:
                broken, at = True, content.find(FRAME_MAGIC, at + 1)
    return whole, broken


def _whole_pack(path: Path) -> tuple[list[tuple[bytes, list]], bool]:
    whole, broken = [], False
    try:
        pack = open_pack(path)
    except DataError:
        return whole, True
    for group in range(pack.metadata.num_row_groups):
        try:
            keys, rows = keys_of(path, pack, group), rows_of(path, pack, group)
            whole += [(keys[16 * n : 16 * n + 16], row) for n, row in enumerate(rows)]
        except DataError:
            broken = True
    return whole, broken
