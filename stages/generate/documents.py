"""From prompts and their results to tables of documents and failures."""

import contextlib
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

from cosmopedia.generation.model import GenerationModel
from cosmopedia.generation.requests import Completion, Failure, Request, Sampling
from cosmopedia.tables.cell_files import cell_of, source_and_style
from cosmopedia.tables.contracts import DOCUMENT, FAILED, PROMPT, THOUGHT
from cosmopedia.tables.parquet import TableWriter, read_batches, read_rows, write_table
from stages.generate.row_counts import CompletionCounts


class PromptTexts:
    """(prompt id, prompt, sampling of its style if that has a form) of the prompt tables, file by file.

    Can be iterated over several times.
    """

    def __init__(self, paths: list[Path], samplings: Mapping[str, Sampling] = MappingProxyType({})):
        self.paths, self.samplings = paths, samplings

    def __iter__(self) -> Iterator[tuple[str, str, Sampling | None]]:
        for path in self.paths:
            own = self.samplings.get(source_and_style(cell_of(path))[1])
            for table in read_batches([path], PROMPT, ["prompt_id", "prompt"]):
                columns = (table[name].to_pylist() for name in ("prompt_id", "prompt"))
                for prompt_id, prompt in zip(*columns, strict=True):
                    yield prompt_id, prompt, own


def document_row(
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
        "sampling": (request.sampling or sampling).canonical,
        "sampling_seed": request.seed,
        "engine": completion.engine,
    }


def failed_row(prompt: dict[str, Any], request: Request, failure: Failure) -> dict[str, Any]:
    """A FAILED row: a request without a completion, and why."""
    return {
        "completion_id": request.id,
        "prompt_id": prompt["prompt_id"],
        "key": failure.key,
        "reason": failure.reason,
        "detail": failure.detail,
        "attempts": failure.attempts,
    }


def write_documents(
    prompts: list[Path],
    results: Iterable[tuple[Request, Completion | Failure]],
    samples: int,
    model: GenerationModel,
    sampling: Sampling,
    out: Path,
) -> CompletionCounts:
    """`<out>/<file>` with the documents of each file of prompts, and `<out>/failed/failed.parquet`.

    A reasoning model's thoughts are in `<out>/thoughts/<file>`; a file without a thought is not written. `results` are
    those of all prompts in the order of the files, `samples` for each.
    """
    counts, failures, following = CompletionCounts(), [], iter(results)
    for path in prompts:
        with (
            TableWriter(out / path.name, DOCUMENT) as writer,
            _ThoughtWriter(out / "thoughts" / path.name) as thoughts,
        ):
            for prompt in read_rows([path], PROMPT):
                for _ in range(samples):
                    request, result = next(following)
                    if isinstance(result, Completion):
                        row = document_row(prompt, request, result, model, sampling)
                        writer.write(row)
                        thoughts.write(request, result)
                        counts.add(row, result)
                    else:
                        failures.append(failed_row(prompt, request, result))
                        counts.add_failure(result)
    write_table(out / "failed" / "failed.parquet", failures, FAILED)
    return counts


class _ThoughtWriter(contextlib.ExitStack):
    """Writes the thoughts of one file; there is a file from the first thought on."""

    def __init__(self, path: Path):
        super().__init__()
        self.path = path
        self._writer: TableWriter | None = None

    def write(self, request: Request, completion: Completion) -> None:
        """Add a completion's thought, if it has one."""
        if not completion.thought:
            return
        if self._writer is None:
            self._writer = self.enter_context(TableWriter(self.path, THOUGHT))
        row = {"thought": completion.thought, "thought_tokens": completion.thought_tokens}
        self._writer.write({"completion_id": request.id, **row})
