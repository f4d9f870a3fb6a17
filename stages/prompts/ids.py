"""Who a row is: its digest, and from it the ids of its prompts and all its draws, a column at a time.

A row's digest is BLAKE2b-128 of its id, as two numbers. A prompt id is the first of them and a mixture of the second
with the style and the audience, so that the prompts of all styles are in the order of their rows' digests, and one
pass over rows in that order writes every cell sorted. Draws are mixtures with (seed, purpose).
"""

from collections.abc import Iterable
from hashlib import blake2b

import numpy as np
import pyarrow as pa

from cosmopedia.core.rng import draw_u64
from cosmopedia.hashing import mix64

HEX = np.array([f"{n:02x}".encode() for n in range(256)], dtype="S2")


def digests(row_ids: Iterable[str]) -> np.ndarray:
    """uint64 (rows, 2): each row's digest; sorted by them, rows are in the order of their prompts' ids."""
    joined = b"".join(blake2b(row_id.encode(), digest_size=16).digest() for row_id in row_ids)
    return np.frombuffer(joined, dtype=">u8").reshape(-1, 2).astype(np.uint64)


def prompt_ids(rows: np.ndarray, style: str, audience: str) -> pa.Array:
    """The id of each row's prompt of one style and audience, 32 hexadecimal digits; no two rows or cells share one."""
    ids = rows.copy()
    ids[:, 1] = mix64(rows[:, 1] ^ np.uint64(draw_u64(0, "prompt", style, audience)))
    digits = HEX[ids.astype(">u8").view(np.uint8)].reshape(-1)
    ends = np.arange(0, 32 * len(ids) + 1, 32, dtype=np.int32)
    return pa.StringArray.from_buffers(len(ids), pa.py_buffer(ends), pa.py_buffer(digits))


def draws(rows: np.ndarray, seed: int, *purpose: str) -> np.ndarray:
    """A number in [0, 2**64) for each row, drawn from (seed, purpose, row)."""
    return mix64(mix64(rows[:, 1] ^ np.uint64(draw_u64(seed, *purpose))) + rows[:, 0])


def chosen(rows: np.ndarray, share: float, seed: int, *purpose: str) -> np.ndarray:
    """Whether each row is among a share of all, by a draw from (seed, purpose, row)."""
    return (draws(rows, seed, *purpose) >> np.uint64(11)) / 2**53 < share
