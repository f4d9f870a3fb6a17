"""What a training will take, printed before its first step: parameters, tokens, FLOPs, time, disk.

The rate is the one that this store has measured for the same model and trainer; otherwise, on GPUs whose peak the
compute file states, `USUAL_MFU` of that.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from cosmopedia.core.lineage import store_root
from cosmopedia.execution.compute import SlurmTraining, load_compute
from cosmopedia.execution.rates import read_rates, write_rate

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


@dataclass(frozen=True)
class TrainingForecast:
    """What training some seeds takes; `hours` of all of them, one after the other."""

    parameters: int
    tokens: int  # of one seed
    flops: float  # of one seed
    seeds: int
    tokens_per_second: float | None  # None: no rate is known
    basis: str  # where the rate comes from
    gpus: int  # 0: on a CPU
    disk_bytes: float  # of checkpoints, at most
    kept: int = 0  # earlier checkpoints of each seed that stay
    kept_bytes: float = 0.0  # what they take more

    @property
    def hours(self) -> float | None:
        return self.tokens / self.tokens_per_second / 3600 * self.seeds if self.tokens_per_second else None

    @property
    def gpu_hours(self) -> float | None:
        return self.hours * self.gpus if self.hours is not None and self.gpus else None

    def sentence(self) -> str:
        """As people read it."""
        sentence = f"train: {self.parameters / 1e6:,.1f}M parameters, {self.tokens:,} tokens, {self.flops:.2g} FLOPs"
        if self.seeds > 1:
            sentence += f" for each of {self.seeds} seeds"
        if self.hours is not None:
            duration = f"{self.hours:,.1f} h" if self.hours >= 1 else f"{self.hours * 60:.1f} min"
            sentence += f"; about {duration} at {self.tokens_per_second:,.0f} tokens/s ({self.basis})"
            if self.gpu_hours is not None:
                sentence += f", {self.gpu_hours:,.1f} GPU hours"
        sentence += f"; checkpoints up to {self.disk_bytes / 1e9:.2g} GB"
        if self.kept:
            sentence += (
                f", {self.kept_bytes / 1e9:.2g} GB more for {self.kept} earlier ones that stay; evaluate takes"
                f" {self.kept + 1} times as long"
            )
        return sentence


def forecast(recipe: Recipe, seeds: int, kept: int = 0) -> TrainingForecast:
    """What training `seeds` models by a recipe takes; `kept` earlier checkpoints of each stay."""
    speed, basis = rate(recipe) or (None, "no known rate")
    training = load_compute().training
    on_gpus = training.peak_tflops or (isinstance(training, SlurmTraining) and training.slurm.gpus)
    return TrainingForecast(
        parameters=recipe.parameters,
        tokens=recipe.tokens,
        flops=recipe.tokens * recipe.flops_per_token,
        seeds=seeds,
        tokens_per_second=speed,
        basis=basis,
        gpus=training.layout.processes if recipe.backend == "nanotron" and on_gpus else 0,
        disk_bytes=3 * BYTES * recipe.parameters,  # two checkpoints are kept while one is written
        kept=kept,
        # nanotron keeps whole checkpoints until the end, transformers their weights in fp32
        kept_bytes=kept * (BYTES if recipe.backend == "nanotron" else WEIGHT_BYTES) * recipe.parameters,
    )


def describe(recipe: Recipe, seeds: int, kept: int = 0) -> str:
    """The forecast in a sentence."""
    return forecast(recipe, seeds, kept).sentence()
