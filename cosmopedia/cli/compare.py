"""compare: say which corpora are better, worse or not to tell apart.

An arm is a git revision, a DVC experiment or a folder; the first is the baseline. docs/ablations.md shows an example.
"""

from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer

from cosmopedia.cli.checkout import given
from cosmopedia.cli.output import Json, new_app, print_json, print_table
from cosmopedia.core.errors import ConfigError

app = new_app()


@app.command(epilog="Example: cosmo compare baseline topics --plot topics.svg")
def compare(
    arms: Annotated[
        list[str], typer.Argument(help="Git revisions, experiments or folders; the first is the baseline.")
    ],
    metric: Annotated[
        list[str] | None, typer.Option(help="Show these measures (acc, acc_norm, bpb, prob, ...); repeat it.")
    ] = None,
    every: Annotated[bool, typer.Option("--all", help="Show all measures.")] = False,
    noise: Annotated[
        str | None, typer.Option(help="Noise floor for arms with few seeds; default: one that fits.")
    ] = None,
    as_markdown: Annotated[bool, typer.Option("--markdown", help="Print Markdown.")] = False,
    plot: Annotated[Path | None, typer.Option(help="Write a forest plot (SVG).")] = None,
    as_json: Json = False,
) -> None:
    """Say whether arms differ from the first: better, worse or not distinguishable, and what could have been seen.

    Items are paired, training seeds are what is resampled, and Holm's correction is over arms.
    """
    from cosmopedia.evaluation import references, wording

    shown = list(wording.UNITS) if every else metric or list(wording.SHOWN)
    if unknown := sorted(set(shown) - set(wording.UNITS)):
        raise ConfigError(f"--metric {unknown[0]} is not known; choose from {', '.join(wording.UNITS)}")
    found, readings, rows = run(arms, noise)
    names = list(found)
    costs = [wording.cost(found[name], readings[name]) for name in names]
    notes = wording.notes(readings, rows) + references.lines(readings[names[0]], panels())
    chosen = [row for row in rows if row.scope.measure in shown]
    if plot:
        from cosmopedia.core.files import write_text
        from cosmopedia.evaluation.forest_plot import forest_plot

        write_text(given(plot), forest_plot(chosen, names[0]))
    if as_json:
        print_json({"baseline": names[0], "arms": costs, "rows": [row.as_json() for row in rows], "notes": notes})
        return
    lines = [*wording.headlines(rows), *notes]
    if as_markdown:
        title = f"{', '.join(names[1:])} compared with {names[0]}"
        typer.echo(wording.markdown(title, lines, [wording.cost_cells(cost) for cost in costs], chosen), nl=False)
        return
    print_table(wording.COST_HEAD, map(wording.cost_cells, costs), right=range(2, len(wording.COST_HEAD)))
    typer.echo()
    print_table(wording.HEAD, map(wording.cells, chosen), right=(3, 4, 5, 8, 10, 11))
    typer.echo("\n" + "\n".join(lines))


def run(names: list[str], noise: str | None) -> tuple[dict[str, Any], dict[str, Any], list[Any]]:
    """The arms, what they answered, and the rows of the comparison."""
    from cosmopedia.evaluation.arms import find

    if len(set(names)) < len(names) or len(names) < 2:
        raise ConfigError(f"compare takes two or more different arms, found {' '.join(names)}")
    return compared(labelled([find(name, given(Path(name))) for name in names]), noise)


def compared(arms: list[Any], noise: str | None) -> tuple[dict[str, Any], dict[str, Any], list[Any]]:
    """`run` with arms that have been found."""
    from cosmopedia.evaluation import readings as reading
    from cosmopedia.evaluation.comparison import compare as compare_arms
    from cosmopedia.evaluation.noise import fitting, floors

    found = {arm.name: arm for arm in arms}
    readings = {name: reading.read(name, arm.answers, arm.held_out) for name, arm in found.items()}
    floor = fitting(arms, noise)
    return found, readings, compare_arms(readings, panels(), floors(floor))


def labelled(arms: list[Any]) -> list[Any]:
    """The arms with short names: of a folder its last part, where that is nobody else's."""
    short = [Path(arm.name).name if arm.kind == "folder" else arm.name for arm in arms]
    pairs = zip(arms, short, strict=True)
    return [replace(arm, name=name) if name and short.count(name) == 1 else arm for arm, name in pairs]


def panels() -> dict[str, list[str]]:
    """evaluate.panels of this checkout; none: all tasks together."""
    from cosmopedia.core.params import section

    return section("evaluate").get("panels") or {}
