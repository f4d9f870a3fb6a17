"""The decoder for Llama models: a sequence's bytes are its own, whoever shares the batch and whatever is copied."""

from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch

from cosmopedia.cpu_server import kernels, llama
from cosmopedia.cpu_server.llama import BLOCK, STEP_TOKENS, Linear, LlamaDecoder, LlamaWeights
from tests.support.tiny_llama import tiny_llama

pytestmark = pytest.mark.slow  # torch and transformers
VOCABULARY = 331


def small_llama(dtype: torch.dtype = torch.float32) -> Any:
    """SmolLM2's shape (grouped heads of 64, tied embeddings), smaller."""
    return tiny_llama(
        3,
        hidden_size=192,
        intermediate_size=512,
        num_hidden_layers=3,
        vocab_size=VOCABULARY,
        num_attention_heads=6,
        num_key_value_heads=2,
        head_dim=64,
        max_position_embeddings=512,
        initializer_range=0.1,
    ).to(dtype)


@pytest.fixture(scope="module")
def weights() -> LlamaWeights:
    return LlamaWeights(small_llama())


def some_prompts(count: int, head: int = 70) -> list[list[int]]:
    """Prompts of many lengths that begin alike."""
    rng = np.random.default_rng(7)
    start = rng.integers(0, VOCABULARY, head).tolist()
    return [start + rng.integers(0, VOCABULARY, int(rng.integers(1, 200))).tolist() for _ in range(count)]


def written(decoder: LlamaDecoder, prompts: list[list[int]], new: int) -> list[np.ndarray]:
    """The logits of `new` greedy steps after each prompt, which are done at different times."""
    first = decoder.count
    decoder.admit(prompts)
    logits: list[list[np.ndarray]] = [[] for _ in prompts]
    tokens: list[int | None] = [None] * decoder.count
    while any(len(one) < new for one in logits):
        numbers, rows = decoder.step(tokens)
        tokens = [None] * decoder.count
        for number, row in zip(numbers, rows, strict=True):
            logits[number - first].append(row.copy())
            if len(logits[number - first]) < new:
                tokens[number] = int(row.argmax())
    return [np.stack(one) for one in logits]


def test_a_sequence_has_the_same_bytes_alone_and_in_every_batch(weights: LlamaWeights) -> None:
    prompts = some_prompts(9)
    alone = [written(LlamaDecoder(weights, 1), [prompt], 20)[0] for prompt in prompts]
    for order in ([*range(9)], [8, 3, 1], [*range(8, -1, -1), 2, 2]):
        together = written(LlamaDecoder(weights, len(order)), [prompts[i] for i in order], 20)
        for i, logits in zip(order, together, strict=True):
            assert logits.tobytes() == alone[i].tobytes()


def test_what_prompts_share_is_read_once_and_changes_no_byte(
    weights: LlamaWeights, monkeypatch: pytest.MonkeyPatch
) -> None:
    prompts, read = some_prompts(6), []
    alone = [written(LlamaDecoder(weights, 1), [prompt], 3)[0] for prompt in prompts]
    forward = LlamaDecoder._forward

    def counted(decoder: LlamaDecoder, pieces: list[Any]) -> Any:
        read.append(sum(len(piece.ids) for piece in pieces))
        return forward(decoder, pieces)

    monkeypatch.setattr(LlamaDecoder, "_forward", counted)
    decoder = LlamaDecoder(weights, 6)
    for got, want in zip(written(decoder, prompts, 3), alone, strict=True):
        assert got.tobytes() == want.tobytes()
    shared = 70 // BLOCK * BLOCK
    assert sum(read) == sum(map(len, prompts)) - 5 * shared + 6 * 2
    # The caches of sequences that have left are used too, and the same prompt again costs its last block.
    for _ in range(6):
        decoder.drop(0)
    read.clear()
    for got, want in zip(written(decoder, prompts[:1], 3), alone, strict=False):
        assert got.tobytes() == want.tobytes()
    assert sum(read) <= BLOCK + 2


def test_a_long_prompt_does_not_hold_up_those_that_are_written(weights: LlamaWeights) -> None:
    decoder, rng = LlamaDecoder(weights, 3), np.random.default_rng(2)
    written(decoder, [[5, 6]], 1)
    long = rng.integers(0, VOCABULARY, 3 * STEP_TOKENS).tolist()
    decoder.admit([long])
    ready = [decoder.step([7, None])[0] for _ in range(3)]
    assert ready == [[0], [0], [0, 1]]


@pytest.mark.parametrize(("rows_in", "rows_out"), [(576, 960), (576, 3072), (1536, 576), (576, 5000)])
def test_a_product_of_a_row_is_the_same_in_every_batch(rows_in: int, rows_out: int) -> None:
    torch.manual_seed(1)
    rows, weight = torch.randn(300, rows_in).numpy(), torch.randn(rows_out, rows_in) / 30
    linear = Linear(weight.clone())
    with torch.inference_mode():
        whole = linear(rows)
        for first, last in [*pairwise((0, 1, 3, 7, 15, 31, 64, 129, 300)), (0, 144), (3, 19), (250, 251)]:
            assert linear(rows[first:last]).tobytes() == whole[first:last].tobytes(), (first, last)
    np.testing.assert_allclose(whole, rows @ weight.numpy().T, atol=1e-3, rtol=1e-4)


