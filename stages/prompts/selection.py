"""What becomes of each seed row in each cell: not drawn, kept, an exact duplicate, a near duplicate."""

from collections.abc import Iterator
from functools import partial
from hashlib import blake2b

import numpy as np

from stages.prompts.exact_duplicates import fingerprints, repeated
from stages.prompts.near_duplicates import basis_of, near_duplicates
from stages.prompts.render import Cell, drawn
from stages.prompts.source_rows import Seeds
from stages.prompts.styles import PromptsParams

NOT_DRAWN, KEPT, EXACT, NEAR = range(4)


def fates(
    cells: list[tuple[Seeds, Cell]], params: PromptsParams
) -> Iterator[tuple[Seeds, Cell, np.ndarray, np.ndarray]]:
    """(seeds, cell, fate, like) of each cell, each with a value for every seed row.

    `like` is the place of the row that a row is a near duplicate of, or -1. An exact duplicate is not also a near one.
    """
    again = repeats(cells, params)
    for (seeds, cell), places in zip(cells, again, strict=True):
        like = likes(seeds, cell, params)
        fate = np.where(members(seeds, cell, params), np.uint8(KEPT), np.uint8(NOT_DRAWN))
        fate[like >= 0] = NEAR
        fate[places] = EXACT
        yield seeds, cell, fate, like


def members(seeds: Seeds, cell: Cell, params: PromptsParams) -> np.ndarray:
    """Whether a cell takes each seed row."""
    return np.load(seeds.kept(f"drawn-{cell.style_name}", lambda: drawn(seeds.digests(), cell, params)))


def likes(seeds: Seeds, cell: Cell, params: PromptsParams) -> np.ndarray:
    """For each seed row the one that it is a near duplicate of in a cell, or -1. Cells that ask alike look once."""
    taken, threshold = members(seeds, cell, params), params.near_duplicate
    if threshold is None:
        return np.full(seeds.rows, -1)
    basis = basis_of(cell.template.slots)
    asked = blake2b(taken.tobytes(), digest_size=8).hexdigest()
    return np.load(seeds.kept(f"like-{basis.label}-{asked}", lambda: near_duplicates(seeds, basis, taken, threshold)))


def repeats(cells: list[tuple[Seeds, Cell]], params: PromptsParams) -> list[np.ndarray]:
    """In each cell the places of the seed rows whose prompt has the text of an earlier one, in any cell."""
    files = []
    for seeds, cell in cells:
        taken = members(seeds, cell, params)
        files.append(seeds.kept(f"texts-{cell.style_name}", partial(fingerprints, seeds, cell, taken, params)))
    found = zip(cells, repeated(files), strict=True)
    return [np.flatnonzero(members(*pair, params))[again] for pair, again in found]
