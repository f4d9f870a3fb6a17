"""generator: provides the model that writes: from the hub, from a folder or a package, or a tiny Llama trained here.

In: generator.* of the profile; with `train`, a JSONL file of prompts and texts.
Out: models/generator/ with tokenizer, chat template, config.json, generator.json {model, revision, weights, path,
quantisation, max_length, system_prompt if there is one}, and model.safetensors if it was made here;
metrics/generator.json; metrics/plots/generator_loss.csv (step, loss: nats per token of text; empty unless trained).
Contract: `weights` of generator.json says where servers find the weights: "hub" (they fetch them at the revision),
"folder" (they load them from `path`, where they stay), "local" (here: trained, or converted from a GGUF file).
The revision of a model that is no hub's is the hash of its files.
Run: python -m stages.generator
"""

import json
from pathlib import Path
from typing import Any

from pydantic import Field

from cosmopedia.core.errors import ConfigError
from cosmopedia.core.files import clear_folder, write_text
from cosmopedia.core.params import Params, load
from cosmopedia.core.row_counts import write_metrics
from cosmopedia.execution.stage_process import run_stage
from cosmopedia.generation.gguf import write_model
from cosmopedia.generation.local_model import find_local, is_here, locate
from cosmopedia.lean_imports import import_transformers
from cosmopedia.records.reading import resolve_revision
from stages.generator.tiny_llama import TinyLlama, train

OUT, PLOT = Path("models/generator"), Path("metrics/plots/generator_loss.csv")
KEY = "generator.model"


class GeneratorParams(Params):
    """Which model writes."""

    model: str  # hub id, folder, GGUF file or package:<import name>; with `train` the name of what it makes
    revision: str | None  # the hub's commit, or the pin of a folder or file
    quantisation: str | None
    max_length: int = Field(ge=64)  # tokens of prompt and completion together
    system_prompt: str | None = Field(min_length=1)  # None: what the chat template has without one
    train: TinyLlama | None  # None: take `model` as it is


def save_tokenizer(model: str, out: Path, **pinned: str) -> None:
    """Write the tokenizer and configuration of a hub id (at a `revision`) or folder into `out`, no weights."""
    import_transformers()
    from transformers import AutoConfig, AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(model, **pinned)
        config = AutoConfig.from_pretrained(model, **pinned)
    except (OSError, ValueError) as error:
        reason = " ".join(str(error).split())[:300]
        at = f" at {pinned['revision']}" if pinned else ""
        raise ConfigError(f"generator.model {model}{at} cannot be read: {reason}") from None
    if not tokenizer.chat_template:
        raise ConfigError(f"generator.model {model} has no chat template; choose an instruction-tuned model")
    tokenizer.save_pretrained(out)
    config.save_pretrained(out)


def settings() -> GeneratorParams:
    """The stage's params."""
    params = load("generator", GeneratorParams)
    if params.train is None and is_here(params.model):
        locate(params.model, KEY)
    elif params.train is None and params.revision is None:
        raise ConfigError(
            f"generator: {params.model} is taken for a hub id, which needs a revision; or give `train`, or a path"
        )
    if params.train is not None and params.revision is not None:
        raise ConfigError("generator: give either revision (of an existing model) or train, and set the other to null")
    return params


def provide(params: GeneratorParams) -> tuple[dict[str, Any], dict[str, Any], list[float]]:
    """Fill models/generator/: what generator.json says of the model, metrics, loss by step."""
    if params.train is not None:
        revision, metrics, losses = train(params.train, params.max_length, OUT)
        return {"model": params.model, "revision": revision, "weights": "local"}, metrics, losses
    if not is_here(params.model):
        assert params.revision is not None  # `settings` has seen to it
        revision = resolve_revision("model", params.model, params.revision)
        save_tokenizer(params.model, OUT, revision=revision)
        return {"model": params.model, "revision": revision, "weights": "hub"}, {}, []
    local = find_local(params.model, params.revision, KEY)
    if local.gguf is not None:
        write_model(local.gguf, OUT)
    else:
        save_tokenizer(str(local.folder), OUT)
    where = {"weights": "local"} if local.gguf else {"weights": "folder", "path": str(local.folder)}
    return {"model": local.name, "revision": local.revision, **where}, {}, []


def main() -> str:
    """Make models/generator/; returns the summary line."""
    params = settings()
    clear_folder(OUT)
    model, metrics, losses = provide(params)
    manifest = {**model, "quantisation": params.quantisation, "max_length": params.max_length}
    if params.system_prompt is not None:
        manifest["system_prompt"] = params.system_prompt
    write_text(OUT / "generator.json", json.dumps(manifest, indent=2) + "\n")
    write_metrics("metrics/generator.json", {"model": model["model"], "revision": model["revision"], **metrics})
    points = [f"{step},{loss:.4f}" for step, loss in enumerate(losses, 1)]
    write_text(PLOT, "".join(f"{line}\r\n" for line in ["step,loss", *points]))
    if params.train is None:
        return f"{model['model']} at {model['revision']}"
    return f"{params.model}, {metrics['parameters']:,} parameters, final loss {metrics['final_loss']:.2f}"


if __name__ == "__main__":
    run_stage("generator", main)
