"""report: write a page that shows two runs side by side."""

from pathlib import Path
from typing import Annotated

import typer

from cosmopedia.cli.checkout import given
from cosmopedia.cli.output import Json, new_app, print_json

app = new_app()


@app.command(epilog="Example: cosmo report HEAD~1 --out /tmp/compare.html")
def report(
    a: Annotated[str, typer.Argument(help="A git revision, an experiment or a folder.")],
    b: Annotated[str | None, typer.Argument(help="The other one; default: this checkout.")] = None,
    out: Annotated[Path, typer.Option(help="The page; it needs no other file.")] = Path("compare.html"),
    stage: Annotated[
        str | None, typer.Option(help="Compare this stage's documents; default: the last that both have.")
    ] = None,
    rows: Annotated[int, typer.Option(min=1, help="At most so many documents, drawn by id.")] = 100_000,
    noise: Annotated[
        str | None, typer.Option(help="Noise floor for few training seeds, as `cosmo compare` takes it.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Write a page that shows two runs side by side: scores with the verdicts of `cosmo compare`, settings that
    differ, documents added, removed and changed, and each of them with both prompts and both texts.

    The page loads nothing and opens from disk. Nothing is checked out.
    """
    from cosmopedia.core.files import write_text
    from stages.report import cosmo_report_page as page

    content, text = page.compare_page(a, b, stage, rows, noise)
    write_text(given(out), text)
    if as_json:
        print_json({"page": str(given(out)), "bytes": len(text.encode()), **content})
        return
    typer.echo(f"{given(out)} ({len(text.encode()) / 1e6:.1f} MB): {content['headline']}")
