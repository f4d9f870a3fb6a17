"""pilot: a few completions of every cell before the GPU bill, and a gate.

In: data/prompts/<cell>.parquet, models/generator/, curation/chat.yaml. Its requests are among generate's, with the
same keys, so that nothing is paid for twice.
Out: metrics/pilot.json (per cell: shares of texts that refuse, repeat, copy, begin or end alike, ..., with examples;
diversity), data/pilot/completions.parquet (COMPLETION), data/pilot/gate.json (what generate depends on; the same bytes
whenever the gate opens, so that a new measurement alone reruns nothing).
Contract: with `gate: stop` a cell that exceeds a threshold ends the pipeline here, naming the cell, the share, an
example and what to do. Cells with few texts are measured together with the other small ones of their source.
Run: python -m stages.pilot
"""

import json
from collections import defaultdict
from pathlib import Path
from typing import Literal

from pydantic import ConfigDict, Field

from cosmopedia.core.files import write_text
from cosmopedia.core.params import Params, load
from cosmopedia.core.row_counts import write_metrics
from cosmopedia.corpus.chat import Chat, ChatPatterns
from cosmopedia.execution.earlier import earlier_completions
from cosmopedia.execution.sending import Send
from cosmopedia.execution.stage_process import run_stage
from cosmopedia.faithfulness.settings import FaithfulParams
from cosmopedia.generation.complete import PromptRequests, complete
from cosmopedia.generation.forms import SampledFrom, samplings
from cosmopedia.generation.model import GenerationModel
from cosmopedia.generation.requests import Completion, Failure
from cosmopedia.store.documents import write_completions
from cosmopedia.store.store import CompletionStore
from cosmopedia.tables.cell_files import source_and_style
from cosmopedia.tables.parquet import tables_in
from stages.pilot.gate import Thresholds, stopped, table, violations
from stages.pilot.measures import measure
from stages.pilot.prompt_draw import DrawnPrompt, draw_prompts
from stages.pilot.shares import Refusals, TextRules
from stages.pilot.unfaithful import Unfaithful

PROMPTS, METRICS = Path("data/prompts"), Path("metrics/pilot.json")
ALL = "(all cells)"
Result = Completion | Failure
Tried = tuple[str, Result]  # a prompt and what came of it
GATE, COMPLETIONS = Path("data/pilot/gate.json"), Path("data/pilot/completions.parquet")


class PilotParams(Params):
    """How many completions, what is measured, what is too much."""

    per_cell: int = Field(ge=1)
    gate: Literal["warn", "stop"]
    seed: int
    rules: TextRules
    thresholds: Thresholds


class CleanedBy(Params):
    """What pilot reads of clean's section."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    max_refusal_words: int


def settings() -> tuple[PilotParams, SampledFrom, Chat, FaithfulParams]:
    """The stage's params, those of generate and faithful that it shares, and clean's forms of chat and refusals."""
    max_refusal_words = load("clean", CleanedBy).max_refusal_words
    chat = Chat(ChatPatterns.read(), max_refusal_words)
    return load("pilot", PilotParams), load("generate", SampledFrom), chat, load("faithful", FaithfulParams)


def by_cell(drawn: list[DrawnPrompt], results: list[Result]) -> dict[str, list[Tried]]:
    """The prompts of each cell with their results."""
    cells = defaultdict[str, list[Tried]](list)
    for one, result in zip(drawn, results, strict=True):
        cells[one.cell].append((one.prompt, result))
    return cells


def pools(cells: dict[str, list[Tried]], min_texts: int) -> dict[str, list[Tried]]:
    """All cells together, and those of a source that are too small to be judged alone."""
    small = defaultdict[str, list[Tried]](list)
    for cell, tried in cells.items():
        if len(tried) < min_texts:
            small[f"({source_and_style(cell)[0]}, small cells)"] += tried
    return {ALL: [one for tried in cells.values() for one in tried], **small}


def main() -> str:
    (params, generation, chat, faithful), model = settings(), GenerationModel.read()
    drawn = draw_prompts(tables_in(PROMPTS), params.seed, params.per_cell)
    own = samplings(generation.forms, generation.sampling)
    prompts = [(one.prompt_id, one.prompt, own.get(one.style)) for one in drawn]
    requests = PromptRequests(prompts, model, generation.seed, samples=1)
    with CompletionStore() as store:
        run = complete("pilot", requests, model, generation.sampling, store, Send(), earlier_completions)
    run.write_record()
    results = [result for _, result in run.results]
    write_completions(COMPLETIONS, results)

    refusals, cells = Refusals(params.rules.refusal, chat), by_cell(drawn, results)
    together = pools(cells, params.thresholds.min_texts)
    others = {"unfaithful": Unfaithful(drawn, faithful)} if params.thresholds.max_unfaithful_share is not None else {}
    figures = {name: measure(tried, params.rules, refusals, others) for name, tried in {**cells, **together}.items()}
    exceeded = [v for name, figure in figures.items() for v in violations(name, figure, params.thresholds)]
    pooled = {name: figures.pop(name) for name in together}
    overall = pooled.pop(ALL)
    write_metrics(METRICS, {**overall, "violations": len(exceeded), "cells": figures, "pools": pooled})

    GATE.unlink(missing_ok=True)
    if exceeded:
        print(table(exceeded), flush=True)
    if exceeded and params.gate == "stop":
        raise stopped(exceeded)
    write_text(GATE, json.dumps({"passed": True}) + "\n")
    verdict = f"{len(exceeded)} warnings (the gate only warns)" if exceeded else "every cell within the thresholds"
    return (
        f"{overall['completions']} completions in {len(cells)} cells, {run.sent} sent, {run.cached} from the store;"
        f" {verdict}"
    )


if __name__ == "__main__":
    run_stage("pilot", main)
