"""HTML pages: one Jinja environment, in which every text from a model or the web is escaped."""

from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined, Template

from cosmopedia.core.text import without_controls


def page_template(folder: Path, name: str) -> Template:
    """A page's template; it escapes what it is given, and leaves control characters out."""
    pages = Environment(
        loader=FileSystemLoader(folder), autoescape=True, undefined=StrictUndefined, finalize=_without_controls
    )
    return pages.get_template(name)


def _without_controls(value: Any) -> Any:
    return without_controls(value) if type(value) is str else value
