"""The pilot's gate: which thresholds a cell exceeds, and how that is reported."""

from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import Field

from cosmopedia.core.errors import DataError
from cosmopedia.core.params import Params

Share = Annotated[float, Field(ge=0, le=1)]
ADVICE = {  # what to do about it
    "failed": "read the reasons in .store/runs/pilot.json and the servers' logs",
    "opening": "say in the template how to begin, and how not to",
    "openings": "say in the template how to begin, and how not to; let the wording vary",
    "closings": "say in the template how to end, and that no summary is wanted",
    "truncated": "raise generate.sampling.max_new_tokens, or ask for a shorter text",
    "unfinished": "see whether the model's end token and stop strings are right",
    "refused": "look at the source rows of these prompts, and at what the template asks for",
    "short": "read the short texts: refusals, or answers to something else",
    "repeated": "raise the repetition penalty or the temperature, or ask for a shorter text",
    "copied": "see whether the prompts differ enough, and whether the model copies the template",
    "name": "give names in the prompt, or ask for others",
    "number": "look for the number in the template's examples, or ask for others",
    "unfaithful": "say in the template to use only what it quotes, lower the temperature, or take a larger model",
    "distinct_2": "raise the temperature, and see whether the prompts differ enough",
    "compression_ratio": "raise the temperature, and see whether the prompts differ enough",
}


class Thresholds(Params):
    """A cell that exceeds one of these is named; null: never."""

    min_texts: int = Field(ge=1)
    min_seen: int = Field(ge=1)
    max_failed_share: Share | None
    max_opening_share: Share | None
    max_openings_share: Share | None
    max_closings_share: Share | None
    max_truncated_share: Share | None
    max_unfinished_share: Share | None
    max_refused_share: Share | None
    max_short_share: Share | None
    max_repeated_share: Share | None
    max_copied_share: Share | None
    max_name_share: Share | None
    max_number_share: Share | None
    max_unfaithful_share: Share | None
    min_distinct_2: Share | None
    max_compression_ratio: float | None = Field(ge=1)


@dataclass(frozen=True)
class Violation:
    """A threshold that a cell exceeds. `count` of `total` completions show it."""

    cell: str
    measure: str
    value: float
    limit: float
    count: int
    total: int
    example: str = ""

    def __str__(self) -> str:
        shown = f' "{self.example}"' if self.example else ""
        advice = ADVICE[self.measure.removesuffix("_share")]
        return (
            f"{self.cell}: {self.measure} {self.value:.3g} (limit {self.limit:g}){shown}"
            f" in {self.count} of {self.total}: {advice}"
        )


def violations(cell: str, figures: dict[str, Any], limits: Thresholds) -> list[Violation]:
    """The thresholds that a cell exceeds. Fewer than `min_seen` completions that show a fault are chance."""
    completions, requests = figures["completions"], figures["requests"]
    if requests < limits.min_texts:
        return []
    examples = {**figures["examples"], "opening": figures["opening"]}
    exceeded = []
    for name, limit in limits.model_dump().items():
        measure = name.removeprefix("max_").removeprefix("min_")
        if measure not in figures or limit is None:  # min_texts, min_seen
            continue
        value, total = figures[measure], requests if measure == "failed_share" else completions
        count = round(value * total) if measure.endswith("_share") else total
        beyond = value < limit if name.startswith("min_") else value > limit
        if beyond and count >= limits.min_seen:
            example = examples.get(measure.removesuffix("_share"), "")
            exceeded.append(Violation(cell, measure, value, limit, count, total, example))
    return exceeded


def table(exceeded: list[Violation]) -> str:
    """The violations as a table for people."""
    rows = [("cell", "measure", "value", "limit", "seen", "for example")]
    rows += [
        (v.cell, v.measure, f"{v.value:.3g}", f"{v.limit:g}", f"{v.count}/{v.total}", v.example) for v in exceeded
    ]
    widths = [max(len(row[column]) for row in rows) for column in range(5)]
    return "\n".join("  ".join([*map(str.ljust, row[:5], widths), row[5]]).rstrip() for row in rows)


def stopped(exceeded: list[Violation]) -> DataError:
    """What to say when the gate stops the pipeline."""
    return DataError(
        f"the gate stops generation: {'; '.join(map(str, exceeded))}. Change the prompts of these cells, or"
        " pilot.thresholds, or set pilot.gate to warn"
    )
