"""How often each cell's documents are taken, and which documents once more than the others.

All in exact fractions and whole numbers of tokens: neither order nor machine can move a document in or out.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from fractions import Fraction

import numpy as np

from cosmopedia.core.errors import ConfigError, DataError
from cosmopedia.core.rng import draw_u64
from cosmopedia.corpus.components import component_of
from cosmopedia.corpus.mix_params import MixParams, exactly

BITS = 20  # of a draw that decide: a threshold is met up to the tokens of a millionth of the documents
WHERE = "data/decontaminate"


@dataclass(frozen=True)
class Available:
    """What a cell has."""

    documents: int = 0
    tokens: int = 0

    def __add__(self, other: "Available") -> "Available":
        return Available(self.documents + other.documents, self.tokens + other.tokens)


def copies_of_cells(mix: MixParams, cells: dict[str, Available]) -> dict[str, Fraction]:
    """How often the documents of each cell are taken, on average; cells without a share are left out.

    Without `tokens` no document is taken twice, except in cells that `mix.cells` favours. Refused: a component that
    has no documents (`DataError`), a cell that is not there, and more repeats than are allowed (`ConfigError`).
    """
    if unknown := sorted(mix.cells.keys() - cells.keys()):
        raise ConfigError(f"mix.cells.{unknown[0]}: no such cell in {WHERE}; choose among {', '.join(sorted(cells))}")
    factors = {cell: exactly(mix.cells.get(cell, 1.0)) for cell in cells}
    if negative := [cell for cell, factor in factors.items() if factor < 0]:
        raise ConfigError(f"mix.cells.{negative[0]}: wanted 0 or more, found {mix.cells[negative[0]]}")
    weights, has = mix.weights(), dict.fromkeys(mix.weights(), Fraction(0))
    for cell, available in cells.items():
        if component_of(cell) in has:
            has[component_of(cell)] += factors[cell] * available.tokens
    for name, weight in weights.items():
        if not has[name]:
            raise DataError(
                f"mix.preset {mix.preset!r} takes {float(weight):.1%} of its tokens from {name!r}, but {WHERE} has no"
                " document of it; see metrics/clean.json for what became of them, run the stages from natural on, or"
                " choose another preset"
            )
    size = Fraction(mix.tokens) if mix.tokens else min(has[name] / weight for name, weight in weights.items())
    copies = {
        cell: size * weights[component_of(cell)] / has[component_of(cell)] * factors[cell]
        for cell in sorted(cells)
        if component_of(cell) in weights
    }
    for cell, times in copies.items():
        if cells[cell].tokens and times > exactly(mix.max_repeats[component_of(cell)]):
            raise ConfigError(
                _too_often(mix, component_of(cell), cell, times, size * weights[component_of(cell)], cells)
            )
    return copies


def _too_often(
    mix: MixParams, name: str, cell: str, times: Fraction, wanted: Fraction, cells: dict[str, Available]
) -> str:
    """Why a mix cannot be made: what is wanted, what there is, what to change."""
    available = sum(own.tokens for other, own in cells.items() if component_of(other) == name)
    limit = mix.max_repeats[name]
    favoured = f" in {cell} (mix.cells)" if cell in mix.cells else ""
    fits = int(exactly(limit) / times * wanted / mix.weights()[name])
    return (
        f"mix.preset {mix.preset!r} wants {int(wanted):,} tokens of {name!r}, but {WHERE} has {available:,}: each"
        f" document{favoured} {float(times):.2f} times, and mix.max_repeats.{name} allows {limit:g}; set mix.tokens to"
        f" at most {fits:,}, lower the component's share, make more documents, or raise the limit"
    )


def bins(seed: int, ids: Iterable[str]) -> np.ndarray:
    """The draw of each document, from (seed, id), in 2^BITS steps."""
    return np.array([draw_u64(seed, "mix", document_id) >> (64 - BITS) for document_id in ids], np.int64)


def threshold(tokens: np.ndarray, share: Fraction) -> int:
    """The bin below which documents have the share of all tokens, as nearly as bins can; `tokens`: of each bin."""
    reached = np.concatenate([[0], np.cumsum(tokens)])
    wanted = share * int(reached[-1])
    above = int(np.searchsorted(reached, float(wanted)))
    candidates = [place for place in (above - 1, above, above + 1) if 0 <= place < len(reached)]
    return min(candidates, key=lambda place: (abs(int(reached[place]) - wanted), place))
