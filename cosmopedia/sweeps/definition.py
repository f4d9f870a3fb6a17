"""A sweep as a person writes it, sweeps/<name>.yaml, and the arms that follow from it."""

import difflib
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path
from typing import Any

from pydantic import Field

from cosmopedia.core.errors import ConfigError
from cosmopedia.core.params import Params, check, profile_path, read_yaml

FOLDER = Path("sweeps")
ARM_NAME = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9._+-]*[A-Za-z0-9+-])?")
SEEDS = "train.seeds"


class ArmChanges(Params):
    """What one arm changes."""

    set: dict[str, Any] = Field(default_factory=dict)  # dotted name of a param -> its value
    replace: dict[str, str] = Field(default_factory=dict)  # file -> the file whose content it gets in this arm


class Budget(Params):
    """What `cosmo sweep run` may spend, all arms together; null: no bound."""

    trainings: int | None = Field(default=None, ge=1)  # arms x seeds
    gpu_hours: float | None = Field(default=None, ge=0)  # of generation, as `cosmo sweep plan` forecasts it
    money: float | None = Field(default=None, ge=0)  # the same, at the compute file's price per GPU hour


class SweepFile(Params):
    """sweeps/<name>.yaml."""

    question: str = Field(min_length=1)  # what the sweep is to answer
    control: str  # the arm that the others are compared with
    seeds: list[int] = Field(min_length=1)  # of training, in every arm
    set: dict[str, Any] = Field(default_factory=dict)  # params of every arm
    arms: dict[str, ArmChanges] = Field(default_factory=dict)
    # param -> values, or label -> value; every combination is an arm
    axes: dict[str, list[Any] | dict[str, Any]] = Field(default_factory=dict)
    budget: Budget = Field(default_factory=Budget)


@dataclass(frozen=True)
class Arm:
    """One arm: what it changes, by file."""

    name: str
    params: dict[str, dict[str, Any]]  # params.yaml or a profile -> dotted name -> value
    files: dict[str, str] = field(default_factory=dict)  # file -> the file whose content it gets
    as_now: frozenset[str] = frozenset()  # params that this checkout has with these values already

    @property
    def changes(self) -> dict[str, Any]:
        """Dotted name or file -> value or file; equal for arms that do the same."""
        return {key: value for values in self.params.values() for key, value in values.items()} | self.files


@dataclass(frozen=True)
class Sweep:
    """A sweep, checked against this checkout's params."""

    name: str
    question: str
    control: str
    seeds: list[int]
    arms: dict[str, Arm]  # the control first
    budget: Budget

    def experiment(self, arm: str) -> str:
        """The name of an arm's DVC experiment."""
        return f"{self.name}-{arm}"


def read_sweep(name: str) -> Sweep:
    """A sweep by its name or its file. `ConfigError` says what is wrong with it, and where."""
    path = Path(name) if name.endswith((".yaml", ".yml")) else FOLDER / f"{name}.yaml"
    if not path.is_file():
        known = ", ".join(sorted(file.stem for file in FOLDER.glob("*.yaml"))) or "none"
        raise ConfigError(f"{path} is missing; there are: {known}")
    if not ARM_NAME.fullmatch(path.stem):
        raise ConfigError(f"{path}: the name of a sweep has letters, digits, and . _ + - between them")
    content = read_yaml(path)
    if any(isinstance(key, bool) for key in _keys(content)):
        raise ConfigError(
            f"{path}: YAML takes on, off, yes and no for truth values; put an arm or label of that name in quotes"
        )
    file = check(content, SweepFile, str(path))
    where = Where(path)
    arms = {name: where.arm(name, changes) for name, changes in combinations(file, path)}
    if file.control not in arms:
        raise ConfigError(f"{path}: control {file.control!r} is no arm; there are: {', '.join(arms)}")
    ordered = {file.control: arms[file.control]} | arms
    seen: dict[str, str] = {}
    for arm, content in ordered.items():
        other = seen.setdefault(repr(sorted(content.changes.items(), key=str)), arm)
        if other != arm:
            raise ConfigError(f"{path}: {other} and {arm} are the same arm; take one out")
    return Sweep(path.stem, file.question, file.control, file.seeds, ordered, file.budget)


