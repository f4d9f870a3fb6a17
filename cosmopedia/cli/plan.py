"""Planner: what a corpus costs before anybody submits a job: GPU hours, days, disk.

python -m cosmopedia.cli.plan                                   the article's 30 million prompts
python -m cosmopedia.cli.plan --prompts 2000000 --tokens 800 --gpus 16
python -m cosmopedia.cli.plan --rate 1500                       tokens/s of one GPU, as you measured it

The rates it compares are published ones, a roofline (docs/scale.md has the arithmetic), and what this checkout's own
runs measured (`<store root>/rates.json`).
"""

import argparse
import json
from dataclasses import dataclass

from cosmopedia.execution.budget import rates_path

PROMPTS, TOKENS = 30_000_000, 833  # Cosmopedia: 25 billion tokens from 30 million prompts
PROMPT_TOKENS = 400  # an extract of 1,000 characters and its instructions
GB = 1e9

# Disk, bytes a generated token. The first was measured on the rehearsal; the second is an estimate for long texts (the
# rehearsal's short ones take 6: a row's lineage weighs as much as its text there).
SEGMENT_BYTES_PER_TOKEN = 1.7  # zstd, in the completion store
PARQUET_BYTES_PER_TOKEN = 2.5  # a stage's table: text, prompt, seed and lineage
TABLE_STAGES = 4  # generate, clean, dedup, decontaminate
TOKEN_BYTES = 2


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
    """(tokens/s a GPU, sequences in a batch) at which memory bandwidth or arithmetic bounds decoding.

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
    """What this checkout's runs measured, a GPU."""
    try:
        content = json.loads(rates_path().read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return []
    found = []
    for name, rate in content.items():
        if rate.get("gpus"):
            found.append(
                Rate(name[:40], rate["tokens_per_second"] / rate["gpus"], f"measured {rate['measured'][:10]}")
            )
    return found


def plan(prompts: int, tokens: int, gpus: int, rates: list[Rate]) -> str:
    """The whole answer, as text."""
    total = prompts * tokens
    rows = [("rate", "tokens/s a GPU", "GPU hours", f"days on {gpus} GPUs", "source")]
    for rate in rates:
        hours = total / rate.tokens_per_second / 3600
        rows.append(
            (rate.name, f"{rate.tokens_per_second:,.0f}", f"{hours:,.0f}", f"{hours / gpus / 24:,.1f}", rate.source)
        )
    widths = [max(len(row[column]) for row in rows) for column in range(5)]
    lines = [f"{prompts:,} prompts x {tokens:,} tokens = {total / 1e9:,.1f} billion tokens", ""]
    lines += ["  ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:4], widths[1:4]), row[4]]) for row in rows]
    disk = {
        "completion store": total * SEGMENT_BYTES_PER_TOKEN,
        f"tables of {TABLE_STAGES} stages": total * PARQUET_BYTES_PER_TOKEN * TABLE_STAGES,
        "token shards": total * TOKEN_BYTES,
    }
    lines += ["", *(f"{name}: {size / GB:,.0f} GB" for name, size in disk.items())]
    lines.append(
        f"disk in all: {sum(disk.values()) / GB:,.0f} GB; DVC's cache holds the tables and shards a second time"
        " where the file system has no links"
    )
    return "\n".join(lines)


def main() -> None:
    """Parse the command line and print the plan."""
    parser = argparse.ArgumentParser(prog="cosmopedia.cli.plan", description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--prompts", type=int, default=PROMPTS)
    parser.add_argument("--tokens", type=int, default=TOKENS, help="of a completion, on average")
    parser.add_argument("--gpus", type=int, default=64, help="that work at once")
    parser.add_argument("--rate", type=float, help="tokens/s of one GPU, as you measured it")
    options = parser.parse_args()
    speed, batch = roofline(MIXTRAL, H100, 2, context=PROMPT_TOKENS + options.tokens / 2)
    rates = [Rate("yours", options.rate, "--rate")] if options.rate else []
    rates += [*measured(), *PUBLISHED]
    rates.append(Rate("roofline, bf16", speed, f"Mixtral-8x7B on 2 H100, batch of {batch}; docs/scale.md"))
    print(plan(options.prompts, options.tokens, options.gpus, rates))


if __name__ == "__main__":
    main()
