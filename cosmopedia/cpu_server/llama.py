"""Models of the Llama family on a CPU: many sequences together, one forward per step for new tokens and for prompts.

A step's tokens, one of each text that is written and a piece of the prompts that are read, go through the layers as
the rows of one matrix; each sequence has keys and values of its own, and attends by itself. So a prompt never holds up
the others for longer than `STEP_TOKENS` of it, and what a sequence computes has the same shapes whatever runs with it:
prompts are read in aligned blocks, rows do not mix, and oneDNN's packed product of a row is the same in every batch.
Equal bytes follow (tests/cosmopedia/cpu_server/test_llama.py checks them on the machine that it runs on).

A prompt's beginning that another one had is not computed again: its keys and values are copied from the other's cache,
in whole blocks.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from cosmopedia.cpu_server import kernels

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

GROWTH = 128  # positions by which the caches grow
BLOCK = 16  # tokens of a prompt that attend together, from positions that are multiples of it
STEP_TOKENS = 128  # of prompts, read in one step; a multiple of BLOCK
PACKED_ROWS = 64  # for which oneDNN chooses the weights' layout


class Linear:
    """y = x W' + b, the weight in oneDNN's own layout where there is one: up to 1.6 times as fast for few rows."""

    def __init__(self, weight: "torch.Tensor", bias: "torch.Tensor | None" = None):
        import torch

        self.weight, self.bias = weight, bias
        halves = weight.dtype == torch.bfloat16 and not torch.ops.mkldnn._is_mkldnn_bf16_supported()
        self._packed = torch.backends.mkldnn.is_available() and not halves
        if self._packed:
            self.weight = torch.ops.mkldnn._reorder_linear_weight(weight, PACKED_ROWS)

    def __call__(self, rows: np.ndarray) -> np.ndarray:
        """Both float32, [rows, width in] and [rows, width out]."""
        import torch

        given = torch.from_numpy(rows).to(self.weight.dtype)
        if self._packed:
            found = torch.ops.mkldnn._linear_pointwise(given, self.weight, self.bias, "none", [], "")
        else:
            found = torch.nn.functional.linear(given, self.weight, self.bias)
        return found.float().numpy()


@dataclass
class Layer:
    """The weights of one layer, projections of the same input joined."""

    first_norm: np.ndarray  # float32, like all that is no product of matrices
    query_key_value: Linear
    output: Linear
    second_norm: np.ndarray
    gate_up: Linear
    down: Linear


class LlamaWeights:
    """The weights of a transformers Llama in the layout of `LlamaDecoder`; the model cannot be used after."""

    def __init__(self, model: "PreTrainedModel"):
        import torch

        config: Any = model.config
        body: Any = model.model
        self.vocabulary, self.epsilon = config.vocab_size, np.float32(config.rms_norm_eps)
        self.heads, self.kv_heads = config.num_attention_heads, config.num_key_value_heads
        self.head_size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        with torch.no_grad():
            cos, sin = body.rotary_emb(body.embed_tokens.weight, torch.arange(config.max_position_embeddings)[None])
            half = self.head_size // 2
            sin = torch.cat([-sin[0, :, :half], sin[0, :, half:]], dim=-1)
            self.cos, self.sin = _plain(cos[0]), _plain(sin)
            self.embed, self.norm = body.embed_tokens.weight.detach(), _plain(body.norm.weight)
            self.out = Linear(model.lm_head.weight.detach())  # type: ignore[union-attr]
            self.layers = [_take_layer(layer) for layer in body.layers]


def _take_layer(layer: Any) -> Layer:
    """A layer's weights, taken out of the transformers model so that there is only one copy at a time."""
    attention, mlp = layer.self_attn, layer.mlp
    taken = Layer(
        _plain(layer.input_layernorm.weight),
        _joined(attention.q_proj, attention.k_proj, attention.v_proj),
        _joined(attention.o_proj),
        _plain(layer.post_attention_layernorm.weight),
        _joined(mlp.gate_proj, mlp.up_proj),
        _joined(mlp.down_proj),
    )
    for part in (attention.q_proj, attention.k_proj, attention.v_proj, attention.o_proj, *mlp.children()):
        if hasattr(part, "weight"):
            del part.weight
    return taken


def _plain(weight: "torch.Tensor") -> np.ndarray:
    return weight.detach().float().numpy()


def _joined(*parts: Any) -> Linear:
    import torch

    biases = [part.bias.detach() for part in parts if part.bias is not None]
    return Linear(torch.cat([part.weight.detach() for part in parts]), torch.cat(biases) if biases else None)


