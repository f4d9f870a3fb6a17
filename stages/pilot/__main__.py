"""pilot: a few completions of every cell before the whole bill is paid, and a gate.

In: data/prompts/<cell>.parquet, models/generator/. The completions are requests that generate makes too,
with the same keys, so nothing is paid twice.
Out: metrics/pilot.json (opening phrases, truncation, refusals, diversity, per cell), data/pilot/gate.json (what
generate depends on; the same bytes whenever the gate lets through, so that a new measurement alone reruns nothing).
Contract: with `gate: stop` a cell beyond a threshold ends the pipeline here, naming the cell and the opening.
Alone: python -m stages.pilot
"""

import json
import re
import shutil
from collections import Counter, defaultdict
from dataclasses import dataclass
from itertools import groupby, pairwise
from pathlib import Path
from typing import Any, Literal

import pyarrow.compute as pc
import zstandard
from pydantic import ConfigDict, Field, field_validator

from cosmopedia.errors import DataError, run_stage
from cosmopedia.execution.sending import Send
from cosmopedia.generation.complete import PromptRequests, complete
from cosmopedia.generation.model import GenerationModel
from cosmopedia.generation.requests import Completion, Failure, Sampling
from cosmopedia.params import Params, load
from cosmopedia.rng import draw_sample
from cosmopedia.store.store import CompletionStore
from cosmopedia.tables.cell_files import cell_of
from cosmopedia.tables.contracts import PROMPT
from cosmopedia.tables.parquet import read_batches, tables_in
from cosmopedia.tables.row_counts import write_metrics

PROMPTS, GATE = Path("data/prompts"), Path("data/pilot/gate.json")
OPENINGS_SHOWN = 3
QUANTILES = {"min": 0.0, "p10": 0.1, "p50": 0.5, "p90": 0.9, "max": 1.0}
BIGRAMS = 10_000  # of a cell, for distinct-2: from this size on the figure does not fall with the pilot's size
WINDOW_LOG = 15  # zstd looks back 32 kB, so that neither does the compression ratio grow with it


class Thresholds(Params):
    """A cell beyond one of these is named."""

    min_seen: int = Field(ge=1)
    max_opening_share: float = Field(ge=0, le=1)
    max_truncated_share: float = Field(ge=0, le=1)
    max_refused_share: float = Field(ge=0, le=1)
    max_failed_share: float = Field(ge=0, le=1)
    min_distinct_2: float = Field(ge=0, le=1)
    max_compression_ratio: float = Field(ge=1)


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
            try:
                re.compile(pattern)
            except re.error as error:
                raise ValueError(f"{pattern!r} is no regular expression: {error}") from None
        return patterns


