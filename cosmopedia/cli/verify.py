"""verify: run the pipeline twice and compare the hashes.

Other hash seeds, threads, tasks and workers, time zone, language, umask and folder must change no byte.
"""

from typing import Annotated

import typer

from cosmopedia.cli.output import Json, new_app, print_json, print_table

app = new_app()


@app.command(epilog="Example: cosmo verify tokenize_corpus")
def verify(
    targets: Annotated[
        list[str] | None, typer.Argument(help="Stages, with what they read; default: the whole pipeline.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Run the pipeline twice from nothing in unlike surroundings, and compare the hash of every out.

    Completions come from the store. The exit status is 1 when an out differs between the two runs. An out that differs
    from the committed dvc.lock alone was made by other code, other params, or on another kind of processor.
    """
    from cosmopedia.sweeps.proof import Out, prove

    outs: list[Out] = []
    for step in prove(targets or []):
        if isinstance(step, str):
            typer.echo(step, err=as_json)
        else:
            outs = step
    different = [out for out in outs if not out.same]
    if as_json:
        print_json([out.__dict__ | {"same": out.same} for out in outs])
    else:
        print_table(
            ("stage", "out", "run 1 and run 2", "committed dvc.lock"),
            (
                (
                    out.stage,
                    out.path,
                    "same" if out.same else "DIFFERENT",
                    "-" if out.committed is None else "same" if out.committed == out.hashes[0] else "other",
                )
                for out in outs
            ),
        )
        typer.echo(f"\n{len(outs)} outs, {len(different)} differ between the runs")
    if different:
        raise typer.Exit(1)
