"""export: each trained model as a Hugging Face folder that loads with plain `AutoModelForCausalLM`.

In: models/train/seed-<n>/, the tokenizer files of data/tokenize_corpus/, models/generator/generator.json,
metrics/mix.json.
Out: models/export/seed-<n>/ (model.safetensors, config.json, generation_config.json, tokenizer files, README.md,
training.json; likewise checkpoints/step-<n>/ for the earlier steps that train kept), metrics/export.json.
Contract: the exported model gives the trained one's logits on a fixed input within 1e-4, or the stage fails. For
nanotron these are the logits that nanotron itself computed after training (probe.safetensors). Weights keep their
precision.
Run: python -m stages.export
"""

import json
import shutil
from pathlib import Path
from typing import Any

from cosmopedia.core.errors import DataError
from cosmopedia.core.files import clear_folder, replacing, write_text
from cosmopedia.core.row_counts import write_metrics
from cosmopedia.execution.stage_process import run_stage
from cosmopedia.seeds import checkpoint_folders, seed_folders
from stages.export.card import model_card
from stages.export.hugging_face import read_tokenizer, write_model

TRAINED, TOKENIZER, OUT = Path("models/train"), Path("data/tokenize_corpus"), Path("models/export")
GENERATOR, METRICS = Path("models/generator/generator.json"), Path("metrics/export.json")
MIX = Path("metrics/mix.json")


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object. `DataError` when the file is missing or no JSON."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise DataError(f"{path} is missing; run the stage that writes it (dvc repro), or dvc pull") from None
    except ValueError as error:
        raise DataError(f"{path} is no JSON: {error}; run the stage that writes it again") from None


def export(trained: Path, out: Path, generator: dict[str, Any], components: dict[str, Any]) -> dict[str, Any]:
    """Export one model; returns its metrics. `components`: of what it was trained on, as in metrics/mix.json."""
    from stages.export.logits import compare_logits

    training = read_json(trained / "training.json")
    tokenizer = read_tokenizer(TOKENIZER, training["vocabulary"])
    with replacing(out) as draft:  # a full disk leaves no half model
        parameters = write_model(trained, tokenizer, draft)
        write_text(draft / "README.md", model_card(training, generator, components))
        shutil.copyfile(trained / "training.json", draft / "training.json")
        difference = compare_logits(trained, draft, training["vocabulary"])
        for checkpoint in checkpoint_folders(trained):
            copy = draft / checkpoint.relative_to(trained)
            write_model(checkpoint, tokenizer, copy)
            shutil.copyfile(trained / "training.json", copy / "training.json")
            difference = max(difference, compare_logits(checkpoint, copy, training["vocabulary"]))
    size = sum(path.stat().st_size for path in out.rglob("*") if path.is_file())
    return {"parameters": parameters, "bytes": size, "logits_max_difference": difference}


def settings() -> None:
    """The stage has none."""


def main() -> str:
    folders, generator = seed_folders(TRAINED), read_json(GENERATOR)
    components = read_json(MIX)["components"]
    clear_folder(OUT)
    models = [export(trained, OUT / trained.name, generator, components) for trained in folders]
    metrics = {
        "models": len(models),
        "parameters": models[0]["parameters"],
        "bytes": sum(model["bytes"] for model in models),
        "logits_max_difference": max(model["logits_max_difference"] for model in models),
    }
    write_metrics(METRICS, metrics)
    return (
        f"{len(models)} model(s) of {metrics['parameters'] / 1e6:.1f}M parameters in {OUT}"
        f" ({metrics['bytes'] / 1e6:.1f} MB), logits within {metrics['logits_max_difference']:.1g} of the trained"
    )


if __name__ == "__main__":
    run_stage("export", main)
