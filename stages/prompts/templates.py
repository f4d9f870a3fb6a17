"""Template files, `prompts/<source>/<style>.txt`: text with `$slots`; leading lines that begin with # are not sent."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

from cosmopedia.core.errors import ConfigError
from cosmopedia.core.lineage import not_in_git
from cosmopedia.core.rng import content_hash
from cosmopedia.core.text import read_text
from stages.prompts.slots import offered

SLOT = re.compile(r"\$(?:(?P<dollar>\$)|(?P<name>[a-z_]+)|\{(?P<braced>[a-z_]+)\}|(?P<wrong>.|$))", re.DOTALL)


@dataclass(frozen=True)
class Template:
    """A template cut into literal texts and slot names, alternating: text, slot, text, ..., text."""

    path: Path
    pieces: tuple[str, ...]
    digest: str  # over the text that is sent

    @property
    def slots(self) -> tuple[str, ...]:
        """The slots in the order of their use."""
        return self.pieces[1::2]

    def render_column(self, slots: Mapping[str, pa.Array]) -> pa.Array:
        """The prompts of many rows, from one column per slot."""
        parts = [slots[p] if n % 2 else pa.scalar(p, pa.large_string()) for n, p in enumerate(self.pieces)]
        return pc.binary_join_element_wise(*parts, pa.scalar("", pa.large_string()))  # type: ignore[attr-defined]

    def render(self, values: dict[str, str]) -> str:
        """The prompt for one row's slot values."""
        return "".join(values[p] if n % 2 else p for n, p in enumerate(self.pieces))


def read_template(source: str, style: str, root: Path = Path("prompts")) -> Template:
    """Read and check one template. `ConfigError` names the file and line of a wrong slot, or the files there are."""
    path = root / source / f"{style}.txt"
    try:
        text = read_text(path)
    except FileNotFoundError:
        not_in_git(path)
        known = ", ".join(sorted(p.stem for p in path.parent.glob("*.txt"))) or "none"
        raise ConfigError(
            f"{path} does not exist, but prompts.styles lists the style {style!r} of {source};"
            f" write the template or remove the style (templates there: {known})"
        ) from None
    return parse_template(text, path, offered(source))


def parse_template(text: str, path: Path, offered: tuple[str, ...]) -> Template:
    """Cut a template's text at its slots; `$$` is a dollar sign."""
    lines = text.splitlines(keepends=True)
    header = next((n for n, line in enumerate(lines) if not line.startswith("#")), len(lines))
    body = "".join(lines[header:]).strip()
    if not body:
        raise ConfigError(f"{path} holds no text to send; write the prompt below the # lines")
    pieces, literal, last = [], "", 0
    for match in SLOT.finditer(body):
        literal += body[last : match.start()]
        last = match.end()
        name = match["name"] or match["braced"]
        if match["dollar"]:
            literal += "$"
        elif name in offered:
            pieces += [literal, name]
            literal = ""
        else:
            line = header + body.count("\n", 0, match.start()) + 1
            slots = ", ".join(f"${slot}" for slot in offered)
            raise ConfigError(
                f"{path}:{line}: {match[0].strip()!r} is no slot of this source, which offers {slots};"
                " a dollar sign is written $$"
            )
    pieces.append(literal + body[last:])
    if len(pieces) == 1:
        raise ConfigError(f"{path} uses no slot, so every prompt would be the same; use one of {', '.join(offered)}")
    return Template(path, tuple(pieces), content_hash(body))
