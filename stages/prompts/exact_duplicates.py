"""Exact duplicates among the prompts of all cells: fingerprints on disk, compared a range of them at a time.

A fingerprint is 64 bits of the prompt's text. Two different texts share one with a chance of n^2 / 2^65 among n
prompts: 24 in a million for 30 million prompts; the later of such two would go as a duplicate.
"""

from collections.abc import Sequence
from pathlib import Path

import numba
import numpy as np
import pyarrow as pa

from stages.prompts.near_duplicates import buffers
from stages.prompts.render import Cell, texts, topics_named
from stages.prompts.source_rows import Seeds
from stages.prompts.styles import PromptsParams

COMPARED = 1 << 22  # fingerprints that are compared at once, about: 24 bytes of memory each
FACTOR = np.uint64(0x9E3779B97F4A7C15)


def fingerprints(seeds: Seeds, cell: Cell, members: np.ndarray, params: PromptsParams) -> np.ndarray:
    """The fingerprint of each member's prompt (`members`: a mask), in the seeds' order."""
    found, done = np.empty(int(members.sum()), np.uint64), 0
    for part in seeds.parts:
        for places, rows in part.slices(np.flatnonzero(members[part.first : part.first + part.rows])):
            found[done : done + len(places)] = fingerprints_of(texts(rows, cell, topics_named(rows, cell, params)))
            done += len(places)
    return found


def fingerprints_of(prompts: pa.Array) -> np.ndarray:
    """A number for each text."""
    return _fingerprints(*buffers(prompts), FACTOR)


def repeated(cells: Sequence[Path]) -> list[np.ndarray]:
    """Of each cell's fingerprints those that an earlier cell has, or the same cell before: their places, ascending."""
    found = [[np.empty(0, np.int64)] for _ in cells]
    pieces = np.uint64(1 + sum(len(np.load(cell, mmap_mode="r")) for cell in cells) // COMPARED)
    for piece in range(int(pieces)):
        places, some_keys = [], [np.empty(0, np.uint64)]
        for cell in cells:
            keys = np.load(cell)
            places.append(np.flatnonzero(keys % pieces == piece))
            some_keys.append(keys[places[-1]])
        keys = np.concatenate(some_keys)
        order = np.argsort(keys, kind="stable")
        again = np.zeros(len(keys), dtype=bool)
        again[order[1:][keys[order][1:] == keys[order][:-1]]] = True
        bounds = np.cumsum([len(some) for some in places])[:-1]
        for known, some, mask in zip(found, places, np.split(again, bounds), strict=True):
            known.append(some[mask])
    return [np.sort(np.concatenate(some)) for some in found]


@numba.njit(cache=True, nogil=True)
def _fingerprints(data, ends, factor):
    """Multiply, shift, exclusive-or over eight bytes at a time, and the length; SplitMix64's finaliser."""
    out = np.empty(len(ends) - 1, np.uint64)
    for n in range(len(out)):
        at, end = ends[n], ends[n + 1]
        key = np.uint64(end - at) * factor
        while at < end:
            word = np.uint64(0)
            if at + 8 <= end:
                for k in range(8):
                    word |= np.uint64(data[at + k]) << np.uint64(8 * k)
            else:
                for k in range(end - at):
                    word |= np.uint64(data[at + k]) << np.uint64(8 * k)
            key = (key ^ word) * factor
            key ^= key >> np.uint64(32)
            at += 8
        key = (key ^ (key >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        key = (key ^ (key >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        out[n] = key ^ (key >> np.uint64(31))
    return out
