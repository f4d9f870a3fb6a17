"""Who a row is: its digest, and from it the ids of its prompts and all its draws, a column at a time.

A row's digest is BLAKE2b-128 of its id, as two numbers. A prompt id is the first of them and a mixture of the second
with the style and the audience, so that the prompts of all styles stand in the order of their rows' digests, and one
pass over rows in that order writes every cell sorted. Draws are mixtures with (seed, purpose). The mixture is ours, so
no version of a library can move an id or a draw.
"""

from collections.abc import Iterable
from hashlib import blake2b

import numpy as np
import pyarrow as pa

from cosmopedia.rng import draw_u64

HEX = np.array([f"{n:02x}".encode() for n in range(256)], dtype="S2")


def digests(row_ids: Iterable[str]) -> np.ndarray:
    """uint64 (rows, 2): each row's digest; sorted by them rows stand in the order of their prompts' ids."""
    joined = b"".join(blake2b(row_id.encode(), digest_size=16).digest() for row_id in row_ids)
    return np.frombuffer(joined, dtype=">u8").reshape(-1, 2).astype(np.uint64)


def prompt_ids(rows: np.ndarray, style: str, audience: str) -> pa.Array:
    """32 hexadecimal digits for each row's prompt of one style and audience, never equal for two rows or two cells."""
    ids = rows.copy()
    ids[:, 1] = mixed(rows[:, 1] ^ np.uint64(draw_u64(0, "prompt", style, audience)))
    digits = HEX[ids.astype(">u8").view(np.uint8)].reshape(-1)
    ends = np.arange(0, 32 * len(ids) + 1, 32, dtype=np.int32)
    return pa.StringArray.from_buffers(len(ids), pa.py_buffer(ends), pa.py_buffer(digits))


def draws(rows: np.ndarray, seed: int, *purpose: str) -> np.ndarray:
    """A number in [0, 2**64) for each row, drawn from (seed, purpose, row)."""
    return mixed(mixed(rows[:, 1] ^ np.uint64(draw_u64(seed, *purpose))) + rows[:, 0])


def chosen(rows: np.ndarray, share: float, seed: int, *purpose: str) -> np.ndarray:
    """Whether each row is among a share of all, by a draw from (seed, purpose, row)."""
    return (draws(rows, seed, *purpose) >> np.uint64(11)) / 2**53 < share


def mixed(values: np.ndarray) -> np.ndarray:
    """SplitMix64's finaliser: a bijection in which every bit of the input moves every bit of the output."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))
