"""Pins of local files: the hash of what a profile's path led to, written next to the path as a hub's commit is.

DVC watches the samples of this repository. A file of one's own that a profile names is no dep, so its pin stands for
it: the pin is a param, another content needs another pin, and a run stops where the two differ. A mapping with
`dataset` or `model` has the pin under `revision`; a path alone has it behind an "@": `demos.jsonl@sha256:<16 digits>`.
"""

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from cosmopedia.dataset_folders import dataset_files, kind_of
from cosmopedia.errors import ConfigError, CosmoError
from cosmopedia.files import write_text
from cosmopedia.lineage import content_revision, hash_file, store_root

WATCHED = "data/samples/"  # deps of the stages that read them
ALONE = ("demonstrations", "tokenizer")  # keys of a path with its pin behind it
_warned: set[str] = set()


class LocalReference(NamedTuple):
    """A place in a params file that names something local."""

    node: dict[str, Any]
    key: str  # of the path
    path: str
    pin: str | None
    files: list[Path]

    def write(self, pin: str) -> None:
        """Set the pin."""
        if self.key in ALONE:
            self.node[self.key] = f"{self.path}@{pin}"
        else:
            self.node["revision"] = pin


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


def local_references(node: Any) -> Iterator[LocalReference]:
    """What is local below a node of a params file, the samples left out. `ConfigError` for a path that is missing."""
    if not isinstance(node, dict):
        return
    for key in ("dataset", "model"):
        name = node.get(key)
        if "revision" in node and isinstance(name, str) and is_local(name) and not name.startswith(WATCHED):
            files = dataset_files(name, node.get("subset"), node.get("split")).files if key == "dataset" else None
            yield LocalReference(node, key, name, node["revision"], files or all_files(name))
    for key in ALONE:
        if isinstance(node.get(key), str):
            path, pin = split_pin(node[key])
            if Path(path).exists() and not path.startswith(WATCHED):
                yield LocalReference(node, key, path, pin, all_files(path))
    for value in node.values():
        yield from local_references(value)


def all_files(name: str) -> list[Path]:
    """A file, or those of a folder and its subfolders, sorted."""
    path = Path(name)
    return sorted(file for file in path.rglob("*") if file.is_file()) if path.is_dir() else [path]


def pin_problems(*contents: dict[str, Any]) -> Iterator[str]:
    """A sentence for each local file of the params files that is missing or is not what its pin says."""
    digests = _Digests()
    for content in contents:
        try:
            for reference in local_references(content):
                revision = content_revision(reference.files, digests.of)
                try:
                    check_pin(reference.path, reference.pin, revision)
                except ConfigError as error:
                    yield str(error)
        except CosmoError as error:
            yield str(error)
    digests.save()


class _Digests:
    """Hashes of files, kept from run to run by path, size and time of change."""

    def __init__(self) -> None:
        self._place = store_root() / "runs" / "pins.json"
        self._known = json.loads(self._place.read_text(encoding="utf-8")) if self._place.is_file() else {}
        self._new = False

    def of(self, path: Path) -> str:
        status, name = path.stat(), str(path.resolve())
        state = [status.st_size, status.st_mtime_ns]
        if self._known.get(name, [])[:2] != state:
            self._known[name] = [*state, hash_file(path)]
            self._new = True
        return self._known[name][2]

    def save(self) -> None:
        if self._new:
            write_text(self._place, json.dumps(self._known))
