"""plan: show what the next `dvc repro` runs and costs.

Without options the figures are those of cosmopedia/cli/pending.py: prompts, tokens, GPU hours, money, disk. With them
they are those of a corpus of a given size. Its rates are published ones, a roofline (docs/scale.md has the
arithmetic), and what this checkout's own runs measured (`<store root>/rates.json`).
"""

import json
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cosmopedia.cli.output import Json, new_app, print_json, print_table

if TYPE_CHECKING:
    from cosmopedia.cli.pending import Plan, StageCost

app = new_app()
PROMPTS, TOKENS = 30_000_000, 833  # Cosmopedia: 25 billion tokens from 30 million prompts
PROMPT_TOKENS = 400  # an extract of 1,000 characters and its instructions
GB = 1e9


@dataclass(frozen=True)
class Rate:
    """Tokens/s that one GPU writes, and who says so."""

    name: str
    tokens_per_second: float
    source: str


@dataclass(frozen=True)
class Model:
    """What the roofline needs of a mixture-of-experts model in bf16."""

    weights: float  # bytes
    active: float  # parameters that a token uses
    layers: int
    kv_heads: int
    head: int


@dataclass(frozen=True)
class Gpu:
    """What it needs of a GPU."""

    memory: float  # bytes
    bandwidth: float  # bytes/s
    flops: float  # dense bf16


MIXTRAL = Model(weights=93.4e9, active=12.9e9, layers=32, kv_heads=8, head=128)
H100 = Gpu(memory=80e9, bandwidth=3.35e12, flops=989e12)
PUBLISHED = (
    Rate("plan of the article", 694, "25e9 tokens in 10,000 H100 hours"),
    Rate("vLLM, bf16", 2227, "published benchmark, Mixtral-8x7B on 2 H100"),
    Rate("TensorRT-LLM, FP8", 6801, "published benchmark, Mixtral-8x7B on 2 H100"),
)


