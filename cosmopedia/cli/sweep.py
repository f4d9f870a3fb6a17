"""sweep: run several arms of an experiment side by side.

A sweep is a file of sweeps/: what is asked, the arms, the seeds, the control. docs/sweeps.md shows one.
"""

from dataclasses import asdict, replace
from pathlib import Path
from typing import Annotated, Any

import typer

from cosmopedia.cli.output import Json, new_app, print_json, print_table

app = new_app(no_args_is_help=True)
Name = Annotated[str, typer.Argument(help="The name of a file in sweeps/, or its path.")]


@app.callback(epilog="Example: cosmo sweep plan topic_probability, then cosmo sweep run topic_probability -j 2")
def sweep() -> None:
    """Run several arms of an experiment side by side, each a DVC experiment, and compare them."""


@app.command(epilog="Example: cosmo sweep plan topic_probability")
def plan(name: Name, as_json: Json = False) -> None:
    """Show what each arm changes, reuses and costs, and which differences the design can see."""
    from cosmopedia.sweeps.costs import arm_costs, summed
    from cosmopedia.sweeps.definition import read_sweep
    from cosmopedia.sweeps.outlook import check_budget, outlooks
    from cosmopedia.sweeps.sharing import stages_of

    content = read_sweep(name)
    stages = stages_of(Path.cwd())
    arms = outlooks(content, stages)
    costs = arm_costs(content, stages, arms)
    trainings = sum(arm.trainings for arm in arms)
    power = power_sentences(content, [(cost.parameters, cost.training_tokens) for cost in costs])
    if as_json:
        print_json(
            {
                "sweep": content.name,
                "question": content.question,
                "control": content.control,
                "seeds": content.seeds,
                "arms": [asdict(arm) | asdict(cost) for arm, cost in zip(arms, costs, strict=True)],
                "trainings": trainings,
                "power": power,
            }
        )
        return
    typer.echo(f"{content.question}\n")
    print_table(
        (
            "arm",
            "changes",
            "own stages",
            "new",
            "cached",
            "prompt tokens",
            "tokens",
            "GPU hours",
            "money",
            "trainings",
        ),
        (
            (one.arm, one.changes, stages_in_words(one.own), *map(number, cost_cells(cost)), one.trainings)
            for one, cost in zip(arms, costs, strict=True)
        ),
        right=range(3, 10),
    )
    if any(cost.estimated for cost in costs):
        typer.echo("\ncompletions are estimated where a stage before generate runs too")
    new, tokens = summed(costs, "new") or 0, summed(costs, "completion_tokens") or 0
    typer.echo(
        f"\n{len(arms)} arms x {len(content.seeds)} seeds: {trainings} trainings, at most {new:,} new completions of"
        f" {tokens:,} tokens (what arms share is paid for once); control: {content.control}"
    )
    for sentence in power:
        typer.echo(sentence)
    check_budget(content, trainings, summed(costs, "gpu_hours"), summed(costs, "money"))


def cost_cells(cost: Any) -> tuple[float | None, ...]:
    return cost.new, cost.cached, cost.prompt_tokens, cost.completion_tokens, cost.gpu_hours, cost.money


def number(value: float | None) -> str:
    """Whole numbers with separators, others with two digits; "-" for none."""
    return "-" if value is None else f"{value:,}" if isinstance(value, int) else f"{value:,.2f}"


def stages_in_words(names: list[str]) -> str:
    """ "prompts ... report (12)": stages in the order in which they run."""
    names = list(dict.fromkeys(name.partition("@")[0] for name in names))
    return ", ".join(names) if len(names) < 4 else f"{names[0]} ... {names[-1]} ({len(names)})"


def power_sentences(content: Any, scales: list[tuple[int, int]]) -> list[str]:
    """Which differences the seeds can see, by the noise floors of metrics/noise/ that are of the arms' scale."""
    from cosmopedia.evaluation import noise, wording

    seeds = len(content.seeds)
    if seeds < 2:
        return ["one seed says nothing about training noise: no arm will be called better or worse"]
    floors = [noise.read(path) for path in sorted(noise.NOISE.glob("*.json"))]
    floors = [floor for floor in floors if all(noise.same_scale(floor, *scale) for scale in scales)]
    if not floors:
        sizes = " and ".join(sorted({f"{model:,} parameters, {tokens:,} tokens" for model, tokens in scales}))
        return [
            f"what {seeds} seeds can see is not known: no noise floor of metrics/noise/ is for {sizes};"
            " `cosmo calibrate` measures one, docs/ablations.md"
        ]
    return [
        f"{floor.name}: {wording.power_sentence(spread, seeds, None)}"
        for floor in floors
        for spread in floor.spreads
        if spread.kind == "held-out" or (spread.kind == "panel" and spread.measure == "acc_norm")
    ]


