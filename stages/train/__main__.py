"""Train a Llama on the token shards, once for each seed.

in   data/tokenize_corpus/{train,validation}/*.ds, data/tokenize_corpus/corpus.json
out  models/train/seed-<n>/ (config.json, model.safetensors, losses.csv, training.json; of nanotron probe.safetensors
     as well), metrics/train.json, metrics/plots/train_loss.csv (step, loss, learning_rate; means over seeds)
Both trainers begin from the same weights and see the same batches. The same shards, params and processor give the same
weights, also after any number of kills: checkpoints and finished seeds are kept under `<store>/train/<key>`, named by
what is trained on what by which code, so that a seed that is added later trains alone.
Alone: python -m stages.train
"""

import csv
import json
import math
import os
import shutil
import statistics
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import Field

from cosmopedia.errors import ConfigError, DataError, run_stage
from cosmopedia.execution import training_forecast as forecast
from cosmopedia.execution.compute import load_compute
from cosmopedia.lineage import hash_files, store_root
from cosmopedia.params import load
from cosmopedia.rng import content_hash
from cosmopedia.tables.row_counts import write_metrics
from stages.train.recipe import Recipe, Shared
from stages.train.shards import Corpus, TokenShards, read_corpus

if TYPE_CHECKING:
    from stages.train.transformers_trainer import Step

TOKENS, OUT = Path("data/tokenize_corpus"), Path("models/train")
METRICS, CURVE = Path("metrics/train.json"), Path("metrics/plots/train_loss.csv")
FINAL_SHARE = 0.05  # the final training loss is the mean of this share of the steps, as a single batch is noise
MEANS = ("train_loss", "validation_loss", "validation_perplexity")  # of which several seeds have a mean


class TrainParams(Shared):
    """The training recipe; its other fields stand in stages/train/recipe.py."""

    seeds: list[int] = Field(min_length=1)

    def recipe(self, seed: int) -> Recipe:
        """The recipe of one seed."""
        return Recipe(seed=seed, preset=None, **self.model_dump(exclude={"seeds", "preset"}))


def check_seeds(seeds: list[int]) -> None:
    """`ConfigError` for a seed that stands there twice."""
    if twice := sorted({seed for seed in seeds if seeds.count(seed) > 1}):
        raise ConfigError(f"train.seeds names {', '.join(map(str, twice))} twice; each seed trains one model")


def open_split(split: str, corpus: Corpus, sequence: int) -> TokenShards:
    """A split's shards, checked against the corpus card."""
    shards = TokenShards(TOKENS / split, getattr(corpus, split), corpus, sequence)
    shards.check_vocabulary()
    return shards


def check_fit(shards: TokenShards, params: Shared, corpus: Corpus) -> None:
    """Refuse a vocabulary that is not the corpus's, and tokens that do not fill one batch."""
    if params.architecture.vocabulary != corpus.vocab_size:
        raise ConfigError(
            f"train.architecture.vocabulary is {params.architecture.vocabulary}, but {TOKENS}/corpus.json has"
            f" {corpus.vocab_size} tokens; set it to {corpus.vocab_size}, or tokenise otherwise"
        )
    needed = params.batch * params.sequence + 1
    if shards.windows < params.batch:
        raise DataError(
            f"{shards.folder} holds {shards.tokens} tokens, but one batch of {params.batch} x {params.sequence} takes"
            f" {needed}; generate more, or lower train.batch or train.sequence"
        )


def check_trainer(params: TrainParams) -> None:
    """Refuse, before anything is loaded, a trainer that is not there and a layout that does not fit the model."""
    if params.backend == "nanotron":
        from cosmopedia.execution.torchrun import python_of
        from stages.train.nanotron.job import job_of

        training = load_compute().training
        python_of(training)
        job_of(params.recipe(params.seeds[0]), TOKENS, "fp32", training)


def final_loss(losses: list[float]) -> float:
    """Mean loss of the last steps."""
    last = losses[-max(1, round(len(losses) * FINAL_SHARE)) :]
    return math.fsum(last) / len(last)


def facts_of(recipe: Recipe, corpus: Corpus, windows: int, precision: str) -> dict[str, Any]:
    """What is known of a model before it is trained."""
    return {
        "backend": recipe.backend,
        "precision": precision,
        "parameters": recipe.parameters,
        "vocabulary": corpus.vocab_size,
        "steps": recipe.steps,
        "tokens": recipe.tokens,
        "epochs": recipe.steps * recipe.batch / windows,
    }


def over_seeds(found: dict[int, dict[str, Any]]) -> dict[str, Any]:
    """metrics/train.json: what all seeds share, means of what they do not, their standard deviation, and each seed."""
    first = next(iter(found.values()))
    metrics = {name: value for name, value in first.items() if name not in MEANS}
    for name in MEANS:
        values = [seed[name] for seed in found.values()]
        metrics[name] = None if None in values else math.fsum(values) / len(values)
        if len(values) > 1 and None not in values:
            metrics[f"{name}_sd"] = statistics.stdev(values)
    return metrics | {"seeds": {str(n): {name: seed[name] for name in MEANS} for n, seed in found.items()}}


