"""label: the model names each cluster and rates how educational it is.

In: data/cluster/assignments.parquet, data/sources/web.parquet, models/generator/, curation/label.txt.
Out: data/label/labels.parquet (LABEL), data/label/completions.parquet (COMPLETION), metrics/label.json.
Contract: a cluster whose answer does not parse, or whose prompt the model cannot take, gets its c-TF-IDF keywords as
label, marked in `label_source`, and no score. A server's failure stops the stage, since a later run can do better.
Run: python -m stages.label (what is in the completion store is not sent again)
"""

from pathlib import Path

from pydantic import Field

from cosmopedia.execution.earlier import earlier_completions
from cosmopedia.execution.sending import Send
from cosmopedia.execution.stage_process import run_stage
from cosmopedia.files import clear_folder
from cosmopedia.generation.complete import PromptRequests, complete
from cosmopedia.generation.model import GenerationModel
from cosmopedia.generation.requests import Sampling
from cosmopedia.params import Params, load
from cosmopedia.store.documents import write_completions
from cosmopedia.store.store import CompletionStore
from cosmopedia.tables.contracts import LABEL
from cosmopedia.tables.parquet import write_table
from cosmopedia.tables.row_counts import write_metrics
from stages.label.answers import labelling_prompt, read_label_template
from stages.label.clusters import ClusterExamples, draw_examples
from stages.label.labels import check_results, label_metrics, label_rows

OUT, METRICS = Path("data/label"), Path("metrics/label.json")


class LabelParams(Params):
    """What the model is shown, and how it answers."""

    seed: int
    examples: int = Field(ge=1)
    example_chars: int = Field(ge=20)
    keywords: int = Field(ge=1)
    keyword_documents: int = Field(ge=1)
    sampling: Sampling


def labelling_requests(params: LabelParams, model: GenerationModel) -> tuple[ClusterExamples, PromptRequests]:
    """The clusters, and a labelling request for each."""
    template, prompts = read_label_template(), []
    clusters = draw_examples(params.seed, params.examples, params.keywords, params.keyword_documents)
    for cluster, ids in clusters.examples.items():
        texts = [clusters.texts[row_id] for row_id in ids]
        prompts.append((f"cluster-{cluster}", labelling_prompt(texts, template, params.example_chars)))
    return clusters, PromptRequests(prompts, model, params.seed, samples=1)


def settings() -> LabelParams:
    """The stage's params; the template is checked."""
    read_label_template()
    return load("label", LabelParams)


def main() -> str:
    params, model = settings(), GenerationModel.read()
    clusters, requests = labelling_requests(params, model)
    with CompletionStore() as store:
        run = complete("label", requests, model, params.sampling, store, Send(), earlier_completions)
    results = [result for _, result in run.results]
    check_results(results)
    rows = label_rows(clusters, results)
    clear_folder(OUT)
    write_table(OUT / "labels.parquet", rows, LABEL)
    write_completions(OUT / "completions.parquet", results)
    metrics = label_metrics(rows, results)
    write_metrics(METRICS, metrics)
    by_model, by_keywords = metrics["labelled_by_model"], metrics["labelled_by_keywords"]
    return f"{by_model} clusters named by {model.model}, {by_keywords} by their keywords"


if __name__ == "__main__":
    run_stage("label", main)
