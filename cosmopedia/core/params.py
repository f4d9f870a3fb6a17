"""Parameters: `params.yaml` says what is built, `profiles/<profile>.yaml` at what scale.

Every leaf is in exactly one of the two files, so that `dvc.yaml` can name it and `dvc exp run -S` can set it
(`-S prompts.topic_probability=0.25`, `-S profiles/rehearsal.yaml:train.steps=9`). A stage reads the union of its
section in both, through a frozen pydantic model that refuses unknown keys and has no defaults.
"""

import pickle
from functools import lru_cache
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError

from cosmopedia.core.errors import ConfigError
from cosmopedia.core.text import read_text


class Params(BaseModel):
    """Base of every stage's parameters: frozen, unknown keys refused."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=False)


P = TypeVar("P", bound=BaseModel)
SafeLoader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # libyaml's is ten times as fast


def read_yaml(path: Path) -> dict[str, Any]:
    """The mapping in a YAML file. `ConfigError` when it is missing, does not parse or is no mapping."""
    try:
        content = pickle.loads(_parsed(read_text(path)))
    except FileNotFoundError:
        raise ConfigError(f"{path} is missing; run from the repository's root, or restore it with git") from None
    except yaml.YAMLError as error:
        raise ConfigError(f"{path} does not parse as YAML: {' '.join(str(error).split())}") from None
    if not isinstance(content, dict):
        raise ConfigError(f"{path} must hold a mapping of sections, found {type(content).__name__}")
    return content


@lru_cache(maxsize=16)
def _parsed(text: str) -> bytes:
    """What a YAML text says, pickled: a stage reads the same files for each section, and may change what it gets."""
    return pickle.dumps(yaml.load(text, SafeLoader))


def profile_path(root: Path = Path()) -> Path:
    """`profiles/<profile>.yaml` as chosen by `profile:` in params.yaml."""
    name = read_yaml(root / "params.yaml").get("profile")
    path = root / "profiles" / f"{name}.yaml"
    if not path.is_file():
        known = ", ".join(sorted(p.stem for p in (root / "profiles").glob("*.yaml"))) or "none"
        raise ConfigError(f"params.yaml: profile is {name!r}, but {path} does not exist; known profiles: {known}")
    return path


def section(name: str, root: Path = Path()) -> dict[str, Any]:
    """The union of a dotted section in params.yaml and in the chosen profile.

    `ConfigError` when a leaf is in both files, since DVC could then not tell which one counts.
    """
    recipe_file, scale_file = root / "params.yaml", profile_path(root)
    recipe = _descend(read_yaml(recipe_file), name, recipe_file)
    scale = _descend(read_yaml(scale_file), name, scale_file)
    return _union(recipe, scale, name, scale_file)


def load(name: str, model: type[P], root: Path = Path()) -> P:
    """A stage's parameters: section `name` of params.yaml and the profile, checked against `model`."""
    return check(section(name, root), model, name)


def check(values: dict[str, Any], model: type[P], where: str) -> P:
    """`values` as a `model`; a `ConfigError` names each wrong key, what was wanted and what was found."""
    try:
        return model.model_validate(values)
    except ValidationError as error:
        raise ConfigError("; ".join(_complaint(where, e) for e in error.errors())) from None


def _complaint(where: str, error: Any) -> str:
    key = ".".join([where, *map(str, error["loc"])])
    if error["type"] == "extra_forbidden":
        return f"{key} is not a parameter; remove it, or look for a spelling mistake"
    if error["type"] == "missing":
        return f"{key} is missing; add it to params.yaml or to the profile"
    return f"{key}: {error['msg'][0].lower()}{error['msg'][1:]}, found {error['input']!r}"


def _descend(content: dict[str, Any], name: str, path: Path) -> dict[str, Any]:
    node: Any = content
    for part in name.split("."):
        node = node.get(part, {}) if isinstance(node, dict) else node
    if not isinstance(node, dict):
        raise ConfigError(f"{path}: {name} must be a mapping, found {node!r}")
    return node


def _union(recipe: dict[str, Any], scale: dict[str, Any], where: str, scale_file: Path) -> dict[str, Any]:
    merged = dict(recipe)
    for key, value in scale.items():
        if key not in merged:
            merged[key] = value
        elif isinstance(merged[key], dict) and isinstance(value, dict):
            merged[key] = _union(merged[key], value, f"{where}.{key}", scale_file)
        else:
            raise ConfigError(f"{where}.{key} is in params.yaml and in {scale_file}; keep it in one of them")
    return merged
