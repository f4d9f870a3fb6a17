"""The training recipe: what the `train` sections of params.yaml and the profile say, in the trainers' common terms."""

from typing import Literal

from pydantic import Field, model_validator

from stages.settings import Params


class Architecture(Params):
    """A Llama (Llama 2: RMSNorm, SwiGLU, rotary positions, no biases)."""

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

    def parameters(self, vocab_size: int) -> int:
        """How many weights the model has, computed, not counted."""
        head = self.width // self.heads
        attention = 2 * self.width * self.width + 2 * self.width * head * self.kv_heads
        layer = attention + 3 * self.width * self.intermediate + 2 * self.width
        embeddings = vocab_size * self.width * (1 if self.tied_embeddings else 2)
        return embeddings + self.layers * layer + self.width


class Recipe(Params):
    """Everything that decides what the trained weights are, besides the tokens."""

    backend: Literal["transformers", "nanotron"]
    seed: int = Field(ge=0)
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

    @model_validator(mode="after")
    def _sizes_fit(self) -> "Recipe":
        if self.batch % self.micro_batch:
            raise ValueError(f"batch {self.batch} must be a multiple of micro_batch {self.micro_batch}")
        if self.sequence > self.architecture.max_positions:
            raise ValueError(f"sequence {self.sequence} exceeds max_positions {self.architecture.max_positions}")
        if self.warmup_steps > self.steps:
            raise ValueError(f"warmup_steps {self.warmup_steps} exceeds steps {self.steps}")
        return self
