"""Decoders: a transformers model that runs many sequences of different lengths together, one token per step.

`LlamaDecoder` is a lean forward for the Llama family, with the weights and logits of the transformers model: for
a model of a few million parameters, transformers' own forward spends most of a step in Python. Sequences join and
leave between any two steps. `StaticDecoder` runs every other architecture through transformers; there, a new batch
begins only when the last one is done.
"""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from cosmopedia.errors import ConfigError

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

LLAMA_LIKE = ("LlamaForCausalLM", "MistralForCausalLM")
GROWTH = 128  # positions by which the cache grows
WORKER_SEQUENCES = 8  # that a worker decodes together, at least


class Decoder(Protocol):
    """Live sequences are numbered 0, 1, ... `count - 1`; logits are float32."""

    count: int
    vocabulary: int

    def room(self) -> int:
        """How many sequences may join now."""
        ...

    def admit(self, prompts: list[list[int]]) -> np.ndarray:
        """Let sequences join; the logits after each one's prompt, [prompts, vocabulary]."""
        ...

    def step(self, tokens: list[int]) -> np.ndarray:
        """Give each live sequence its next token; the logits that follow, [count, vocabulary]."""
        ...

    def drop(self, number: int) -> None:
        """Let a sequence leave; the last live one takes its number."""
        ...


class LlamaWeights:
    """The weights of a transformers Llama, projections of the same input joined; the model cannot be used after."""

    def __init__(self, model: "PreTrainedModel"):
        import torch

        config: Any = model.config
        body: Any = model.model
        self.vocabulary, self.epsilon = config.vocab_size, config.rms_norm_eps
        self.heads, self.kv_heads = config.num_attention_heads, config.num_key_value_heads
        self.head_size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        self.embed, self.norm, self.out = body.embed_tokens.weight, body.norm.weight, model.lm_head.weight  # type: ignore[union-attr]
        self.layers = []
        for layer in body.layers:
            attention, mlp = layer.self_attn, layer.mlp
            projections = (attention.q_proj, attention.k_proj, attention.v_proj)
            biases = [p.bias for p in projections]
            self.layers.append(
                (
                    layer.input_layernorm.weight,
                    torch.cat([p.weight for p in projections]),
                    torch.cat(biases) if biases[0] is not None else None,
                    attention.o_proj,
                    layer.post_attention_layernorm.weight,
                    torch.cat([mlp.gate_proj.weight, mlp.up_proj.weight]),
                    mlp.down_proj,
                )
            )
            for part in (*projections, mlp.gate_proj, mlp.up_proj):
                del part.weight
        with torch.inference_mode():
            cos, sin = body.rotary_emb(self.embed, torch.arange(config.max_position_embeddings)[None])
            half = self.head_size // 2
            self.cos, self.sin = cos[0], torch.cat([-sin[0, :, :half], sin[0, :, half:]], dim=-1)