def test_in_bf16_the_logits_are_those_of_transformers_in_bf16() -> None:
    prompts = some_prompts(3, head=20)
    model = small_llama(torch.bfloat16)
    with torch.inference_mode():
        want = [model(torch.tensor([prompt])).logits[0, -1].float().numpy() for prompt in prompts]
        exact = [small_llama()(torch.tensor([prompt])).logits[0, -1].numpy() for prompt in prompts]
    decoder = LlamaDecoder(LlamaWeights(model), 3)
    for got, theirs, true in zip(written(decoder, prompts, 4), want, exact, strict=True):
        # As far from the truth as transformers' own rounding, and not further.
        assert got.dtype == np.float32
        assert np.abs(got[0] - true).mean() < 1.5 * np.abs(theirs - true).mean() + 1e-3
        assert np.corrcoef(got[0], true)[0, 1] > 0.999


def test_free_memory_is_used_again(weights: LlamaWeights) -> None:
    decoder = LlamaDecoder(weights, 2)
    for prompt in some_prompts(8):
        written(decoder, [prompt], 2)
        decoder.drop(0)
    assert decoder.count == 0 and len(decoder._free) <= 2
    assert [cache.shape for cache in decoder._caches] == [(2, 2 * 2, 2 * llama.GROWTH, 64)] * 3


@pytest.mark.parametrize(("heads", "kv_heads", "size"), [(9, 3, 64), (4, 4, 16), (8, 1, 40)])
def test_the_kernels_are_the_models_operators(heads: int, kv_heads: int, size: int) -> None:
    functional, rng = torch.nn.functional, np.random.default_rng(heads)

    def some(*shape: int) -> np.ndarray:
        return (rng.normal(size=shape) * 3).astype(np.float32)

    hidden, more, weight, normed = some(5, 48), some(5, 48), some(48), some(5, 48)
    wanted = torch.from_numpy(hidden + more)
    kernels.add_and_norm(hidden, more, weight, np.float32(1e-5), normed)
    np.testing.assert_array_equal(hidden, wanted.numpy())
    np.testing.assert_allclose(normed, functional.rms_norm(wanted, (48,), torch.from_numpy(weight), 1e-5), rtol=2e-6)

    gate_up, inner = some(5, 96) * 20, some(5, 48)
    kernels.swiglu(gate_up, inner)
    gate, up = torch.from_numpy(gate_up.astype(np.float64)).chunk(2, dim=-1)
    np.testing.assert_allclose(inner, functional.silu(gate) * up, rtol=1e-5, atol=1e-12)

    # Row 0 is the 201st token of slot 2, row 1 the first of slot 0; row 2 is placed and does not attend.
    joint, cache, mixed = some(3, heads + 2 * kv_heads, size), some(3, 2 * kv_heads, 256, size), some(3, heads, size)
    cos, sin = some(256, size), some(256, size)
    given, kept, rows = joint.copy(), mixed.copy(), torch.from_numpy(joint.copy())
    positions, slots = np.array([200, 0, 7]), np.array([2, 0, 1])
    turn = [torch.from_numpy(table[positions])[:, None] for table in (cos, sin)]
    rotated = (rows * turn[0] + rows.roll(size // 2, dims=-1) * turn[1]).numpy()
    kernels.place(joint, cos, sin, positions, slots, cache)
    np.testing.assert_allclose(joint[:, :heads], rotated[:, :heads], rtol=1e-5, atol=1e-5)
    for row, (position, slot) in enumerate(zip(positions, slots, strict=True)):
        placed = cache[slot, :, position]
        np.testing.assert_allclose(placed[:kv_heads], rotated[row, heads : heads + kv_heads], rtol=1e-5, atol=1e-5)
        np.testing.assert_array_equal(placed[kv_heads:], given[row, heads + kv_heads :])
    kernels.attend(joint, cache, np.array([0, 1]), positions, slots, mixed)
    np.testing.assert_array_equal(mixed[2], kept[2])
    for row in range(2):
        seen = torch.from_numpy(cache[slots[row], :, : positions[row] + 1].astype(np.float64))
        keys, values = (part.repeat_interleave(heads // kv_heads, 0) for part in seen.chunk(2))
        query = torch.from_numpy(joint[row, :heads, None].astype(np.float64))
        answer = functional.scaled_dot_product_attention(query, keys, values)[:, 0]
        np.testing.assert_allclose(mixed[row], answer, rtol=2e-4, atol=2e-4)


def test_a_softmax_of_extreme_scores_is_finite() -> None:
    scores = np.array([3e38, -3e38, 0, 3e38], np.float32)
    kernels.softmax(scores, np.empty(4, np.int32), 4)
    np.testing.assert_allclose(scores, [0.5, 0, 0, 0.5], atol=1e-30)
