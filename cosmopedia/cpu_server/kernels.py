"""What a step of the CPU server does between the products of matrices, compiled by numba.

With few rows of a small model, torch needs as long for these as for the products, most of it for calls: some of them
for each sequence, where one call here does all tokens of a step. Nothing depends on a row's neighbours: the loops over
one row run in one order, whatever else the arrays hold.

They are compiled when this is imported, and kept on disk: 4 CPU seconds once, and 0.7 afterwards (Zen 3).
"""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
from numba import float32, int32, int64, njit, void

FASTMATH = {"contract", "reassoc", "nsz", "arcp"}  # sums in vector registers; NaN and infinities keep their meaning
LOG2_E = np.float32(math.log2(math.e))
LEAST_EXPONENT = np.float32(-126)  # of a normal float32
# 2**y for y in [0, 1): relative error 1.5e-7 in float32; the lowest power last
POWERS = tuple(map(np.float32, (1.8775767e-3, 8.9893397e-3, 5.5826318e-2, 2.4015361e-1, 6.9315308e-1, 9.9999994e-1)))

ROW, ROWS, CUBE, CACHE = float32[::1], float32[:, ::1], float32[:, :, ::1], float32[:, :, :, ::1]
NUMBERS, INTS = int64[::1], int32[::1]


def compiled(*arguments: Any) -> Callable[..., Any]:
    """A function of these types that returns nothing; without the interpreter's lock, so that workers run together."""
    return njit(void(*arguments), fastmath=FASTMATH, nogil=True, cache=True, error_model="numpy")


@compiled(ROW, INTS, int64)
def exponential(exponents: np.ndarray, powers: np.ndarray, count: int) -> None:
    """2 to the power of each of the first `count` exponents (float32, -126 to 127), in their place.

    powers: int32, room for as many.
    """
    for t in range(count):
        whole = np.floor(exponents[t])
        part = exponents[t] - whole
        power = POWERS[0]
        for coefficient in POWERS[1:]:
            power = power * part + coefficient
        exponents[t] = power
        powers[t] = (np.int32(whole) + 127) << 23  # 2**whole, as the bits of a float32
    factors = powers.view(np.float32)
    for t in range(count):
        exponents[t] *= factors[t]


@compiled(ROW, INTS, int64)
def softmax(scores: np.ndarray, powers: np.ndarray, count: int) -> None:
    """The softmax of the first `count` scores, which are logarithms to the base of two, in their place.

    powers: int32, room for as many.
    """
    largest = scores[0]
    for t in range(count):
        largest = max(largest, scores[t])
    for t in range(count):
        scores[t] = max(scores[t] - largest, LEAST_EXPONENT)
    exponential(scores, powers, count)
    total = np.float32(0)
    for t in range(count):
        total += scores[t]
    for t in range(count):
        scores[t] /= total


@compiled(CUBE, ROWS, ROWS, NUMBERS, NUMBERS, CACHE)
def place(
    joint: np.ndarray, cos: np.ndarray, sin: np.ndarray, positions: np.ndarray, slots: np.ndarray, cache: np.ndarray
) -> None:
    """Rotate the queries and keys of `joint` where they are; put keys and values into the cache.

    joint: float32 [rows, heads of queries, then of keys, then of values; size]. cos, sin: float32 [positions, size],
    the first half of sin negated. positions, slots: int64 [rows]. cache: float32 [slots, heads of keys, then of
    values; room; size].
    """
    rows, all_heads, size = joint.shape
    kv_heads, half = cache.shape[1] // 2, size // 2
    heads = all_heads - 2 * kv_heads
    for row in range(rows):
        position, slot = positions[row], slots[row]
        for head in range(heads + kv_heads):
            for i in range(half):
                first, second = joint[row, head, i], joint[row, head, half + i]
                joint[row, head, i] = first * cos[position, i] + second * sin[position, i]
                joint[row, head, half + i] = second * cos[position, half + i] + first * sin[position, half + i]
        for head in range(2 * kv_heads):
            for i in range(size):
                cache[slot, head, position, i] = joint[row, heads + head, i]


@compiled(CUBE, CACHE, NUMBERS, NUMBERS, NUMBERS, CUBE)
def attend(
    joint: np.ndarray,
    cache: np.ndarray,
    rows: np.ndarray,
    positions: np.ndarray,
    slots: np.ndarray,
    mixed: np.ndarray,
) -> None:
    """Attention of some rows, each a token that sees its sequence up to itself.

    joint, cache, positions, slots: as `place` left and took them. rows: int64, which ones. mixed: float32 [rows, heads
    of queries, size], where the answers go.
    """
    kv_heads, room, size = cache.shape[1] // 2, cache.shape[2], cache.shape[3]
    group = mixed.shape[1] // kv_heads
    scale = np.float32(1 / math.sqrt(size)) * LOG2_E
    scores = np.empty((group, room), np.float32)
    powers = np.empty(room, np.int32)
    for row in rows:
        count = positions[row] + 1
        for kv_head in range(kv_heads):
            keys, values = cache[slots[row], kv_head], cache[slots[row], kv_heads + kv_head]
            queries = joint[row, kv_head * group : (kv_head + 1) * group]
            answers = mixed[row, kv_head * group : (kv_head + 1) * group]
            for t in range(count):
                key = keys[t]
                for g in range(group):
                    total = np.float32(0)
                    for i in range(size):
                        total += queries[g, i] * key[i]
                    scores[g, t] = total * scale
            for g in range(group):
                softmax(scores[g], powers, count)
            answers[:] = 0
            for t in range(count):
                value = values[t]
                for g in range(group):
                    weight = scores[g, t]
                    for i in range(size):
                        answers[g, i] += weight * value[i]


@compiled(ROWS, ROWS, ROW, float32, ROWS)
def add_and_norm(
    hidden: np.ndarray, more: np.ndarray, weight: np.ndarray, epsilon: np.float32, normed: np.ndarray
) -> None:
    """Add `more` to `hidden`, and write the sum's RMSNorm (Zhang & Sennrich 2019), times `weight`, to `normed`.

    hidden, more, normed: float32 [rows, width]. weight: float32 [width].
    """
    rows, width = hidden.shape
    for row in range(rows):
        squares = np.float32(0)
        for i in range(width):
            hidden[row, i] += more[row, i]
            squares += hidden[row, i] * hidden[row, i]
        factor = np.float32(1) / np.sqrt(squares / np.float32(width) + epsilon)
        for i in range(width):
            normed[row, i] = hidden[row, i] * factor * weight[i]


@compiled(ROWS, ROWS)
def swiglu(gate_up: np.ndarray, inner: np.ndarray) -> None:
    """silu(gate) * up (Shazeer 2020). gate_up: float32 [rows, 2 * width]; inner: float32 [rows, width], the answer."""
    rows, width = inner.shape
    powers = np.empty(width, np.int32)
    for row in range(rows):
        for i in range(width):
            inner[row, i] = min(max(-gate_up[row, i] * LOG2_E, LEAST_EXPONENT), -LEAST_EXPONENT)
        exponential(inner[row], powers, width)
        for i in range(width):
            inner[row, i] = gate_up[row, i] / (np.float32(1) + inner[row, i]) * gate_up[row, width + i]
