"""generators: compare models that write on the same prompts, or choose one.

A side is a git revision, a DVC experiment or a folder. docs/generation.md shows an example.
"""

from pathlib import Path
from typing import Annotated, Any

import typer

from cosmopedia.cli.checkout import given
from cosmopedia.cli.output import Json, new_app, print_json, print_table
from cosmopedia.core.errors import ConfigError, DataError

app = new_app(no_args_is_help=True)


@app.callback(epilog="Example: cosmo sweep run generators, then cosmo generators compare generators-smollm2_135m ...")
def generators() -> None:
    """Compare models that write on the same prompts, or choose one."""


@app.command(epilog="Example: cosmo generators compare generators-smollm2_135m generators-tiny_llama --markdown")
def compare(
    sides: Annotated[
        list[str], typer.Argument(help="Git revisions, experiments or folders; the first is the baseline of scores.")
    ],
    per_cell: Annotated[int, typer.Option(min=1, help="Prompts of a cell that are measured, at most.")] = 200,
    as_markdown: Annotated[bool, typer.Option("--markdown", help="Print Markdown.")] = False,
    as_json: Json = False,
) -> None:
    """Show what several generators made of the same prompts: the pilot's measures, length, refusals, faithfulness and
    self-check where they were measured, speed and cost, and what models trained on the texts score.
    """
    from cosmopedia.generators import report as wording

    report, tables = run(sides, per_cell)
    names = " and ".join(one["name"] for one in report["generators"])
    title = f"{names}: {report['prompts']:,} prompts in {len(report['cells'])} cells"
    lines = [*report["scores"], *wording.notes(report)]
    if as_json:
        print_json({**report, "notes": lines})
        return
    if as_markdown:
        typer.echo(wording.markdown(title, tables, lines), nl=False)
        return
    typer.echo(title)
    for table in tables:
        typer.echo(f"\n{table.title}")
        print_table(table.head, table.rows, right=range(table.left, len(table.head)))
    typer.echo("\n" + "\n".join(lines))


@app.command("list")
def list_known(as_json: Json = False) -> None:
    """List the generators that `cosmo generators use` can choose."""
    from cosmopedia.generators.choice import known

    rows = [{"name": one.name, "model": one.values["generator.model"], "about": one.about} for one in known().values()]
    if as_json:
        print_json(rows)
    else:
        print_table(list(rows[0]), (list(row.values()) for row in rows))


@app.command(epilog="Example: cosmo generators use qwen3_30b_a3b && cosmo pin cluster")
def use(name: Annotated[str, typer.Argument(help="One of `cosmo generators list`.")]) -> None:
    """Write a generator into the profile in use: its model, and the sampling that its card recommends."""
    from cosmopedia.core.params import profile_path
    from cosmopedia.generators.choice import choose

    path = profile_path()
    changes = choose(name, path)
    for key, (before, after) in changes.items():
        typer.echo(f"{path}: {key}: {before} -> {after}")
    if not changes:
        typer.echo(f"{path} has {name} already")
    elif changes.get("generator.revision", (None, None))[1]:
        typer.echo(f"pin it: cosmo pin {path.stem}")


def run(sides: list[str], per_cell: int) -> tuple[dict[str, Any], list[Any]]:
    """The comparison, and its tables."""
    from cosmopedia.execution.compute import compute_path, load_compute
    from cosmopedia.generators import report as wording
    from cosmopedia.generators.sides import results
    from stages.pilot.__main__ import settings
    from stages.pilot.gate import violations
    from stages.pilot.measures import measure
    from stages.pilot.shares import Refusals

    params, _, chat, _ = settings()
    refusals = Refusals(params.rules.refusal, chat)
    chosen = find_all(sides)

    def figures(tried: Any) -> dict[str, Any]:
        return measure(tried, params.rules, refusals)

    cells = list(results(chosen, per_cell, figures))
    if not cells:
        raise DataError(
            f"{' and '.join(sides)} have no prompt in common; generate both from the same sources and styles"
        )
    report = wording.compared(chosen, cells, figures)
    compute, price = compute_path().stem, load_compute().price_per_gpu_hour
    report["costs"] = {one.name: wording.cost(one, report["all"][one.name], compute, price) for one in chosen}
    report["scores"] = scores(sides)
    beyond = {
        cell: {name: {v.measure for v in violations(cell, one, params.thresholds)} for name, one in by.items()}
        for cell, by in [*report["cells"].items(), (wording.ALL, report["all"])]
    }
    return report, wording.tables(report, beyond)


def find_all(sides: list[str]) -> list[Any]:
    """The generators that a person named. `ConfigError` for fewer than two."""
    from cosmopedia.cli.compare import labelled
    from cosmopedia.execution.versions import find
    from cosmopedia.generators.sides import GENERATED, Generator

    if len(set(sides)) < len(sides) or len(sides) < 2:
        raise ConfigError(f"compare takes two or more different sides, found {' '.join(sides)}")
    out = f"data/{GENERATED}"
    wanted = f"has no document table ({out}); run the pipeline there, or dvc pull"
    found = [find(name, given(Path(name)), [out], lambda _: True, wanted) for name in sides]
    return [Generator(version.name, version) for version in labelled(found)]


def scores(sides: list[str]) -> list[str]:
    """What models trained on the texts score, in the words of `cosmo compare`; or why they cannot be compared."""
    from cosmopedia.cli.compare import run as compare_arms
    from cosmopedia.evaluation import wording

    try:
        _, readings, rows = compare_arms(sides, None)
    except (ConfigError, DataError) as error:
        return [f"trained scores are not compared: {error}"]
    return [*wording.headlines(rows), *wording.notes(readings, rows)]
