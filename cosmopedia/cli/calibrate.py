"""calibrate: measure how much scores move from seed to seed.

Several seeds of the same data (train.seeds=[1,2,3,4,5]) give the noise floor of every task, panel and held-out set at
their scale. `cosmo compare` pools it with arms of few seeds.
"""

from pathlib import Path
from typing import Annotated, Any

import typer

from cosmopedia.cli.checkout import given
from cosmopedia.cli.compare import labelled, panels
from cosmopedia.cli.output import Json, new_app, print_json, print_table
from cosmopedia.core.errors import ConfigError

app = new_app()


@app.command(epilog="Example: cosmo calibrate baseline --name 130m, then cosmo calibrate 130m --power --seeds 3")
def calibrate(
    source: Annotated[str, typer.Argument(help="Revision, experiment or folder with several seeds, or a floor.")],
    name: Annotated[str | None, typer.Option(help="Write metrics/noise/NAME.json.")] = None,
    power: Annotated[bool, typer.Option("--power", help="Say what a number of seeds sees.")] = False,
    seeds: Annotated[int, typer.Option(min=2, help="Seeds per arm, for --power.")] = 3,
    difference: Annotated[
        float | None, typer.Option(min=1e-9, help="How many seeds see this, in the measure's unit; default: half.")
    ] = None,
    metric: Annotated[list[str] | None, typer.Option(help="Show these measures; repeat it. Default: all.")] = None,
    as_json: Json = False,
) -> None:
    """Measure the noise of training seeds, keep it in metrics/noise/, and say what a design could see."""
    from cosmopedia.evaluation import wording

    noise, path = noise_of(source, name)
    unknown = sorted(set(metric or ()) - set(wording.UNITS))
    if unknown:
        raise ConfigError(f"--metric {unknown[0]} is not known; choose from {', '.join(wording.UNITS)}")
    spreads = [spread for spread in noise.spreads if spread.measure in (metric or wording.UNITS)]
    if as_json:
        print_json(noise.model_dump() | {"power": [wording.power(spread, seeds, difference) for spread in spreads]})
        return
    if power:
        typer.echo("\n".join(wording.power_sentence(spread, seeds, difference) for spread in spreads))
    else:
        print_table(wording.NOISE_HEAD, map(wording.noise_cells, spreads), right=range(2, len(wording.NOISE_HEAD)))
    size = (
        "of an unknown scale" if noise.tokens is None else f"{noise.parameters:,} parameters, {noise.tokens:,} tokens"
    )
    typer.echo(f"\n{noise.name}: {len(noise.seeds)} seeds, {size}{f'; written to {path}, commit it' if path else ''}")


def noise_of(source: str, name: str | None) -> tuple[Any, Path | None]:
    """The noise floor of that name, or of an arm's seeds; and the file that was written, if any."""
    from cosmopedia.evaluation import noise as noises
    from cosmopedia.evaluation import readings
    from cosmopedia.evaluation.arms import find

    known = noises.NOISE / f"{source}.json"
    if known.is_file() and name is None:
        return noises.read(known), None
    if name is not None and (not name or Path(name).name != name or name.startswith(".")):
        raise ConfigError(f"--name {name!r} must be a file's name, without a folder")
    arm = labelled([find(source, given(Path(source)))])[0]
    noise = noises.measure_noise(name or arm.name, arm, readings.read(arm.name, arm.answers, arm.held_out), panels())
    return noise, noises.write(noise) if name else None
