"""check: check every setting, and repair what a kill has left.

Before a run: `make repro` and the driver's job begin with it. Every stage's params, all templates, the reviewed
decisions and the compute file are read, a dvc.lock that a kill has cut short is restored, and code in which only
comments and docstrings were edited reruns nothing.
"""

import typer

from cosmopedia.cli.output import new_app

app = new_app()


@app.command(epilog="Example: cosmo check && dvc repro")
def check() -> None:
    """Check every setting of the pipeline, and repair what a kill has left; exit status 2 when a setting is wrong."""
    from cosmopedia.core.params import profile_path
    from cosmopedia.execution.compute import compute_path
    from cosmopedia.execution.settings import check_settings_once, repairs

    for sentence in repairs():
        typer.echo(sentence)
    check_settings_once()
    typer.echo(f"the settings in params.yaml, {profile_path()} and {compute_path()} are well-formed")
