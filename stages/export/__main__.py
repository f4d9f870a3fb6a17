"""Turn each trained model into a Hugging Face folder that loads with plain `AutoModelForCausalLM`.

in   models/train/seed-<n>/, the tokenizer files of data/tokenize_corpus/, models/generator/generator.json
out  models/export/seed-<n>/ (model.safetensors, config.json, generation_config.json, tokenizer files, README.md,
     training.json), metrics/export.json
The exported model gives the trained one's logits on a fixed input within 1e-4, or the stage fails. For nanotron the
logits are those that nanotron itself computed when it had trained (probe.safetensors). Weights keep their precision.
Alone: python -m stages.export
"""

import json
import shutil
from pathlib import Path
from string import Template
from typing import TYPE_CHECKING, Any

import yaml

from cosmopedia.errors import DataError, InternalError, run_stage
from cosmopedia.lineage import git_revision
from cosmopedia.tables.row_counts import write_metrics

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedTokenizerBase

TRAINED, TOKENIZER, OUT = Path("models/train"), Path("data/tokenize_corpus"), Path("models/export")
GENERATOR = Path("models/generator/generator.json")
METRICS = Path("metrics/export.json")
TOLERANCE = 1e-4  # largest difference of a logit, both models in fp32 on the same machine
TRAINER_LOGITS = "probe.safetensors"  # that nanotron left: ids [2, tokens], logits [2, tokens, vocabulary] in fp32
PROBE = 2 * 64  # tokens of the fixed input: two sequences

CARD = Template("""---
library_name: transformers
pipeline_tag: text-generation
license: apache-2.0
language: [en]
tags: [synthetic-data, cosmopedia]
---

# Cosmopedia model

A Llama of $parameters parameters, trained from scratch on a synthetic corpus: textbooks, blog posts, WikiHow articles,
stories and forum posts that **$generator** (revision `$generator_revision`) wrote. It is a base model: it continues
text and follows no instructions.

| | |
|---|---|
| layers, width, heads (kv) | $layers, $width, $heads ($kv_heads) |
| vocabulary | $vocabulary |
| training window | $sequence tokens |
| corpus | $documents documents, $corpus_tokens tokens |
| trained on | $tokens tokens ($epochs epochs) in $steps steps by $backend, $precision, seed $seed |
| training loss (last steps) | $train_loss |
| validation loss, perplexity | $validation_loss, $validation_perplexity |

## Lineage

| what | hash |
|---|---|
| corpus (`data/tokenize_corpus/corpus.json`) | `$dataset_hash` |
| training recipe (`train` in params.yaml and the profile) | `$recipe_hash` |
| code (git) | `$git_revision` |

```yaml
$recipe_text```

```python
from transformers import AutoModelForCausalLM, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained("models/export/seed-$seed")
model = AutoModelForCausalLM.from_pretrained("models/export/seed-$seed")
inputs = tokenizer("The water cycle begins when", return_tensors="pt")
print(tokenizer.decode(model.generate(**inputs, max_new_tokens=60)[0]))
```

## Limits

The corpus was written by a model and may hold errors, which this model repeats with confidence. It was not tuned for
safety. Benchmark items were removed from the corpus by 10-gram overlap (stage `decontaminate`).
""")


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object. `DataError` when the file is missing or no JSON."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise DataError(f"{path} is missing; run the stage that writes it (dvc repro), or dvc pull") from None
    except ValueError as error:
        raise DataError(f"{path} is no JSON: {error}; run the stage that writes it again") from None


def model_card(training: dict[str, Any], generator: dict[str, Any]) -> str:
    """README.md of the exported folder, from what training and the generator say of themselves."""

    def shown(value: Any) -> str:
        if value is None:
            return "-"
        return f"{value:,}" if isinstance(value, int) else f"{value:.4g}" if isinstance(value, float) else str(value)

    facts = {k: v for k, v in training.items() if k != "recipe"} | training["recipe"]["architecture"]
    facts |= {"sequence": training["recipe"]["sequence"], "seed": training["recipe"]["seed"]}
    facts |= {"git_revision": git_revision(), "recipe_text": yaml.safe_dump(training["recipe"], sort_keys=False)}
    facts |= {"generator": generator["model"], "generator_revision": generator["revision"]}
    return CARD.substitute({name: shown(value) for name, value in facts.items()})


