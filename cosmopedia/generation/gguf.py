"""A model in one GGUF file (llama.cpp's format) as a folder that servers and tokenizers read.

transformers reads the weights. It makes a tokenizer of another kind of the vocabulary and takes another end of text
(seen with SmolLM2), so tokenizer, special tokens and chat template are written from the file's own fields.
Format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
"""

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any
from unittest.mock import patch

import numpy as np
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers
from tqdm import tqdm

from cosmopedia.core.errors import ConfigError
from cosmopedia.core.files import write_text
from cosmopedia.lean_imports import import_transformers

if TYPE_CHECKING:
    from gguf import GGUFReader

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


def read_gguf(path: Path) -> "GGUFReader":
    """A GGUF file: fields and tensors. `ConfigError` when it is none, or is cut short."""
    from gguf import GGUFReader, GGUFValueType

    class Reader(GGUFReader):
        """gguf's own makes two or three views of a memory map for each element of an array: seconds for a
        vocabulary and its merges."""

        def _get_field_parts(self, orig_offs: int, raw_type: int) -> tuple[int, list[Any], list[int], list[Any]]:
            if raw_type != GGUFValueType.ARRAY or self.byte_order != "I":
                return super()._get_field_parts(orig_offs, raw_type)
            kind, count = self._get(orig_offs, np.uint32), self._get(orig_offs + 4, np.uint64)
            element, start = GGUFValueType(kind[0]), orig_offs + 12
            if element == GGUFValueType.STRING:
                parts, end = _strings(self.data, start, int(count[0]))
            elif element in self.gguf_scalar_to_np:
                values = np.asarray(self._get(start, self.gguf_scalar_to_np[element], int(count[0])))
                parts, end = list(values.reshape(-1, 1)), start + values.nbytes
            else:
                return super()._get_field_parts(orig_offs, raw_type)
            types = [GGUFValueType.ARRAY, element]
            return end - orig_offs, [kind, count, *parts], list(range(2, 2 + len(parts))), types

    try:
        return Reader(path)
    except (ValueError, IndexError, KeyError, OverflowError) as error:
        raise ConfigError(f"{path} is no GGUF file, or is cut short: {' '.join(str(error).split())[:200]}") from None


def _strings(data: np.ndarray, start: int, count: int) -> tuple[list[memoryview], int]:
    """`count` strings from byte `start` of a file on, each behind its length, and where they end."""
    view, parts, at = data.data, [], start
    for _ in range(count):
        end = at + 8 + int.from_bytes(view[at : at + 8], sys.byteorder)
        if end > len(view):
            raise ValueError(f"a string of {end - at - 8} bytes begins at byte {at} of {len(view)}")
        parts.append(view[at + 8 : end])
        at = end
    return parts, at


def fields_of(reader: "GGUFReader") -> dict[str, Any]:
    """The metadata of a GGUF file by name. `ConfigError` when it lacks what is needed."""
    path = reader.data.filename
    fields = {name: field.contents() for name, field in reader.fields.items()}
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


@contextmanager
def read_once(reader: "GGUFReader") -> Iterator[None]:
    """In the block transformers takes what `reader` has read.

    On its own it reads the file for the configuration and again for the weights, lists the names of all tensors for
    each module of the model, and holds the weights in 32 bit.
    """
    import gguf
    from transformers import modeling_gguf_pytorch_utils

    def dequantize(data: np.ndarray, kind: gguf.GGMLQuantizationType) -> np.ndarray:
        weights = gguf.quants.dequantize(data, kind)
        # Matrices are only moved about before they are written in 16 bit; some models' norms, in 32 bit, are not.
        return weights if kind == gguf.GGMLQuantizationType.F32 else weights.astype(np.float16)

    def same(_: str) -> "GGUFReader":
        return reader

    for name in ("merges", "scores", "token_type"):  # of the tokenizer, which is not its business here
        reader.fields.pop(f"tokenizer.ggml.{name}", None)
    with (
        patch.multiple(
            gguf, GGUFReader=same, dequantize=dequantize, get_tensor_name_map=cache(gguf.get_tensor_name_map)
        ),
        # Its own progress bar would be hundreds of lines in a log.
        patch.object(modeling_gguf_pytorch_utils, "tqdm", partial(tqdm, disable=True)),
    ):
        yield


def write_model(path: Path, out: Path) -> None:
    """Write the folder: safetensors in 16 bit (what the file held was rounded to 4 to 8), config, tokenizer, chat
    template. `ConfigError` when the file cannot be read."""
    import torch

    import_transformers()
    from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

    reader = read_gguf(path)
    fields = fields_of(reader)
    try:
        with read_once(reader):
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
