"""How often the training sees a document: its copies in the mix times the epochs, against the limit of the params."""

import json
from pathlib import Path

from cosmopedia.core.errors import ConfigError, DataError
from stages.train.recipe import Shared

MIX = Path("metrics/mix.json")


def check_repeats(recipe: Shared, windows: int, path: Path = MIX) -> None:
    """`ConfigError` when a document of a component would be seen more often than `mix.max_repeats` allows."""
    try:
        components = json.loads(path.read_text(encoding="utf-8"))["components"]
    except FileNotFoundError:
        raise DataError(f"{path} is missing; run `dvc repro mix`, or dvc pull") from None
    epochs = recipe.steps * recipe.batch / windows
    for name, component in components.items():
        seen, limit = epochs * component["copies"], component["max_repeats"]
        if seen > limit:
            fit = int(recipe.steps * limit / seen)
            raise ConfigError(
                f"train.steps {recipe.steps} x batch {recipe.batch} is {epochs:.2f} epochs of {windows} windows:"
                f" documents of {name!r} ({component['copies']:.2f} copies in the mix) would be seen {seen:.2f} times,"
                f" and mix.max_repeats.{name} allows {limit:g}; set train.steps to at most {fit}, raise the limit in"
                " the profile, or make more documents"
            )
