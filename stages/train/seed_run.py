"""The training of one seed: the trainer, its folder in the store, its record in MLflow."""

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

from cosmopedia.core.errors import ClusterError
from cosmopedia.core.files import discard, lock, replacing
from cosmopedia.core.lineage import hash_files, store_root
from cosmopedia.core.rng import content_hash
from cosmopedia.core.row_counts import write_metrics
from cosmopedia.execution import training_forecast as forecast
from cosmopedia.execution.mlflow_params import arm
from cosmopedia.execution.mlflow_run import About, Dataset, Parent, Run
from cosmopedia.lean_imports import import_transformers
from stages.train.checkpoints import LOSSES
from stages.train.metrics import MEANS, seed_metrics
from stages.train.recipe import Recipe
from stages.train.steps import RESULTS, Step, read_steps, write_steps
from stages.train.windows import Corpus, TokenShards

FROM_STORE = "from the store"
LINEAGE = ("recipe", "recipe_hash", "dataset_hash", "corpus_tokens", "documents")  # in training.json, not in metrics


def code_hash() -> str:
    """Names the trainers' code, so that no other code resumes or takes over what it has trained."""
    files = Path(__file__).parent.rglob("*.py")
    return hash_files([path for path in files if not path.name.startswith("cosmo_") and path.name != "__main__.py"])


@contextmanager
def claimed(folder: Path) -> Iterator[None]:
    """Keep a checkpoint folder for this process; `ClusterError` when another one trains in it."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "lock").open("w") as file:
        if not lock(file):
            raise ClusterError(f"{folder}: another process is training this model; wait for it, or end it")
        yield


def use_one_gpu() -> None:
    """Show torch one GPU: transformers' Trainer would spread over all of them, with larger batches."""
    first = os.environ.get("CUDA_VISIBLE_DEVICES", "0").partition(",")[0]
    os.environ["CUDA_VISIBLE_DEVICES"] = first


def parent_of(recipe: Recipe, corpus: Corpus) -> Parent:
    """The run in MLflow over all seeds of a recipe and a corpus."""
    shared = recipe.model_dump_json(exclude={"seed"})
    return Parent(f"train {arm()} mean", content_hash("train", shared, corpus.dataset_hash))


def facts_of(recipe: Recipe, corpus: Corpus) -> dict[str, str]:
    """What MLflow shows of a training next to the params."""
    sizes = {"model_parameters": recipe.parameters, "training_tokens": recipe.tokens}
    sizes |= {"corpus_tokens": corpus.train.tokens, "documents": corpus.train.documents}
    return {name: str(size) for name, size in sizes.items()}


def datasets_of(corpus: Corpus) -> tuple[Dataset, ...]:
    """The corpus, as an input of a run in MLflow."""
    sizes = {"tokens": corpus.train.tokens, "documents": corpus.train.documents}
    return (Dataset("corpus", corpus.dataset_hash, "data/tokenize_corpus", sizes, "training"),)


def record_means(recipe: Recipe, corpus: Corpus, metrics: dict[str, Any]) -> None:
    """Bring the run over all seeds up to date."""
    parent = parent_of(recipe, corpus)
    about = About(parent.name, parent.key, params=facts_of(recipe, corpus), datasets=datasets_of(corpus))
    tags = {"dataset_hash": corpus.dataset_hash, "seeds": ", ".join(metrics["seeds"])}
    with Run("train", tags, about=about) as run:
        run.metrics({name: metrics[name] for name in MEANS if metrics[name] is not None})


class SeedRun(NamedTuple):
    """What the training of one seed gave."""

    metrics: dict[str, Any]
    steps: list[Step]
    remark: str  # how it went, for people


def train_seed(
    recipe: Recipe,
    kept: tuple[int, ...],
    corpus: Corpus,
    shards: TokenShards,
    validation: TokenShards,
    models: Path,
) -> SeedRun:
    """Train one seed, unless the store has it, and copy it to `<models>/seed-<n>`."""
    finished, remark = finished_folder(recipe, kept, corpus, shards, validation)
    out = models / f"seed-{recipe.seed}"
    with replacing(out) as draft:  # a full disk leaves no half model
        shutil.copytree(finished, draft)
    training = json.loads((out / "training.json").read_text(encoding="utf-8"))
    metrics = {name: value for name, value in training.items() if name not in LINEAGE}
    return SeedRun(metrics, read_steps(out / LOSSES), remark)


def trainer_of(recipe: Recipe) -> ModuleType:
    """The module that trains: `fit` and `resolve_precision`."""
    if recipe.backend == "nanotron":
        from stages.train import nanotron_trainer as trainer
    else:
        import_transformers()
        from stages.train import transformers_trainer as trainer
    return trainer


def training_folder(recipe: Recipe, kept: tuple[int, ...], corpus: Corpus) -> Path:
    """The folder of one seed in the store; `finished/` in it is the result. `kept` are steps whose weights stay."""
    precision = trainer_of(recipe).resolve_precision(recipe.precision)
    recipe_hash = content_hash(recipe.model_dump_json(), precision)
    return store_root().resolve() / "train" / content_hash(recipe_hash, corpus.dataset_hash, code_hash(), *kept)


def finished_folder(
    recipe: Recipe, kept: tuple[int, ...], corpus: Corpus, shards: TokenShards, validation: TokenShards
) -> tuple[Path, str]:
    """The finished folder of one seed, trained unless the store has it, and how it went, in a few words.

    The folder is `<store>/train/<key>/finished`, where the key names recipe, precision, corpus, trainers' code, and
    the steps before the last whose weights are `kept`.
    """
    trainer = trainer_of(recipe)
    precision = trainer.resolve_precision(recipe.precision)
    recipe_hash = content_hash(recipe.model_dump_json(), precision)
    folder = training_folder(recipe, kept, corpus)
    finished = folder / "finished"
    if (finished / "training.json").is_file():
        return finished, FROM_STORE

    lineage = {"dataset_hash": corpus.dataset_hash, "recipe_hash": recipe_hash}
    tags = lineage | {"precision": precision, "seed": str(recipe.seed)}
    about = About(
        f"train {arm()} seed {recipe.seed}",
        folder.name,
        parent_of(recipe, corpus),
        facts_of(recipe, corpus) | {"seed": str(recipe.seed)},
        datasets_of(corpus),
    )
    with claimed(folder), Run("train", tags, folder.name, about) as run, replacing(finished) as out:
        out.mkdir()
        trained = trainer.fit(recipe, kept, corpus, shards, validation, folder, out, precision, run)
        metrics = seed_metrics(recipe, corpus, shards.windows, precision, trained)
        run.metrics({n: v for n, v in metrics.items() if isinstance(v, float | int)}, step=recipe.steps)
        write_steps(out / LOSSES, trained.steps, RESULTS)
        split = corpus.train
        facts = lineage | {"corpus_tokens": split.tokens, "documents": split.documents}
        facts |= {"recipe": recipe.model_dump(mode="json", exclude={"preset"})}
        write_metrics(out / "training.json", metrics | facts)
    forecast.remember(recipe, trained.tokens_per_second)

    # The checkpoints and the log have done their work.
    for path in folder.iterdir():
        if path != finished:
            discard(path)
    resumed = f", resumed at step {trained.resumed_at}" if trained.resumed_at else ""
    return finished, f"{trained.tokens_per_second:,.0f} tokens/s{resumed}"
