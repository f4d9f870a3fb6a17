"""The record of an evaluation in MLflow: a run per model, and over them one with the means, in "cosmopedia scores".

The table there has the few scores that a person compares by; everything else is in artifacts.
"""

import json
from pathlib import Path
from typing import Any

from cosmopedia.core.lineage import hash_files
from cosmopedia.core.rng import content_hash
from cosmopedia.evaluation.scores import Scores
from cosmopedia.execution.mlflow_params import arm
from cosmopedia.execution.mlflow_run import About, Dataset, Parent, Run, file_artifact, leave
from cosmopedia.execution.mlflow_sender import SCORES
from cosmopedia.seeds import seed_of

DIGITS = 4  # significant


def record(
    metrics: Scores, seeds: dict[str, Scores], models: list[Path], scored_on: Any, details: Path, table: str
) -> None:
    """Record each seed's scores, then their means. `scored_on` is whatever decides the scores besides the weights;
    `details` the folder of the tables of items; `table` the scores as CSV. The same weights, scored on the same, are
    the same runs."""
    on = content_hash(json.dumps(scored_on, sort_keys=True))
    trained = {model: json.loads((model / "training.json").read_text(encoding="utf-8")) for model in models}
    first = trained[models[0]]
    name, every = arm(), ", ".join(str(seed_of(model)) for model in models)
    parent = Parent(f"{name} mean", content_hash("mean", arm_of(first), on))
    for model in models:
        training, seed = trained[model], str(seed_of(model))
        weights = hash_files([model / "model.safetensors"])
        hashes = {key: str(training[key]) for key in ("dataset_hash", "recipe_hash")}
        about = About(
            name=f"{name} seed {seed}",
            key=content_hash("seed", weights, on),
            parent=parent,
            params=facts(training) | {"seed": seed},
            datasets=datasets(training, on),
            links={"training_run": {"stage": "train", **hashes}},
            note=f"The items of this model: `{details}/{model.name}.parquet`, at the git revision in the tags.",
            experiment=SCORES,
        )
        files = [details / f"{kind}{model.name}.parquet" for kind in ("", "heldout-")]
        artifacts = {"scores.json": json.dumps(seeds[seed], indent=1)} | dict(map(file_artifact, files))
        leave("evaluate", hashes | {"weights_hash": weights, "seed": seed}, about, shown(seeds[seed]), artifacts)
    about = About(
        name=parent.name,
        key=parent.key,
        params=facts(first),
        datasets=datasets(first, on),
        note="Means over the training seeds below. Whether two of these differ is what `cosmo compare` says.",
        experiment=SCORES,
        view=([name for name in shown(metrics) if not name.startswith("task_")], ["changed", "corpus_tokens"]),
    )
    with Run("evaluate", {"dataset_hash": str(first["dataset_hash"]), "seeds": every}, about=about) as run:
        run.metrics(shown(metrics))
        run.artifact("scores.json", json.dumps(metrics, indent=1))
        run.artifact("scores.csv", table)
        run.artifact("scores.svg", score_plot(metrics))


def arm_of(training: dict[str, Any]) -> str:
    """What the seeds of an arm share: the data and the recipe."""
    recipe = {key: value for key, value in training.get("recipe", {}).items() if key != "seed"}
    return content_hash(training["dataset_hash"], training.get("precision"), json.dumps(recipe, sort_keys=True))


def facts(training: dict[str, Any]) -> dict[str, str]:
    """What a training was, as params."""
    names = {"model_parameters": "parameters", "corpus_tokens": "corpus_tokens", "documents": "documents"}
    return {shown: str(training[name]) for shown, name in names.items() if name in training}


def datasets(training: dict[str, Any], scored_on: str) -> tuple[Dataset, ...]:
    """The corpus, and what is evaluated on."""
    sizes = {"tokens": training.get("corpus_tokens"), "documents": training.get("documents")}
    corpus = {name: size for name, size in sizes.items() if size is not None}
    return (
        Dataset("corpus", str(training["dataset_hash"]), "data/tokenize_corpus", corpus, "training"),
        Dataset("benchmarks and held-out sets", scored_on, "data/benchmarks", {}, "evaluation"),
    )


def shown(scores: Scores) -> dict[str, float]:
    """The scores in MLflow's table, of a seed or of the means: held-out documents, panels, tasks."""
    values = {"heldout_bpb": scores["heldout"]["together"]["bpb"]}
    for name, numbers in scores["panels"].items():
        values[f"{name}_bpb"] = numbers["bpb"]
        values[f"{name}_acc_norm"] = numbers["acc_norm"]
    values |= {f"task_{name}_acc_norm": numbers["acc_norm"] for name, numbers in scores["tasks"].items()}
    return {name: float(f"{value:.{DIGITS}g}") for name, value in values.items() if value is not None}


def score_plot(metrics: Scores) -> str:
    """Each task's accuracy with its standard error, next to its floor; an SVG file's text."""
    import io

    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    tasks = metrics["tasks"]
    places = range(len(tasks))
    with plt.rc_context({"svg.hashsalt": "cosmopedia", "font.size": 9}):
        figure, axis = plt.subplots(figsize=(7, 0.8 + 0.3 * len(tasks)), layout="constrained")
        errors = [numbers.get("acc_norm_stderr") or 0 for numbers in tasks.values()]
        axis.errorbar([numbers["acc_norm"] for numbers in tasks.values()], places, xerr=errors, fmt="o", label="score")
        floors = [numbers["floor"]["acc_norm"] for numbers in tasks.values()]
        axis.plot(floors, places, "|", color="black", markersize=12, label="floor")
        axis.set_yticks(places, list(tasks))
        axis.invert_yaxis()
        axis.set_xlabel("acc_norm with its standard error over items; floor: the best of what has learnt nothing")
        axis.grid(axis="x", color="#dddddd")
        axis.legend(frameon=False)
        text = io.StringIO()
        figure.savefig(text, format="svg", metadata={"Date": None})
        plt.close(figure)
    return text.getvalue()
