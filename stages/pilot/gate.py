"""The pilot's gate: which thresholds a cell exceeds, and how that is reported."""

from dataclasses import dataclass
from typing import Any

from pydantic import Field

from cosmopedia.errors import DataError
from cosmopedia.params import Params


class Thresholds(Params):
    """A cell that exceeds one of these is named."""

    min_seen: int = Field(ge=1)
    max_opening_share: float = Field(ge=0, le=1)
    max_truncated_share: float = Field(ge=0, le=1)
    max_refused_share: float = Field(ge=0, le=1)
    max_failed_share: float = Field(ge=0, le=1)
    min_distinct_2: float = Field(ge=0, le=1)
    max_compression_ratio: float = Field(ge=1)


@dataclass(frozen=True)
class Violation:
    """A threshold that a cell exceeds. `count` completions show it."""

    cell: str
    measure: str
    value: float
    limit: float
    count: int
    detail: str = ""

    def __str__(self) -> str:
        return f"{self.cell}: {self.measure} {self.value:.3g} (limit {self.limit:g}) {self.detail}".strip()


def violations(cell: str, figures: dict[str, Any], limits: Thresholds) -> list[Violation]:
    """The thresholds that a cell exceeds. Fewer than `min_seen` completions that show a fault are chance."""
    completions, requests = figures["completions"], figures["requests"]
    shares = [
        ("opening_share", limits.max_opening_share, completions, f'"{figures["opening"]}"'),
        ("truncated_share", limits.max_truncated_share, completions, ""),
        ("refused_share", limits.max_refused_share, completions, ""),
        ("failed_share", limits.max_failed_share, requests, ""),
    ]
    exceeded = []
    for name, limit, total, detail in shares:
        count = round(figures[name] * total)
        if figures[name] > limit and count >= limits.min_seen:
            exceeded.append(Violation(cell, name, figures[name], limit, count, detail))
    if completions < limits.min_seen:
        return exceeded
    distinct, ratio = figures["distinct_2"], figures["compression_ratio"]
    if distinct < limits.min_distinct_2:
        exceeded.append(Violation(cell, "distinct_2", distinct, limits.min_distinct_2, completions))
    if ratio > limits.max_compression_ratio:
        exceeded.append(Violation(cell, "compression_ratio", ratio, limits.max_compression_ratio, completions))
    return exceeded


def table(exceeded: list[Violation]) -> str:
    """The violations as a table for people."""
    rows = [("cell", "measure", "value", "limit", "seen", "")]
    rows += [(v.cell, v.measure, f"{v.value:.3g}", f"{v.limit:g}", str(v.count), v.detail) for v in exceeded]
    widths = [max(len(row[column]) for row in rows) for column in range(5)]
    return "\n".join("  ".join([*map(str.ljust, row[:5], widths), row[5]]).rstrip() for row in rows)


def stopped(exceeded: list[Violation]) -> DataError:
    """What to say when the gate stops the pipeline."""
    return DataError(
        f"the gate stops generation: {'; '.join(map(str, exceeded))}. Change the prompts of these cells, or"
        " pilot.thresholds, or set pilot.gate to warn"
    )
