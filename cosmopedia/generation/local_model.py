"""A model that is already here: a folder of safetensors, a GGUF file, or an installed package that carries one.

Clusters without the internet have nothing else. The model is named by its last folder or file, and its revision is the
hash of its files, so that a model that was moved gives the same completions' keys. `key` is the param that names it,
for messages.
"""

import importlib.util
import json
from pathlib import Path
from typing import NamedTuple

from cosmopedia.core.errors import ConfigError
from cosmopedia.core.lineage import content_revision
from cosmopedia.records.pins import all_files, check_pin, is_local

PACKAGE = "package:"


class LocalModel(NamedTuple):
    """A model's files, its name and its revision."""

    name: str
    revision: str
    folder: Path  # of the safetensors, or of `gguf`
    gguf: Path | None


def is_here(model: str) -> bool:
    """Whether a model is a package, a file or a folder, and no hub id."""
    return model.startswith(PACKAGE) or is_local(model)


def locate(model: str, key: str) -> tuple[Path, Path | None]:
    """The folder that a path or `package:<import name>` leads to, and the GGUF file in it where that is the model.

    `ConfigError` when there is no model, more than one, or not a whole one; a package must carry a GGUF file.
    """
    if model.startswith(PACKAGE):
        folder = _package_folder(model.removeprefix(PACKAGE), key)
    else:
        folder = Path(model)
        if not folder.exists():
            raise ConfigError(f"{key}: {model} does not exist; correct the path, or name a hub id")
    found = [folder] if folder.is_file() else sorted(folder.glob("*.gguf"))
    if not any(folder.glob("*.safetensors")) and len(found) == 1 and found[0].suffix == ".gguf":
        return found[0].parent, found[0]
    if model.startswith(PACKAGE):
        raise ConfigError(f"{key}: {model} carries {len(found)} GGUF files, and one is wanted; name a path")
    _check_folder(model, folder, found, key)
    return folder, None


def find_local(model: str, pin: str | None, key: str) -> LocalModel:
    """The model that a path or package leads to, its files hashed. `ConfigError` when it is not what `pin` says."""
    folder, gguf = locate(model, key)
    name = gguf.stem if gguf else folder.resolve().name
    packaged = gguf is not None and model.startswith(PACKAGE)
    revision = content_revision([gguf] if gguf and packaged else all_files(model))
    if not packaged:  # the lock file pins those
        check_pin(model, pin, revision)
    return LocalModel(name, revision, folder, gguf)


def _package_folder(name: str, key: str) -> Path:
    """Where a package lies. It is not imported: one that carries a model for another program would want that."""
    spec = importlib.util.find_spec(name) if name.isidentifier() else None
    if spec is None or not spec.submodule_search_locations:
        raise ConfigError(f"{key}: no package {name} is installed; run make setup, or name a folder or hub id")
    return Path(spec.submodule_search_locations[0])


def _check_folder(model: str, folder: Path, ggufs: list[Path], key: str) -> None:
    """`ConfigError` when a folder of safetensors is not whole, or is something else."""
    index = folder / "model.safetensors.index.json"
    try:
        needed = (
            set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()) if index.is_file() else set()
        )
    except (ValueError, KeyError, AttributeError) as error:
        raise ConfigError(f"{index} does not list the files of weights ({error}); copy the model again") from None
    shards = {path.name for path in folder.glob("*.safetensors")}
    needed |= {"config.json", "tokenizer.json", *([] if needed or shards else ["model.safetensors"])}
    if missing := sorted(name for name in needed if not (folder / name).is_file()):
        several = f" ({len(ggufs)} GGUF files are here: name one of them)" if len(ggufs) > 1 else ""
        raise ConfigError(
            f"{key}: {model} has no {', '.join(missing[:3])}{several}; wanted is a model's folder with"
            " safetensors, config.json and tokenizer.json, or a GGUF file"
        )
