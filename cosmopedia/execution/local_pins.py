"""The local files that params and profile name, and whether they are what their pins say: for `cosmo pin`, and for the
check before a run."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from cosmopedia.core.errors import ConfigError, CosmoError
from cosmopedia.core.files import write_text
from cosmopedia.core.lineage import content_revision, hash_file, store_root
from cosmopedia.records.dataset_folders import dataset_files
from cosmopedia.records.pins import WATCHED, all_files, check_pin, is_local, split_pin

ALONE = ("continue_from", "demonstrations", "taxonomy", "tokenizer")  # keys of a path with its pin behind it


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
