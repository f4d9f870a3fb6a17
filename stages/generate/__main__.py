"""generate: every prompt completed, once, by the generation model.

In: data/prompts/<cell>.parquet, models/generator/, data/pilot/gate.json (the pilot has passed).
Out: data/generate/<cell>.parquet (DOCUMENT), data/generate/failed/failed.parquet (FAILED),
metrics/generate.json. What this run sent, what it took from the completion store, and what it cost beside the forecast
differs between runs: metrics/generate_run.json, metrics/plots/throughput.csv, MLflow.
Contract: prompts x samples_per_prompt = completions + failures by reason; a failure is asked again by the next run.
Nothing is sent if the forecast is above max_gpu_hours or max_tokens.
Alone: python -m stages.generate (what is in the store is not sent again)
"""

import shutil
from collections import Counter, defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pydantic import Field

from cosmopedia.errors import run_stage
from cosmopedia.execution.budget import Budget
from cosmopedia.execution.sending import Send
from cosmopedia.generation.complete import CompletionRun, PromptRequests, complete
from cosmopedia.generation.model import GenerationModel
from cosmopedia.generation.requests import Completion, Request, Sampling
from cosmopedia.params import Params, load
from cosmopedia.store.store import CompletionStore
from cosmopedia.tables.cell_files import cell_of
from cosmopedia.tables.contracts import DOCUMENT, FAILED, PROMPT
from cosmopedia.tables.parquet import TableWriter, count_rows, read_batches, read_rows, tables_in, write_table
from cosmopedia.tables.row_counts import write_metrics

PROMPTS, OUT = Path("data/prompts"), Path("data/generate")
THROUGHPUT = ("seconds", "tokens_per_second", "tokens_per_second_per_gpu", "utilisation", "endpoints")


class GenerateParams(Params):
    """What is sampled, and how often."""

    seed: int
    samples_per_prompt: int = Field(ge=1)
    sampling: Sampling
    max_gpu_hours: float | None  # the bill of one run, at most; neither of the two changes a result
    max_tokens: int | None

    @property
    def budget(self) -> Budget:
        return Budget(max_gpu_hours=self.max_gpu_hours, max_tokens=self.max_tokens)


class PromptTexts:
    """(prompt id, prompt) of the prompt tables, file by file; can be walked over again."""

    def __init__(self, paths: list[Path]):
        self.paths = paths

    def __iter__(self) -> Iterator[tuple[str, str]]:
        for table in read_batches(self.paths, PROMPT, ["prompt_id", "prompt"]):
            yield from zip(table["prompt_id"].to_pylist(), table["prompt"].to_pylist(), strict=True)


def document(
    prompt: dict[str, Any], request: Request, completion: Completion, model: GenerationModel, sampling: Sampling
) -> dict[str, Any]:
    """A DOCUMENT row: the completion with its whole history."""
    return {
        **prompt,
        "completion_id": request.id,
        "text_token_length": completion.tokens,
        "text": completion.text,
        "key": completion.key,
        "sample_index": request.sample_index,
        "finish_reason": completion.finish_reason,
        "prompt_tokens": completion.prompt_tokens,
        "model": model.model,
        "model_revision": model.revision,
        "sampling": sampling.canonical,
        "sampling_seed": request.seed,
        "engine": completion.engine,
    }


class Tally:
    """The stage's metrics, row by row."""

    def __init__(self) -> None:
        self.requests = self.completed = self.tokens = self.prompt_tokens = 0
        self.failed: Counter[str] = Counter()
        self.finish_reasons: Counter[str] = Counter()
        self.groups: dict[str, dict[str, Counter[str]]] = {
            "source": defaultdict(Counter),
            "style": defaultdict(Counter),
        }

    def add(self, row: dict[str, Any]) -> None:
        self.completed += 1
        self.tokens += row["text_token_length"]
        self.prompt_tokens += row["prompt_tokens"]
        self.finish_reasons[row["finish_reason"]] += 1
        for column, group in self.groups.items():
            group[row[column]].update(completions=1, tokens=row["text_token_length"])

    def metrics(self) -> dict[str, Any]:
        return {
            "requests": self.requests,
            "completed": self.completed,
            "failed": sum(self.failed.values()),
            "failed_by_reason": dict(sorted(self.failed.items())),
            "tokens": self.tokens,
            "prompt_tokens": self.prompt_tokens,
            "mean_tokens": self.tokens / self.completed if self.completed else 0.0,
            "finish_reasons": dict(sorted(self.finish_reasons.items())),
            **{
                f"by_{name}": {key: dict(counts) for key, counts in sorted(group.items())}
                for name, group in self.groups.items()
            },
        }


def write_cells(
    paths: list[Path], run: CompletionRun, model: GenerationModel, params: GenerateParams
) -> tuple[Tally, list[dict[str, Any]]]:
    """One file of documents for each file of prompts, row by row; (metrics, FAILED rows)."""
    tally, failures, results = Tally(), [], run.results
    for path in paths:
        with TableWriter(OUT / path.name, DOCUMENT) as writer:
            for prompt in read_rows([path], PROMPT):
                for _ in range(params.samples_per_prompt):
                    request, result = next(results)
                    tally.requests += 1
                    if isinstance(result, Completion):
                        row = document(prompt, request, result, model, params.sampling)
                        writer.write(row)
                        tally.add(row)
                    else:
                        tally.failed[result.reason] += 1
                        failures.append(
                            {
                                "completion_id": request.id,
                                "prompt_id": prompt["prompt_id"],
                                "key": result.key,
                                "reason": result.reason,
                                "detail": result.detail,
                                "attempts": result.attempts,
                            }
                        )
    return tally, failures


def all_requests(params: GenerateParams, model: GenerationModel) -> PromptRequests:
    """A request for each sample of each prompt."""
    return PromptRequests(PromptTexts(tables_in(PROMPTS)), model, params.seed, params.samples_per_prompt)


def write_run(run: CompletionRun) -> None:
    """The metrics and the plot of this run, as against those of its result."""
    write_metrics("metrics/generate_run.json", run.record())
    path = Path("metrics/plots/throughput.csv")
    path.parent.mkdir(parents=True, exist_ok=True)
    points = run.throughput or [dict.fromkeys(THROUGHPUT, 0)]  # nothing was sent
    lines = [",".join(THROUGHPUT), *(",".join(str(point[name]) for name in THROUGHPUT) for point in points)]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


def main() -> str:
    params = load("generate", GenerateParams)
    paths, model = tables_in(PROMPTS), GenerationModel.read()
    requests, earlier = all_requests(params, model), sorted(OUT.glob("*.parquet"))
    send = Send(budget=params.budget, track=True, keep=False)
    with CompletionStore() as store:
        run = complete("generate", requests, model, params.sampling, store, send, import_from=earlier)
    run.write_record()
    write_run(run)
    shutil.rmtree(OUT, ignore_errors=True)
    tally, failures = write_cells(paths, run, model, params)
    write_table(OUT / "failed" / "failed.parquet", failures, FAILED)
    write_metrics("metrics/generate.json", tally.metrics())
    cells = len({cell_of(path) for path in paths if count_rows(OUT / path.name)})
    return (
        f"{tally.completed} completions in {cells} cells, {tally.tokens:,} tokens; {run.sent} sent, {run.cached} from"
        f" the store, {len(failures)} failed"
    )


if __name__ == "__main__":
    run_stage("generate", main)