def _keys(node: Any) -> Iterator[Any]:
    if isinstance(node, dict):
        yield from node
        for inner in node.values():
            yield from _keys(inner)


def combinations(file: SweepFile, path: Path) -> Iterator[tuple[str, ArmChanges]]:
    """Each arm's name and changes: `arms`, times every combination of `axes`. Later ones win: set, arm, axis."""
    if SEEDS in file.set or SEEDS in file.axes or any(SEEDS in arm.set for arm in file.arms.values()):
        raise ConfigError(f"{path}: {SEEDS} is what `seeds` sets, for every arm; take it out")
    if not file.arms and not file.axes:
        raise ConfigError(f"{path}: name `arms`, `axes`, or both")
    axes = [[(label, {key: value}) for label, value in labelled(key, values)] for key, values in file.axes.items()]
    names = set()
    bases = list(file.arms.items()) or [("", ArmChanges())]
    for (arm, changes), choices in product(bases, list(product(*axes))):
        name = "_".join(filter(None, [arm, *(label for label, _ in choices)]))
        if not ARM_NAME.fullmatch(name) or ".." in name or name.endswith(".lock"):
            raise ConfigError(
                f"{path}: {name!r} cannot be an arm's name, which has letters, digits, and . _ + - between them; give"
                " the axis labels: {label: value, ...}"
            )
        if name in names:
            raise ConfigError(f"{path}: two arms are named {name}")
        names.add(name)
        values = file.set | changes.set | {SEEDS: file.seeds}
        for _, choice in choices:
            values |= choice
        yield name, ArmChanges(set=values, replace=changes.replace)


def labelled(key: str, values: list[Any] | dict[str, Any]) -> list[tuple[str, Any]]:
    """The values of an axis with their labels: for a list the param's last name and the value."""
    if isinstance(values, dict):
        return [(str(label), value) for label, value in values.items()]
    return [(f"{key.rpartition('.')[2]}-{value}", value) for value in values]


class Where:
    """Which file a param is in: each is in exactly one of params.yaml and the profile."""

    def __init__(self, path: Path):
        self.path = path
        self.files = {str(file): read_yaml(file) for file in (Path("params.yaml"), profile_path())}

    def arm(self, name: str, changes: ArmChanges) -> Arm:
        """An arm; `ConfigError` for a param or a file that is not there."""
        params: dict[str, dict[str, Any]] = {}
        as_now = set()
        for key, value in changes.set.items():
            file = self.file_of(key, name)
            params.setdefault(file, {})[key] = value
            if _node(self.files[file], key) == (True, value):
                as_now.add(key)
        for target, source in changes.replace.items():
            for file in (target, source):
                if Path(file).is_absolute() or ".." in Path(file).parts or not Path(file).is_file():
                    raise ConfigError(f"{self.path}, arm {name}: {file} is no file of this repository")
        return Arm(name, params, dict(changes.replace), frozenset(as_now))

    def file_of(self, key: str, arm: str) -> str:
        """The file that has a param, or that has the mapping that the param would be in."""
        if key == "profile":
            raise ConfigError(f"{self.path}, arm {arm}: set `profile` in params.yaml; a sweep has one")
        for known in (_has, _has_parent):
            if files := [file for file, content in self.files.items() if known(content, key)]:
                return files[0]
        names = [name for content in self.files.values() for name in _names(content)]
        near = difflib.get_close_matches(key, names, 1)
        hint = f"; did you mean {near[0]}?" if near else ""
        raise ConfigError(f"{self.path}, arm {arm}: {key} is neither in {' nor in '.join(self.files)}{hint}")


def _node(content: Any, key: str) -> tuple[bool, Any]:
    for part in key.split("."):
        if not isinstance(content, dict) or part not in content:
            return False, None
        content = content[part]
    return True, content


def _has(content: dict[str, Any], key: str) -> bool:
    return _node(content, key)[0]


def _has_parent(content: dict[str, Any], key: str) -> bool:
    """Whether a mapping that is not a whole stage's section would hold the param."""
    parent = key.rpartition(".")[0]
    return "." in parent and isinstance(_node(content, parent)[1], dict)


def _names(node: Any, name: str = "") -> Iterator[str]:
    if name:
        yield name
    if isinstance(node, dict):
        for key, value in node.items():
            yield from _names(value, f"{name}.{key}" if name else str(key))
