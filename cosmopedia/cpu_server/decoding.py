"""Decoders: a transformers model that runs many sequences of different lengths together, one token per step.

`LlamaDecoder` (llama.py) is a forward of our own for the Llama family; sequences join and leave between any two steps.
`StaticDecoder` runs every other architecture through transformers; there, a new batch begins only when the last one is
done.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from cosmopedia.core.errors import ConfigError
from cosmopedia.cpu_features import quick_in_bf16
from cosmopedia.cpu_server.llama import LlamaDecoder, LlamaWeights
from cosmopedia.lean_imports import import_transformers

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

LLAMA_LIKE = ("LlamaForCausalLM", "MistralForCausalLM")
WORKER_SEQUENCES = 8  # that a worker decodes together, at least


class Decoder(Protocol):
    """Live sequences are numbered 0, 1, ... `count - 1`; logits are float32."""

    vocabulary: int

    @property
    def count(self) -> int:
        """How many sequences are live."""
        ...

    def room(self) -> int:
        """How many sequences may join now."""
        ...

    def admit(self, prompts: list[list[int]]) -> None:
        """Let sequences join; steps read their prompts."""
        ...

    def step(self, tokens: Sequence[int | None]) -> tuple[list[int], np.ndarray]:
        """Give each live sequence its next token; None to read on in its prompt, if that is not done.

        Returns the numbers of the sequences that are ready for another one, and their logits, [numbers, vocabulary].
        """
        ...

    def drop(self, number: int) -> None:
        """Let a sequence leave; the last live one takes its number."""
        ...


class StaticDecoder:
    """Any causal model of transformers, in left-padded batches that are admitted all at once."""

    def __init__(self, model: "PreTrainedModel", slots: int):
        self.count, self.slots, self.vocabulary = 0, slots, model.config.get_text_config().vocab_size
        self._model: Any = model
        self._cache: Any = None
        self._prompts: list[list[int]] = []  # not read yet

    def room(self) -> int:
        return 0 if self.count else self.slots

    def admit(self, prompts: list[list[int]]) -> None:
        self.count, self._prompts = len(prompts), prompts

    def step(self, tokens: Sequence[int | None]) -> tuple[list[int], np.ndarray]:
        import torch

        everyone = list(range(self.count))
        if self._prompts:
            return everyone, self._read()
        self._mask = torch.cat([self._mask, torch.ones(self.count, 1, dtype=torch.long)], dim=1)
        return everyone, self._forward(torch.tensor(tokens)[:, None], self._mask.sum(-1, keepdim=True) - 1)

    def drop(self, number: int) -> None:
        import torch

        last = self.count - 1
        rows = [last if i == number else i for i in range(last)]
        self.count = last
        if rows:
            self._cache.batch_select_indices(torch.tensor(rows))
            self._mask = self._mask[rows]

    def _read(self) -> np.ndarray:
        """The logits after the prompts."""
        import torch
        from transformers import DynamicCache

        prompts, self._prompts = self._prompts, []
        longest = max(len(prompt) for prompt in prompts)
        self._mask = torch.tensor([[0] * (longest - len(p)) + [1] * len(p) for p in prompts])
        self._cache = DynamicCache()
        ids = torch.tensor([[0] * (longest - len(p)) + p for p in prompts])
        return self._forward(ids, (self._mask.cumsum(-1) - 1).clamp(min=0))

    def _forward(self, ids: "torch.Tensor", positions: "torch.Tensor") -> np.ndarray:
        """The logits after each sequence's last token."""
        import torch

        with torch.inference_mode():
            output = self._model(
                input_ids=ids,
                attention_mask=self._mask,
                position_ids=positions,
                past_key_values=self._cache,
                use_cache=True,
            )
        return output.logits[:, -1].float().numpy()


def load_model(folder: str, model_id: str, revision: str) -> tuple[Any, Any, set[int], int]:
    """(model, tokenizer, ids that end a text, positions in all) of a model folder.

    A folder without weights gets them from where its generator.json says, a folder or the hub, and so does a `folder`
    that is a hub id itself.
    `ConfigError` when they cannot be loaded.
    """
    import torch

    import_transformers()
    from transformers import AutoModelForCausalLM, AutoTokenizer

    local = Path(folder).is_dir()
    dtype = torch.bfloat16 if quick_in_bf16() else torch.float32
    pinned: Any = {"revision": revision}  # for what comes from the hub
    path = Path(folder) / "generator.json"
    manifest: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    if any(Path(folder).glob("*.safetensors")):
        weights = (folder, {})
    else:
        weights = (manifest["path"], {}) if manifest.get("path") else (model_id if local else folder, pinned)
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, **({} if local else pinned))
        model = AutoModelForCausalLM.from_pretrained(weights[0], **weights[1], dtype=dtype).eval()
    except (OSError, ValueError, KeyError) as error:
        reason = " ".join(str(error).split())[:300]
        raise ConfigError(f"{folder}: model {model_id} at {revision} cannot be loaded: {reason}") from None
    if not tokenizer.is_fast:
        raise ConfigError(f"{folder} has no fast tokenizer (tokenizer.json), which this server needs")
    length = getattr(model.config, "max_position_embeddings", None) or tokenizer.model_max_length
    length = min(length, manifest.get("max_length", length))
    eos: Any = model.generation_config and model.generation_config.eos_token_id
    ends: set[int] = {eos} if isinstance(eos, int) else set(eos or ())
    if tokenizer.eos_token_id is not None:
        ends.add(tokenizer.eos_token_id)
    return model, tokenizer, ends, length


def torch_threads() -> int:
    """Cores that torch would use."""
    import torch

    return torch.get_num_threads()


def plan_workers(threads: int, batch_size: int) -> tuple[int, int]:
    """(workers, threads of each): one worker per core, as long as each has eight sequences to decode together."""
    workers = max(1, min(threads, batch_size // WORKER_SEQUENCES))
    return workers, max(1, threads // workers)


def make_decoders(model: Any, workers: int, batch_size: int) -> list[Decoder]:
    """A decoder per worker over one set of weights, with `batch_size` slots in all; one for other architectures."""
    plain = not getattr(model.config, "sliding_window", None)
    if (model.config.architectures or [""])[0] not in LLAMA_LIKE or not plain:
        return [StaticDecoder(model, batch_size)]
    weights = LlamaWeights(model)
    return [LlamaDecoder(weights, batch_size // workers + (i < batch_size % workers)) for i in range(workers)]
