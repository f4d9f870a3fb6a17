"""Resolve every hub id in profile files to the commit that its `revision` stands for, and write it there.

A mapping with a `revision` and a `dataset`, `model` or `tokenizer` is a hub reference, unless it names a local file.
Comments and layout of the file stay. Run it as `make pin`, again with `revision: main` written back to move on.
"""

import argparse
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

from cosmopedia.errors import run_stage
from cosmopedia.records import COMMIT, is_local, resolve_revision

KINDS = {"dataset": "dataset", "model": "model", "tokenizer": "model"}


def references(node: Any) -> Iterator[tuple[dict[str, Any], str, str]]:
    """(mapping, kind, hub id) for each hub reference below a node whose revision is no commit yet."""
    if not isinstance(node, dict):
        return
    for key, kind in KINDS.items():
        name, revision = node.get(key), node.get("revision")
        if not isinstance(name, str) or not isinstance(revision, str):
            continue
        if not is_local(name) and not COMMIT.fullmatch(revision):
            yield node, kind, name
    for value in node.values():
        yield from references(value)


def pin(path: Path, resolve: Callable[[str, str, str | None], str] = resolve_revision) -> int:
    """Pin one profile file in place; returns how many references were resolved."""
    yaml = YAML()
    yaml.preserve_quotes, yaml.width = True, 4096
    content = yaml.load(path.read_text(encoding="utf-8"))
    found = list(references(content))
    for node, kind, name in found:
        node["revision"] = resolve(kind, name, node["revision"])
        print(f"{path}: {name} -> {node['revision']}")
    if found:
        with path.open("w", encoding="utf-8") as stream:
            yaml.dump(content, stream)
    return len(found)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python -m cosmopedia.cli.pin")
    parser.add_argument("profile", type=Path, nargs="+")
    profiles = parser.parse_args().profile
    run_stage("pin", lambda: f"{sum(pin(path) for path in profiles)} revisions written to {len(profiles)} profile(s)")
