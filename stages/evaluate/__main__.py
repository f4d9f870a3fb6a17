"""evaluate: each exported model scored on benchmarks in cloze form and on held-out documents, next to measured floors.

In: models/export/seed-<n>/, data/benchmarks/<task>.parquet (BENCHMARK), the held-out sets (profile: evaluate.heldout),
data/tokenize_corpus/ (token counts, for a floor).
Out: metrics/evaluate.json (scores of tasks, panels and held-out sets with standard errors and floors, means over
seeds; docs/evaluation.md has the keys), data/evaluate/seed-<n>.parquet (DETAIL, a row per item),
data/evaluate/heldout-seed-<n>.parquet (HELDOUT, a row per document), metrics/plots/evaluate.csv.
Contract: the same models, items, documents and machine give the same scores. MLflow gets a run per model and one with
the means, once all outs are written: no server that is slow or dead costs a score.
Run: python -m stages.evaluate
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from cosmopedia.errors import ConfigError, DataError
from cosmopedia.execution.stage_process import run_stage
from cosmopedia.files import clear_folder, write_text
from cosmopedia.params import Params, load
from cosmopedia.seeds import seed_folders, seed_of
from cosmopedia.tables.contracts import DETAIL, HELDOUT
from cosmopedia.tables.parquet import write_table
from cosmopedia.tables.row_counts import write_metrics
from stages.evaluate.encoding import Encoder
from stages.evaluate.floors import CORPUS, by_unigrams, longest_choice, unigram_logprobs
from stages.evaluate.heldout import HeldoutSet, read_set, score_heldout
from stages.evaluate.items import encode_items, read_items, regroup
from stages.evaluate.lighteval_run import run_lighteval
from stages.evaluate.record import record
from stages.evaluate.scorer import Dtype, Scorer
from stages.evaluate.scores import (
    Scores,
    by_group,
    detail_rows,
    heldout,
    highest_floor,
    over_seeds,
    panel,
    score_table,
    summary,
    with_floor,
)

MODELS, OUT = Path("models/export"), Path("data/evaluate")
METRICS, BARS = Path("metrics/evaluate.json"), Path("metrics/plots/evaluate.csv")


class EvaluateParams(Params):
    """What is evaluated."""

    seed: int  # of the draw of items and of examples, and of the untrained model's weights
    panels: dict[str, list[str]] = Field(min_length=1)  # tasks that are averaged, by the name of the average
    shots: int = Field(ge=0)  # examples before each query
    harness: Literal["own", "lighteval"]  # what scores the choices; floors and held-out documents are always our own
    max_items: int | None = Field(ge=2)  # of each benchmark
    heldout: dict[str, HeldoutSet] = Field(min_length=1)
    dtype: Dtype  # of the weights; log-probabilities are always computed in float32
    batch_tokens: int = Field(ge=1)  # tokens in one forward pass, with padding; a longer sequence is a pass of its own
    logits_mb: int = Field(ge=1)  # memory of the logits that are computed at a time, at most

    @property
    def tasks(self) -> list[str]:
        """The tasks of all panels, each once."""
        return list(dict.fromkeys(task for tasks in self.panels.values() for task in tasks))


@dataclass(frozen=True)
class Inputs:
    """What every model is scored on."""

    items: dict[str, list[dict[str, Any]]]  # by task
    documents: list[dict[str, Any]]

    @property
    def all_items(self) -> list[dict[str, Any]]:
        """The items of all tasks."""
        return [item for items in self.items.values() for item in items]


def settings() -> EvaluateParams:
    """The stage's params."""
    params = load("evaluate", EvaluateParams)
    for name, tasks in params.panels.items():
        if not tasks or len(set(tasks)) < len(tasks):
            raise ConfigError(f"evaluate.panels.{name}: wanted tasks, each once, found {tasks}")
    if "together" in params.heldout:
        raise ConfigError("evaluate.heldout: `together` is the name of the mean over the sets; rename that set")
    return params


def main() -> str:
    params, models = settings(), seed_folders(MODELS)
    items = {task: read_items(task, params.seed, params.max_items, params.shots) for task in params.tasks}
    documents = [one for name, source in params.heldout.items() for one in read_set(name, source)]
    inputs = Inputs(items, documents)
    encoders = {model: encoder_of(model) for model in models}
    for encoder in encoders.values():
        encode_items(encoder, inputs.all_items)  # names what cannot be scored, before anything is
    clear_folder(OUT)
    floors = score_floors(models[0], encoders[models[0]], params, inputs)
    seeds = {str(seed_of(model)): evaluate(model, encoders[model], params, inputs) for model in models}
    metrics = collect(seeds, floors, params.panels)
    write_metrics(METRICS, metrics)
    write_text(BARS, score_table(metrics))
    how = {"harness": params.harness, "shots": params.shots, "dtype": params.dtype}
    record(metrics, seeds, models, {**how, "items": items, "documents": documents}, OUT, score_table(metrics))
    return summary_line(metrics)


