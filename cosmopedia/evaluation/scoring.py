"""A model's answers to evaluate's items and held-out documents, and its scores: for our models and for baselines.

Both are scored by this code with the params of evaluate, so that their scores can be compared.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

from pydantic import Field

from cosmopedia.core.errors import ConfigError, DataError
from cosmopedia.core.params import Params, load
from cosmopedia.evaluation.encoding import Encoder
from cosmopedia.evaluation.heldout import HeldoutSet, read_set, score_heldout
from cosmopedia.evaluation.items import encode_items, read_items, regroup
from cosmopedia.evaluation.lighteval_run import run_lighteval
from cosmopedia.evaluation.scorer import Dtype, Scorer
from cosmopedia.evaluation.scores import Scores, by_group, detail_rows, heldout, panel, summary
from cosmopedia.tables.contracts import DETAIL, HELDOUT
from cosmopedia.tables.parquet import write_table


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


def load_params() -> EvaluateParams:
    """The section `evaluate`. `ConfigError` for panels or names that cannot be."""
    params = load("evaluate", EvaluateParams)
    for name, tasks in params.panels.items():
        if not tasks or len(set(tasks)) < len(tasks):
            raise ConfigError(f"evaluate.panels.{name}: wanted tasks, each once, found {tasks}")
    if "together" in params.heldout:
        raise ConfigError("evaluate.heldout: `together` is the name of the mean over the sets; rename that set")
    return params


def read_inputs(params: EvaluateParams) -> Inputs:
    """The items and documents that the params name."""
    items = {task: read_items(task, params.seed, params.max_items, params.shots) for task in params.tasks}
    return Inputs(items, [one for name, source in params.heldout.items() for one in read_set(name, source)])


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


class Answers(NamedTuple):
    """What a model answered, and its scores."""

    details: list[dict[str, Any]]  # DETAIL rows, in the order of their ids
    documents: list[dict[str, Any]]  # HELDOUT rows, likewise
    scores: Scores  # panels, tasks (with `cut`), groups, heldout

    def write(self, folder: Path, name: str) -> None:
        """`<name>.parquet` and `heldout-<name>.parquet`."""
        write_table(folder / f"{name}.parquet", self.details, DETAIL)
        write_table(folder / f"heldout-{name}.parquet", self.documents, HELDOUT)


def answer(model: Path, encoder: Encoder, params: EvaluateParams, inputs: Inputs, stage: str = "evaluate") -> Answers:
    """Score one model; `stage` is whose progress is shown."""
    scorer = Scorer(model, params.dtype, params.batch_tokens, params.logits_mb, stage=stage)
    encoded = encode_items(encoder, inputs.all_items)
    if params.harness == "lighteval":
        _, by_item = run_lighteval(model, inputs.items, params.dtype)
        values = [by_item[item["item_id"]] for item in inputs.all_items]
    else:
        values = regroup(encoded, scorer.logprobs([one for item in encoded for one in item.sequences], "choices"))
    details = detail_rows(inputs.all_items, values)
    documents = score_heldout(scorer, encoder, inputs.documents)
    cut = {one.item_id for one in encoded if one.cut}
    scores = scores_of(details, params) | {"heldout": heldout(documents)}
    for task, items in inputs.items.items():
        scores["tasks"][task]["cut"] = sum(item["item_id"] in cut for item in items)
    return Answers(sorted(details, key=lambda row: row["item_id"]), documents, scores)


def scores_of(details: list[dict[str, Any]], params: EvaluateParams) -> Scores:
    """The scores of tasks, of their groups, and of panels."""
    rows = {task: [row for row in details if row["task"] == task] for task in params.tasks}
    tasks = {task: summary(rows[task]) for task in params.tasks}
    return {
        "panels": {name: panel(tasks[task] for task in members) for name, members in params.panels.items()},
        "tasks": tasks,
        "groups": {task: groups for task in params.tasks if (groups := by_group(rows[task]))},
    }
