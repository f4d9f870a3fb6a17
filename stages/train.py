"""Train a Llama on the token shards.

in   data/tokenize_corpus/{train,validation}/*.ds, data/tokenize_corpus/corpus.json
out  models/train/ (config.json, model.safetensors, losses.csv, training.json), metrics/train.json,
     metrics/plots/train_loss.csv (step, loss, learning_rate)
The same shards, params and processor give the same weights, also after any number of kills: checkpoints are kept under
`<store>/train/<key>`, named by what is trained on what, until the result is written.
Alone: python -m stages.train
"""

import csv
import math
import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stages.clusters import load_cluster
from stages.draws import content_hash
from stages.errors import ConfigError, DataError, run_stage
from stages.lineage import store_root
from stages.settings import load
from stages.tables.accounting import write_metrics
from stages.training.recipe import Recipe
from stages.training.shards import Corpus, TokenShards, read_corpus

if TYPE_CHECKING:
    from stages.training.light import Trained

TOKENS, OUT = Path("data/tokenize_corpus"), Path("models/train")
METRICS, CURVE = Path("metrics/train.json"), Path("metrics/plots/train_loss.csv")
FINAL_SHARE = 0.05  # the final training loss is the mean of this share of the steps, as a single batch is noise


class TrainParams(Recipe):
    """The training recipe; its fields stand in stages/training/recipe.py."""


def check_backend(params: TrainParams) -> None:
    """`ConfigError` for a trainer that this machine does not have."""
    if params.backend == "nanotron":
        raise ConfigError(
            "train.backend is nanotron, which this version of the repository cannot launch yet; set it to transformers"
            " (`dvc exp run -S profiles/<profile>.yaml:train.backend=transformers`), for the CPU or one GPU"
        )


def open_split(split: str, corpus: Corpus, sequence: int) -> TokenShards:
    """A split's shards, checked against the corpus card."""
    shards = TokenShards(TOKENS / split, getattr(corpus, split), corpus, sequence)
    shards.check_vocabulary()
    return shards


def check_size(shards: TokenShards, params: TrainParams) -> None:
    """`DataError` when the tokens do not fill one batch."""
    needed = params.batch * params.sequence + 1
    if shards.windows < params.batch:
        raise DataError(
            f"{shards.folder} holds {shards.tokens} tokens, but one batch of {params.batch} x {params.sequence} takes"
            f" {needed}; generate more, or lower train.batch or train.sequence"
        )


def final_loss(losses: list[float]) -> float:
    """Mean loss of the last steps."""
    last = losses[-max(1, round(len(losses) * FINAL_SHARE)) :]
    return math.fsum(last) / len(last)


def metrics_of(
    params: TrainParams, corpus: Corpus, windows: int, precision: str, trained: "Trained"
) -> dict[str, Any]:
    """The metrics that training decides; the validation loss is added to them."""
    places = params.steps * params.batch
    return {
        "backend": params.backend,
        "precision": precision,
        "parameters": trained.model.num_parameters(),
        "vocabulary": corpus.vocab_size,
        "steps": params.steps,
        "tokens": places * params.sequence,
        "epochs": places / windows,
        "train_loss": final_loss([loss for _, loss, _, _ in trained.losses]),
    }


def write_curve(path: Path, losses: list[tuple[int, float, float, float]]) -> None:
    """The loss curve as DVC plots it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.writer(stream, lineterminator="\n")
        writer.writerow(("step", "loss", "learning_rate"))
        writer.writerows((step, f"{loss:.6g}", f"{rate:.6g}") for step, loss, rate, _ in losses)


def main() -> str:
    params = load("train", TrainParams)
    check_backend(params)
    corpus = read_corpus(TOKENS)
    shards, validation = (open_split(split, corpus, params.sequence) for split in ("train", "validation"))
    check_size(shards, params)

    first = os.environ.get("CUDA_VISIBLE_DEVICES", "0").partition(",")[0]
    os.environ["CUDA_VISIBLE_DEVICES"] = first  # the Trainer would spread over all GPUs, with larger batches
    import torch

    from stages.training import light

    if threads := load_cluster().training.threads:
        torch.set_num_threads(threads)
    precision = light.resolve_precision(params.precision)
    recipe_hash = content_hash(params.model_dump_json(), precision)
    folder = store_root() / "train" / content_hash(recipe_hash, corpus.dataset_hash)
    tags = {"dataset_hash": corpus.dataset_hash, "recipe_hash": recipe_hash, "precision": precision}
    with light.claimed(folder), light.open_run(folder, tags) as run:
        model = light.new_model(params, corpus.vocab_size, corpus.eos)
        trained = light.train(params, model, shards, folder, precision, run)
        loss, tokens = light.validation_loss(model, validation, params.micro_batch, precision)
        metrics = metrics_of(params, corpus, shards.windows, precision, trained) | {
            "validation_loss": loss if tokens else None,
            "validation_perplexity": math.exp(min(loss, 700)) if tokens else None,
            "validation_tokens": tokens,
        }
        run.metrics({n: v for n, v in metrics.items() if isinstance(v, float | int)}, step=params.steps)

        shutil.rmtree(OUT, ignore_errors=True)
        OUT.mkdir(parents=True)
        model.save_pretrained(OUT, safe_serialization=True)
        light.write_losses(OUT / light.LOSSES, trained.losses)
        facts = {"dataset_hash": corpus.dataset_hash, "recipe_hash": recipe_hash, "corpus_tokens": corpus.train.tokens}
        facts |= {"documents": corpus.train.documents, "recipe": params.model_dump(mode="json")}
        write_metrics(OUT / "training.json", metrics | facts)
        write_curve(CURVE, trained.losses)
        write_metrics(METRICS, metrics)
        run.flush()
    shutil.rmtree(folder)
    resumed = f", resumed at step {trained.resumed_at}" if trained.resumed_at else ""
    shown = f"{loss:.3f}" if tokens else "-"
    return (
        f"{metrics['parameters'] / 1e6:.1f}M parameters, {params.steps} steps, {metrics['tokens']:,} tokens in"
        f" {precision}, loss {metrics['train_loss']:.3f}, validation {shown},"
        f" {trained.tokens_per_second:,.0f} tokens/s{resumed}"
    )


if __name__ == "__main__":
    run_stage("train", main)
