"""A comparison for people: figures with their units, sentences, tables that a terminal and Markdown share."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from cosmopedia.core.lineage import store_root
from cosmopedia.evaluation.arms import Arm
from cosmopedia.evaluation.comparison import EQUAL, UNKNOWN, Row
from cosmopedia.evaluation.effects import ALPHA, FEW_SEEDS, MOST_SEEDS, seeds_to_see, seen_by
from cosmopedia.evaluation.noise import Spread
from cosmopedia.evaluation.readings import ALL_SETS, HELD_OUT, Readings
from cosmopedia.execution.rates import read_rates

PRIMARY = "bpb"  # of the measures of items: docs/ablations.md has the table that chose it
SHOWN = (HELD_OUT, PRIMARY, "acc_norm")


@dataclass(frozen=True)
class Unit:
    """How a measure is shown."""

    title: str
    unit: str
    factor: float = 1.0
    digits: int = 4


UNITS = {
    HELD_OUT: Unit("held-out bits per byte", "bits per byte"),
    "bpb": Unit("bits per byte of the right choice", "bits per byte"),
    "acc": Unit("acc", "points", 100, 2),
    "acc_norm": Unit("acc_norm", "points", 100, 2),
    "prob": Unit("probability of the right choice", "points", 100, 2),
    "prob_norm": Unit("probability of the right choice, per character", "points", 100, 2),
    "margin": Unit("margin of the right choice", "nats per character"),
}
HEAD = ("of", "measure", "arm", "baseline", "arm's", "difference", "95% interval", "bootstrap", "p", "verdict")
HEAD += ("could see", "seeds for half")


def shown(measure: str, value: float | None, sign: bool = False) -> str:
    """A value in its measure's unit."""
    if value is None:
        return "-"
    unit = UNITS[measure]
    return f"{value * unit.factor:{'+' if sign else ''}.{unit.digits}f}"


def interval(measure: str, low: float | None, high: float | None) -> str:
    return "-" if low is None else f"[{shown(measure, low, True)}, {shown(measure, high, True)}]"


def seeds_for_half(row: Row) -> str:
    """How many seeds per arm would see half of what this design sees."""
    if row.estimate.seen is None:
        return "-"
    if row.estimate.seeds_for_half is not None:
        return str(row.estimate.seeds_for_half)
    return "more items" if (row.estimate.items_share or 0) > ALPHA else f"over {MOST_SEEDS}"


def cells(row: Row) -> list[str]:
    """A row under HEAD."""
    one, measure = row.estimate, row.scope.measure
    return [
        f"{row.scope.kind} {row.scope.name}".replace("task ", ""),
        measure,
        row.arm,
        shown(measure, one.baseline),
        shown(measure, one.score),
        shown(measure, one.difference, True),
        interval(measure, one.low, one.high),
        interval(measure, *row.bootstrap),
        "-" if row.p_holm is None else f"{row.p_holm:.3f}",
        row.verdict,
        shown(measure, one.seen),
        seeds_for_half(row),
    ]


def headlines(rows: Sequence[Row]) -> list[str]:
    """What decides, a sentence each: held-out text, then the primary measure of every panel."""
    sets = [row for row in rows if row.scope.kind == "held-out"]
    together = [row for row in sets if row.scope.name == ALL_SETS] or sets
    panels = [row for row in rows if row.scope.kind == "panel" and row.scope.measure == PRIMARY]
    return [sentence(row) for row in [*together, *panels]]


def sentence(row: Row) -> str:
    """One row in words."""
    one, measure = row.estimate, row.scope.measure
    unit = UNITS[measure].unit
    what = f"{row.arm}: {UNITS[measure].title}, {row.scope.name}: {row.verdict}"
    figures = f"{shown(measure, one.difference, True)} {unit}"
    if row.verdict == UNKNOWN:
        return f"{what} ({figures})"
    what += f" ({figures}, 95% interval {interval(measure, one.low, one.high)}, p {row.p_holm:.3f})"
    if row.verdict != EQUAL:
        return what
    half = seeds_for_half(row)
    more = f"{half} seeds per arm would see half of it" if half.isdigit() else f"for half of it: {half}"
    return f"{what}; a difference of {shown(measure, one.seen)} would have been seen, {more}"


def notes(arms: Mapping[str, Readings], rows: Sequence[Row]) -> list[str]:
    """What a reader must know about the verdicts."""
    lines = []
    single = [name for name, readings in arms.items() if len(readings.seeds) == 1]
    floors = sorted({row.estimate.floor for row in rows if row.estimate.floor})
    if single and any(row.verdict == UNKNOWN for row in rows):
        lines.append(
            f"{', '.join(single)} has one training seed: nothing can be concluded about training noise, and the"
            " bootstrap shows that of items alone. Train more (train.seeds=[1,2,3]), or measure the noise once:"
            " cosmo calibrate"
        )
    if floors:
        lines.append(
            f"an arm has fewer than {FEW_SEEDS} seeds: its noise is pooled with the floor {', '.join(floors)}"
            " (metrics/noise/), which supposes that both data sets are as noisy as the calibrated one"
        )
    sets = [bool(readings.sets) for readings in arms.values()]
    if not all(sets):
        which = "no arm has" if not any(sets) else "not every arm has"
        lines.append(f"{which} held-out tables (heldout-seed-<n>.parquet): held-out text is not compared")
    count = len({row.scope for row in rows})
    lines.append(
        f"p is Holm's over arms, not over the {count} rows: of 20 rows of equal arms one differs by chance; decide by"
        " the first lines"
    )
    return lines