def read_tokenizer(folder: Path, vocabulary: int) -> "PreTrainedTokenizerBase":
    """The tokenizer that made the corpus, without a chat template: the model is no chat model."""
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(folder)
    except (OSError, ValueError) as error:
        raise DataError(
            f"{folder} holds no tokenizer: {' '.join(str(error).split())[:200]}; repeat tokenize_corpus"
        ) from None
    if (size := max(tokenizer.get_vocab().values()) + 1) != vocabulary:
        raise DataError(
            f"{folder}: the tokenizer has {size} tokens, but {TRAINED} was trained with {vocabulary};"
            " repeat tokenize_corpus and train"
        )
    tokenizer.chat_template = None
    return tokenizer


def logits(folder: Path, probe: "torch.Tensor") -> "torch.Tensor":
    """The logits of the model in a folder on the probe, in fp32."""
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    with torch.no_grad():
        return model(input_ids=probe, use_cache=False).logits


def seeds_in(folder: Path) -> list[Path]:
    """The folders of the trained models, in the order of their seeds. `DataError` when there is none."""
    found = sorted(folder.glob("seed-*"), key=lambda path: int(path.name.removeprefix("seed-")))
    if not found:
        raise DataError(f"{folder} holds no trained model (seed-<n>/); run `dvc repro train`, or dvc pull")
    return found


def difference(trained: Path, out: Path, vocabulary: int) -> float:
    """The largest difference of a logit between the trained model and the exported one, both in fp32."""
    import torch
    from safetensors.torch import load_file

    if (trained / TRAINER_LOGITS).is_file():
        known = load_file(trained / TRAINER_LOGITS)
        probe, wanted = known["ids"], known["logits"]
    else:
        generated = torch.Generator().manual_seed(0)
        probe = torch.randint(0, vocabulary, (PROBE,), generator=generated).view(2, -1)
        wanted = logits(trained, probe)
    return (wanted - logits(out, probe)).abs().max().item()


def export(trained: Path, out: Path, generator: dict[str, Any]) -> dict[str, Any]:
    """Export one model; returns its metrics."""
    training = read_json(trained / "training.json")
    from transformers import AutoModelForCausalLM, GenerationConfig

    tokenizer = read_tokenizer(TOKENIZER, training["vocabulary"])
    model = AutoModelForCausalLM.from_pretrained(trained, dtype="auto")
    out.mkdir(parents=True)
    tokenizer.model_max_length = model.config.max_position_embeddings
    model.config.update({"eos_token_id": tokenizer.eos_token_id, "use_cache": True})
    model.generation_config = GenerationConfig(
        do_sample=True,
        temperature=0.8,
        top_p=0.95,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.eos_token_id,
    )
    model.save_pretrained(out, safe_serialization=True)
    tokenizer.save_pretrained(out)
    (out / "README.md").write_text(model_card(training, generator), encoding="utf-8")
    shutil.copyfile(trained / "training.json", out / "training.json")
    differ = difference(trained, out, training["vocabulary"])
    if not differ <= TOLERANCE:
        raise InternalError(
            f"{out}: a logit differs from {trained}'s by {differ:.2g}, more than {TOLERANCE:g};"
            " the exported weights are not the trained ones: please report it"
        )
    size = sum(path.stat().st_size for path in out.iterdir())
    return {"parameters": model.num_parameters(), "bytes": size, "logits_max_difference": differ}


def main() -> str:
    found, generator = seeds_in(TRAINED), read_json(GENERATOR)
    shutil.rmtree(OUT, ignore_errors=True)
    each = [export(trained, OUT / trained.name, generator) for trained in found]
    metrics = {
        "models": len(each),
        "parameters": each[0]["parameters"],
        "bytes": sum(one["bytes"] for one in each),
        "logits_max_difference": max(one["logits_max_difference"] for one in each),
    }
    write_metrics(METRICS, metrics)
    return (
        f"{len(each)} model(s) of {metrics['parameters'] / 1e6:.1f}M parameters in {OUT}"
        f" ({metrics['bytes'] / 1e6:.1f} MB), logits within {metrics['logits_max_difference']:.1g} of the trained"
    )


if __name__ == "__main__":
    run_stage("export", main)
