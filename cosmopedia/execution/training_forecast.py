"""What a training will take, printed before its first step: parameters, tokens, FLOPs, time, disk.

The rate is the one that this store has measured for the same model and trainer; otherwise, on GPUs whose peak the
compute file states, `USUAL_MFU` of that.
"""

from pathlib import Path
from typing import Protocol

from cosmopedia.execution.compute import SlurmTraining, load_compute
from cosmopedia.execution.rates import read_rates, write_rate
from cosmopedia.lineage import store_root

USUAL_MFU = 0.4  # of a Llama of one to a few billion parameters on H100s in bf16 (nanotron's and torchtitan's reports)
WEIGHT_BYTES = 4  # per parameter in fp32
BYTES = 14  # per parameter in a checkpoint: bf16 weights, fp32 master weights and two moments; 12 in fp32


class Recipe(Protocol):
    """What the forecast needs to know about a training recipe."""

    @property
    def backend(self) -> str: ...
    @property
    def parameters(self) -> int: ...
    @property
    def tokens(self) -> int: ...
    @property
    def flops_per_token(self) -> float: ...


def _rates() -> Path:
    return store_root() / "train" / "rates.json"


def _name(recipe: Recipe) -> str:
    layout = load_compute().training.layout
    processes = layout.processes if recipe.backend == "nanotron" else 1
    return f"{recipe.backend} {recipe.parameters} x{processes}"


def remember(recipe: Recipe, tokens_per_second: float) -> None:
    """Keep a measured rate for the next forecast."""
    if tokens_per_second > 0:
        write_rate(_rates(), _name(recipe), round(tokens_per_second, 1))


def rate(recipe: Recipe) -> tuple[float, str] | None:
    """(tokens/s, its source); None when it is unknown."""
    measured = read_rates(_rates()).get(_name(recipe))
    if measured:
        return measured, "measured here"
    training = load_compute().training
    if training.peak_tflops and recipe.backend == "nanotron":
        peak = training.peak_tflops * 1e12 * training.layout.processes
        return USUAL_MFU * peak / recipe.flops_per_token, f"{USUAL_MFU:.0%} of {training.peak_tflops:g} TFLOPS per GPU"
    return None


def describe(recipe: Recipe, seeds: int, kept: int = 0) -> str:
    """The forecast in a sentence; `kept` earlier checkpoints of each seed stay."""
    flops = recipe.tokens * recipe.flops_per_token
    sentence = f"train: {recipe.parameters / 1e6:,.1f}M parameters, {recipe.tokens:,} tokens, {flops:.2g} FLOPs"
    if seeds > 1:
        sentence += f" for each of {seeds} seeds"
    known = rate(recipe)
    if known:
        speed, source = known
        hours = recipe.tokens / speed / 3600 * seeds
        duration = f"{hours:,.1f} h" if hours >= 1 else f"{hours * 60:.1f} min"
        sentence += f"; about {duration} at {speed:,.0f} tokens/s ({source})"
        training = load_compute().training
        on_gpus = training.peak_tflops or (isinstance(training, SlurmTraining) and training.slurm.gpus)
        if recipe.backend == "nanotron" and on_gpus:
            sentence += f", {hours * training.layout.processes:,.1f} GPU hours"
    disk = 3 * BYTES * recipe.parameters / 1e9  # two checkpoints are kept while one is written
    sentence += f"; checkpoints up to {disk:.2g} GB"
    if kept:  # nanotron keeps whole checkpoints until the end, transformers their weights in fp32
        more = kept * (BYTES if recipe.backend == "nanotron" else WEIGHT_BYTES) * recipe.parameters / 1e9
        sentence += f", {more:.2g} GB more for {kept} earlier ones that stay; evaluate takes {kept + 1} times as long"
    return sentence
