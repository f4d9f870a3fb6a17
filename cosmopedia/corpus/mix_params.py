"""The section `mix` of params.yaml and the profile: which components, in which shares, and how often at most.

The stage `natural` reads the components that the preset names, `mix` draws them.
"""

import re
from fractions import Fraction

from pydantic import Field

from cosmopedia.core.errors import ConfigError
from cosmopedia.core.params import Params
from cosmopedia.corpus.components import SYNTHETIC

NAME = re.compile(r"[a-z0-9_]+")  # a component's cell is <component>-natural
TOLERANCE = 1e-3  # of the weights' sum: thirds are written with four digits


def exactly(number: float) -> Fraction:
    """A number of a params file as it is written there: 0.1 is a tenth."""
    return Fraction(str(number))


class MixParams(Params):
    """What the tokens are made of."""

    seed: int  # which documents are taken, where not all are
    preset: str
    presets: dict[str, dict[str, float]]  # name -> component -> share of tokens
    cells: dict[str, float]  # cell -> how often its documents are taken, next to the others of their component
    tokens: int | None = Field(ge=1)  # of the mix; null: as many as the scarcest component has
    max_repeats: dict[str, float]  # component -> how often a document may be seen: copies x epochs

    def weights(self) -> dict[str, Fraction]:
        """The components of the chosen preset that have a share, and their shares of the tokens; sorted, sum 1.

        `ConfigError` for a preset that is not there, shares that do not sum to 1, a name that cannot be a file's.
        """
        if self.preset not in self.presets:
            raise ConfigError(f"mix.preset {self.preset!r} is not known; choose one of {', '.join(self.presets)}")
        weights, where = self.presets[self.preset], f"mix.presets.{self.preset}"
        for name, weight in weights.items():
            if not NAME.fullmatch(name):
                raise ConfigError(f"{where}: a component's name is of a-z, 0-9 and _, found {name!r}; rename it")
            if not 0 <= weight <= 1:
                raise ConfigError(f"{where}.{name}: a share of tokens is 0-1, found {weight}; correct it")
        exact = {name: exactly(weight) for name, weight in sorted(weights.items()) if weight}
        total = sum(exact.values())
        if abs(total - 1) > TOLERANCE:
            shares = " + ".join(f"{name} {weight:g}" for name, weight in weights.items())
            raise ConfigError(
                f"{where}: shares of tokens must sum to 1, found {shares} = {float(total):g}; correct them"
            )
        return {name: weight / total for name, weight in exact.items()}

    def natural(self) -> list[str]:
        """The components of natural text, sorted."""
        return [name for name in self.weights() if name != SYNTHETIC]
