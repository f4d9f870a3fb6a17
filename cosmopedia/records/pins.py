"""Pins of local files: the hash of what a profile's path led to, written next to the path as a hub's commit is.

DVC watches the samples of this repository. A file of one's own that a profile names is no dep, so its pin stands for
it: the pin is a param, another content needs another pin, and a run stops where the two differ. A mapping with
`dataset` or `model` has the pin under `revision`; a path alone has it behind an "@": `demos.jsonl@sha256:<16 digits>`.
"""

import sys
from pathlib import Path

from cosmopedia.core.errors import ConfigError
from cosmopedia.records.dataset_folders import kind_of

WATCHED = "data/samples/"  # deps of the stages that read them
_warned: set[str] = set()


def is_local(name: str) -> bool:
    """Whether a dataset or model is a file or folder here: it exists, is absolute or relative (`./`, `../`), or has a
    suffix of a kind that is read."""
    path = Path(name)
    return path.exists() or path.is_absolute() or name.startswith(".") or kind_of(path) is not None


def split_pin(name: str) -> tuple[str, str | None]:
    """A path and the pin behind it."""
    path, at, pin = name.rpartition("@sha256:")
    return (path, f"sha256:{pin}") if at else (name, None)


def check_pin(path: str, pin: str | None, content: str) -> None:
    """`ConfigError` when the content of a path is not what the pin names; a warning, once, when there is no pin."""
    if path.startswith((WATCHED, "models/")):
        return
    if pin is None:
        if path not in _warned:
            print(
                f"warning: {path} is not pinned, so DVC does not notice when it changes; `cosmo pin` writes its hash"
                " into the profile",
                file=sys.stderr,
                flush=True,
            )
            _warned.add(path)
    elif pin != content:
        raise ConfigError(
            f"{path} is {content}, but the profile pins {pin}; restore what was there, or take it as it is now with"
            " `cosmo pin`"
        )


def all_files(name: str) -> list[Path]:
    """A file, or those of a folder and its subfolders, sorted."""
    path = Path(name)
    return sorted(file for file in path.rglob("*") if file.is_file()) if path.is_dir() else [path]
