"""view: show any stage's table, its rows and columns."""

import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import click
import typer

from cosmopedia.cli.checkout import given
from cosmopedia.cli.output import Json, new_app, print_json, visible
from cosmopedia.core.errors import ConfigError

app = new_app()


@app.command(epilog='Example: cosmo view clean/removed --where "reason=too_short" --columns reason,text')
def view(
    table: Annotated[str, typer.Argument(help="A stage, a table of it (dedup/removed, topics/web), or a path.")],
    where: Annotated[
        list[str] | None, typer.Option(help="column=value, !=, >, >=, <, <=, column~part; repeat it: all must hold.")
    ] = None,
    search: Annotated[str | None, typer.Option(help="Rows with this in any text, in any case.")] = None,
    id: Annotated[str | None, typer.Option(help="The row with this id, or ids that begin with it, in full.")] = None,
    columns: Annotated[str | None, typer.Option(help="Show these, separated by commas; default: all.")] = None,
    limit: Annotated[int, typer.Option(min=1, help="Show at most so many rows.")] = 10,
    skip: Annotated[int, typer.Option(min=0, help="Leave out so many rows first.")] = 0,
    full: Annotated[bool, typer.Option("--full", help="Show whole values, not the first line of them.")] = False,
    as_json: Json = False,
) -> None:
    """Show a stage's table: columns, counts, rows that match.

    A stage with several tables lists them and shows rows of the first. Whatever size a table has, it is read in parts.
    """
    import polars as pl

    from cosmopedia.cli import look

    first, *others = look.tables_at(table, given(Path(table)))
    conditions = [look.condition(one, first) for one in where or ()]
    if search is not None:
        conditions.append(look.any_of(look.contains(pl.col(name), search) for name in first.text_columns))
    if id is not None:
        conditions.append(look.any_of(pl.col(name).str.starts_with(id) for name in first.id_columns))
    shown = [name.strip() for name in columns.split(",")] if columns else first.schema.names
    if unknown := [name for name in shown if name not in first.schema.names]:
        raise ConfigError(f"--columns: {first.no_column(unknown[0])}")
    rows = look.rows_of(first, conditions, shown, skip, limit)
    if as_json:
        print_json({"table": described(first), "other_tables": [described(one) for one in others], "rows": rows})
        return
    lines = page(first, others, rows, skip, full or id is not None)
    if sys.stdout.isatty():
        click.echo_via_pager(f"{line}\n" for line in lines)
    else:
        typer.echo("\n".join(lines))


def described(table: Any) -> dict[str, Any]:
    """A table without its rows."""
    columns = {field.name: str(field.type) for field in table.schema}
    files = [str(path) for path in table.files]
    return {"name": table.name, "rows": table.rows, "bytes": table.bytes, "files": files, "columns": columns}


def page(table: Any, others: list[Any], rows: list[dict[str, Any]], skip: int, full: bool) -> Iterator[str]:
    """What a person reads, line by line."""
    width = shutil.get_terminal_size((120, 40)).columns
    yield headline(table)
    for field in table.schema:
        yield f"  {visible(field.name):<22} {field.type}{'' if field.nullable else ', never empty'}"
    if others:
        yield f"{len(others)} more here; name one to see it:"
        yield from (f"  {headline(one)}" for one in others)
    if not rows:
        yield "\nno row that meets the conditions"
    for number, row in enumerate(rows, skip + 1):
        yield f"\n--- {number}"
        for name, value in row.items():
            yield from cell(visible(name), value, width, full)


def headline(table: Any) -> str:
    files = f"{len(table.files):,} file{'s' if len(table.files) > 1 else ''}"
    return f"{visible(table.name)}: {table.rows:,} rows, {files}, {table.bytes / 1e6:,.1f} MB"


def cell(name: str, value: Any, width: int, full: bool) -> Iterator[str]:
    """A value next to its name: its beginning in one line, or all of it. What a terminal would obey is spelled out."""
    text = "-" if value is None else str(value)
    if not full:
        room = max(width - 24, 20)
        line = visible(" ".join(text[: 4 * room].split()))
        yield f"{name:<22}  {line if len(line) <= room and len(text) <= 4 * room else line[: room - 2] + ' …'}"
        return
    first, *rest = visible(text).split("\n")
    yield f"{name:<22}  {first}"
    yield from (f"{'':<22}  {line}" for line in rest)
