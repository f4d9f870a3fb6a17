"""A Llama trained by nanotron: write its job, follow its processes, bring the weights back to transformers.

The processes themselves (stages/train/nanotron/worker.py) run in their own environment.
"""

import json
import shutil
import sys
from pathlib import Path
from typing import Literal

from cosmopedia.execution import torchrun
from cosmopedia.execution.compute import load_compute
from cosmopedia.execution.mlflow_run import Run
from cosmopedia.execution.progress import Progress
from cosmopedia.seeds import checkpoint_folder
from stages.train.checkpoints import LOSSES
from stages.train.init_weights import new_model
from stages.train.nanotron import worker
from stages.train.nanotron.job import job_of, latest_checkpoint, read_error, write_json
from stages.train.nanotron.weights import read_checkpoint
from stages.train.recipe import Recipe
from stages.train.steps import Trained, parse_step, read_steps
from stages.train.windows import Corpus, TokenShards

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
    kept: tuple[int, ...],
    corpus: Corpus,
    shards: TokenShards,
    validation: TokenShards,
    folder: Path,
    out: Path,
    precision: Literal["bf16", "fp32"],
    run: Run,
) -> Trained:
    """Train in `folder`, from the newest checkpoint on, and write the model to `out`, with the `kept` steps."""
    training = load_compute().training
    job = job_of(recipe, shards.folder.parent, precision, training, kept)
    write_json(folder / "job.json", job.model_dump(mode="json"))  # a job left by a killed driver may be reading it
    checkpoint = latest_checkpoint(folder)
    first = len(read_steps(checkpoint / LOSSES)) if checkpoint else 0
    if first:
        print(f"train: going on from step {first} of {recipe.steps} ({checkpoint})", file=sys.stderr, flush=True)
    speeds: list[float] = []
    processes = torchrun.TorchrunJob(
        folder, WORKER, job.layout.processes, recipe.steps, error=lambda: read_error(folder)
    )
    with Progress("train", recipe.steps - first, "steps") as progress:

        def record(rows: list[list[str]]) -> None:
            for step in map(parse_step, rows):
                run.metrics(step.figures, step=step.step)
                if step.step > first:
                    speeds.append(step.tokens_per_second)
                    progress.advance(1, **step.shown(recipe.steps))

        if not (folder / "result.json").is_file():
            torchrun.follow(processes, training, record)
    result = json.loads((folder / "result.json").read_text(encoding="utf-8"))
    checkpoint = folder / result["checkpoint"]
    write_weights(checkpoint, recipe, corpus, precision, out)
    for step in kept:
        write_weights(folder / f"checkpoints/{step}", recipe, corpus, precision, checkpoint_folder(out, step))
    if result["probe"]:
        shutil.copyfile(folder / worker.PROBE_FILE, out / worker.PROBE_FILE)
    speed = sorted(speeds)[len(speeds) // 2] if speeds else 0.0
    steps = read_steps(checkpoint / LOSSES)
    return Trained(steps, first, speed, result["validation_loss"], result["validation_tokens"])


def write_weights(
    checkpoint: Path, recipe: Recipe, corpus: Corpus, precision: Literal["bf16", "fp32"], out: Path
) -> None:
    """A nanotron checkpoint's weights as a folder of transformers."""
    model = new_model(recipe, corpus.eos)
    model.load_state_dict(read_checkpoint(checkpoint, recipe.architecture), strict=False)
    if precision == "bf16":
        model.bfloat16()
    model.save_pretrained(out, safe_serialization=True)
