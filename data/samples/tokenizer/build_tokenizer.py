"""Make tokenizer.json: the small tokenizer that the rehearsal's corpus and trained model use.

SmolLM2's own has 49,152 tokens, and a model of 3M parameters would be three quarters embeddings. This one learns 4,096
from the texts of the samples, benchmark items apart. The result is committed: with another tokenizer every corpus has
other token counts and another loss, and two runs could not be compared.
Run from the repository's root: python data/samples/tokenizer/build_tokenizer.py
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

SAMPLES = Path(__file__).parents[1]
SOURCES = ("web", "stanford", "khanacademy", "openstax", "wikihow", "automathtext", "ultrachat", "openhermes")
VOCABULARY, EOS, PAD = 4096, "<|endoftext|>", "<|pad|>"


def strings(value: Any) -> Iterator[str]:
    """Every text with a space in a JSON value: titles and passages, no ids or URLs."""
    if isinstance(value, str):
        if " " in value:
            yield value
    elif isinstance(value, dict | list):
        for item in value.values() if isinstance(value, dict) else value:
            yield from strings(item)


def texts() -> Iterator[str]:
    """The texts of the samples and of the generator's pieces."""
    for path in sorted(path for source in SOURCES for path in (SAMPLES / source).iterdir()):
        content = path.read_text(encoding="utf-8")
        if path.suffix == ".json":
            yield from strings(json.loads(content))
        else:
            for line in content.splitlines():
                yield from strings(json.loads(line) if path.suffix == ".jsonl" else line)
    for line in (SAMPLES / "generator/pieces.jsonl").read_text(encoding="utf-8").splitlines():
        yield from strings(json.loads(line))


def main() -> None:
    """Train and write it."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(  # type: ignore[assignment]
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()  # type: ignore[assignment]
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY, special_tokens=[EOS, PAD], initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(sorted(texts()), trainer)
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=EOS,
        eos_token=EOS,
        pad_token=PAD,
        clean_up_tokenization_spaces=False,
    ).save_pretrained(SAMPLES / "tokenizer")


if __name__ == "__main__":
    main()
