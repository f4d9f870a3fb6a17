"""Which source rows make a prompt of each cell, and why the others do not: not drawn, an exact or a near duplicate."""

from collections.abc import Iterator
from functools import partial
from hashlib import blake2b

import numpy as np

from stages.prompts.exact_duplicates import fingerprints, repeated
from stages.prompts.near_duplicates import comparison_key, near_duplicates
from stages.prompts.render import Cell, drawn, has_passages
from stages.prompts.source_rows import SourceRows
from stages.prompts.styles import PromptsParams

NOT_DRAWN, KEPT, EXACT, NEAR = range(4)


def select(
    cells: list[tuple[SourceRows, Cell]], params: PromptsParams
) -> Iterator[tuple[SourceRows, Cell, np.ndarray, np.ndarray]]:
    """(rows, cell, selection, near_duplicate_of) of each cell, the last two with a value per source row.

    `near_duplicate_of` is the place of the row that a row is a near duplicate of, or -1. An exact duplicate is not
    also a near one.
    """
    exact = exact_duplicates(cells, params)
    for (rows, cell), places in zip(cells, exact, strict=True):
        near_duplicate_of = near_duplicates_of(rows, cell, params)
        selection = np.where(members(rows, cell, params), np.uint8(KEPT), np.uint8(NOT_DRAWN))
        selection[near_duplicate_of >= 0] = NEAR
        selection[places] = EXACT
        yield rows, cell, selection, near_duplicate_of


def members(rows: SourceRows, cell: Cell, params: PromptsParams) -> np.ndarray:
    """Whether a cell takes each source row."""

    def make() -> np.ndarray:
        usable = (has_passages(part.table()) if cell.skips_rows else None for part in rows.parts)
        return drawn(rows.digests(), cell, params, usable)

    return np.load(rows.kept(f"drawn-{cell.style_name}", make))


def members_with_passages(rows: SourceRows) -> np.ndarray:
    """Whether retrieve has passages for each source row."""
    return np.concatenate([np.zeros(0, dtype=bool), *(has_passages(part.table()) for part in rows.parts)])


def near_duplicates_of(rows: SourceRows, cell: Cell, params: PromptsParams) -> np.ndarray:
    """For each source row the one that it is a near duplicate of in a cell, or -1.

    Cells that compare the same members by the same key look once.
    """
    taken, threshold = members(rows, cell, params), params.near_duplicate
    if threshold is None:
        return np.full(rows.rows, -1)
    key = comparison_key(cell.template.slots)
    name = f"near-{key.label}-{blake2b(taken.tobytes(), digest_size=8).hexdigest()}"
    return np.load(rows.kept(name, lambda: near_duplicates(rows, key, taken, threshold)))


def exact_duplicates(cells: list[tuple[SourceRows, Cell]], params: PromptsParams) -> list[np.ndarray]:
    """In each cell the places of the source rows whose prompt has the text of an earlier one, in any cell."""
    files = []
    for rows, cell in cells:
        taken = members(rows, cell, params)
        files.append(rows.kept(f"texts-{cell.style_name}", partial(fingerprints, rows, cell, taken, params)))
    pairs = zip(cells, repeated(files), strict=True)
    return [np.flatnonzero(members(*pair, params))[again] for pair, again in pairs]
