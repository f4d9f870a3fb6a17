"""What `cosmo trace` asks of templates: the hash that a prompt's row would have of a template's text."""

from pathlib import Path

from cosmopedia.core.errors import ConfigError
from stages.prompts.slots import offered
from stages.prompts.templates import parse_template


def template_hash(text: str, path: str) -> str | None:
    """The hash of what is sent of a template; None for a text that is no template of this checkout's slots."""
    try:
        return parse_template(text, Path(path), offered(Path(path).parent.name)).digest
    except ConfigError:
        return None
