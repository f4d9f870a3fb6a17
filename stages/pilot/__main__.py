"""pilot: a few completions of every cell before the GPU bill, and a gate.

In: data/prompts/<cell>.parquet, models/generator/. Its requests are among generate's, with the same keys, so that
nothing is paid for twice.
Out: metrics/pilot.json (opening phrases, truncation, refusals, diversity, per cell), data/pilot/completions.parquet
(COMPLETION), data/pilot/gate.json (what generate depends on; the same bytes whenever the gate opens, so that a new
measurement alone reruns nothing).
Contract: with `gate: stop` a cell that exceeds a threshold ends the pipeline here, naming the cell and the opening.
Run: python -m stages.pilot
"""

import json
from collections import defaultdict
from pathlib import Path
from typing import Literal

from pydantic import ConfigDict, Field, field_validator

from cosmopedia.execution.earlier import earlier_completions
from cosmopedia.execution.sending import Send
from cosmopedia.execution.stage_process import run_stage
from cosmopedia.files import write_text
from cosmopedia.generation.complete import PromptRequests, complete
from cosmopedia.generation.model import GenerationModel
from cosmopedia.generation.requests import Completion, Failure, Sampling
from cosmopedia.params import Params, load
from cosmopedia.patterns import compiled
from cosmopedia.store.documents import write_completions
from cosmopedia.store.store import CompletionStore
from cosmopedia.tables.parquet import tables_in
from cosmopedia.tables.row_counts import write_metrics
from stages.pilot.gate import Thresholds, stopped, table, violations
from stages.pilot.measures import measure
from stages.pilot.prompt_draw import draw_prompts

PROMPTS, METRICS = Path("data/prompts"), Path("metrics/pilot.json")
GATE, COMPLETIONS = Path("data/pilot/gate.json"), Path("data/pilot/completions.parquet")


class PilotParams(Params):
    """How many completions, what is measured, what is too much."""

    per_cell: int = Field(ge=1)
    gate: Literal["warn", "stop"]
    seed: int
    opening_words: int = Field(ge=1)
    refusals: list[str]
    thresholds: Thresholds

    @field_validator("refusals")
    @classmethod
    def _compiles(cls, patterns: list[str]) -> list[str]:
        for pattern in patterns:
            compiled(pattern)
        return patterns


class SampledFrom(Params):
    """What pilot reads of generate's section: its requests are generate's."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    seed: int
    sampling: Sampling


def settings() -> tuple[PilotParams, SampledFrom]:
    """The stage's params and those of generate that it shares."""
    return load("pilot", PilotParams), load("generate", SampledFrom)


def main() -> str:
    (params, generation), model = settings(), GenerationModel.read()
    drawn = draw_prompts(tables_in(PROMPTS), params.seed, params.per_cell)
    requests = PromptRequests([(one.prompt_id, one.prompt) for one in drawn], model, generation.seed, samples=1)
    with CompletionStore() as store:
        run = complete("pilot", requests, model, generation.sampling, store, Send(), earlier_completions)
    run.write_record()
    write_completions(COMPLETIONS, (result for _, result in run.results))

    cells: dict[str, list[Completion | Failure]] = defaultdict(list)
    for one, (_, result) in zip(drawn, run.results, strict=True):
        cells[one.cell].append(result)
    figures = {cell: measure(some, params.opening_words, params.refusals) for cell, some in cells.items()}
    overall = measure([one for some in cells.values() for one in some], params.opening_words, params.refusals)
    exceeded = [v for cell, figure in figures.items() for v in violations(cell, figure, params.thresholds)]
    exceeded += violations("(all cells)", overall, params.thresholds)
    write_metrics(METRICS, {**overall, "violations": len(exceeded), "cells": figures})

    GATE.unlink(missing_ok=True)
    if exceeded:
        print(table(exceeded), flush=True)
    if exceeded and params.gate == "stop":
        raise stopped(exceeded)
    write_text(GATE, json.dumps({"passed": True}) + "\n")
    verdict = f"{len(exceeded)} warnings (the gate only warns)" if exceeded else "every cell within the thresholds"
    return (
        f"{overall['completions']} completions in {len(figures)} cells, {run.sent} sent, {run.cached} from the store;"
        f" {verdict}"
    )


if __name__ == "__main__":
    run_stage("pilot", main)
