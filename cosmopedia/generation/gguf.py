"""A model in one GGUF file (llama.cpp's format) as a folder that servers and tokenizers read.

transformers reads the weights. It makes a tokenizer of another kind of the vocabulary and takes another end of text
(seen with SmolLM2), so tokenizer, special tokens and chat template are written from the file's own fields.
Format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
"""

import json
from functools import partial
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers

from cosmopedia.core.errors import ConfigError
from cosmopedia.core.files import write_text
from cosmopedia.lean_transformers import import_transformers

CONTROL, USER_DEFINED = 3, 4  # tokenizer.ggml.token_type
GPT2_WORDS = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
LLAMA3_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
# How a text is cut before merges apply, by tokenizer.ggml.pre (llama.cpp, src/llama-vocab.cpp).
CUTS: dict[str, list[str]] = {
    "gpt-2": [GPT2_WORDS],
    "smollm": [r"\p{N}", GPT2_WORDS],
    "llama-bpe": [LLAMA3_WORDS],
    "qwen2": [LLAMA3_WORDS.replace(r"\p{N}{1,3}", r"\p{N}")],
}


def fields_of(path: Path) -> dict[str, Any]:
    """The metadata of a GGUF file by name. `ConfigError` when it is none, or lacks what is needed."""
    from gguf import GGUFReader

    try:
        fields = {name: field.contents() for name, field in GGUFReader(path).fields.items()}
    except (ValueError, IndexError, KeyError, OverflowError) as error:
        raise ConfigError(f"{path} is no GGUF file, or is cut short: {' '.join(str(error).split())[:200]}") from None
    kind, pre = fields.get("tokenizer.ggml.model"), fields.get("tokenizer.ggml.pre", "gpt-2")
    if kind != "gpt2" or pre not in CUTS:
        raise ConfigError(
            f"{path} has a tokenizer of kind {kind} / {pre}; byte-level ones with the cuts {', '.join(CUTS)} are read:"
            " take the model's folder of safetensors and tokenizer.json instead"
        )
    if not fields.get("tokenizer.chat_template"):
        raise ConfigError(f"{path} has no chat template; choose an instruction-tuned model")
    return fields


def tokenizer_of(fields: dict[str, Any]) -> Tokenizer:
    """The byte-level BPE tokenizer that a GGUF file describes; its ids are those of the file."""
    tokens, kinds = fields["tokenizer.ggml.tokens"], fields["tokenizer.ggml.token_type"]
    merges = [tuple(merge.split(" ")) for merge in fields["tokenizer.ggml.merges"]]
    tokenizer = Tokenizer(models.BPE({token: i for i, token in enumerate(tokens)}, merges))
    *cuts, words = CUTS[fields.get("tokenizer.ggml.pre", "gpt-2")]
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(  # type: ignore[assignment]
        [
            *(pre_tokenizers.Split(Regex(cut), "isolated") for cut in cuts),
            pre_tokenizers.Split(Regex(words), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()  # type: ignore[assignment]
    for kind, special in ((CONTROL, True), (USER_DEFINED, False)):
        added = [token for token, k in zip(tokens, kinds, strict=True) if k == kind]
        tokenizer.add_tokens([AddedToken(token, special=special, normalized=False) for token in added])
    return tokenizer


def write_model(path: Path, out: Path) -> None:
    """Write the folder: safetensors in 16 bit (what the file held was rounded to 4 to 8), config, tokenizer, chat
    template. `ConfigError` when the file cannot be read."""
    import torch
    from tqdm import tqdm

    import_transformers()
    from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast, modeling_gguf_pytorch_utils

    fields = fields_of(path)
    try:
        # Its own progress bar would be hundreds of lines in a log.
        modeling_gguf_pytorch_utils.tqdm = partial(tqdm, disable=True)  # type: ignore[assignment]
        model = AutoModelForCausalLM.from_pretrained(path.parent, gguf_file=path.name, dtype=torch.float16)
    except (OSError, ValueError, KeyError, NotImplementedError) as error:
        raise ConfigError(f"{path}: transformers cannot read it: {' '.join(str(error).split())[:300]}") from None
    ids = {name: fields.get(f"tokenizer.ggml.{name}_token_id") for name in ("bos", "eos", "padding")}
    tokens = fields["tokenizer.ggml.tokens"]
    settings: tuple[Any, Any] = (model.config, model.generation_config)
    for setting in settings:
        setting.bos_token_id, setting.eos_token_id, setting.pad_token_id = ids["bos"], ids["eos"], ids["padding"]
    model.save_pretrained(out)
    special = {name: tokens[id] for name, id in ids.items() if id is not None}
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer_of(fields),
        bos_token=special.get("bos"),
        eos_token=special.get("eos"),
        pad_token=special.get("padding"),
        model_max_length=model.config.max_position_embeddings,
        model_input_names=["input_ids", "attention_mask"],
        clean_up_tokenization_spaces=False,
    )
    tokenizer.chat_template = fields["tokenizer.chat_template"]
    tokenizer.save_pretrained(out)
    licence = {key: fields[f"general.{key}"] for key in ("name", "license") if f"general.{key}" in fields}
    write_text(out / "gguf.json", json.dumps(licence, indent=2) + "\n")
