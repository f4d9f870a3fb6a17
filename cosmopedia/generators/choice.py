"""Generators that a person can choose by name: profiles/generators/<name>.yaml, parts of a profile."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from cosmopedia.core.errors import ConfigError
from cosmopedia.core.params import read_yaml
from cosmopedia.core.text import read_text
from cosmopedia.yaml_editing import set_params

FOLDER = Path("profiles/generators")
SECTIONS = ("generator.", "generate.sampling.")  # what a generator may set


class Choice(NamedTuple):
    """A generator: dotted names of params and their values."""

    name: str
    about: str  # the first lines of its file
    values: dict[str, Any]


def known() -> dict[str, Choice]:
    """The files of profiles/generators/. `ConfigError` for a key that is none of a generator's."""
    return {path.stem: _read(path) for path in sorted(FOLDER.glob("*.yaml"))}


def _read(path: Path) -> Choice:
    values = dict(_leaves(read_yaml(path)))
    if foreign := [key for key in values if not key.startswith(SECTIONS)]:
        raise ConfigError(f"{path}: {foreign[0]} is not a generator's; wanted keys of generator or generate.sampling")
    comment = [line[1:].strip() for line in read_text(path).splitlines() if line.startswith("#")]
    return Choice(path.stem, " ".join(comment), values)


def _leaves(node: dict[str, Any], parent: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in node.items():
        name = f"{parent}{key}"
        if isinstance(value, dict):
            yield from _leaves(value, f"{name}.")
        else:
            yield name, value


def choose(name: str, profile: Path) -> dict[str, tuple[Any, Any]]:
    """Write a generator into a profile, whose comments stay; what changed, as (before, after).

    A commit that the profile has pinned for the same model stays.
    """
    choices = known()
    if name not in choices:
        raise ConfigError(f"{name!r} is no generator of {FOLDER}/; there are: {', '.join(choices)}")
    before, values = dict(_leaves(read_yaml(profile))), dict(choices[name].values)
    if before.get("generator.model") == values["generator.model"]:
        values.pop("generator.revision", None)
    absent = object()
    changes = {key: (before.get(key), value) for key, value in values.items() if before.get(key, absent) != value}
    if changes:
        set_params(profile, {key: after for key, (_, after) in changes.items()})
    return changes
