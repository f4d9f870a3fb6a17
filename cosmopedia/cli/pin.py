"""pin: write the commit of every hub id into profiles/.

A mapping with a `revision` and a `dataset`, `model` or `tokenizer` is a hub reference, unless it names a local file.
Comments and layout of the file stay. To move on to a newer commit, write `revision: main` back and run it again.
"""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated, Any

import typer

from cosmopedia.cli.output import new_app
from cosmopedia.errors import ConfigError

app = new_app()
KINDS = {"dataset": "dataset", "model": "model", "tokenizer": "model"}


def references(node: Any) -> Iterator[tuple[dict[str, Any], str, str]]:
    """(mapping, kind, hub id) for each hub reference below a node whose revision is no commit yet."""
    from cosmopedia.records import COMMIT, is_local

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
    from ruamel.yaml import YAML

    yaml = YAML()
    yaml.preserve_quotes = True
    yaml.width = 4096
    content = yaml.load(path.read_text(encoding="utf-8"))
    pinned = 0
    for node, kind, name in list(references(content)):
        node["revision"] = resolve(kind, name, node["revision"])
        typer.echo(f"{path}: {name} -> {node['revision']}")
        pinned += 1
    if pinned:
        with path.open("w", encoding="utf-8") as stream:
            yaml.dump(content, stream)
    return pinned


@app.command(epilog="Example: cosmo pin cluster")
def pin(profiles: Annotated[list[str] | None, typer.Argument(help="Names of profiles; default: all.")] = None) -> None:
    """Write the commit that each hub id's `revision` stands for into the profiles. Needs the network."""
    from cosmopedia.records import resolve_revision

    known = {path.stem: path for path in sorted(Path("profiles").glob("*.yaml"))}
    if unknown := set(profiles or ()) - known.keys():
        raise ConfigError(f"unknown profile {', '.join(sorted(unknown))}; known profiles: {', '.join(known)}")
    pinned = sum(pin_profile(known[name], resolve_revision) for name in profiles or known)
    typer.echo(f"{pinned} revisions written")
