"""paraphrases: the second pass of decontamination. Passages near to a benchmark item, judged by the generation model.

In: data/dedup/<source>-<style>.parquet (DOCUMENT), data/benchmarks/<task>.parquet (BENCHMARK), models/generator/,
curation/paraphrase.txt, the sentence model of embed.
Out: data/paraphrases/pairs.parquet (PARAPHRASE: passage, item, cosine, verdict), data/paraphrases/completions.parquet
(COMPLETION), metrics/paraphrases.json. With `enabled: false` both tables are empty, and no model is loaded.
Contract: on a CPU the pairs depend on neither tasks nor the order of documents; what is in the completion store is not
sent again. A pair whose prompt the model cannot take, or whose answer is neither yes nor no, has no verdict, and
decontaminate reports the verdicts or acts on them. After llm-decontaminator (Yang et al., arXiv:2311.04850): nearest
neighbours by sentence vectors, then a judge.
Run: python -m stages.paraphrases
"""

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
from pydantic import Field

from cosmopedia.core.files import clear_folder
from cosmopedia.core.params import Params, load
from cosmopedia.core.row_counts import write_metrics
from cosmopedia.corpus.sentence_model import SentenceModel
from cosmopedia.execution.earlier import earlier_completions
from cosmopedia.execution.sending import Send
from cosmopedia.execution.stage_process import run_stage
from cosmopedia.generation.complete import PromptRequests, complete
from cosmopedia.generation.model import GenerationModel
from cosmopedia.generation.requests import Completion, Failure, Sampling
from cosmopedia.generation.yes_no import check_result, judge_sampling, verdict
from cosmopedia.store.documents import write_completions
from cosmopedia.store.store import CompletionStore
from cosmopedia.tables.contracts import BENCHMARK, PARAPHRASE
from cosmopedia.tables.parquet import read_batches, tables_in, write_table
from stages.paraphrases.judge import judge_prompt, read_judge_template

OUT, METRICS = Path("data/paraphrases"), Path("metrics/paraphrases.json")


class ParaphrasesParams(Params):
    """Whether and how paraphrases are looked for."""

    enabled: bool
    sentences: list[int] = Field(min_length=1)  # lengths of the passages
    threshold: float = Field(ge=0.3, le=1)  # cosine of a passage and an item; lower ones are most of all pairs
    per_document: int = Field(ge=1)  # items judged, the nearest
    per_item: int = Field(ge=1)  # documents judged, the nearest
    seed: int
    sampling: Sampling


def settings() -> tuple[ParaphrasesParams, SentenceModel]:
    """The stage's params and the sentence model; the template is checked."""
    read_judge_template()
    return load("paraphrases", ParaphrasesParams), load("embed", SentenceModel)


def main() -> str:
    params, sentence_model = settings()
    if not params.enabled:
        clear_folder(OUT)
        write_results(PARAPHRASE.schema.empty_table(), [])
        write_metrics(METRICS, {"enabled": False})
        return "off (paraphrases.enabled): nothing is looked for"

    from stages.paraphrases.neighbours import Near, find_candidates  # what is behind it takes seconds to load

    columns = ["item_id", "task", "question", "answer"]
    tables = read_batches(tables_in("data/benchmarks"), BENCHMARK, columns)
    items = {row["item_id"]: row for table in tables for row in table.to_pylist()}
    near = Near(params.sentences, params.threshold, params.per_document, params.per_item)
    found = find_candidates(list(items.values()), OUT, sentence_model.find(), near)
    results = judged(found.pairs, items, params)
    pairs = write_results(found.pairs, results)
    metrics = judged_metrics(pairs) | {
        "enabled": True,
        "documents": found.documents,
        "passages": found.passages,
        "items": len(items),
        "left_out": found.left_out,
    }
    write_metrics(METRICS, metrics)
    yes = metrics["yes"]
    return (
        f"{metrics['pairs']} pairs of {found.documents} documents and {len(items)} items judged: {yes['pairs']}"
        f" paraphrases in {yes['documents']} documents, {metrics['without_verdict']} without a verdict"
    )


def judged(pairs: pa.Table, items: dict[str, dict[str, Any]], params: ParaphrasesParams) -> list[Completion | Failure]:
    """The model's answer about each pair, from the store or the servers."""
    model, template = GenerationModel.read(), read_judge_template()

    class Prompts:
        """(pair id, prompt) of each pair; made anew at each iteration, since they are longer than the pairs."""

        def __iter__(self) -> Iterator[tuple[str, str]]:
            for batch in pairs.select(["pair_id", "item_id", "passage"]).to_batches():
                for row in batch.to_pylist():
                    item = items[row["item_id"]]
                    yield row["pair_id"], judge_prompt(template, item["question"], item["answer"], row["passage"])

    requests = PromptRequests(Prompts(), model, params.seed, samples=1)
    sampling = judge_sampling(params.sampling, model)
    with CompletionStore() as store:
        run = complete(
            "paraphrases", requests, model, sampling, store, Send(keep=False, texts=False), earlier_completions
        )
        run.write_record()
        results = [result for _, result in run.results]
    for result in results:
        check_result(result)
    return results


def write_results(pairs: pa.Table, results: list[Completion | Failure]) -> list[dict[str, Any]]:
    """Write the pairs with their verdicts, and the completions; returns the pairs."""
    rows = []
    for row, result in zip(pairs.to_pylist(), results, strict=True):
        answer = result.text if isinstance(result, Completion) else None
        failure = result.reason if isinstance(result, Failure) else None
        judgement = {"verdict": verdict(answer or ""), "answer": answer, "failure": failure, "key": result.key}
        rows.append(row | judgement)
    write_table(OUT / "pairs.parquet", rows, PARAPHRASE)
    write_completions(OUT / "completions.parquet", results)
    return rows


def judged_metrics(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Counts of verdicts: pairs, documents and items that were judged yes, and pairs by task."""
    yes = [row for row in rows if row["verdict"] == "yes"]
    return {
        "pairs": len(rows),
        "yes": {
            "pairs": len(yes),
            "documents": len({row["completion_id"] for row in yes}),
            "items": len({row["item_id"] for row in yes}),
        },
        "no": sum(row["verdict"] == "no" for row in rows),
        "without_verdict": sum(row["verdict"] is None for row in rows),
        "failures": dict(sorted(Counter(row["failure"] for row in rows if row["failure"]).items())),
        "tasks": {
            task: {"pairs": count, "yes": sum(row["task"] == task for row in yes)}
            for task, count in sorted(Counter(row["task"] for row in rows).items())
        },
    }


if __name__ == "__main__":
    run_stage("paraphrases", main)
