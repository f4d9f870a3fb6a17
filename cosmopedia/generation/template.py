"""A prompt that is a file: leading # lines are its comment, $slots are filled in."""

from pathlib import Path
from string import Template

from cosmopedia.core.errors import ConfigError
from cosmopedia.core.text import read_text


def read_template(path: Path, wanted: set[str], optional: frozenset[str] = frozenset()) -> Template:
    """The template, without its leading # lines. `ConfigError` for a missing file or a wrong slot."""
    try:
        lines = read_text(path).splitlines()
    except FileNotFoundError:
        raise ConfigError(f"{path} is missing; restore it with git") from None
    while lines and lines[0].startswith("#"):
        lines.pop(0)
    template = Template("\n".join(lines).strip())
    slots = set(template.get_identifiers()) if template.is_valid() else None
    if slots is None or wanted - slots or slots - wanted - optional:
        named = " and ".join(f"${name}" for name in sorted(wanted))
        liked = "".join(f", if you like, ${name}" for name in sorted(optional))
        raise ConfigError(
            f"{path}: wanted {named}{liked}, and no other slot (a dollar sign is written $$);"
            f" found {'a slot that does not parse' if slots is None else sorted(slots)}"
        )
    return template
