"""generator: provides the model that writes, a pinned hub model or a tiny Llama trained here on demonstrations.

In: generator.* of the profile; with `train`, a JSONL file of prompts and texts.
Out: models/generator/ with tokenizer, chat template, config.json, generator.json {model, revision, weights,
quantisation, max_length}, and model.safetensors if trained here; metrics/generator.json;
metrics/plots/generator_loss.csv (step, loss: nats per token of text; empty for a hub model).
Contract: the weights of a hub model are not here: the servers fetch them at the revision that generator.json names.
The revision of a model trained here is the hash of its weights and tokenizer.
Run: python -m stages.generator
"""

import json
from pathlib import Path
from typing import Any

from pydantic import Field

from cosmopedia.errors import ConfigError
from cosmopedia.execution.stage_process import run_stage
from cosmopedia.files import clear_folder, write_text
from cosmopedia.params import Params, load
from cosmopedia.records import resolve_revision
from cosmopedia.tables.row_counts import write_metrics
from stages.generator.tiny_llama import TinyLlama, train

OUT, PLOT = Path("models/generator"), Path("metrics/plots/generator_loss.csv")


class GeneratorParams(Params):
    """Which model writes."""

    model: str  # a hub id, or the name of the model that `train` makes
    revision: str | None  # of the hub model
    quantisation: str | None
    max_length: int = Field(ge=64)  # tokens of prompt and completion together
    train: TinyLlama | None  # None: take the hub model


def save_hub_model(model: str, revision: str, out: Path) -> None:
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


def settings() -> GeneratorParams:
    """The stage's params."""
    params = load("generator", GeneratorParams)
    if (params.train is None) == (params.revision is None):
        raise ConfigError("generator: give either revision (of a hub model) or train, and set the other to null")
    return params


def main() -> str:
    """Make models/generator/; returns the summary line."""
    params = settings()
    clear_folder(OUT)
    metrics: dict[str, Any] = {}
    losses: list[float] = []
    if params.train is None:
        revision = resolve_revision("model", params.model, params.revision)
        save_hub_model(params.model, revision, OUT)
        summary = f"{params.model} at {revision}"
    else:
        revision, metrics, losses = train(params.train, params.max_length, OUT)
        summary = f"{params.model}, {metrics['parameters']:,} parameters, final loss {metrics['final_loss']:.2f}"
    manifest = {"model": params.model, "revision": revision, "weights": "local" if params.train else "hub"}
    manifest |= {"quantisation": params.quantisation, "max_length": params.max_length}
    write_text(OUT / "generator.json", json.dumps(manifest, indent=2) + "\n")
    write_metrics("metrics/generator.json", {"model": params.model, "revision": revision, **metrics})
    points = [f"{step},{loss:.4f}" for step, loss in enumerate(losses, 1)]
    write_text(PLOT, "".join(f"{line}\r\n" for line in ["step,loss", *points]))
    return summary


if __name__ == "__main__":
    run_stage("generator", main)