@dataclass(eq=False)
class _Sequence:
    """A sequence, or a free slot of the caches, which still has the keys and values of its last prompt."""

    slot: int
    # tokens of a prompt, from the first, whose keys and values are there
    read: list[int] = field(default_factory=list)
    prompt: list[int] = field(default_factory=list)
    started: bool = False  # `read` belongs to `prompt`, and not to the one before
    length: int = 0  # positions that are filled

    @property
    def filled(self) -> int:
        """Positions whose keys and values somebody may want."""
        return max(self.length, len(self.read))

    @property
    def unread(self) -> int:
        """How many tokens of the prompt are still to be read."""
        return len(self.prompt) - (len(self.read) if self.started else 0)

    def keep(self, piece: "_Piece") -> None:
        """A piece's keys and values are in the cache now."""
        if self.unread:
            self.read = self.read + piece.ids
        self.length += len(piece.ids)


@dataclass
class _Piece:
    """Tokens of sequence `number` that go through a step, from `row` of its matrix on."""

    number: int
    sequence: _Sequence
    start: int
    ids: list[int]
    row: int


class LlamaDecoder:
    """Sequences in the order in which they joined, but for `drop`."""

    def __init__(self, weights: LlamaWeights, slots: int):
        import torch

        self.weights, self.slots, self.vocabulary = weights, slots, weights.vocabulary
        self._live: list[_Sequence] = []
        self._free: list[_Sequence] = []
        # By layer, float32 [slots, heads of keys, then of values; room; size]; what is not filled takes no memory.
        shape = (slots, 2 * weights.kv_heads, 0, weights.head_size)
        self._caches = [np.empty(shape, np.float32) for _ in weights.layers]
        # Which positions a block sees: all before it, and in it those up to its own. The queries that share a head of
        # keys follow each other.
        group, positions = weights.heads // weights.kv_heads, len(weights.cos)
        in_block = torch.full((BLOCK, BLOCK), -torch.inf).triu(1)
        before = torch.zeros(BLOCK * group, positions)
        self._mask, self._positions = torch.cat([before, in_block.repeat_interleave(group, 0)], dim=1), positions

    @property
    def count(self) -> int:
        return len(self._live)

    def room(self) -> int:
        return self.slots - self.count

    def admit(self, prompts: list[list[int]]) -> None:
        for prompt in prompts:
            sequence = self._free.pop() if self._free else _Sequence(self.count)
            sequence.prompt, sequence.started, sequence.length = prompt, False, 0
            self._live.append(sequence)

    def step(self, tokens: Sequence[int | None]) -> tuple[list[int], np.ndarray]:
        import torch

        with torch.inference_mode():
            pieces = self._pieces(tokens)
            normed = self._forward(pieces)
            for piece in pieces:
                piece.sequence.keep(piece)
            complete = [piece for piece in pieces if not piece.sequence.unread]
            if not complete:
                return [], np.zeros((0, self.vocabulary), dtype=np.float32)
            logits = self.weights.out(normed[[piece.row + len(piece.ids) - 1 for piece in complete]])
        return [piece.number for piece in complete], logits

    def drop(self, number: int) -> None:
        self._free.append(self._live[number])
        last = self._live.pop()
        if number < len(self._live):
            self._live[number] = last

    def _pieces(self, tokens: Sequence[int | None]) -> list[_Piece]:
        """What this step computes: every new token, and prompts in order until `STEP_TOKENS` of them are in it."""
        pieces: list[_Piece] = []
        row, left = 0, STEP_TOKENS
        for number, (sequence, token) in enumerate(zip(self._live, tokens, strict=True)):
            ids = [token] if token is not None else []
            if token is None and left and (sequence.started or self._begin(sequence, pieces)):
                ids = sequence.prompt[sequence.length : sequence.length + left]
                if len(ids) < sequence.unread:
                    ids = ids[: len(ids) // BLOCK * BLOCK]
                left = max(0, left - -(-len(ids) // BLOCK) * BLOCK)
            if ids:
                pieces.append(_Piece(number, sequence, sequence.length, ids, row))
                row += len(ids)
        self._make_room(max((piece.start + len(piece.ids) for piece in pieces), default=0))
        return pieces

    def _begin(self, sequence: _Sequence, pieces: list[_Piece]) -> bool:
        """Begin to read a prompt, after what its beginning shares with one that was read, whose cache is copied.

        False when the step itself reads more that it shares: then it is quicker to begin in the next one.
        """
        prompt = sequence.prompt
        others = [sequence, *(other for other in (*self._live, *self._free) if other is not sequence)]
        blocks = [_shared_blocks(prompt, other.read) for other in others]
        most = max(blocks)
        if any(_shared_blocks(prompt, p.sequence.prompt[: p.start + len(p.ids)]) > most for p in pieces):
            return False
        best, length = others[blocks.index(most)], most * BLOCK
        sequence.started, sequence.length, sequence.read = True, length, prompt[:length]
        if length and best is not sequence:
            for cache in self._caches:
                cache[sequence.slot, :, :length] = cache[best.slot, :, :length]
        return True

    def _make_room(self, length: int) -> None:
        """Let each slot have room for so many positions, in steps of `GROWTH`."""
        slots, heads, room, size = self._caches[0].shape
        if length <= room:
            return
        room = -(-length // GROWTH) * GROWTH
        for number, cache in enumerate(self._caches):
            self._caches[number] = np.empty((slots, heads, room, size), np.float32)
            for sequence in (*self._live, *self._free):
                self._caches[number][sequence.slot, :, : sequence.filled] = cache[sequence.slot, :, : sequence.filled]

    def _forward(self, pieces: list[_Piece]) -> np.ndarray:
        """The last hidden states of all tokens, after the last norm: float32 [tokens, hidden size]."""
        weights = self.weights
        hidden = weights.embed[[token for piece in pieces for token in piece.ids]].float().numpy()
        places = [(piece.start + i, piece.sequence.slot) for piece in pieces for i in range(len(piece.ids))]
        positions, slots = np.array(places).T.copy()
        single = np.array([piece.row for piece in pieces if len(piece.ids) == 1], dtype=np.int64)
        longer = [piece for piece in pieces if len(piece.ids) > 1]
        normed, more = np.empty_like(hidden), np.zeros_like(hidden)
        mixed = np.empty((len(hidden), weights.heads, weights.head_size), np.float32)
        for layer, cache in zip(weights.layers, self._caches, strict=True):
            kernels.add_and_norm(hidden, more, layer.first_norm, weights.epsilon, normed)
            joint = layer.query_key_value(normed).reshape(len(hidden), -1, weights.head_size)
            kernels.place(joint, weights.cos, weights.sin, positions, slots, cache)
            kernels.attend(joint, cache, single, positions, slots, mixed)
            for piece in longer:
                self._attend(piece, joint, cache, mixed)
            more = layer.output(mixed.reshape(len(hidden), -1))
            kernels.add_and_norm(hidden, more, layer.second_norm, weights.epsilon, normed)
            gate_up = layer.gate_up(normed)
            inner = np.empty((len(hidden), gate_up.shape[1] // 2), np.float32)
            kernels.swiglu(gate_up, inner)
            more = layer.down(inner)
        kernels.add_and_norm(hidden, more, weights.norm, weights.epsilon, normed)
        return normed

    def _attend(self, piece: _Piece, joint: np.ndarray, cache: np.ndarray, mixed: np.ndarray) -> None:
        """A prompt's tokens attend to those of its sequence, a block at a time."""
        import torch
        import torch.nn.functional as F

        heads, kv_heads, size = self.weights.heads, self.weights.kv_heads, self.weights.head_size
        group = heads // kv_heads
        stored, queries = torch.from_numpy(cache[None, piece.sequence.slot]), torch.from_numpy(joint[:, :heads])
        for first in range(0, len(piece.ids), BLOCK):
            some, before = min(BLOCK, len(piece.ids) - first), piece.start + first
            rows = slice(piece.row + first, piece.row + first + some)
            query = queries[rows].view(some, kv_heads, group, size).transpose(0, 1).reshape(kv_heads, -1, size)
            seen = stored[:, :, : before + some]
            mask = self._mask[: some * group, self._positions - before : self._positions + some]
            answer = F.scaled_dot_product_attention(
                query[None], seen[:, :kv_heads], seen[:, kv_heads:], attn_mask=None if some == 1 else mask
            )
            answer = answer[0].view(kv_heads, some, group, size).transpose(0, 1).reshape(some, heads, size)
            mixed[rows] = answer.numpy()


def _shared_blocks(prompt: list[int], other: list[int]) -> int:
    """How many whole blocks two lists begin with in common; the prompt's last token is in none of them."""
    most = min(len(prompt) - 1, len(other)) // BLOCK
    for number in range(most):
        part = slice(number * BLOCK, (number + 1) * BLOCK)
        if prompt[part] != other[part]:
            return number
    return most
