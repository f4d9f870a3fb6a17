"""How the commands print: tables for people, JSON for scripts."""

import json
import re
import sys
from collections.abc import Iterable, Sequence
from typing import Annotated, Any

import typer

# What a terminal would obey: control characters, and marks that turn the direction of text around or hide.
CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ufeff]")
Json = Annotated[bool, typer.Option("--json", help="Print JSON, for scripts.")]


def new_app(**settings: Any) -> typer.Typer:
    """A command's app."""
    return typer.Typer(rich_markup_mode=None, add_completion=False, **settings)


def visible(text: str) -> str:
    """Text for a terminal: control characters and direction overrides are spelled out."""
    return CONTROL.sub(lambda match: match[0].encode("unicode_escape").decode(), text)


def print_json(value: Any) -> None:
    typer.echo(json.dumps(value, indent=2, default=str))


def print_table(
    head: Sequence[str], rows: Iterable[Sequence[object]], right: Iterable[int] = (), piped_width: int = 10_000
) -> None:
    """Rows in columns; `right` numbers the columns that are aligned to the right. Lines are cut in no pipe."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    for number, name in enumerate(head):
        table.add_column(name, justify="right" if number in set(right) else "left", overflow="fold")
    for row in rows:
        table.add_row(
            *(cell if isinstance(cell, Text) else Text("-" if cell is None else visible(str(cell))) for cell in row)
        )
    Console(width=None if sys.stdout.isatty() else piped_width, highlight=False).print(table)
