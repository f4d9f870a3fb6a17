"""Exact duplicates among the prompts of all cells: fingerprints on disk, compared a range of them at a time.

A fingerprint is 64 bits of the prompt's text. Two different texts share one with a chance of n^2 / 2^65 among n
prompts: 24 in a million for 30 million prompts; the later of such two would be removed as a duplicate.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import cast

import numpy as np
import polars as pl

from stages.prompts.render import Cell, texts, topics_named
from stages.prompts.source_rows import SourceRows
from stages.prompts.styles import PromptsParams

COMPARED = 1 << 22  # fingerprints that are compared at once, about: 24 bytes of memory each


def fingerprints(rows: SourceRows, cell: Cell, members: np.ndarray, params: PromptsParams) -> np.ndarray:
    """The fingerprint of each member's prompt (`members`: a mask), in the order of the rows."""
    found = [np.empty(0, np.uint64)]
    for part in rows.parts:
        for _, some in part.slices(np.flatnonzero(members[part.first : part.first + part.rows])):
            prompts = texts(some, cell, topics_named(some, cell, params))
            found.append(cast(pl.Series, pl.from_arrow(prompts)).hash().to_numpy())
    return np.concatenate(found)


def repeated(cells: Sequence[Path]) -> list[np.ndarray]:
    """Of each cell's fingerprints those that an earlier cell has, or the same cell before: their places, ascending."""
    found = [[np.empty(0, np.int64)] for _ in cells]
    pieces = np.uint64(1 + sum(len(np.load(cell, mmap_mode="r")) for cell in cells) // COMPARED)
    for piece in range(int(pieces)):
        places = []
        some_keys = [np.empty(0, np.uint64)]
        for cell in cells:
            keys = np.load(cell)
            places.append(np.flatnonzero(keys % pieces == piece))
            some_keys.append(keys[places[-1]])
        again = ~pl.Series(np.concatenate(some_keys)).is_first_distinct().to_numpy()
        bounds = np.cumsum([len(some) for some in places])[:-1]
        for known, some, mask in zip(found, places, np.split(again, bounds), strict=True):
            known.append(some[mask])
    return [np.sort(np.concatenate(some)) for some in found]