@app.command(epilog="Example: cosmo sweep run topic_probability -j 2")
def run(
    name: Name,
    jobs: Annotated[int, typer.Option("--jobs", "-j", min=1, help="Arms that run at once.")] = 1,
    slurm: Annotated[
        bool, typer.Option("--slurm", help="Run each arm as a Slurm job that drives its pipeline.")
    ] = False,
) -> None:
    """Run the arms that are not done yet. A killed run goes on when it is run again; a failed arm ends no other."""
    from cosmopedia.sweeps.costs import arm_costs, summed
    from cosmopedia.sweeps.definition import read_sweep
    from cosmopedia.sweeps.outlook import check_budget, outlooks
    from cosmopedia.sweeps.running import Job, Local, SweepRun, alone
    from cosmopedia.sweeps.sharing import stages_of

    content = read_sweep(name)
    with alone(content.name):
        stages = stages_of(Path.cwd())
        arms, bounds = outlooks(content, stages), content.budget
        costs = arm_costs(content, stages, arms) if bounds.gpu_hours is not None or bounds.money is not None else []
        trainings = sum(arm.trainings for arm in arms)
        check_budget(content, trainings, summed(costs, "gpu_hours"), summed(costs, "money"))
        states = SweepRun(content, jobs, stages, Job if slurm else Local).run()
    left = {arm: state for arm, state in states.items() if state.state != "done"}
    typer.echo(f"{len(states) - len(left)} of {len(states)} arms are done")
    if left:
        raise typer.Exit(130 if any(state.state == "stopped" for state in left.values()) else 1)
    typer.echo(f"`cosmo sweep table {name}` compares them; `dvc exp show` has them as {content.name}-<arm>")


@app.command(epilog="Example: cosmo sweep status topic_probability")
def status(name: Name, as_json: Json = False) -> None:
    """Show what has become of each arm."""
    from cosmopedia.sweeps.definition import read_sweep
    from cosmopedia.sweeps.running import folder_of, is_done, read_state
    from cosmopedia.sweeps.worktrees import Start

    content, start = read_sweep(name), Start()
    states = [read_state(content.name, arm) for arm in content.arms]
    for state in states:
        if state.state == "done" and not is_done(state, start.fingerprint(content.arms[state.arm])):
            state.state = "changed since"
    if as_json:
        print_json([asdict(state) for state in states])
        return
    print_table(
        ("arm", "state", "stage", "stages done", "minutes", "job", "error"),
        ((s.arm, s.state, s.stage, len(s.finished), f"{s.seconds / 60:.1f}", s.job, s.error) for s in states),
        right=(3, 4),
    )
    typer.echo(f"\nlogs and worktrees: {folder_of(content.name)}")


@app.command(epilog="Example: cosmo sweep table topic_probability --markdown")
def table(
    name: Name,
    metric: Annotated[str | None, typer.Option(help="Show this measure (acc, acc_norm, bpb, ...).")] = None,
    as_markdown: Annotated[bool, typer.Option("--markdown", help="Print Markdown.")] = False,
    as_json: Json = False,
) -> None:
    """Compare the finished arms with the control: one row per arm, with intervals, verdicts and cost."""
    from cosmopedia.cli import compare
    from cosmopedia.core.errors import ConfigError
    from cosmopedia.evaluation import wording
    from cosmopedia.sweeps import table as tables
    from cosmopedia.sweeps.definition import read_sweep
    from cosmopedia.sweeps.running import read_state

    content = read_sweep(name)
    states = {arm: read_state(content.name, arm) for arm in content.arms}
    done = [arm for arm, state in states.items() if state.state == "done"]
    if content.control not in done or len(done) < 2:
        raise ConfigError(f"{content.control} and another arm must be done first: cosmo sweep run {name}")
    names = {content.experiment(arm): arm for arm in done}
    found, readings, compared = compare.run(list(names), None)
    renamed = [replace(row, arm=names[row.arm]) for row in compared]
    costs = {names[key]: wording.cost(found[key], readings[key]) for key in found}
    rows = tables.table_rows(content, states, tables.chosen(renamed, metric), costs)
    notes = [*wording.headlines(renamed), *wording.notes(readings, renamed)]
    if as_json:
        print_json({"sweep": content.name, "control": content.control, "rows": rows, "notes": notes})
        return
    columns = tables.head(rows)
    cells = [tables.cells(row, columns) for row in rows]
    if as_markdown:
        lines = [columns, ["---"] * len(columns), *cells]
        typer.echo("\n".join(f"| {' | '.join(line)} |" for line in lines))
    else:
        print_table(columns, cells)
    typer.echo("\n" + "\n".join(notes))
