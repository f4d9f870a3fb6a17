"""Optimiser steps, and the CSV files that hold them: a header line, then a line per step with every digit.

`steps.csv` grows while nanotron trains. `losses.csv` is the last file of a checkpoint to be written, and makes it
count. The `losses.csv` of a finished model has only the columns that do not differ between runs (`RESULTS`).
"""

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from cosmopedia.core.files import write_text


class Step(NamedTuple):
    """One optimiser step."""

    step: int  # from 1
    loss: float  # nats per token, mean over the batch
    learning_rate: float  # that the step was made with
    gradient_norm: float  # before clipping
    seconds: float = 0.0  # that the step took; 0 where nobody measured it
    tokens_per_second: float = 0.0  # of all processes; 0 likewise
    mfu: float | None = None  # model FLOPs utilisation; None where the processor's peak is not stated

    @property
    def figures(self) -> dict[str, float]:
        """What MLflow records of the step."""
        figures = {"loss": self.loss, "learning_rate": self.learning_rate, "gradient_norm": self.gradient_norm}
        figures["tokens_per_second"] = self.tokens_per_second
        return figures | ({"mfu": self.mfu} if self.mfu else {})

    def shown(self, steps: int) -> dict[str, str]:
        """What the progress line shows of the step."""
        text = {"step": f"{self.step}/{steps}", "loss": f"{self.loss:.4f}", "rate": f"{self.learning_rate:.2e}"}
        if self.mfu:
            text["mfu"] = f"{self.mfu:.1%}"
        return text | {"tokens_per_s": f"{self.tokens_per_second:,.0f}"}


RESULTS = Step._fields[:4]  # the columns that recipe and corpus decide


@dataclass(frozen=True)
class Trained:
    """What a training returned."""

    steps: list[Step]
    resumed_at: int  # the step of the checkpoint that this process began from; 0 for a fresh start
    tokens_per_second: float  # of this process
    validation_loss: float | None = None  # nats per token; None where no window is held out
    validation_tokens: int = 0


def step_line(values: Sequence[float | None]) -> str:
    """A step, or its first columns, as a line of a file."""
    return ",".join("" if value is None else repr(value) for value in values) + "\n"


def parse_step(row: Sequence[str]) -> Step:
    """The step in a row of such a file, with all columns or only those of `RESULTS`."""
    number, loss, rate, norm, *times = row
    step = Step(int(number), float(loss), float(rate), float(norm))
    if not times:
        return step
    seconds, speed, mfu = times
    return step._replace(seconds=float(seconds), tokens_per_second=float(speed), mfu=float(mfu) if mfu else None)


def write_steps(path: Path, steps: Sequence[Step], columns: Sequence[str] = Step._fields) -> None:
    """A file of steps, whole or not at all."""
    lines = (step_line(step[: len(columns)]) for step in steps)
    write_text(path, ",".join(columns) + "\n" + "".join(lines))


def read_steps(path: Path) -> list[Step]:
    """The steps of a file, none where it is missing; a line that a kill cut short is left out."""
    if not path.is_file():
        return []
    with path.open(newline="", encoding="utf-8") as stream:
        lines = [line for line in stream if line.endswith("\n")]
    return [parse_step(row) for row in csv.reader(lines[1:])]