def write_curve(path: Path, losses: list[list["Step"]]) -> None:
    """The loss curve as DVC plots it: the mean over seeds of each step's loss."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.writer(stream, lineterminator="\n")
        writer.writerow(("step", "loss", "learning_rate"))
        for steps in zip(*losses, strict=True):
            mean = math.fsum(step[1] for step in steps) / len(steps)
            writer.writerow((steps[0][0], f"{mean:.6g}", f"{steps[0][2]:.6g}"))


def code_hash() -> str:
    """Names the trainers' code: another one must not go on from, or take, what this one has trained."""
    files = Path(__file__).parent.rglob("*.py")
    return hash_files([path for path in files if not path.name.startswith("cosmo_") and path.name != "__main__.py"])


def train_seed(recipe: Recipe, corpus: Corpus, shards: TokenShards, validation: TokenShards) -> tuple[Path, str]:
    """Train one seed, unless the store has it; returns the finished folder and a few words on how it went."""
    from stages.train import nanotron_trainer as heavy
    from stages.train import transformers_trainer as light

    trainer = heavy if recipe.backend == "nanotron" else light
    precision = trainer.resolve_precision(recipe.precision)
    recipe_hash = content_hash(recipe.model_dump_json(), precision)
    folder = store_root().resolve() / "train" / content_hash(recipe_hash, corpus.dataset_hash, code_hash())
    finished = folder / "finished"
    if (finished / "training.json").is_file():
        return finished, "from the store"
    tags = {"dataset_hash": corpus.dataset_hash, "recipe_hash": recipe_hash, "precision": precision}
    with light.claimed(folder), light.open_run(folder, tags | {"seed": str(recipe.seed)}) as run:
        out = folder / "part"
        shutil.rmtree(out, ignore_errors=True)
        out.mkdir()
        trained = trainer.fit(recipe, corpus, shards, validation, folder, out, precision, run)
        loss = trained.validation_loss
        metrics = facts_of(recipe, corpus, shards.windows, precision) | {
            "train_loss": final_loss([step[1] for step in trained.losses]),
            "validation_loss": loss,
            "validation_perplexity": None if loss is None else math.exp(min(loss, 700)),
            "validation_tokens": trained.validation_tokens,
        }
        run.metrics({n: v for n, v in metrics.items() if isinstance(v, float | int)}, step=recipe.steps)
        light.write_losses(out / light.LOSSES, trained.losses)
        facts = {"dataset_hash": corpus.dataset_hash, "recipe_hash": recipe_hash, "corpus_tokens": corpus.train.tokens}
        facts |= {"documents": corpus.train.documents, "recipe": recipe.model_dump(mode="json", exclude={"preset"})}
        write_metrics(out / "training.json", metrics | facts)
        run.flush()
        out.rename(finished)
    forecast.remember(recipe, trained.tokens_per_second)
    for path in folder.iterdir():
        if path != finished:
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    resumed = f", resumed at step {trained.resumed_at}" if trained.resumed_at else ""
    return finished, f"{trained.tokens_per_second:,.0f} tokens/s{resumed}"


def main() -> str:
    params = load("train", TrainParams)
    check_seeds(params.seeds)
    corpus = read_corpus(TOKENS)
    shards, validation = (open_split(split, corpus, params.sequence) for split in ("train", "validation"))
    check_fit(shards, params, corpus)
    check_trainer(params)

    if params.backend == "transformers":
        first = os.environ.get("CUDA_VISIBLE_DEVICES", "0").partition(",")[0]
        os.environ["CUDA_VISIBLE_DEVICES"] = first  # the Trainer would spread over all GPUs, with larger batches
    import torch

    if threads := load_compute().training.threads:
        torch.set_num_threads(threads)
    print(forecast.describe(params.recipe(params.seeds[0]), len(params.seeds)), file=sys.stderr, flush=True)
    shutil.rmtree(OUT, ignore_errors=True)
    OUT.mkdir(parents=True)
    found, curves, how = {}, [], []
    for seed in params.seeds:
        finished, told = train_seed(params.recipe(seed), corpus, shards, validation)
        out = OUT / f"seed-{seed}"
        shutil.copytree(finished, out)
        found[seed] = json.loads((out / "training.json").read_text(encoding="utf-8"))
        curves.append(read_curve(out))
        how.append(told)
    for training in found.values():
        for name in ("recipe", "recipe_hash", "dataset_hash", "corpus_tokens", "documents"):
            del training[name]
    metrics = over_seeds(found)
    write_curve(CURVE, curves)
    write_metrics(METRICS, metrics)
    loss = "-" if metrics["validation_loss"] is None else f"{metrics['validation_loss']:.3f}"
    return (
        f"{metrics['parameters'] / 1e6:.1f}M parameters, {params.backend}, {len(found)} seed(s), {params.steps} steps,"
        f" {metrics['tokens']:,} tokens in {metrics['precision']}, loss {metrics['train_loss']:.3f}, validation"
        f" {loss}; {'; '.join(how)}"
    )


def read_curve(out: Path) -> list["Step"]:
    """The loss log of a finished seed."""
    from stages.train import transformers_trainer as light

    return light.read_losses(out / light.LOSSES)


if __name__ == "__main__":
    run_stage("train", main)
