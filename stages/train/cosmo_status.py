"""What `cosmo status` says of trainings."""

import time
from pathlib import Path

from cosmopedia.lineage import store_root
from stages.train.nanotron.job import TrainingJob
from stages.train.steps import read_steps


def lines() -> list[str]:
    """A line for each training of this checkout's store that is not finished."""
    return describe_trainings(store_root() / "train")


def describe_trainings(train: Path) -> list[str]:
    """A line for each nanotron training under `<store>/train` that is not finished, from its steps."""
    found = []
    for path in sorted(train.glob("*/job.json")):
        try:
            job, steps = (
                TrainingJob.model_validate_json(path.read_text(encoding="utf-8")),
                read_steps(path.parent / "steps.csv"),
            )
        except (OSError, ValueError):  # it ends, or is being written, just now
            continue
        recipe, layout = job.recipe, job.layout
        told = f"train seed {recipe.seed}: step {len(steps):,} of {recipe.steps:,}"
        if steps:
            recent = steps[-20:]
            seconds = sum(step.seconds for step in recent) / len(recent)
            speed = recipe.batch * recipe.sequence / seconds
            hours = sum(step.seconds for step in steps) * layout.processes / 3600
            told += f", loss {steps[-1].loss:.3f}, {speed:,.0f} tokens/s"
            told += f", MFU {steps[-1].mfu:.1%}" if steps[-1].mfu else ""
            told += f", {hours:,.2f} {'GPU' if job.peak_tflops else 'process'} hours"
            told += f", ETA {(recipe.steps - len(steps)) * seconds / 60:,.0f} min"
            idle = time.time() - (path.parent / "steps.csv").stat().st_mtime
            told += f"; no step for {idle / 60:,.0f} min" if idle > max(60.0, 10 * seconds) else ""
        found.append(told)
    return found
