"""What `cosmo status` shows of trainings."""

import time
from pathlib import Path
from typing import Any

from cosmopedia.core.lineage import store_root
from stages.train.nanotron.job import TrainingJob
from stages.train.steps import read_steps

NAME = "trainings"


def read() -> list[dict[str, Any]]:
    """Each nanotron training of this checkout's store that is not finished."""
    return trainings(store_root() / "train")


def trainings(train: Path) -> list[dict[str, Any]]:
    """Each nanotron training under `<store>/train` that is not finished, with its figures once it has made a step."""
    unfinished = []
    for path in sorted(train.glob("*/job.json")):
        steps_file = path.parent / "steps.csv"
        try:
            job = TrainingJob.model_validate_json(path.read_text(encoding="utf-8"))
            steps = read_steps(steps_file)
        except (OSError, ValueError):  # it ends, or is being written, just now
            continue
        recipe = job.recipe
        training: dict[str, Any] = {"seed": recipe.seed, "step": len(steps), "steps": recipe.steps}
        if steps:
            recent = steps[-20:]
            seconds = sum(step.seconds for step in recent) / len(recent)
            training |= {
                "loss": steps[-1].loss,
                "tokens_per_second": recipe.batch * recipe.sequence / seconds,
                "mfu": steps[-1].mfu,
                "hours": sum(step.seconds for step in steps) * job.layout.processes / 3600,
                "unit": "GPU" if job.peak_tflops else "process",
                "seconds_per_step": seconds,
                "idle_seconds": time.time() - steps_file.stat().st_mtime,
            }
        unfinished.append(training)
    return unfinished


def describe(training: dict[str, Any]) -> str:
    """A training in one line."""
    line = f"train seed {training['seed']}: step {training['step']:,} of {training['steps']:,}"
    if training["step"]:
        left = (training["steps"] - training["step"]) * training["seconds_per_step"]
        idle = training["idle_seconds"]
        line += f", loss {training['loss']:.3f}, {training['tokens_per_second']:,.0f} tokens/s"
        line += f", MFU {training['mfu']:.1%}" if training["mfu"] else ""
        line += f", {training['hours']:,.2f} {training['unit']} hours, ETA {left / 60:,.0f} min"
        line += f"; no step for {idle / 60:,.0f} min" if idle > max(60.0, 10 * training["seconds_per_step"]) else ""
    return line
