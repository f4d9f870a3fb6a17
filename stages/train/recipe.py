"""The training recipe: the `train` sections of params.yaml and the profile, in terms that both trainers share."""

import math
from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from cosmopedia.core.errors import ConfigError
from cosmopedia.core.params import Params


class Architecture(Params):
    """A Llama (Llama 2: RMSNorm, SwiGLU, rotary positions, no biases)."""

    vocabulary: int = Field(ge=1)  # tokens; must be the corpus's
    layers: int = Field(ge=1)
    heads: int = Field(ge=1)
    kv_heads: int = Field(ge=1)  # fewer than heads: grouped-query attention
    width: int = Field(ge=8)
    intermediate: int = Field(ge=8)  # inner width of the feed-forward block
    max_positions: int = Field(ge=2)
    rope_theta: float = Field(gt=1)
    tied_embeddings: bool

    @model_validator(mode="after")
    def _heads_fit(self) -> "Architecture":
        if self.width % self.heads or (self.width // self.heads) % 2:
            raise ValueError(f"width {self.width} must be an even multiple of heads {self.heads}")
        if self.heads % self.kv_heads:
            raise ValueError(f"heads {self.heads} must be a multiple of kv_heads {self.kv_heads}")
        return self

    @property
    def parameters(self) -> int:
        """The number of weights, from the shape alone."""
        head = self.width // self.heads
        attention = 2 * self.width * self.width + 2 * self.width * head * self.kv_heads
        layer = attention + 3 * self.width * self.intermediate + 2 * self.width
        embeddings = self.vocabulary * self.width * (1 if self.tied_embeddings else 2)
        return embeddings + self.layers * layer + self.width


class Shared(Params):
    """The part of a recipe that all seeds share."""

    backend: Literal["transformers", "nanotron"]
    preset: str | None  # where the values come from (`with_preset`); None once they are a seed's recipe
    architecture: Architecture
    sequence: int = Field(ge=2)  # tokens
    batch: int = Field(ge=1)  # sequences in one optimiser step
    micro_batch: int = Field(ge=1)  # sequences in one forward pass
    steps: int = Field(ge=1)
    learning_rate: float = Field(gt=0)
    warmup_steps: int = Field(ge=0)
    final_rate_share: float = Field(ge=0, le=1)
    betas: tuple[float, float]
    epsilon: float = Field(gt=0)
    weight_decay: float = Field(ge=0)
    gradient_clip: float = Field(gt=0)
    precision: Literal["auto", "bf16", "fp32"]
    cpu_threads: int = Field(ge=1)  # on a CPU, where the order of sums, and so the result, depends on it

    @model_validator(mode="after")
    def _sizes_fit(self) -> "Shared":
        if self.batch % self.micro_batch:
            raise ValueError(f"batch {self.batch} must be a multiple of micro_batch {self.micro_batch}")
        if self.sequence > self.architecture.max_positions:
            raise ValueError(f"sequence {self.sequence} exceeds max_positions {self.architecture.max_positions}")
        if self.warmup_steps > self.steps:
            raise ValueError(f"warmup_steps {self.warmup_steps} exceeds steps {self.steps}")
        return self


class Recipe(Shared):
    """Everything except the tokens that decides the trained weights."""

    seed: int = Field(ge=0)  # of the initial weights and the order of the windows

    @property
    def parameters(self) -> int:
        return self.architecture.parameters

    @property
    def tokens(self) -> int:
        """Tokens that are trained on, each epoch counted."""
        return self.steps * self.batch * self.sequence

    @property
    def flops_per_token(self) -> float:
        """FLOPs of the forward and backward pass of one token (PaLM, appendix B).

        6 per weight of each matrix that multiplies (the output head does, the embedding table does not), and
        6 x layers x width x sequence for attention: half of PaLM's, since it is causal.
        """
        shape = self.architecture
        weights = shape.parameters - (2 * shape.layers + 1) * shape.width
        if not shape.tied_embeddings:
            weights -= shape.vocabulary * shape.width
        return 6.0 * weights + 6.0 * shape.layers * shape.width * self.sequence


def with_preset(train: dict[str, Any]) -> dict[str, Any]:
    """The `train` section, with the values of the preset that it names in place of its own.

    `ConfigError` with the known names for a preset that is not in `train.presets`.
    """
    if not {"architecture", "preset", "presets"} <= train.keys():
        return train  # the model names what is missing
    name, presets = train["preset"], train["presets"]
    if name not in presets:
        raise ConfigError(f"train.preset {name!r} is not known; choose one of {', '.join(presets)}")
    preset = presets[name]
    return train | preset | {"architecture": train["architecture"] | preset.get("architecture", {})}


class TrainParams(Shared):
    """The `train` section: the recipe of every seed, the seeds, and the presets to choose from."""

    seeds: list[int] = Field(min_length=1)
    keep_last: int = Field(ge=1)  # checkpoints of a seed that are exported and scored, the end among them
    keep_spacing: float = Field(gt=0, lt=1)  # of the steps, between two of them
    presets: dict[str, dict[str, Any]]  # by name

    @model_validator(mode="before")
    @classmethod
    def _take_preset(cls, values: dict[str, Any]) -> dict[str, Any]:
        return with_preset(values)

    @field_validator("seeds")
    @classmethod
    def _no_seed_twice(cls, seeds: list[int]) -> list[int]:
        if twice := sorted({seed for seed in seeds if seeds.count(seed) > 1}):
            raise ValueError(f"{', '.join(map(str, twice))} is named twice, but each seed trains one model")
        return seeds

    @property
    def kept_steps(self) -> tuple[int, ...]:
        """The steps whose weights are kept next to those of the end, in order; none with keep_last 1."""
        gap = round(self.keep_spacing * self.steps)
        return tuple(self.steps - gap * number for number in range(self.keep_last - 1, 0, -1))

    @model_validator(mode="after")
    def _kept_steps_fit(self) -> "TrainParams":
        kept = (*self.kept_steps, self.steps)
        if kept[0] < 1 or len(set(kept)) < len(kept):
            raise ValueError(
                f"keep_last {self.keep_last} at keep_spacing {self.keep_spacing:g} of {self.steps} steps would keep"
                f" the steps {', '.join(map(str, kept))}; wanted different ones from 1 on"
            )
        return self

    def recipe(self, seed: int) -> Recipe:
        """The recipe of one seed."""
        return Recipe(
            seed=seed,
            preset=None,
            **self.model_dump(exclude={"seeds", "keep_last", "keep_spacing", "preset", "presets"}),
        )


def learning_rate(recipe: Recipe, step: int) -> float:
    """The rate of an optimiser step (from 1): linear warm-up from 0, then half a cosine to `final_rate_share`.

    Both trainers begin with a step at rate 0, as the schedulers of transformers and nanotron do.
    """
    done = step - 1
    if done < recipe.warmup_steps:
        return recipe.learning_rate * done / recipe.warmup_steps
    share = (done - recipe.warmup_steps) / max(recipe.steps - recipe.warmup_steps, 1)
    low = recipe.final_rate_share
    return recipe.learning_rate * (low + (1 - low) * (1 + math.cos(math.pi * share)) / 2)
