"""The training recipe: what the `train` sections of params.yaml and the profile say, in the trainers' common terms."""

import math
from typing import Any, Literal

from pydantic import Field, model_validator

from cosmopedia.params import Params
from stages.train.presets import PRESETS


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
        """How many weights the model has, computed, not counted."""
        head = self.width // self.heads
        attention = 2 * self.width * self.width + 2 * self.width * head * self.kv_heads
        layer = attention + 3 * self.width * self.intermediate + 2 * self.width
        embeddings = self.vocabulary * self.width * (1 if self.tied_embeddings else 2)
        return embeddings + self.layers * layer + self.width


class Shared(Params):
    """What a recipe says for every seed."""

    backend: Literal["transformers", "nanotron"]
    preset: str | None  # takes the place of architecture (but vocabulary), sequence, batch, steps and rate
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

    @model_validator(mode="before")
    @classmethod
    def _take_preset(cls, values: Any) -> Any:
        if not isinstance(values, dict) or (name := values.get("preset")) is None:
            return values
        if name not in PRESETS:
            raise ValueError(f"preset {name!r} is not known; choose one of {', '.join(PRESETS)}, or null")
        preset = PRESETS[name]
        vocabulary = {"vocabulary": values.get("architecture", {}).get("vocabulary")}
        return {**values, **preset, "architecture": {**preset["architecture"], **vocabulary}}

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
    """Everything that decides what the trained weights are, besides the tokens."""

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
        """FLOPs of one token's forward and backward pass: 6 per weight of a multiplying matrix (the embedding table
        does not, an output head does), and 6 x layers x width x sequence for causal attention (PaLM, appendix B,
        halved)."""
        shape = self.architecture
        weights = shape.parameters - (2 * shape.layers + 1) * shape.width
        if not shape.tied_embeddings:
            weights -= shape.vocabulary * shape.width
        return 6.0 * weights + 6.0 * shape.layers * shape.width * self.sequence


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
