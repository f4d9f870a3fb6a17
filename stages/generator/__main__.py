"""generator: the model that writes, a pinned hub model or a tiny Llama trained here on demonstrations.

In: generator.* of the profile; with `train`, a JSONL file of prompts and texts.
Out: models/generator/ with tokenizer, chat template, config.json and generator.json {model, revision, weights,
quantisation, max_length}, and model.safetensors when `train` made it (the servers fetch a hub model's weights);
metrics/generator.json; metrics/plots/generator_loss.csv (step, loss: nats a token of text; empty for a hub model).
Alone: python -m stages.generator
"""

import csv
import json
import shutil
from pathlib import Path
from typing import Any

from pydantic import Field

from cosmopedia.errors import ConfigError, run_stage
from cosmopedia.execution.progress import Progress
from cosmopedia.lineage import hash_files
from cosmopedia.params import Params, load
from cosmopedia.records import resolve_revision
from cosmopedia.tables.row_counts import write_metrics
from stages.generator.tiny_llama import (
    TinyLlama,
    encode,
    plan_lessons,
    read_demonstrations,
    train_model,
    train_tokenizer,
)

OUT, PLOT = Path("models/generator"), Path("metrics/plots/generator_loss.csv")
LAST = 20  # steps over which the final loss is averaged


class GeneratorParams(Params):
    """Which model writes."""

    model: str  # a hub id, or the name of the model that `train` makes
    revision: str | None  # of the hub model
    quantisation: str | None
    max_length: int = Field(ge=64)  # tokens of prompt and completion together
    train: TinyLlama | None  # None: take the hub model


def train(params: GeneratorParams, settings: TinyLlama, out: Path) -> tuple[str, dict[str, Any], list[float]]:
    """Train tokenizer and model into `out`; (revision, metrics, loss of each step)."""
    rows = read_demonstrations(settings.demonstrations)
    tokenizer = train_tokenizer(rows, settings.vocabulary, params.max_length)
    lessons = plan_lessons(encode(rows, tokenizer, params.max_length), settings)
    tokens = sum(len(example.ids) for batch in lessons for example in batch)
    with Progress("generator", tokens, "tokens") as progress:
        model, losses = train_model(
            lessons,
            tokenizer,
            settings,
            params.max_length,
            lambda batch, loss: progress.advance(sum(len(e.ids) for e in batch), loss=f"{loss:.2f}"),
        )
    tokenizer.save_pretrained(out)
    model.save_pretrained(out)
    last = losses[-LAST:]
    metrics = {
        "parameters": sum(p.numel() for p in model.parameters()),
        "vocabulary": len(tokenizer),
        "demonstrations": len(rows),
        "steps": len(losses),
        "tokens": tokens,
        "text_tokens": sum(len(e.ids) - e.start for batch in lessons for e in batch),
        "final_loss": sum(last) / len(last),
    }
    return hash_files([out / "model.safetensors", out / "tokenizer.json"]), metrics, losses


def describe(model: str, revision: str, out: Path) -> None:
    """Write a hub model's tokenizer and configuration, without its weights, into `out`."""
    from transformers import AutoConfig, AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(model, revision=revision)
        config = AutoConfig.from_pretrained(model, revision=revision)
    except (OSError, ValueError) as error:
        reason = " ".join(str(error).split())[:300]
        raise ConfigError(f"generator.model {model} at {revision} cannot be read: {reason}") from None
    if not tokenizer.chat_template:
        raise ConfigError(f"generator.model {model} has no chat template; choose an instruction-tuned model")
    tokenizer.save_pretrained(out)
    config.save_pretrained(out)


def main() -> str:
    """Make models/generator/; returns the summary line."""
    params = load("generator", GeneratorParams)
    if (params.train is None) == (params.revision is None):
        raise ConfigError("generator: wanted either revision (of a hub model) or train, and the other one null")
    shutil.rmtree(OUT, ignore_errors=True)
    OUT.mkdir(parents=True)
    losses: list[float] = []
    if params.train is None:
        revision, metrics, weights = resolve_revision("model", params.model, params.revision), {}, "hub"
        describe(params.model, revision, OUT)
        said = f"{params.model} at {revision}"
    else:
        (revision, metrics, losses), weights = train(params, params.train, OUT), "local"
        said = f"{params.model}, {metrics['parameters']:,} parameters, final loss {metrics['final_loss']:.2f}"
    identity = {"model": params.model, "revision": revision, "weights": weights}
    identity |= {"quantisation": params.quantisation, "max_length": params.max_length}
    (OUT / "generator.json").write_text(json.dumps(identity, indent=2) + "\n")
    write_metrics("metrics/generator.json", {"model": params.model, "revision": revision, **metrics})
    PLOT.parent.mkdir(parents=True, exist_ok=True)
    with PLOT.open("w", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(["step", "loss"])
        writer.writerows((step, f"{loss:.4f}") for step, loss in enumerate(losses, 1))
    return said


if __name__ == "__main__":
    run_stage("generator", main)
