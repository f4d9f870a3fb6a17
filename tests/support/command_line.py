"""`cosmo` in this process."""

import typer
from typer.testing import CliRunner


def cosmo(app: typer.Typer, *words: object) -> str:
    """What a command prints on stdout; its exceptions pass."""
    result = CliRunner().invoke(app, [str(word) for word in words], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.stdout.strip()