def roofline(model: Model, gpu: Gpu, gpus: int, context: float, reserve: float = 0.1) -> tuple[float, int]:
    """(tokens/s per GPU, sequences in a batch) at which memory bandwidth or arithmetic bounds decoding.

    `context` is the mean number of tokens that a sequence holds while it is decoded; `reserve` the share of memory
    that is neither weights nor cache. A step reads all weights once (a large batch wakes every expert) and all cache.
    """
    cache_of_token = 2 * 2 * model.layers * model.kv_heads * model.head  # keys and values, two bytes each
    room = gpus * gpu.memory * (1 - reserve) - model.weights
    batch = int(room // (context * cache_of_token))
    if batch < 1:
        return 0.0, 0
    reading = (model.weights + batch * context * cache_of_token) / (gpus * gpu.bandwidth)
    computing = 2 * model.active * batch / (gpus * gpu.flops)
    return batch / max(reading, computing) / gpus, batch


def measured() -> list[Rate]:
    """What this checkout's runs measured, per GPU."""
    from cosmopedia.execution.budget import rates_path

    try:
        content = json.loads(rates_path().read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return []
    return [
        Rate(name[:40], rate["tokens_per_second"] / rate["gpus"], f"measured {rate['measured'][:10]}")
        for name, rate in content.items()
        if rate.get("gpus")
    ]


def estimate(prompts: int, tokens: int, gpus: int, rates: Iterable[Rate]) -> dict[str, Any]:
    """GPU hours and days at each rate, and bytes on disk, of `prompts` completions of `tokens` tokens each."""
    from cosmopedia.cli.pending import PARQUET_BYTES_PER_TOKEN, SEGMENT_BYTES_PER_TOKEN, TABLE_STAGES, TOKEN_BYTES

    total = prompts * tokens
    hours = {rate: total / rate.tokens_per_second / 3600 for rate in rates}
    return {
        "prompts": prompts,
        "tokens_per_completion": tokens,
        "tokens": total,
        "gpus": gpus,
        "rates": [
            {
                "name": rate.name,
                "tokens_per_second_gpu": rate.tokens_per_second,
                "gpu_hours": hours[rate],
                "days": hours[rate] / gpus / 24,
                "source": rate.source,
            }
            for rate in hours
        ],
        "disk_bytes": {
            "completion store": total * SEGMENT_BYTES_PER_TOKEN,
            f"tables of {len(TABLE_STAGES)} stages": total * PARQUET_BYTES_PER_TOKEN * len(TABLE_STAGES),
            "token shards": total * TOKEN_BYTES,
        },
    }


@app.command(epilog="Example: cosmo plan; cosmo plan --prompts 2000000 --tokens 800 --gpus 16")
def plan(
    prompts: Annotated[int | None, typer.Option(min=1, help="Prompts of a corpus; the article's: 30 million.")] = None,
    tokens: Annotated[int | None, typer.Option(min=1, help="Tokens per completion, on average.")] = None,
    gpus: Annotated[int | None, typer.Option(min=1, help="GPUs that work at once.")] = None,
    rate: Annotated[float | None, typer.Option(min=1e-9, help="Tokens/s of one GPU, as you measured it.")] = None,
    as_json: Json = False,
) -> None:
    """Show what the next `dvc repro` runs and costs: new and cached prompts, tokens, GPU hours, money, disk.

    With an option, show instead what a corpus of that size costs at several rates.
    """
    if prompts is None and tokens is None and gpus is None and rate is None:
        from cosmopedia.cli.pending import make_plan

        pending = make_plan()
        if as_json:
            print_json(pending.as_dict())
        else:
            print_plan(pending)
        return
    print_corpus(prompts or PROMPTS, tokens or TOKENS, gpus or 64, rate, as_json)


def print_plan(plan: "Plan") -> None:
    """A row per stage, the sums, and what is not certain."""
    if not plan.stages:
        typer.echo("nothing is pending: dvc repro would run no stage")
        return
    head = ["stage", "new", "cached", "prompt tokens", "tokens", "hours", "GPU hours", "money", "disk", "why"]
    rows = [[*_cells(stage), stage.why] for stage in plan.stages]
    sums = {name: plan.total(name) for name in plan.stages[0].__dataclass_fields__ if name in SUMMED}
    rows.append([*_cells(type(plan.stages[0])(stage="in all", why="", **sums)), ""])  # type: ignore[arg-type]
    print_table(head, rows, right=range(1, 9))
    for stage in plan.stages:
        if stage.basis:
            typer.echo(f"{stage.stage}: {stage.known}; {stage.basis}")
    for note in plan.notes:
        typer.echo(f"note: {note}")
    if plan.price_per_gpu_hour is None and plan.total("money") is None:
        typer.echo("no price: set price_per_gpu_hour, or the price of the endpoints, in the compute file")


SUMMED = ("prompts_new", "prompts_cached", "prompt_tokens", "completion_tokens", "gpu_hours", "money", "disk_bytes")


def _cells(stage: "StageCost") -> list[str | None]:
    """A stage's figures as a table shows them; "~" before a count that is an estimate."""
    from cosmopedia.cli.pending import ESTIMATED

    about = "~" if stage.known == ESTIMATED else ""
    tokens = stage.completion_tokens if stage.completion_tokens is not None else stage.training_tokens
    counts = (stage.prompts_new, stage.prompts_cached, stage.prompt_tokens, tokens)
    return [
        stage.stage,
        *(None if count is None else f"{about}{count:,}" for count in counts),
        *(None if value is None else f"{value:,.2f}" for value in (stage.hours, stage.gpu_hours, stage.money)),
        None if stage.disk_bytes is None else size(stage.disk_bytes),
    ]


def size(number: float) -> str:
    """Bytes for people: "1.2 GB", "340 MB"."""
    for limit, unit in ((1e12, "TB"), (GB, "GB"), (1e6, "MB"), (1e3, "kB")):
        if number >= limit:
            return f"{number / limit:,.3g} {unit}"
    return f"{number:.0f} B"


def print_corpus(prompts: int, tokens: int, gpus: int, rate: float | None, as_json: bool) -> None:
    """What a corpus costs before anybody submits a job: GPU hours, days, disk."""
    speed, batch = roofline(MIXTRAL, H100, 2, context=PROMPT_TOKENS + tokens / 2)
    rates = [Rate("yours", rate, "--rate")] if rate else []
    rates += [*measured(), *PUBLISHED]
    rates.append(Rate("roofline, bf16", speed, f"Mixtral-8x7B on 2 H100, batch of {batch}; docs/scale.md"))
    costs = estimate(prompts, tokens, gpus, [rate for rate in rates if rate.tokens_per_second > 0])
    if as_json:
        print_json(costs)
        return
    typer.echo(f"{prompts:,} prompts x {tokens:,} tokens = {costs['tokens'] / 1e9:,.1f} billion tokens\n")
    print_table(
        ["rate", "tokens/s per GPU", "GPU hours", f"days on {gpus} GPUs", "source"],
        (
            (
                r["name"],
                f"{r['tokens_per_second_gpu']:,.0f}",
                f"{r['gpu_hours']:,.0f}",
                f"{r['days']:,.1f}",
                r["source"],
            )
            for r in costs["rates"]
        ),
        right=(1, 2, 3),
    )
    disk = costs["disk_bytes"]
    typer.echo()
    print_table(["disk", "GB"], ((name, f"{size / GB:,.0f}") for name, size in disk.items()), right=(1,))
    typer.echo(
        f"\ndisk in all: {sum(disk.values()) / GB:,.0f} GB; DVC's cache holds the tables and shards a second time"
        " where the file system has no links"
    )