class SampledFrom(Params):
    """What pilot reads of generate's section: its requests are generate's."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    seed: int
    sampling: Sampling


@dataclass(frozen=True)
class Violation:
    """A threshold that a cell is beyond. `count` completions show it."""

    cell: str
    measure: str
    value: float
    limit: float
    count: int
    detail: str


def opening(text: str, words: int) -> str:
    """The first words, lower case, without punctuation: "have you ever"."""
    return " ".join(re.findall(r"[^\W_]+(?:['’][^\W_]+)*", text.lower())[:words])


def distinct_2(texts: list[str]) -> float:
    """Different word bigrams over bigrams (Li et al. 2016, arXiv:1510.03055), over the texts' beginnings."""
    each = max(BIGRAMS // max(len(texts), 1), 1)
    bigrams = [pair for text in texts for pair in list(pairwise(text.lower().split()))[:each]]
    return len(set(bigrams)) / len(bigrams) if bigrams else 1.0


def compression_ratio(texts: list[str]) -> float:
    """Bytes over compressed bytes of the texts together: redundancy across texts (Shaib et al., arXiv:2403.00553)."""
    content = "\n".join(texts).encode()
    settings = zstandard.ZstdCompressionParameters.from_level(3, window_log=WINDOW_LOG)
    return len(content) / len(zstandard.ZstdCompressor(compression_params=settings).compress(content))


def measure(results: list[Completion | Failure], params: PilotParams) -> dict[str, Any]:
    """A cell's figures; shares are of its completions, `failed_share` of its requests."""
    done = [result for result in results if isinstance(result, Completion)]
    texts = [completion.text for completion in done]
    openings = Counter(opening(text, params.opening_words) for text in texts)
    refusal = re.compile("|".join(f"(?:{p})" for p in params.refusals), re.IGNORECASE) if params.refusals else None
    of = max(len(done), 1)
    frequent = sorted(openings.items(), key=lambda item: (-item[1], item[0]))[:OPENINGS_SHOWN]
    return {
        "requests": len(results),
        "completions": len(done),
        "failed_share": (len(results) - len(done)) / max(len(results), 1),
        "opening_share": frequent[0][1] / of if frequent else 0.0,
        "opening": frequent[0][0] if frequent else "",
        "openings": {words: count / of for words, count in frequent},
        "truncated_share": sum(completion.finish_reason == "length" for completion in done) / of,
        "refused_share": sum(refusal is not None and refusal.search(text) is not None for text in texts) / of,
        "distinct_2": distinct_2(texts),
        "compression_ratio": compression_ratio(texts) if texts else 1.0,
        "mean_tokens": sum(completion.tokens for completion in done) / of,
        "tokens": quantiles([completion.tokens for completion in done]),
    }


def quantiles(lengths: list[int]) -> dict[str, int]:
    """The distribution of lengths, in tokens: nearest-rank quantiles."""
    ranked = sorted(lengths)
    return {name: ranked[round(q * (len(ranked) - 1))] for name, q in QUANTILES.items()} if ranked else {}


def violations(cell: str, found: dict[str, Any], limits: Thresholds) -> list[Violation]:
    """Thresholds that a cell is beyond. Fewer than `min_seen` completions that show a fault are chance."""
    done, asked = found["completions"], found["requests"]
    shares = [
        ("opening_share", limits.max_opening_share, done, f'"{found["opening"]}"'),
        ("truncated_share", limits.max_truncated_share, done, ""),
        ("refused_share", limits.max_refused_share, done, ""),
        ("failed_share", limits.max_failed_share, asked, ""),
    ]
    named = [
        Violation(cell, name, found[name], limit, round(found[name] * of), detail)
        for name, limit, of, detail in shares
        if found[name] > limit and round(found[name] * of) >= limits.min_seen
    ]
    if done >= limits.min_seen:
        if found["distinct_2"] < limits.min_distinct_2:
            named.append(Violation(cell, "distinct_2", found["distinct_2"], limits.min_distinct_2, done, ""))
        if found["compression_ratio"] > limits.max_compression_ratio:
            ratio = found["compression_ratio"]
            named.append(Violation(cell, "compression_ratio", ratio, limits.max_compression_ratio, done, ""))
    return named


def report(found: list[Violation]) -> str:
    """A table of the offending cells."""
    rows = [("cell", "measure", "found", "limit", "seen", "")]
    rows += [(v.cell, v.measure, f"{v.value:.3g}", f"{v.limit:g}", str(v.count), v.detail) for v in found]
    widths = [max(len(row[column]) for row in rows) for column in range(5)]
    return "\n".join("  ".join([*map(str.ljust, row[:5], widths), row[5]]).rstrip() for row in rows)


def chosen(paths: list[Path], params: PilotParams) -> list[tuple[str, str, str]]:
    """(cell, prompt id, prompt) of `per_cell` prompts of each cell, drawn by prompt id.

    A cell is a source, a style and an audience; it is called `<source>-<style>` where that style has one audience.
    """
    picked = []
    for cell, files in groupby(paths, key=cell_of):
        files, ids = list(files), defaultdict[str, list[str]](list)
        for table in read_batches(files, PROMPT, ["prompt_id", "audience"], batch_rows=20_000):
            for prompt_id, audience in zip(*(column.to_pylist() for column in table.columns), strict=True):
                ids[audience].append(prompt_id)
            for audience, some in ids.items():  # the draw of all is the draw of what was drawn from each batch
                ids[audience] = draw_sample(params.seed, "pilot", some, params.per_cell)
        drawn = {
            prompt_id: cell if len(ids) == 1 else f"{cell} ({audience})"
            for audience in ids
            for prompt_id in ids[audience]
        }
        for table in read_batches(files, PROMPT, ["prompt_id", "prompt"]):
            rows = table.filter(pc.field("prompt_id").isin(list(drawn))).to_pylist()
            picked += [(drawn[row["prompt_id"]], row["prompt_id"], row["prompt"]) for row in rows]
    return picked


def main() -> str:
    params, shared = load("pilot", PilotParams), load("generate", SampledFrom)
    paths, model = tables_in(PROMPTS), GenerationModel.read()
    picked = chosen(paths, params)
    requests = PromptRequests([(prompt_id, prompt) for _, prompt_id, prompt in picked], model, shared.seed, 1)
    earlier = sorted(Path("data/generate").glob("*.parquet"))
    with CompletionStore() as store:
        run = complete("pilot", requests, model, shared.sampling, store, Send(), import_from=earlier)
    run.write_record()
    cells: dict[str, list[Completion | Failure]] = defaultdict(list)
    for (cell, _, _), (_, result) in zip(picked, run.results, strict=True):
        cells[cell].append(result)
    figures = {cell: measure(results, params) for cell, results in cells.items()}
    overall = measure([result for results in cells.values() for result in results], params)
    found = [v for cell, figure in figures.items() for v in violations(cell, figure, params.thresholds)]
    found += violations("(all cells)", overall, params.thresholds)
    write_metrics("metrics/pilot.json", {**overall, "violations": len(found), "cells": figures})
    shutil.rmtree(GATE.parent, ignore_errors=True)
    if found:
        print(report(found), flush=True)
    if found and params.gate == "stop":
        named = "; ".join(f"{v.cell}: {v.measure} {v.value:.3g} (limit {v.limit:g}) {v.detail}".strip() for v in found)
        raise DataError(
            f"the gate stops generation: {named}. Change the prompts of these cells, or pilot.thresholds, or set"
            " pilot.gate to warn"
        )
    GATE.parent.mkdir(parents=True)
    GATE.write_text(json.dumps({"passed": True}) + "\n", encoding="utf-8")
    verdict = f"{len(found)} warnings (the gate only warns)" if found else "every cell within the thresholds"
    return (
        f"{overall['completions']} completions in {len(figures)} cells, {run.sent} sent, {run.cached} from the store;"
        f" {verdict}"
    )


if __name__ == "__main__":
    run_stage("pilot", main)
