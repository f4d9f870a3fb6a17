"""cluster: run the pipeline as a Slurm job, and stop it."""

from typing import Annotated

import typer

from cosmopedia.cli.output import new_app
from cosmopedia.execution.redaction import say

app = new_app(no_args_is_help=True)


@app.callback(epilog="Example: COSMO_COMPUTE=compute/slurm-h100.yaml cosmo cluster submit")
def cluster() -> None:
    """Run the pipeline as a Slurm job, and stop it. `cosmo status` shows what it does."""


@app.command(epilog="Example: cosmo cluster submit generate")
def submit(
    targets: Annotated[list[str] | None, typer.Argument(help="DVC's targets; default: everything.")] = None,
) -> None:
    """Submit `dvc repro` as a Slurm job, which survives your logout and goes on after its time limit."""
    from cosmopedia.execution.compute import load_compute
    from cosmopedia.execution.slurm import driver

    for warning in load_compute().warnings:
        say(f"warning: {warning}")
    job, log = driver.submit(targets or [])
    typer.echo(f"job {job} drives dvc repro; its log is {log}; `cosmo status` shows what it does")


@app.command(epilog="Example: cosmo cluster stop")
def stop() -> None:
    """Stop the driver cleanly; what was completed is in the store."""
    from cosmopedia.execution.slurm import driver

    typer.echo("driver stopped" if driver.stop() else "no driver runs")


@app.command(epilog="Example: cosmo cluster reap")
def reap() -> None:
    """Cancel every job of this checkout: fleets, arrays, the driver."""
    from cosmopedia.execution.slurm import driver

    typer.echo(f"{driver.reap()} jobs cancelled")
