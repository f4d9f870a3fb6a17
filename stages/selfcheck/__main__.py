"""selfcheck: how far further samples of the same prompts support what documents say (SelfCheckGPT, arXiv:2303.08896).

In: data/generate/<source>-<style>.parquet (DOCUMENT), models/generator/, curation/selfcheck.txt.
Out: data/selfcheck/sentences.parquet (SELFCHECK: a sentence with its scores), data/selfcheck/completions.parquet
(COMPLETION: the samples and the answers), metrics/selfcheck.json (means per source, style and topic, with intervals).
With `enabled: false` both tables are empty, and nothing is sent or loaded.
Contract: the samples have the keys that generate would give them with a higher `samples_per_prompt` (if `temperature`
is null), so neither stage pays for what the other has; what is in the completion store is not sent again. A sample
that the model cannot give is left out, and so is a document without any.
Run: python -m stages.selfcheck
"""

from collections import defaultdict
from collections.abc import Iterable
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from pydantic import Field

from cosmopedia.core.files import clear_folder
from cosmopedia.core.params import Params, load
from cosmopedia.core.row_counts import write_metrics
from cosmopedia.execution.earlier import earlier_completions
from cosmopedia.execution.sending import Send
from cosmopedia.execution.servers import local_servers_wait
from cosmopedia.execution.stage_process import run_stage
from cosmopedia.faithfulness.ratios import Ratio
from cosmopedia.generation.complete import PromptRequests, complete
from cosmopedia.generation.forms import SampledFrom, samplings
from cosmopedia.generation.model import GenerationModel
from cosmopedia.generation.requests import Completion, Failure, Request, Sampling
from cosmopedia.generation.yes_no import check_result, judge_sampling, verdict
from cosmopedia.store.documents import write_completions
from cosmopedia.store.store import CompletionStore
from cosmopedia.tables.cell_files import cell_of
from cosmopedia.tables.contracts import SELFCHECK
from cosmopedia.tables.parquet import tables_in, write_table
from stages.selfcheck.nli import Nli, NliParams
from stages.selfcheck.requests import (
    Checked,
    FurtherSamples,
    Questions,
    checked_sentences,
    draw_documents,
    read_question,
)
from stages.selfcheck.scores import UnigramModel, asked_score

OUT, METRICS = Path("data/selfcheck"), Path("metrics/selfcheck.json")
METHODS = ("unigram_mean", "unigram_max", "asked", "nli")
Results = list[tuple[Request, Completion | Failure]]


class SelfcheckParams(Params):
    """How many documents, how they are checked."""

    enabled: bool
    cells: list[str]  # patterns of `<source>-<style>`
    per_cell: int = Field(ge=1)  # documents
    samples: int = Field(ge=1)  # further ones of each prompt
    temperature: float | None = Field(gt=0)  # of these samples; null: generate's
    max_sentences: int = Field(ge=1)  # of a document, from its beginning
    ask: bool
    seed: int  # of the draw and of the answers
    answer: Sampling
    nli: NliParams | None


def settings() -> tuple[SelfcheckParams, SampledFrom]:
    """The stage's params and generate's; the template is checked."""
    read_question()
    return load("selfcheck", SelfcheckParams), load("generate", SampledFrom)


def main() -> str:
    params, generation = settings()
    clear_folder(OUT)
    if not params.enabled:
        write_table(OUT / "sentences.parquet", [], SELFCHECK)
        write_completions(OUT / "completions.parquet", [])
        write_metrics(METRICS, {"enabled": False})
        return "off (selfcheck.enabled): nothing is sampled"

    model = GenerationModel.read()
    files = [path for path in tables_in("data/generate") if any(fnmatchcase(cell_of(path), p) for p in params.cells)]
    documents = draw_documents(files, params.seed, params.per_cell)
    with CompletionStore() as store, local_servers_wait():
        samples = further_samples(documents, params, generation, model, store)
        checked = with_samples(documents, samples, params)
        answers = asked(checked, params, model, store) if params.ask else []
    rows = scored(checked, answers, Nli(params.nli) if params.nli else None)
    write_table(OUT / "sentences.parquet", rows, SELFCHECK)
    write_completions(OUT / "completions.parquet", [result for _, result in (*samples, *answers)])
    left_out = len(documents) - len(checked)
    write_metrics(METRICS, {"enabled": True, "documents_left_out": left_out, **summary(rows)})
    return f"{len(rows)} sentences of {len(checked)} documents checked against {params.samples} further samples each"


