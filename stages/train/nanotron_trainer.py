"""The heavy trainer, nanotron: hand it a job, follow it, take the weights back as transformers has them.

The processes themselves (stages/train/nanotron/worker.py) run in an environment of their own.
"""

import contextlib
import json
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Literal

from cosmopedia.execution import torchrun
from cosmopedia.execution.compute import load_compute
from cosmopedia.execution.mlflow_run import Run
from cosmopedia.execution.progress import Progress
from stages.train.checkpoints import LOSSES
from stages.train.init_weights import new_model
from stages.train.nanotron import job as jobs
from stages.train.nanotron import worker
from stages.train.nanotron.weights import read_checkpoint
from stages.train.recipe import Recipe
from stages.train.shards import Corpus, TokenShards
from stages.train.transformers_trainer import Trained

WORKER = "stages.train.nanotron.worker"


def resolve_precision(wanted: Literal["auto", "bf16", "fp32"]) -> Literal["bf16", "fp32"]:
    """bf16 where the processes have GPUs, else fp32: on a CPU nanotron's bf16 is slower and coarser."""
    if wanted != "auto":
        return wanted
    training = load_compute().training
    if training.launcher == "slurm":
        return "bf16" if training.slurm is not None and training.slurm.gpus else "fp32"
    import torch

    return "bf16" if torch.cuda.is_available() else "fp32"


def fit(
    recipe: Recipe,
    corpus: Corpus,
    shards: TokenShards,
    validation: TokenShards,
    folder: Path,
    out: Path,
    precision: Literal["bf16", "fp32"],
    run: Run,
) -> Trained:
    """Train in `folder`, going on from what is there; the model is written to `out`."""
    training = load_compute().training
    job = jobs.job_of(recipe, shards.folder.parent, precision, training)
    jobs.write_json(folder / "job.json", job.model_dump(mode="json"))  # a job that was left may read it just now
    checkpoint = jobs.latest_checkpoint(folder)
    first = len(jobs.read_steps(checkpoint / LOSSES)) if checkpoint else 0
    if first:
        print(f"train: going on from step {first} of {recipe.steps} ({checkpoint})", file=sys.stderr, flush=True)
    speeds: list[float] = []
    processes = torchrun.TorchrunJob(
        folder, WORKER, job.layout.processes, recipe.steps, error=lambda: jobs.read_error(folder)
    )
    with progress(recipe.steps, first) as advance:

        def booked(rows: list[list[str]]) -> None:
            for step in map(jobs.as_step, rows):
                point = {"loss": step.loss, "learning_rate": step.learning_rate, "gradient_norm": step.gradient_norm}
                point |= {"tokens_per_second": step.tokens_per_second} | ({"mfu": step.mfu} if step.mfu else {})
                run.metrics(point, step=step.step)
                if step.step > first:
                    speeds.append(step.tokens_per_second)
                    advance(step)

        if not (folder / "result.json").is_file():
            torchrun.follow(processes, training, booked)
    result = json.loads((folder / "result.json").read_text(encoding="utf-8"))
    losses = jobs.read_steps(folder / result["checkpoint"] / LOSSES)
    model = new_model(recipe, corpus.eos)
    model.load_state_dict(read_checkpoint(folder / result["checkpoint"], recipe.architecture), strict=False)
    if precision == "bf16":
        model.bfloat16()
    model.save_pretrained(out, safe_serialization=True)
    if result["probe"]:
        shutil.copyfile(folder / worker.PROBE_FILE, out / worker.PROBE_FILE)
    speed = sorted(speeds)[len(speeds) // 2] if speeds else 0.0
    steps = [(s.step, s.loss, s.learning_rate, s.gradient_norm) for s in losses]
    return Trained(model, steps, first, speed, result["validation_loss"], result["validation_tokens"])


@contextlib.contextmanager
def progress(steps: int, first: int) -> Iterator[Callable[[jobs.Step], None]]:
    """Shows a training's steps as they are booked."""
    with Progress("train", steps - first, "steps") as shown:

        def advance(step: jobs.Step) -> None:
            told = {"step": f"{step.step}/{steps}", "loss": f"{step.loss:.4f}", "rate": f"{step.learning_rate:.2e}"}
            told |= {"mfu": f"{step.mfu:.1%}"} if step.mfu else {}
            shown.advance(1, **told, tokens_per_s=f"{step.tokens_per_second:,.0f}")

        yield advance
