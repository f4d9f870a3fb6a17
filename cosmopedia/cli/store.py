"""store: show, check and clean up the completion store."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cosmopedia.cli.checkout import given
from cosmopedia.cli.output import Json, new_app, print_json, print_table
from cosmopedia.core.errors import DataError

if TYPE_CHECKING:
    from cosmopedia.store.copies import Copied

app = new_app()
Documents = Annotated[list[Path], typer.Argument(help="Documents: .../data/generate/*.parquet of another checkout.")]
Address = Annotated[str | None, typer.Argument(help="s3://bucket/prefix, or any other fsspec address.")]


@app.callback(invoke_without_command=True, epilog="Example: cosmo store forecast")
def store(context: typer.Context) -> None:
    """Show what the completion store has (the default) and what a run would reuse, and keep it in order."""
    if context.invoked_subcommand is None:
        show()


@app.command(epilog="Example: cosmo store show --json")
def show(as_json: Json = False) -> None:
    """Show completions, tokens, files and size."""
    from cosmopedia.cli import completions

    contents = completions.contents()
    if as_json:
        print_json(contents)
    else:
        values = (f"{value:,}" if isinstance(value, int) else value for value in contents.values())
        print_table(["store", ""], zip(contents, values, strict=True))


@app.command(epilog="Example: cosmo store forecast")
def forecast(as_json: Json = False) -> None:
    """Show what `generate` would reuse and send now, and the bill."""
    from cosmopedia.cli import completions

    bill = completions.forecast()
    if as_json:
        print_json({"cached": bill.cached, **bill.metrics()})
    else:
        typer.echo(bill.sentence())


@app.command(epilog="Example: cosmo store verify")
def verify(as_json: Json = False) -> None:
    """Read every byte of every file; exit status 3 if one is damaged."""
    from cosmopedia.cli import completions

    checked = completions.verify()
    if as_json:
        print_json(checked)
    if checked["problems"]:
        raise DataError("; ".join(checked["problems"]))
    if not as_json:
        typer.echo(f"{checked['files']} files in {checked['address']}, every checksum right")
        for path, size in checked["torn"].items():
            typer.echo(f"{path}: the last {size:,} bytes are a write that never ended; they are ignored")


@app.command(epilog="Example: cosmo store compact")
def compact() -> None:
    """Put segments into parquet files, each completion once."""
    from cosmopedia.cli import completions

    done = completions.compact()
    typer.echo(
        f"{len(done.old)} segments compacted: {done.kept:,} completions in {len(done.new)} parquet files,"
        f" {done.left_out} repeats{_in_use(done.in_use)}"
    )


@app.command(epilog="Example: cosmo store repair")
def repair() -> None:
    """Set damaged files aside and keep what is whole in them."""
    from cosmopedia.cli import completions

    damaged, kept = completions.repair()
    typer.echo(f"{damaged} damaged files set aside, {kept} completions kept from them")


@app.command("import", epilog="Example: cosmo store import ../other/data/generate/*.parquet")
def import_documents(documents: Documents) -> None:
    """Take completions over from the documents of another checkout."""
    from cosmopedia.cli import completions

    typer.echo(f"{completions.import_documents(map(given, documents))} completions imported")


@app.command(epilog="Example: cosmo store push s3://bucket/prefix")
def push(address: Address = None) -> None:
    """Compact the store and copy to a bucket what that lacks.

    Without an address: upload what a killed process left in the spool of an s3:// store.
    """
    from cosmopedia.cli import completions

    copied, to = completions.push(address)
    typer.echo(f"{_files(copied)} uploaded to {to}{_there(copied)}{_in_use(copied.in_use)}")


@app.command(epilog="Example: cosmo store pull s3://bucket/prefix")
def pull(address: Address = None) -> None:
    """Copy from a bucket what this store lacks.

    Without an address: bring the local copy of an s3:// store up to date.
    """
    from cosmopedia.cli import completions

    copied, source = completions.pull(address)
    typer.echo(f"{_files(copied)} fetched from {source}{_there(copied)}")


@app.command(epilog="Example: cosmo store unused --remove ../other/data/generate/*.parquet")
def unused(
    documents: Documents = [],  # noqa: B006
    remove: Annotated[bool, typer.Option("--remove", help="Remove them.")] = False,
    as_json: Json = False,
) -> None:
    """Show completions that nothing refers to: neither the prompts of this checkout as they are now, nor data/generate
    here, nor the documents named."""
    from cosmopedia.cli import completions

    files = [given(path) for path in documents]
    if remove:
        done = completions.compact(completions.wanted_by(files))
        result = {"removed": done.left_out, "kept": done.kept}
        text = f"{done.left_out:,} completions removed, {done.kept:,} kept{_in_use(done.in_use)}"
    else:
        idle, total = completions.unused(files)
        result = {"unused": idle, "completions": total}
        text = f"{idle:,} of {total:,} completions are referred to by nothing; `--remove` removes them"
    if as_json:
        print_json(result)
    else:
        typer.echo(text)


def _in_use(segments: int) -> str:
    return f"; {segments} segments left alone, since a run still writes to them" if segments else ""


def _files(copied: "Copied") -> str:
    size = f", {copied.bytes:,} bytes," if copied.bytes else ""
    return f"{copied.files} files{size}"


def _there(copied: "Copied") -> str:
    return f"; {copied.there} were there" if copied.there else ""