def encoder_of(model: Path) -> Encoder:
    """A model's tokenizer. `DataError` when the folder holds no model that can be scored."""
    try:
        config = json.loads((model / "config.json").read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise DataError(f"{model} holds no model; run `dvc repro export`, or dvc pull") from None
    positions = config.get("max_position_embeddings") or config.get("n_positions")
    if not isinstance(positions, int) or not isinstance(config.get("vocab_size"), int):
        raise DataError(
            f"{model}/config.json must have max_position_embeddings and vocab_size; run `dvc repro export`"
        )
    return Encoder(model, positions, config["vocab_size"])


def evaluate(model: Path, encoder: Encoder, params: EvaluateParams, inputs: Inputs) -> Scores:
    """Score one model and write its answers; returns its scores."""
    scorer = Scorer(model, params.dtype, params.batch_tokens, params.logits_mb)
    encoded = encode_items(encoder, inputs.all_items)
    if params.harness == "lighteval":
        _, by_item = run_lighteval(model, inputs.items, params.dtype)
        values = [by_item[item["item_id"]] for item in inputs.all_items]
    else:
        values = regroup(encoded, scorer.logprobs([one for item in encoded for one in item.sequences], "choices"))
    details = detail_rows(inputs.all_items, values)
    write_table(OUT / f"{model.name}.parquet", sorted(details, key=lambda row: row["item_id"]), DETAIL)
    documents = score_heldout(scorer, encoder, inputs.documents)
    write_table(OUT / f"heldout-{model.name}.parquet", documents, HELDOUT)
    cut = {one.item_id for one in encoded if one.cut}
    scores = scores_of(details, params) | {"heldout": heldout(documents)}
    for task, items in inputs.items.items():
        scores["tasks"][task]["cut"] = sum(item["item_id"] in cut for item in items)
    return scores


def scores_of(details: list[dict[str, Any]], params: EvaluateParams) -> Scores:
    """The scores of tasks, of their groups, and of panels."""
    rows = {task: [row for row in details if row["task"] == task] for task in params.tasks}
    tasks = {task: summary(rows[task]) for task in params.tasks}
    return {
        "panels": {name: panel(tasks[task] for task in members) for name, members in params.panels.items()},
        "tasks": tasks,
        "groups": {task: groups for task in params.tasks if (groups := by_group(rows[task]))},
    }


def score_floors(model: Path, encoder: Encoder, params: EvaluateParams, inputs: Inputs) -> dict[str, Scores]:
    """The scores, by task, of an untrained model, of token counts and of the longest choice."""
    scorer = Scorer(model, params.dtype, params.batch_tokens, params.logits_mb, untrained=params.seed)
    encoded = encode_items(encoder, inputs.all_items)
    sequences = [one for item in encoded for one in item.sequences]
    values = {
        "untrained": scorer.logprobs(sequences, "choices, untrained"),
        "unigram": by_unigrams(unigram_logprobs(CORPUS, encoder.vocabulary), sequences),
    }
    floors = {
        name: scores_of(detail_rows(inputs.all_items, regroup(encoded, logprobs)), params)["tasks"]
        for name, logprobs in values.items()
    }
    return floors | {"longest": {task: longest_choice(items) for task, items in inputs.items.items()}}


def collect(seeds: dict[str, Scores], floors: dict[str, Scores], panels: dict[str, list[str]]) -> Scores:
    """metrics/evaluate.json."""
    metrics = over_seeds(seeds)
    metrics["panels"] = over_seeds({seed: scores["panels"] for seed, scores in seeds.items()}, sd=True)
    metrics["heldout"] = over_seeds({seed: scores["heldout"] for seed, scores in seeds.items()}, sd=True)
    for task, scores in metrics["tasks"].items():
        metrics["tasks"][task] = with_floor(scores, highest_floor([floor[task] for floor in floors.values()]))
    for name, members in panels.items():
        means = [panel(floor[task] for task in members) for floor in floors.values()]
        metrics["panels"][name] = with_floor(metrics["panels"][name], highest_floor(means)) | {"tasks": members}
    return metrics | {
        "floors": floors,
        "seeds": {
            seed: {"panels": scores["panels"], "heldout": scores["heldout"]["together"]}
            for seed, scores in seeds.items()
        },
    }


def summary_line(metrics: Scores) -> str:
    """The headline scores of each panel, and what they are worth."""
    parts = [f"{len(metrics['seeds'])} model(s): held-out {metrics['heldout']['together']['bpb']:.3f} bits per byte"]
    for name, scores in metrics["panels"].items():
        spread = f", sd over seeds {scores['acc_norm_sd']:.3f}" if "acc_norm_sd" in scores else ""
        worth = "" if "acc_norm" in scores["informative"] else ": not informative at this size"
        parts.append(
            f"{name} ({len(scores['tasks'])} tasks, {scores['items']} items): {scores['bpb']:.3f} bits per byte of the"
            f" right answers, acc_norm {scores['acc_norm']:.3f} ± {scores['acc_norm_stderr'] or 0:.3f}{spread}"
            f" (floor {scores['floor']['acc_norm']:.3f}{worth})"
        )
    if cut := sum(task["cut"] for task in metrics["tasks"].values()):
        parts.append(f"{cut} items are longer than the model and lost the beginning of their context")
    return "; ".join(parts)


if __name__ == "__main__":
    run_stage("evaluate", main)