class LlamaDecoder:
    """Slots of a key-value cache, filled from the front: slot i holds sequence i."""

    def __init__(self, weights: LlamaWeights, slots: int):
        import torch

        self.weights, self.count, self.slots, self.vocabulary = weights, 0, slots, weights.vocabulary
        self._lengths = torch.zeros(slots, dtype=torch.long)
        self._keys: list[torch.Tensor] = []
        self._values: list[torch.Tensor] = []
        self._grow(GROWTH)

    def room(self) -> int:
        return self.slots - self.count

    def admit(self, prompts: list[list[int]]) -> np.ndarray:
        return np.stack([self._prefill(prompt) for prompt in prompts])

    def step(self, tokens: list[int]) -> np.ndarray:
        import torch
        import torch.nn.functional as F

        n = self.count
        with torch.inference_mode():
            positions = self._lengths[:n]
            longest = int(positions.max()) + 1
            self._grow(longest)
            rows = torch.arange(n)
            past = torch.arange(longest) <= positions[:, None]
            mask = torch.where(past, 0.0, -torch.inf).to(self.weights.embed.dtype)
            cos, sin = self.weights.cos[positions][:, None], self.weights.sin[positions][:, None]
            hidden = F.embedding(torch.tensor(tokens), self.weights.embed)
            for layer, keys, values in zip(self.weights.layers, self._keys, self._values, strict=True):
                query, key, value = self._project(hidden, layer, cos, sin)
                keys[rows, :, positions] = key
                values[rows, :, positions] = value
                mixed = F.scaled_dot_product_attention(
                    query[:, :, None],
                    keys[:n, :, :longest],
                    values[:n, :, :longest],
                    attn_mask=mask[:, None, None],
                    enable_gqa=self.weights.heads != self.weights.kv_heads,
                )
                hidden = self._feed(hidden, mixed.reshape(n, -1), layer)
            self._lengths[:n] += 1
            return self._logits(hidden)

    def drop(self, number: int) -> None:
        import torch

        last = self.count - 1
        with torch.inference_mode():
            if number != last:
                length = int(self._lengths[last])
                for cache in (*self._keys, *self._values):
                    cache[number, :, :length] = cache[last, :, :length]
                self._lengths[number] = length
        self.count = last

    def _prefill(self, prompt: list[int]) -> np.ndarray:
        import torch
        import torch.nn.functional as F

        slot, length = self.count, len(prompt)
        with torch.inference_mode():
            self._grow(length)
            cos, sin = self.weights.cos[:length, None], self.weights.sin[:length, None]
            hidden = F.embedding(torch.tensor(prompt), self.weights.embed)
            for layer, keys, values in zip(self.weights.layers, self._keys, self._values, strict=True):
                query, key, value = (part.transpose(0, 1) for part in self._project(hidden, layer, cos, sin))
                keys[slot, :, :length] = key
                values[slot, :, :length] = value
                mixed = F.scaled_dot_product_attention(
                    query[None],
                    key[None],
                    value[None],
                    is_causal=True,
                    enable_gqa=self.weights.heads != self.weights.kv_heads,
                )
                hidden = self._feed(hidden, mixed[0].transpose(0, 1).reshape(length, -1), layer)
            self._lengths[slot] = length
            self.count += 1
            return self._logits(hidden[-1:])[0]

    def _project(self, hidden: "torch.Tensor", layer: tuple, cos: "torch.Tensor", sin: "torch.Tensor") -> tuple:
        """Rotated queries and keys, and values; [tokens, heads, head size] each."""
        import torch.nn.functional as F

        norm, weight, bias = layer[:3]
        joint = F.linear(F.rms_norm(hidden, norm.shape, norm, self.weights.epsilon), weight, bias)
        joint = joint.view(len(hidden), self.weights.heads + 2 * self.weights.kv_heads, self.weights.head_size)
        rotary = joint[:, : self.weights.heads + self.weights.kv_heads]
        rotated = rotary * cos + rotary.roll(self.weights.head_size // 2, dims=-1) * sin
        return (
            rotated[:, : self.weights.heads],
            rotated[:, self.weights.heads :],
            joint[:, self.weights.heads + self.weights.kv_heads :],
        )

    def _feed(self, hidden: "torch.Tensor", mixed: "torch.Tensor", layer: tuple) -> "torch.Tensor":
        import torch.nn.functional as F

        output, norm, weight, down = layer[3:]
        hidden = hidden + output(mixed)
        gate, up = F.linear(F.rms_norm(hidden, norm.shape, norm, self.weights.epsilon), weight).chunk(2, dim=-1)
        return hidden + down(F.silu(gate) * up)

    def _logits(self, hidden: "torch.Tensor") -> np.ndarray:
        import torch.nn.functional as F

        return (
            F.linear(
                F.rms_norm(hidden, self.weights.norm.shape, self.weights.norm, self.weights.epsilon), self.weights.out
            )
            .float()
            .numpy()
        )

    def _grow(self, length: int) -> None:
        import torch

        have = self._keys[0].shape[2] if self._keys else 0
        if length <= have:
            return
        size = -(-length // GROWTH) * GROWTH
        for cache in (self._keys, self._values):
            old = list(cache)
            cache.clear()
            for layer in range(len(self.weights.layers)):
                new = torch.zeros(
                    self.slots, self.weights.kv_heads, size, self.weights.head_size, dtype=self.weights.embed.dtype
                )
                if old:
                    new[:, :, :have] = old[layer]
                cache.append(new)


class StaticDecoder:
    """Any causal model of transformers, in left-padded batches that are admitted all at once."""

    def __init__(self, model: "PreTrainedModel", slots: int):
        self.count, self.slots, self.vocabulary = 0, slots, model.config.get_text_config().vocab_size
        self._model: Any = model
        self._cache: Any = None

    def room(self) -> int:
        return 0 if self.count else self.slots

    def admit(self, prompts: list[list[int]]) -> np.ndarray:
        import torch
        from transformers import DynamicCache

        longest = max(len(prompt) for prompt in prompts)
        self._mask = torch.tensor([[0] * (longest - len(p)) + [1] * len(p) for p in prompts])
        self.count, self._cache = len(prompts), DynamicCache()
        ids = torch.tensor([[0] * (longest - len(p)) + p for p in prompts])
        return self._forward(ids, (self._mask.cumsum(-1) - 1).clamp(min=0))

    def step(self, tokens: list[int]) -> np.ndarray:
        import torch

        self._mask = torch.cat([self._mask, torch.ones(self.count, 1, dtype=torch.long)], dim=1)
        return self._forward(torch.tensor(tokens)[:, None], self._mask.sum(-1, keepdim=True) - 1)

    def drop(self, number: int) -> None:
        import torch

        last = self.count - 1
        rows = [last if i == number else i for i in range(last)]
        self.count = last
        if rows:
            self._cache.batch_select_indices(torch.tensor(rows))
            self._mask = self._mask[rows]

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
    from transformers import AutoModelForCausalLM, AutoTokenizer

    local = Path(folder).is_dir()
    pinned: Any = {"revision": revision}  # for what comes from the hub
    path = Path(folder) / "generator.json"
    manifest: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    if any(Path(folder).glob("*.safetensors")):
        weights = (folder, {})
    else:
        weights = (manifest["path"], {}) if manifest.get("path") else (model_id if local else folder, pinned)
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, **({} if local else pinned))
        model = AutoModelForCausalLM.from_pretrained(weights[0], **weights[1], dtype=torch.float32).eval()
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