def further_samples(
    documents: list[dict[str, Any]],
    params: SelfcheckParams,
    generation: SampledFrom,
    model: GenerationModel,
    store: CompletionStore,
) -> Results:
    """The further samples of the documents' prompts, from the store or the servers."""
    changed = {} if params.temperature is None else {"temperature": params.temperature}
    sampling = Sampling.model_validate(generation.sampling.model_dump() | changed)
    own = samplings(generation.forms, sampling)
    prompts = [(row["prompt_id"], row["prompt"], own.get(row["style"])) for row in documents]
    requests = FurtherSamples(PromptRequests(prompts, model, generation.seed, params.samples + 1))
    run = complete("selfcheck", requests, model, sampling, store, Send(keep=params.ask), earlier_completions)
    run.write_record()
    return checked_results(run.results)


def checked_results(results: Iterable[tuple[Request, Completion | Failure]]) -> Results:
    """The results; `ClusterError` for one that another run could get."""
    kept = list(results)
    for _, result in kept:
        check_result(result)
    return kept


def with_samples(documents: list[dict[str, Any]], samples: Results, params: SelfcheckParams) -> list[Checked]:
    """The documents that have a sentence and a further sample, with both."""
    by_prompt = defaultdict[str, list[str]](list)
    for request, result in samples:
        if isinstance(result, Completion):
            by_prompt[request.id.rpartition("-")[0]].append(result.text)
    checked = [
        Checked(row, checked_sentences(row["text"], params.max_sentences), by_prompt[row["prompt_id"]])
        for row in documents
    ]
    return [one for one in checked if one.spans and one.samples]


def asked(checked: list[Checked], params: SelfcheckParams, model: GenerationModel, store: CompletionStore) -> Results:
    """The model's answers about each sentence and sample."""
    requests = PromptRequests(Questions(checked, read_question()), model, params.seed, samples=1)
    sampling = judge_sampling(params.answer, model)
    run = complete("selfcheck", requests, model, sampling, store, Send(keep=False, texts=False), earlier_completions)
    run.write_record()
    return checked_results(run.results)


def scored(checked: list[Checked], answers: Results, nli: Nli | None) -> list[dict[str, Any]]:
    """SELFCHECK rows."""
    texts = (verdict(result.text) or "" if isinstance(result, Completion) else "" for _, result in answers)
    rows = []
    for one in checked:
        unigrams = UnigramModel(one.row["text"], one.samples)
        contradicted = nli.scores(one.sentences, one.samples) if nli else None
        for number, ((start, end), sentence) in enumerate(zip(one.spans, one.sentences, strict=True)):
            said = [next(texts) for _ in one.samples] if answers else []
            likely, unsupported = unigrams.score(sentence), asked_score(said)
            rows.append({
                "sentence_id": f"{one.row['completion_id']} {number:04d}",
                **{name: one.row[name] for name in ("completion_id", "source", "style", "topic")},
                "start": start,
                "end": end,
                "sentence": sentence,
                "samples": len(one.samples),
                "unigram_mean": round(likely.mean, 4),
                "unigram_max": round(likely.max, 4),
                "asked": None if unsupported is None else round(unsupported, 4),
                "answers": said,
                "nli": None if contradicted is None else round(contradicted[number], 4),
            })  # fmt: skip
    return sorted(rows, key=lambda row: row["sentence_id"])


def summary(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Mean scores of sentences, with intervals over documents: of all, by source, source-style and topic."""
    groups: dict[str, dict[str, list[dict[str, Any]]]] = {name: {} for name in ("sources", "styles", "topics")}
    for row in rows:
        keys = {"sources": row["source"], "styles": f"{row['source']}-{row['style']}", "topics": row["topic"]}
        for name, key in keys.items():
            if key:
                groups[name].setdefault(key, []).append(row)
    parts = {name: {key: means(some) for key, some in sorted(group.items())} for name, group in groups.items()}
    return {**means(rows), **parts}


def means(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """The mean of each method that was used."""
    figures: dict[str, Any] = {"sentences": len(rows)}
    for method in METHODS:
        ratio, by_document = Ratio(), defaultdict[str, list[float]](list)
        for row in rows:
            if row[method] is not None:
                by_document[row["completion_id"]].append(row[method])
        for values in by_document.values():
            ratio.add(sum(values), len(values))
        if ratio.documents:
            figures[method] = ratio.figures(share=not method.startswith("unigram"))
    return figures


if __name__ == "__main__":
    run_stage("selfcheck", main)
