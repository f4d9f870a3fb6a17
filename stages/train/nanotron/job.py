"""One nanotron training as a folder: what to train, and the files that say how far it is.

The folder is outside DVC's outs, in `<store>/train/<key>`, on a file system that the nodes share:

    job.json                    what to train (`TrainingJob`); written by the stage
    config.yaml                 nanotron's own config, as it runs
    log.txt                     what the processes print
    steps.csv                   a line per step, while it runs
    checkpoints/<step>/         nanotron's checkpoints; one counts when its losses.csv, written last, is there
    stop                        a request for a checkpoint and the end (SIGTERM, Slurm's warning)
    error.json                  why the processes ended: an error class of cosmopedia/core/errors.py and a message
    result.json, probe.safetensors   the end: validation loss; logits on a fixed input, for the export to compare
"""

import json
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, ValidationError, model_validator

from cosmopedia.core import errors
from cosmopedia.core.errors import ConfigError
from cosmopedia.core.files import write_text
from cosmopedia.core.params import Params
from cosmopedia.execution.compute import Layout, Training, compute_path
from stages.train import checkpoints
from stages.train.recipe import Recipe


class TrainingJob(Params):
    """What one set of processes trains, and on what layout."""

    recipe: Recipe
    layout: Layout
    tokens: Path  # data/tokenize_corpus, absolute
    precision: Literal["bf16", "fp32"]
    checkpoint_seconds: float = Field(gt=0)
    kept: tuple[int, ...] = ()  # steps whose checkpoints stay to the end
    peak_tflops: float | None = Field(default=None, gt=0)  # of one processor in this precision, for MFU
    threads: int = Field(default=0, ge=0)
    compile: bool = False

    @property
    def micro_batch(self) -> int:
        return self.layout.micro_batch or self.recipe.micro_batch

    @property
    def accumulation(self) -> int:
        """Micro-batches of one process in one step."""
        return self.recipe.batch // (self.micro_batch * self.layout.dp)

    @model_validator(mode="after")
    def _fits(self) -> "TrainingJob":
        shape, layout = self.recipe.architecture, self.layout
        if self.recipe.batch % (self.micro_batch * layout.dp):
            raise ValueError(
                f"train.batch {self.recipe.batch} must be a multiple of micro_batch {self.micro_batch} x dp"
                f" {layout.dp}"
            )
        for name, size in {
            "heads": shape.heads,
            "kv_heads": shape.kv_heads,
            "intermediate": shape.intermediate,
            "vocabulary": shape.vocabulary,
        }.items():
            if size % layout.tp:
                raise ValueError(f"train.architecture.{name} {size} must be a multiple of tp {layout.tp}")
        if shape.layers < layout.pp:
            raise ValueError(f"train.architecture.layers {shape.layers} is less than pp {layout.pp}")
        if shape.rope_theta != 10000:
            raise ValueError(
                f"nanotron trains with rotary positions of base 10000 only, not rope_theta {shape.rope_theta:g}"
            )
        return self


def job_of(
    recipe: Recipe,
    tokens: Path,
    precision: Literal["bf16", "fp32"],
    training: Training,
    kept: tuple[int, ...] = (),
) -> TrainingJob:
    """The job on the compute file's layout. `ConfigError` when the model cannot be divided that way."""
    try:
        return TrainingJob(
            recipe=recipe,
            layout=training.layout,
            tokens=tokens.resolve(),
            precision=precision,
            checkpoint_seconds=training.checkpoint_minutes * 60,
            kept=kept,
            peak_tflops=training.peak_tflops,
            threads=training.threads,
            compile=training.compile,
        )
    except ValidationError as error:
        problems = "; ".join(problem["msg"].removeprefix("Value error, ") for problem in error.errors())
        raise ConfigError(f"{problems} (training.layout in {compute_path()})") from None


def write_json(path: Path, content: dict[str, Any]) -> None:
    """A JSON file, whole or not at all."""
    write_text(path, json.dumps(content, indent=2) + "\n")


def latest_checkpoint(folder: Path, tidy: bool = False) -> Path | None:
    """The newest whole checkpoint of a job's folder."""
    return checkpoints.latest((folder / "checkpoints").glob("*"), tidy)


def write_error(folder: Path, error: errors.CosmoError) -> None:
    """Leave an error for the stage that started the processes."""
    write_json(folder / "error.json", {"kind": type(error).__name__, "message": str(error)})


def read_error(folder: Path) -> errors.CosmoError | None:
    """The error that the processes left."""
    path = folder / "error.json"
    if not path.is_file():
        return None
    content = json.loads(path.read_text(encoding="utf-8"))
    return getattr(errors, content["kind"])(content["message"])
