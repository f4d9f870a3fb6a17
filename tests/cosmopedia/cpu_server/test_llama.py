"""The decoder for Llama models: a sequence's bytes are its own, whoever shares the batch and whatever is copied."""

from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch

from cosmopedia.cpu_server import llama
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
    rows = torch.randn(300, rows_in)
    linear = Linear(torch.randn(rows_out, rows_in) / 30)
    with torch.inference_mode():
        whole = linear(rows)
        for first, last in [*pairwise((0, 1, 3, 7, 15, 31, 64, 129, 300)), (0, 144), (3, 19), (250, 251)]:
            assert torch.equal(linear(rows[first:last]), whole[first:last]), (first, last)
    torch.testing.assert_close(whole, rows @ linear_weight(rows_in, rows_out).T, atol=1e-3, rtol=1e-4)


def linear_weight(rows_in: int, rows_out: int) -> torch.Tensor:
    torch.manual_seed(1)
    torch.randn(300, rows_in)
    return torch.randn(rows_out, rows_in) / 30


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
    assert sum(cache.shape[1] for one in decoder._free for cache in one.caches) <= 2 * 3 * 3 * llama.GROWTH
