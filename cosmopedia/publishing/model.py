"""A model as it is published: models/export/seed-<n>/ with scores, language and revision in its card."""

import json
import re
import shutil
from pathlib import Path
from typing import Any

from cosmopedia.cards import published, rows
from cosmopedia.core.errors import DataError
from cosmopedia.core.files import clear_folder, write_text
from cosmopedia.licences import Terms, model_terms
from cosmopedia.publishing.checks import check_decontamination, check_licences, metrics
from cosmopedia.publishing.release import Release
from cosmopedia.publishing.scan import in_files

EXPORT, GENERATOR = Path("models/export"), Path("models/generator/generator.json")
SCORES = re.compile(r"<!-- scores -->\n(?:.+\n)+")
NORMAL_95 = 1.96  # standard errors on each side of a 95% interval
AGAIN = (
    " `dvc repro export` at that revision, with the profile of its params.yaml, makes the corpus and trains the"
    " model again; completions in DVC's cache or the store are not paid for again."
)
METRICS = {"acc_norm": "acc_norm", "bpb": "bits per byte"}


def build(release: Release, allowed: list[str], seed: int) -> Terms:
    """Make the folder of a release anew, checked. Returns the model's terms."""
    source = EXPORT / f"seed-{seed}"
    if not (source / "README.md").is_file():
        known = ", ".join(sorted(path.name for path in EXPORT.glob("seed-*"))) or "none"
        raise DataError(f"{source} is no exported model; run dvc repro export, or choose --seed among: {known}")
    check_decontamination()
    whole = model_terms(_generator(), metrics("mix")["components"])
    check_licences(whole, allowed, training=True)
    clear_folder(release.folder)
    for path in sorted(source.iterdir()):
        if path.is_file():  # the checkpoints before the last are for averages alone
            shutil.copyfile(path, release.folder / path.name)
    card = (source / "README.md").read_text(encoding="utf-8").replace(f'"{source}"', f'"{release.repo}"')
    write_text(release.folder / "README.md", model_card(card, release))
    texts = [path for path in release.folder.iterdir() if path.name in ("README.md", "training.json", "config.json")]
    if secret := in_files(texts, lambda path: path.read_text(encoding="utf-8")):
        raise DataError(f"{source}/{secret[0]} holds what has the form of a secret; take it out where it comes from")
    return whole


def _generator() -> dict[str, Any]:
    try:
        return json.loads(GENERATOR.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise DataError(f"{GENERATOR} is missing; run the stage generator, or dvc pull") from None


def model_card(card: str, release: Release) -> str:
    """Export's card with the scores, their intervals, the corpus's language and the revision; the scores are in its
    head too, where the hub reads them (`model-index`)."""
    from huggingface_hub import ModelCard

    scores, models = metrics("evaluate"), metrics("export").get("models", 1)
    text = SCORES.sub(lambda _: score_section(scores, models) + "\n", published(card, release.revision, AGAIN))
    made = ModelCard(text)
    head: Any = made.data
    head.model_name = release.repo.rpartition("/")[2]
    head.language = metrics("clean").get("language")
    head.eval_results = evaluation_results(scores)
    return str(made)


def score_section(scores: dict[str, Any], models: int) -> str:
    """The table of scores with 95% intervals over items and the measured floors."""
    mean = f"Means of {models} models that differ by their seed. " if models > 1 else ""
    named = [*scores["tasks"].items(), *((f"average: {name}", one) for name, one in scores["panels"].items())]
    lines = [
        [name.replace("_", " "), one["items"], *(cell for metric in METRICS for cell in _cells(one, metric))]
        for name, one in named
    ]
    heldout = [
        [f"held-out: {name}", one["documents"], "–", "–", _interval(one, "bpb"), "–"]
        for name, one in scores["heldout"].items()
    ]
    head = ["benchmark", "items", *(cell for name in METRICS.values() for cell in (f"{name} (95% interval)", "floor"))]
    return (
        f"{mean}Cloze form; the floor is the best score without any knowledge (chance, the longest choice, an"
        " untrained model), so a score whose interval reaches the floor says nothing.\n\n"
        f"{rows([head])}\n|{'---|' * len(head)}\n{rows([*lines, *heldout])}"
    )


def _interval(one: dict[str, Any], metric: str) -> str:
    value, error = one[metric], one.get(f"{metric}_stderr")
    if error is None:
        return f"{value:.3f}"
    low, high = value - NORMAL_95 * error, value + NORMAL_95 * error
    if metric == "acc_norm":  # a share of the items
        low, high = max(0.0, low), min(1.0, high)
    return f"{value:.3f} ({low:.3f} to {high:.3f})"


def _cells(one: dict[str, Any], metric: str) -> tuple[str, str]:
    floor = one.get("floor", {}).get(metric)
    return _interval(one, metric), "–" if floor is None else f"{floor:.3f}"


def evaluation_results(scores: dict[str, Any]) -> list[Any]:
    """The scores as the hub's `model-index` has them."""
    from huggingface_hub import EvalResult

    return [
        EvalResult(
            task_type="text-generation",
            dataset_type=task,
            dataset_name=task.replace("_", " "),
            metric_type="acc_norm",
            metric_value=one["acc_norm"],
            metric_name=f"acc_norm ± {one['acc_norm_stderr']}" if one["acc_norm_stderr"] is not None else "acc_norm",
        )
        for task, one in scores["tasks"].items()
    ]
