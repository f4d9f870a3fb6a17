"""The `cosmo` command: looks into the pipeline's prompts, store, jobs and settings, and keeps its files up to date.

A file is a command when its docstring begins with the command's name and a colon: cosmopedia/cli/plan.py, or
stages/prompts/cosmo_preview.py, which a stage brings. It has a typer `app` and is imported only when it is run, so
that `cosmo --help` and the shell's completion stay fast.
"""

import os
import sys
from importlib import import_module
from pathlib import Path
from typing import Any

import typer
from typer.core import TyperCommand, TyperGroup

from cosmopedia.cli import checkout
from cosmopedia.cli.stages import STAGES
from cosmopedia.core.errors import errors_as_sentences

HERE = Path(__file__).parent


class LazyCommand(TyperCommand):
    """A name and a line of help, until it is run."""

    def __init__(self, name: str, help: str, module: str):
        super().__init__(name, help=help, rich_markup_mode=None)
        self.module = module

    def make_context(self, info_name: str | None, args: list[str], parent: Any = None, **extra: Any) -> Any:
        command = typer.main.get_command(import_module(self.module).app)
        if "--help" not in args and not extra.get("resilient_parsing"):
            checkout.enter()
        return command.make_context(info_name, args, parent, **extra)


class Cosmo(TyperGroup):
    """Finds its commands by their files, and prints errors as `python -m stages.<stage>` does."""

    def __init__(self, **attributes: Any):
        super().__init__(**attributes)
        for path in (*sorted(HERE.glob("*.py")), *sorted(STAGES.glob("*/cosmo_*.py"))):
            name = path.stem.removeprefix("cosmo_")
            with path.open(encoding="utf-8") as stream:
                title, _, summary = stream.readline().strip('"\n').partition(": ")
            if summary and title == name:
                module = ".".join(path.relative_to(STAGES.parent).with_suffix("").parts)
                self.add_command(LazyCommand(name, summary[0].upper() + summary[1:], module))
        self.commands = dict(sorted(self.commands.items()))

    def invoke(self, ctx: Any) -> Any:
        with errors_as_sentences():
            try:
                return super().invoke(ctx)
            except BrokenPipeError:  # `cosmo plan | head`
                os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
                sys.exit(1)


app = typer.Typer(cls=Cosmo, rich_markup_mode=None, pretty_exceptions_enable=False, no_args_is_help=True)


@app.callback(epilog="`cosmo COMMAND --help` has the options and an example. The stages run with `dvc repro`.")
def cosmo() -> None:
    """Look into the pipeline's prompts, completion store, jobs and settings, and keep its files up to date."""


if __name__ == "__main__":
    app()
