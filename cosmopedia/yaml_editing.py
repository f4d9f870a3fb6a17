"""Edits of YAML files that people write: comments, quotes, order and the word null stay."""

import io
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.representer import RoundTripRepresenter

from cosmopedia.core.files import write_text


class _Representer(RoundTripRepresenter):
    """Writes null as "null", where ruamel's own leaves a hole."""


_Representer.add_representer(
    type(None), lambda representer, _: representer.represent_scalar("tag:yaml.org,2002:null", "null")
)


def _yaml() -> YAML:
    yaml = YAML()
    yaml.Representer = _Representer
    yaml.preserve_quotes = True
    yaml.width = 1 << 16
    return yaml


def load(path: Path) -> Any:
    """The content, with all that `dump` needs to write it again."""
    return _yaml().load(path.read_text(encoding="utf-8"))


def dump(path: Path, content: Any) -> None:
    """Write what `load` gave."""
    text = io.StringIO()
    _yaml().dump(content, text)
    write_text(path, text.getvalue())


def set_params(path: Path, values: dict[str, Any]) -> None:
    """Set some values by their dotted names. Missing leaves are added to a mapping that is there."""
    content = load(path)
    for key, value in values.items():
        *parents, leaf = key.split(".")
        node = content
        for parent in parents:
            node = node[parent]
        if leaf not in node or node[leaf] != value:
            node[leaf] = value
    dump(path, content)
