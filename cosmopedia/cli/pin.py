"""pin: pin hub ids by their commits, local files by their hashes.

A mapping with a `revision` and a `dataset`, `model` or `tokenizer` is a reference. A local file or folder is pinned by
the hash of its content (cosmopedia/records/pins.py), again whenever it has changed. Comments and layout of the file
stay. To move on to a newer commit of the hub, write `revision: main` back and run it again.
"""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated, Any

import typer

from cosmopedia.cli.output import new_app
from cosmopedia.core.errors import ConfigError

app = new_app()
KINDS = {"dataset": "dataset", "model": "model", "tokenizer": "model"}


def references(node: Any) -> Iterator[tuple[dict[str, Any], str, str]]:
    """(mapping, kind, hub id) for each hub reference below a node whose revision is no commit yet."""
    from cosmopedia.records.pins import is_local
    from cosmopedia.records.reading import COMMIT

    if not isinstance(node, dict):
        return
    revision = node.get("revision")
    for key, kind in KINDS.items():
        name = node.get(key)
        if (
            isinstance(name, str)
            and isinstance(revision, str)
            and not is_local(name)
            and not COMMIT.fullmatch(revision)
        ):
            yield node, kind, name
    for value in node.values():
        yield from references(value)


def pin_profile(path: Path, resolve: Callable[[str, str, str | None], str]) -> int:
    """Pin one profile file in place; returns how many references were resolved."""
    from cosmopedia import yaml_editing
    from cosmopedia.core.lineage import content_revision
    from cosmopedia.execution.local_pins import local_references

    content = yaml_editing.load(path)
    pinned = 0
    for node, kind, name in list(references(content)):
        node["revision"] = resolve(kind, name, node["revision"])
        typer.echo(f"{path}: {name} -> {node['revision']}")
        pinned += 1
    for reference in list(local_references(content)):
        revision = content_revision(reference.files)
        if revision != reference.pin:
            reference.write(revision)
            typer.echo(f"{path}: {reference.path} -> {revision}")
            pinned += 1
    if pinned:
        yaml_editing.dump(path, content)
    return pinned


@app.command(epilog="Example: cosmo pin cluster")
def pin(profiles: Annotated[list[str] | None, typer.Argument(help="Names of profiles; default: all.")] = None) -> None:
    """Write the commit of each hub id, and the hash of each local file or folder, into the profiles."""
    from cosmopedia.records.reading import resolve_revision

    known = {path.stem: path for path in sorted(Path("profiles").glob("*.yaml"))}
    if unknown := set(profiles or ()) - known.keys():
        raise ConfigError(f"unknown profile {', '.join(sorted(unknown))}; known profiles: {', '.join(known)}")
    files = [Path("params.yaml"), *(known[name] for name in profiles or known)]
    pinned = sum(pin_profile(path, resolve_revision) for path in files if path.is_file())
    typer.echo(f"{pinned} revisions written")
