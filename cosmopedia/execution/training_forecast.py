"""What a training will take, said before its first step: parameters, tokens, FLOPs, time, disk.

The rate is the one that this store measured for the same model, trainer and precision; else, on GPUs whose peak the
cluster file states, `USUAL_MFU` of it.
"""

import json
from pathlib import Path
from typing import Protocol

from cosmopedia.execution.compute import load_compute
from cosmopedia.lineage import store_root

USUAL_MFU = 0.4  # of a Llama of one to a few billion parameters on H100s in bf16 (nanotron's and torchtitan's reports)
BYTES = 14  # a parameter in a checkpoint: bf16 weights, fp32 master weights and two moments; 12 in fp32


class Recipe(Protocol):
    """What the forecast needs to know of a training recipe."""

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
        known = read_rates()
        known[_name(recipe)] = round(tokens_per_second, 1)
        _rates().parent.mkdir(parents=True, exist_ok=True)
        _rates().write_text(json.dumps(known, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def read_rates() -> dict[str, float]:
    """Measured tokens/s by trainer, parameters and processes; nothing where the file is missing or damaged."""
    try:
        return json.loads(_rates().read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}


def rate(recipe: Recipe) -> tuple[float, str] | None:
    """(tokens/s, where that is from), or None where nobody knows."""
    if measured := read_rates().get(_name(recipe)):
        return measured, "measured here"
    training = load_compute().training
    if training.peak_tflops and recipe.backend == "nanotron":
        peak = training.peak_tflops * 1e12 * training.layout.processes
        return USUAL_MFU * peak / recipe.flops_per_token, f"{USUAL_MFU:.0%} of {training.peak_tflops:g} TFLOPS a GPU"
    return None


def describe(recipe: Recipe, seeds: int) -> str:
    """The forecast in a sentence."""
    flops = recipe.tokens * recipe.flops_per_token
    told = f"train: {recipe.parameters / 1e6:,.1f}M parameters, {recipe.tokens:,} tokens, {flops:.2g} FLOPs"
    told += f" for each of {seeds} seeds" if seeds > 1 else ""
    if known := rate(recipe):
        speed, source = known
        hours = recipe.tokens / speed / 3600 * seeds
        shown = f"{hours:,.1f} h" if hours >= 1 else f"{hours * 60:.1f} min"
        told += f"; about {shown} at {speed:,.0f} tokens/s ({source})"
        training = load_compute().training
        if recipe.backend == "nanotron" and (training.peak_tflops or (training.slurm and training.slurm.gpus)):
            told += f", {hours * training.layout.processes:,.1f} GPU hours"
    return told + f"; checkpoints up to {3 * BYTES * recipe.parameters / 1e9:.2g} GB"  # two kept, one being written
