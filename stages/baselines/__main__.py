"""baselines: models of others, with published scores, scored as our own are: what our numbers mean in the world.

In: data/benchmarks/<task>.parquet (BENCHMARK), the held-out sets; which of both, and how, are evaluate's params.
Out: data/baselines/<name>.parquet (DETAIL), data/baselines/heldout-<name>.parquet (HELDOUT), metrics/baselines.json
(scores by model as metrics/evaluate.json has them, next to the published ones; no models, no entries).
Contract: items, documents and scorer are evaluate's. Neither corpus nor our models are read, so the stage runs again
only when items, tasks or the baselines change.
Run: python -m stages.baselines
"""

import re
from pathlib import Path
from typing import Any

from pydantic import Field

from cosmopedia.core.errors import ConfigError
from cosmopedia.core.files import clear_folder
from cosmopedia.core.params import Params, load
from cosmopedia.core.row_counts import write_metrics
from cosmopedia.evaluation.item_scores import METRICS as MEASURES
from cosmopedia.evaluation.items import encode_items
from cosmopedia.evaluation.scores import Scores, panel
from cosmopedia.evaluation.scoring import EvaluateParams, Inputs, answer, encoder_of, load_params, read_inputs
from cosmopedia.execution.stage_process import run_stage
from stages.baselines.models import Baseline, Published, check_source, weights_of

OUT, METRICS = Path("data/baselines"), Path("metrics/baselines.json")
NAME = re.compile(r"(?!heldout-|ours$)[a-z0-9][a-z0-9._-]*")


class BaselinesParams(Params):
    """Which models are scored, and on how much."""

    max_items: int | None = Field(ge=2)  # of each benchmark, the first of those that evaluate draws; None: all of them
    max_documents: int | None = Field(ge=1)  # of each held-out set, from its beginning; None: as many as evaluate
    models: dict[str, Baseline]  # by the name in tables and files


def settings() -> BaselinesParams:
    """The stage's params; evaluate's are checked with them."""
    params, tasks = load("baselines", BaselinesParams), load_params().tasks
    for name, baseline in params.models.items():
        key = f"baselines.models.{name}"
        if not NAME.fullmatch(name):
            raise ConfigError(f"{key}: wanted a name of small letters, digits and . _ -, not `ours` or heldout-...")
        if published := baseline.published:
            _check_published(key, published, tasks)
        check_source(key, baseline)
    return params


def _check_published(key: str, published: Published, tasks: list[str]) -> None:
    if published.metric not in MEASURES:
        raise ConfigError(f"{key}.published.metric: {published.metric!r}, wanted one of {', '.join(MEASURES)}")
    if unknown := [task for name in published.scores for task in members(name) if task not in tasks]:
        raise ConfigError(f"{key}.published.scores: {unknown[0]} is in none of evaluate.panels; leave it out")


def members(name: str) -> list[str]:
    """The tasks that a published score is the mean of."""
    return [task.strip() for task in name.split(" and ")]


def main() -> str:
    params = settings()
    evaluate = smaller(load_params(), params)
    inputs = read_inputs(evaluate) if params.models else Inputs({}, [])
    clear_folder(OUT)
    models = {name: score(name, baseline, evaluate, inputs) for name, baseline in params.models.items()}
    write_metrics(METRICS, {"models": models})
    return "; ".join(summary(name, scores) for name, scores in models.items()) or "no models"


def smaller(evaluate: EvaluateParams, params: BaselinesParams) -> EvaluateParams:
    """evaluate's params with as many items and documents as both sections allow."""

    def least(one: int | None, two: int | None) -> int | None:
        return min((limit for limit in (one, two) if limit is not None), default=None)

    sets = {
        name: source.model_copy(update={"limit": least(source.limit, params.max_documents)})
        for name, source in evaluate.heldout.items()
    }
    return evaluate.model_copy(update={"max_items": least(evaluate.max_items, params.max_items), "heldout": sets})


def score(name: str, baseline: Baseline, params: EvaluateParams, inputs: Inputs) -> Scores:
    """Score one model and write its answers; returns its part of the metrics."""
    with weights_of(f"baselines.models.{name}", baseline) as weights:
        encoder = encoder_of(weights.folder)
        encode_items(encoder, inputs.all_items)  # names what cannot be scored, before the model is loaded
        answers = answer(weights.folder, encoder, params, inputs, "baselines")
    answers.write(OUT, name)
    facts = {"model": baseline.model, "revision": weights.revision}
    published = baseline.published and next_to(baseline.published, answers.scores["tasks"])
    return facts | answers.scores | {"published": published}


def next_to(published: Published, tasks: dict[str, Scores]) -> dict[str, Any]:
    """The published scores, each next to ours with its standard error and items."""
    scores = {}
    for name, value in published.scores.items():
        ours = panel(tasks[task] for task in members(name))
        own = {"ours": ours[published.metric], "stderr": ours[f"{published.metric}_stderr"], "items": ours["items"]}
        scores[name] = {"published": value} | own
    return {"source": published.source, "metric": published.metric, "scores": scores}


def summary(name: str, scores: Scores) -> str:
    """A model in a few words."""
    panels = (f"{panel} acc_norm {means['acc_norm']:.3f}" for panel, means in scores["panels"].items())
    return f"{name}: held-out {scores['heldout']['together']['bpb']:.3f} bits per byte, {', '.join(panels)}"


if __name__ == "__main__":
    run_stage("baselines", main)
