"""train: a Llama trained on the token shards, once per seed.

In: data/tokenize_corpus/{train,validation}/*.ds, data/tokenize_corpus/corpus.json, metrics/mix.json (how often a
document may be seen).
Out: models/train/seed-<n>/ (config.json, model.safetensors, losses.csv, training.json; from nanotron
probe.safetensors; with keep_last above 1 checkpoints/step-<n>/ with config.json and model.safetensors),
metrics/train.json, metrics/plots/train_loss.csv (step, learning_rate, loss; means over seeds).
Contract: both trainers begin from the same weights and see the same batches. The same shards, params and processor
give the same weights, also after any number of kills. Checkpoints and finished seeds are kept in
`<store>/train/<key>`, so that a seed that is added later trains alone.
Run: python -m stages.train
"""

import sys
from pathlib import Path

from cosmopedia.core.files import clear_folder, write_text
from cosmopedia.core.params import load
from cosmopedia.core.row_counts import write_metrics
from cosmopedia.execution import torchrun
from cosmopedia.execution import training_forecast as forecast
from cosmopedia.execution.compute import load_compute
from cosmopedia.execution.stage_process import run_stage
from stages.train.metrics import loss_curve, over_seeds
from stages.train.nanotron.job import job_of
from stages.train.recipe import TrainParams
from stages.train.repeats import check_repeats
from stages.train.seed_run import FROM_STORE, record_means, train_seed, use_one_gpu
from stages.train.windows import check_fit, open_split, read_corpus

TOKENS, OUT = Path("data/tokenize_corpus"), Path("models/train")
METRICS, CURVE = Path("metrics/train.json"), Path("metrics/plots/train_loss.csv")


def settings() -> TrainParams:
    """The stage's params; a preset that is not there and a shape that does not fit are refused."""
    params = load("train", TrainParams)
    for seed in params.seeds:
        params.recipe(seed)
    return params


def main() -> str:
    params, training = settings(), load_compute().training
    corpus = read_corpus(TOKENS)
    shards, validation = (open_split(TOKENS, split, corpus, params.sequence) for split in ("train", "validation"))
    check_fit(shards, params, corpus)
    check_repeats(params, shards.windows)
    recipes = [params.recipe(seed) for seed in params.seeds]
    if params.backend == "nanotron":  # what is missing, or does not fit, is refused before torch is loaded
        torchrun.python_of(training)
        job_of(recipes[0], TOKENS, "fp32", training)
    else:
        use_one_gpu()
    print(forecast.describe(recipes[0], len(recipes), len(params.kept_steps)), file=sys.stderr, flush=True)

    clear_folder(OUT)
    runs = {recipe.seed: train_seed(recipe, params.kept_steps, corpus, shards, validation, OUT) for recipe in recipes}
    metrics = over_seeds({seed: run.metrics for seed, run in runs.items()})
    write_text(CURVE, loss_curve([run.steps for run in runs.values()]))
    write_metrics(METRICS, metrics)
    if any(run.remark != FROM_STORE for run in runs.values()):
        record_means(recipes[0], corpus, metrics)
    loss = "-" if metrics["validation_loss"] is None else f"{metrics['validation_loss']:.3f}"
    return (
        f"{metrics['parameters'] / 1e6:.1f}M parameters, {params.backend}, {len(runs)} seed(s), {params.steps} steps,"
        f" {metrics['tokens']:,} tokens in {metrics['precision']}, loss {metrics['train_loss']:.3f}, validation"
        f" {loss}; {'; '.join(run.remark for run in runs.values())}"
    )


if __name__ == "__main__":
    run_stage("train", main)
