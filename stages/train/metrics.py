"""The figures of a training: of one seed, over several seeds, and as a curve."""

import csv
import io
import math
from typing import Any

from cosmopedia.seeds import mean_and_sd
from stages.train.recipe import Recipe
from stages.train.steps import Step, Trained
from stages.train.windows import Corpus

FINAL_SHARE = 0.05  # the final training loss is the mean of this share of the steps, as a single batch is noise
MEANS = ("train_loss", "validation_loss", "validation_perplexity")  # of which several seeds have a mean


def final_loss(losses: list[float]) -> float:
    """Mean loss of the last steps."""
    last = losses[-max(1, round(len(losses) * FINAL_SHARE)) :]
    return math.fsum(last) / len(last)


def seed_metrics(recipe: Recipe, corpus: Corpus, windows: int, precision: str, trained: Trained) -> dict[str, Any]:
    """What training.json and metrics/train.json say of one seed; `windows` are those of the training split."""
    loss = trained.validation_loss
    return {
        "backend": recipe.backend,
        "precision": precision,
        "parameters": recipe.parameters,
        "vocabulary": corpus.vocab_size,
        "steps": recipe.steps,
        "tokens": recipe.tokens,
        "epochs": recipe.steps * recipe.batch / windows,
        "train_loss": final_loss([step.loss for step in trained.steps]),
        "validation_loss": loss,
        "validation_perplexity": None if loss is None else math.exp(min(loss, 700)),
        "validation_tokens": trained.validation_tokens,
    }


def over_seeds(seeds: dict[int, dict[str, Any]]) -> dict[str, Any]:
    """metrics/train.json: what all seeds share, the means of the losses with their standard deviation, each seed."""
    first = next(iter(seeds.values()))
    metrics = {name: value for name, value in first.items() if name not in MEANS}
    for name in MEANS:
        mean, sd = mean_and_sd([seed[name] for seed in seeds.values()])
        metrics[name] = mean
        if sd is not None:
            metrics[f"{name}_sd"] = sd
    return metrics | {"seeds": {str(n): {name: seed[name] for name in MEANS} for n, seed in seeds.items()}}


def loss_curve(seeds: list[list[Step]]) -> str:
    """The loss curve as a table for DVC's plots: the mean over seeds of each step's loss."""
    table = io.StringIO()
    writer = csv.writer(table, lineterminator="\n")
    writer.writerow(("step", "learning_rate", "loss"))  # DVC draws the last column of a file that it is given by path
    for steps in zip(*seeds, strict=True):
        mean, _ = mean_and_sd([step.loss for step in steps])
        writer.writerow((steps[0].step, f"{steps[0].learning_rate:.6g}", f"{mean:.6g}"))
    return table.getvalue()
