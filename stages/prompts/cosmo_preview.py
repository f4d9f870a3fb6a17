"""preview: show a few prompts of a source and style as they will be sent."""

from typing import Annotated

import typer

from cosmopedia.cli.output import Json, new_app, print_json, print_table, visible
from cosmopedia.core.errors import ConfigError

app = new_app()


@app.command(epilog="Example: cosmo preview web wikihow -k 5 --endpoint http://gpu1:8080")
def preview(
    source: Annotated[str | None, typer.Argument(help="A source, such as web.")] = None,
    style: Annotated[str | None, typer.Argument(help="One of its styles; --list names them.")] = None,
    count: Annotated[int, typer.Option("-k", min=1, help="How many prompts.")] = 3,
    seed: Annotated[int | None, typer.Option(help="Of the draw of source rows; default: prompts.seed.")] = None,
    chat: Annotated[bool, typer.Option("--chat", help="In the generation model's chat template.")] = False,
    endpoint: Annotated[str | None, typer.Option(help="A server's URL: send them, and show what it writes.")] = None,
    list_cells: Annotated[bool, typer.Option("--list", help="List sources and styles with their templates.")] = False,
    as_json: Json = False,
) -> None:
    """Show a few prompts of a source and style as they will be sent, and what a server makes of them.

    Source rows come from data/sources/ and data/topics/ where these stages have run, else from the first records of
    the profile's dataset. Nothing is written or stored.
    """
    if not list_cells and (source is None or style is None):
        raise ConfigError("preview wants a source and a style, such as `cosmo preview web wikihow`; --list names them")
    from stages.prompts import cosmo_preview_prompts as prompts

    if list_cells:
        cells = prompts.cells()
        if as_json:
            print_json(cells)
        else:
            print_table(list(cells[0]), (list(cell.values()) for cell in cells))
        return
    shown = prompts.preview(str(source), str(style), count, seed, chat, endpoint)
    if as_json:
        print_json(shown)
        return
    for row in shown["prompts"]:
        seed_id, prompt = visible(row["seed_id"]), visible(row["prompt"])
        typer.echo(f"--- {seed_id}, {shown['format']} for {shown['audience']}\n{prompt}\n")
        if row["completion"] is not None:
            typer.echo(f"--- completion\n{visible(row['completion'])}\n")
    typer.echo(f"{len(shown['prompts'])} of {source}-{style}, {shown['template']} ({shown['template_digest'][:8]})")