COST_HEAD = ("arm", "seeds", "parameters", "tokens per seed", "training FLOPs", "corpus tokens", "generated tokens")
COST_HEAD += ("generation GPU hours", "training hours x processes")


def cost(arm: Arm, readings: Readings) -> dict[str, Any]:
    """What an arm cost, as far as its records say; None: unknown. FLOPs are 6 x parameters x tokens x seeds."""
    train, corpus = arm.metrics.get("metrics/train.json", {}), arm.metrics.get("metrics/tokenize_corpus.json", {})
    generate, run = arm.metrics.get("metrics/generate.json", {}), arm.metrics.get("runs/generate.json", {})
    parameters, tokens = train.get("parameters"), train.get("tokens")
    seeds = len(readings.seeds)
    hours = training_hours(train)
    return {
        "arm": arm.name,
        "seeds": list(readings.seeds),
        "parameters": parameters,
        "tokens_per_seed": tokens,
        "training_flops": 6 * parameters * tokens * seeds if parameters and tokens else None,
        "corpus_tokens": corpus.get("tokens"),
        "generated_tokens": generate.get("tokens"),
        "generation_gpu_hours": (run.get("actual") or {}).get("gpu_hours"),
        "training_hours": hours * seeds if hours else None,
    }


def training_hours(train: Mapping[str, Any]) -> float | None:
    """Hours of one seed times its processes (a GPU each, or a CPU), at the rate that this store measured."""
    measured = read_rates(store_root() / "train/rates.json")
    prefix = f"{train.get('backend')} {train.get('parameters')} x"
    known = {name.removeprefix(prefix): rate for name, rate in measured.items() if name.startswith(prefix)}
    if not known or not train.get("tokens"):
        return None
    processes, rate = next(iter(known.items()))
    return train["tokens"] / rate / 3600 * int(processes)


def cost_cells(costs: Mapping[str, Any]) -> list[str]:
    """A row under COST_HEAD."""
    flops = costs["training_flops"]
    hours = [costs["generation_gpu_hours"], costs["training_hours"]]
    counts = [costs[name] for name in ("parameters", "tokens_per_seed", "corpus_tokens", "generated_tokens")]
    numbers = ["-" if count is None else f"{count:,}" for count in counts]
    return [
        costs["arm"],
        ", ".join(map(str, costs["seeds"])),
        *numbers[:2],
        "-" if flops is None else f"{flops:.2g}",
        *numbers[2:],
        *("-" if hour is None else f"{hour:.2f}" for hour in hours),
    ]


def markdown(title: str, lines: Sequence[str], costs: Sequence[Sequence[str]], rows: Sequence[Row]) -> str:
    """The comparison as a page."""
    tables = [_markdown_table(COST_HEAD, costs), _markdown_table(HEAD, [cells(row) for row in rows])]
    return "\n\n".join([f"## {title}", "\n".join(f"* {line}" for line in lines), *tables]) + "\n"


def _markdown_table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *([cell.replace("|", "\\|") for cell in row] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


NOISE_HEAD = ("of", "measure", "mean", "sd over seeds", "95% interval", "2 seeds see", "3 see", "5 see", "10 see")


def noise_cells(spread: Spread) -> list[str]:
    """A row under NOISE_HEAD."""
    measure = spread.measure
    return [
        f"{spread.kind} {spread.name}".replace("task ", ""),
        measure,
        shown(measure, spread.mean),
        shown(measure, spread.sd),
        f"{shown(measure, spread.sd_low)} to {shown(measure, spread.sd_high)}",
        *(shown(measure, seen_by(spread.sd, seeds)) for seeds in (2, 3, 5, 10)),
    ]


def power(spread: Spread, seeds: int, wanted: float | None) -> dict[str, Any]:
    """What `seeds` per arm see, and how many see `wanted` (in the measure's unit; None: half of that)."""
    seen = seen_by(spread.sd, seeds)
    target = seen / 2 if wanted is None else wanted / UNITS[spread.measure].factor
    needed = seeds_to_see(spread.sd, target)
    names = {"kind": spread.kind, "name": spread.name, "measure": spread.measure}
    return names | {"seeds": seeds, "seen": seen, "wanted": target, "needed": needed}


def power_sentence(spread: Spread, seeds: int, wanted: float | None) -> str:
    """ "3 seeds see 1.1 points; for 0.5 you need 11"."""
    found, measure = power(spread, seeds, wanted), spread.measure
    needed = f"over {MOST_SEEDS}" if found["needed"] is None else found["needed"]
    return (
        f"{spread.kind} {spread.name}, {UNITS[measure].title}: {seeds} seeds see {shown(measure, found['seen'])}"
        f" {UNITS[measure].unit}; for {shown(measure, found['wanted'])} you need {needed}"
    )
