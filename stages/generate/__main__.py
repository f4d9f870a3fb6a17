"""generate: every prompt completed, once, by the generation model.

In: data/prompts/<cell>.parquet, models/generator/, data/pilot/gate.json (the pilot has passed).
Out: data/generate/<cell>.parquet (DOCUMENT), data/generate/failed/failed.parquet (FAILED), metrics/generate.json. What
differs between runs (what was sent, what came from the completion store, what it cost next to the forecast) is in
`<store root>/runs/generate.json` (`generate.throughput.csv` next to it), MLflow and the report's run.html: in no out.
If the model thinks before it writes, data/generate/thoughts/<cell>.parquet (THOUGHT) has its thoughts.
Contract: prompts x samples_per_prompt = completions + failures by reason; the next run sends failures again. Nothing
is sent if the forecast is above max_gpu_hours, max_tokens or max_money.
Run: python -m stages.generate (what is in the store is not sent again)
"""

from pathlib import Path

from pydantic import Field

from cosmopedia.core.files import clear_folder, write_text
from cosmopedia.core.lineage import store_root
from cosmopedia.core.params import Params, load, section
from cosmopedia.core.row_counts import write_metrics
from cosmopedia.execution.budget import Budget
from cosmopedia.execution.earlier import earlier_completions
from cosmopedia.execution.sending import Send
from cosmopedia.execution.stage_process import run_stage
from cosmopedia.generation.complete import CompletionRun, PromptRequests, complete
from cosmopedia.generation.forms import Form, samplings
from cosmopedia.generation.model import GenerationModel
from cosmopedia.generation.requests import Sampling
from cosmopedia.store.store import CompletionStore
from cosmopedia.tables.cell_files import cell_of
from cosmopedia.tables.parquet import count_rows, tables_in
from stages.generate.documents import PromptTexts, write_documents

PROMPTS, OUT = Path("data/prompts"), Path("data/generate")
METRICS = Path("metrics/generate.json")
CURVE_COLUMNS = ("seconds", "tokens_per_second", "tokens_per_second_per_gpu", "utilisation", "endpoints")


class GenerateParams(Params):
    """What is sampled, and how often."""

    seed: int
    samples_per_prompt: int = Field(ge=1)
    sampling: Sampling
    forms: dict[str, Form]  # style -> what its completions must be
    max_gpu_hours: float | None  # what one run may cost; none of the three changes a result
    max_tokens: int | None
    max_money: float | None  # over all attempts at the same requests

    @property
    def budget(self) -> Budget:
        return Budget(max_gpu_hours=self.max_gpu_hours, max_tokens=self.max_tokens, max_money=self.max_money)


def all_requests(params: GenerateParams, model: GenerationModel, prompts: list[Path] | None = None) -> PromptRequests:
    """A request for each sample of each prompt, of data/prompts or of the given files."""
    texts = PromptTexts(prompts or tables_in(PROMPTS), samplings(params.forms, params.sampling))
    return PromptRequests(texts, model, params.seed, params.samples_per_prompt)


def write_run(run: CompletionRun) -> None:
    """What differs between runs of equal results; no out, so that it can never make this stage run again."""
    run.write_record()
    lines = [CURVE_COLUMNS, *([str(point[name]) for name in CURVE_COLUMNS] for point in run.throughput)]
    write_text(store_root() / "runs/generate.throughput.csv", "".join(",".join(line) + "\n" for line in lines))


def settings() -> GenerateParams:
    """The stage's params."""
    params = load("generate", GenerateParams)
    if params.forms:
        presets = section("prompts").get("styles", {}).values()
        styles = {style for sources in presets for source in sources.values() for style in source}
        samplings(params.forms, params.sampling, styles)
    return params


def main() -> str:
    params, model = settings(), GenerationModel.read()
    paths = tables_in(PROMPTS)
    send = Send(budget=params.budget, track=True, keep=False)
    with CompletionStore() as store:
        requests = all_requests(params, model)
        run = complete("generate", requests, model, params.sampling, store, send, earlier_completions)
    write_run(run)
    clear_folder(OUT)
    counts = write_documents(paths, run.results, params.samples_per_prompt, model, params.sampling, OUT)
    write_metrics(METRICS, counts.metrics())
    cells = {cell_of(path) for path in paths if count_rows(OUT / path.name)}
    return (
        f"{counts.completed} completions in {len(cells)} cells, {counts.tokens:,} tokens; {run.sent} sent,"
        f" {run.cached} from the store, {counts.failed.total()} failed"
    )


if __name__ == "__main__":
    run_stage("generate", main)
