"""label: the model names each cluster and rates how educational it is.

In: data/cluster/assignments.parquet, data/sources/web.parquet, models/generator/, curation/label.txt.
Out: data/label/labels.parquet (LABEL), data/label/completions.parquet (COMPLETION), metrics/label.json.
Contract: labels are unique. A cluster with fewer usable answers than `draws` is shown to the model again with other
examples, up to `max_draws` times; one without any gets its c-TF-IDF keywords as label, marked in `label_source`, and
no score. A server's failure stops the stage, since a later run can do better.
Run: python -m stages.label (what is in the completion store is not sent again)
"""

from collections.abc import Iterable
from pathlib import Path

from pydantic import Field

from cosmopedia.core.files import clear_folder
from cosmopedia.core.params import Params, load
from cosmopedia.core.row_counts import write_metrics
from cosmopedia.execution.earlier import earlier_completions
from cosmopedia.execution.sending import Send
from cosmopedia.execution.servers import local_servers_wait
from cosmopedia.execution.stage_process import run_stage
from cosmopedia.generation.complete import PromptRequests, complete
from cosmopedia.generation.model import GenerationModel
from cosmopedia.generation.requests import Sampling
from cosmopedia.store.documents import write_completions
from cosmopedia.store.store import CompletionStore
from cosmopedia.tables.contracts import LABEL
from cosmopedia.tables.parquet import write_table
from stages.label.answers import GRAMMAR, labelling_prompt, read_label_template
from stages.label.clusters import draw_examples
from stages.label.labels import Result, answer_of, check_results, label_metrics, label_rows

OUT, METRICS = Path("data/label"), Path("metrics/label.json")


class LabelParams(Params):
    """What the model is shown, and how it answers."""

    seed: int
    examples: int = Field(ge=1)
    example_chars: int = Field(ge=20)
    shown_keywords: int = Field(ge=0)
    draws: int = Field(ge=1)
    max_draws: int = Field(ge=1)
    grammar: bool
    keywords: int = Field(ge=1)
    keyword_documents: int = Field(ge=1)
    sampling: Sampling


class Labelling:
    """The clusters, what the model is shown of them, and the requests that follow from it."""

    def __init__(self, params: LabelParams, model: GenerationModel):
        self.params, self.model, self.template = params, model, read_label_template()
        drawn = max(params.draws, params.max_draws)
        self.clusters = draw_examples(params.seed, params.examples, drawn, params.keywords, params.keyword_documents)
        # A model whose chat template opens a thought ends it first.
        thought = r"</think>\n\n" if model.opens_thought else ""
        grammar = f"{thought}{GRAMMAR}" if params.grammar else None
        self.sampling = Sampling.model_validate(params.sampling.model_dump() | {"grammar": grammar})

    def requests(self, draws: Iterable[tuple[int, int]]) -> PromptRequests:
        """A request for each (cluster, number of the draw)."""
        shown, prompts = self.params.shown_keywords, []
        for cluster, draw in draws:
            texts = [self.clusters.texts[row_id] for row_id in self.clusters.draws[cluster][draw]]
            keywords = self.clusters.keywords[cluster][:shown]
            prompt = labelling_prompt(texts, keywords, self.template, self.params.example_chars, self.params.grammar)
            prompts.append((f"cluster-{cluster}" + (f"-{draw}" if draw else ""), prompt))
        return PromptRequests(prompts, self.model, self.params.seed, samples=1)

    def results(self, store: CompletionStore) -> dict[int, list[Result]]:
        """The results of each cluster's draws. A cluster with fewer than `draws` usable answers is drawn again."""
        results: dict[int, list[Result]] = {cluster: [] for cluster in self.clusters.rows}
        wanted = [(cluster, draw) for cluster in results for draw in range(self.params.draws)]
        while wanted:
            requests = self.requests(wanted)
            run = complete("label", requests, self.model, self.sampling, store, Send(texts=False), earlier_completions)
            new = [result for _, result in run.results]
            check_results(new, self.params.grammar)
            for (cluster, _), result in zip(wanted, new, strict=True):
                results[cluster].append(result)
            wanted = [(cluster, len(got)) for cluster, got in results.items() if self._goes_on(got)]
        return results

    def _goes_on(self, results: list[Result]) -> bool:
        usable = sum(answer_of(result) is not None for result in results)
        return usable < self.params.draws and len(results) < self.params.max_draws


def settings() -> LabelParams:
    """The stage's params; the template is checked."""
    read_label_template()
    return load("label", LabelParams)


def main() -> str:
    params, model = settings(), GenerationModel.read()
    labelling = Labelling(params, model)
    with CompletionStore() as store, local_servers_wait():
        results = labelling.results(store)
    rows = label_rows(labelling.clusters, results)
    clear_folder(OUT)
    write_table(OUT / "labels.parquet", rows, LABEL)
    write_completions(OUT / "completions.parquet", [result for several in results.values() for result in several])
    metrics = label_metrics(rows, results)
    write_metrics(METRICS, metrics)
    by_model, by_keywords = metrics["labelled_by_model"], metrics["labelled_by_keywords"]
    return f"{by_model} clusters named by {model.model}, {by_keywords} by their keywords"


if __name__ == "__main__":
    run_stage("label", main)
