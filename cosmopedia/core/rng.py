"""Random draws as functions of (seed, row id), so that order, sharding and machine cannot change them."""

import hashlib
from collections.abc import Iterable, Sequence
from typing import TypeVar

T = TypeVar("T")


def draw_u64(seed: int, *names: object) -> int:
    """An integer in [0, 2**64), drawn from the seed and the names (BLAKE2b; names are joined by a unit separator)."""
    text = "\x1f".join(str(name) for name in (seed, *names))
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big")


def draw_unit(seed: int, *names: object) -> float:
    """A number in [0, 1), drawn from the seed and the names."""
    return (draw_u64(seed, *names) >> 11) / 2**53


def draw_sample(seed: int, purpose: str, ids: Iterable[str], count: int) -> list[str]:
    """`count` of the ids without replacement (all when there are fewer), the same for any order of `ids`; sorted."""
    ranked: Sequence[str] = sorted(ids, key=lambda i: (draw_u64(seed, purpose, i), i))
    return sorted(ranked[:count])


def content_hash(*parts: object, size: int = 16) -> str:
    """Hex digest of 2 * size characters that names content: template hashes, prompt ids, store keys."""
    text = "\x1f".join(str(part) for part in parts)
    return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=size).hexdigest()
