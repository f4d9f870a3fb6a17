"""Turn the trained model into a Hugging Face folder that loads with plain `AutoModelForCausalLM`.

in   models/train/, the tokenizer files of data/tokenize_corpus/, models/generator/generator.json
out  models/export/ (model.safetensors, config.json, generation_config.json, tokenizer files, README.md,
     training.json), metrics/export.json
The exported model gives the trained one's logits on a fixed input within 1e-4, or the stage fails. Its bytes depend on
content alone: the git revision stands in MLflow, not in the model card.
Alone: python -m stages.export
"""

import json
import shutil
from pathlib import Path
from string import Template
from typing import TYPE_CHECKING, Any

from stages.errors import DataError, InternalError, run_stage
from stages.tables.accounting import write_metrics

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedTokenizerBase

TRAINED, TOKENIZER, OUT = Path("models/train"), Path("data/tokenize_corpus"), Path("models/export")
GENERATOR = Path("models/generator/generator.json")
METRICS = Path("metrics/export.json")
TOLERANCE = 1e-4  # largest difference of a logit, both models in fp32 on the same machine
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
| trained on | $tokens tokens ($epochs epochs) in $steps steps, $precision |
| training loss (last steps) | $train_loss |
| validation loss, perplexity | $validation_loss, $validation_perplexity |

## Lineage

| what | hash |
|---|---|
| corpus (`data/tokenize_corpus/corpus.json`) | `$dataset_hash` |
| training recipe (`train` in params.yaml and the profile) | `$recipe_hash` |

```python
from transformers import AutoModelForCausalLM, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained("models/export")
model = AutoModelForCausalLM.from_pretrained("models/export")
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
    facts |= {"sequence": training["recipe"]["sequence"]}
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


def main() -> str:
    training, generator = read_json(TRAINED / "training.json"), read_json(GENERATOR)
    import torch
    from transformers import AutoModelForCausalLM, GenerationConfig

    tokenizer = read_tokenizer(TOKENIZER, training["vocabulary"])
    model = AutoModelForCausalLM.from_pretrained(TRAINED, dtype=torch.float32)
    shutil.rmtree(OUT, ignore_errors=True)
    OUT.mkdir(parents=True)
    tokenizer.model_max_length = model.config.max_position_embeddings
    model.config.update({"eos_token_id": tokenizer.eos_token_id, "use_cache": True, "torch_dtype": torch.float32})
    model.generation_config = GenerationConfig(
        do_sample=True,
        temperature=0.8,
        top_p=0.95,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.eos_token_id,
    )
    model.save_pretrained(OUT, safe_serialization=True)
    tokenizer.save_pretrained(OUT)
    (OUT / "README.md").write_text(model_card(training, generator), encoding="utf-8")
    shutil.copyfile(TRAINED / "training.json", OUT / "training.json")

    generated = torch.Generator().manual_seed(0)
    probe = torch.randint(0, training["vocabulary"], (PROBE,), generator=generated).view(2, -1)
    difference = (logits(TRAINED, probe) - logits(OUT, probe)).abs().max().item()
    if not difference <= TOLERANCE:
        raise InternalError(
            f"{OUT}: a logit differs from {TRAINED}'s by {difference:.2g}, more than {TOLERANCE:g};"
            " the exported weights are not the trained ones: please report it"
        )
    size = sum(path.stat().st_size for path in OUT.iterdir())
    metrics = {"parameters": model.num_parameters(), "bytes": size, "logits_max_difference": difference}
    write_metrics(METRICS, metrics)
    return (
        f"{metrics['parameters'] / 1e6:.1f}M parameters in {OUT} ({size / 1e6:.1f} MB), logits within {difference:.1g}"
        " of the trained model's"
    )


if __name__ == "__main__":
    run_stage("export", main)
