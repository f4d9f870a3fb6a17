"""Which rows were seen before: 64-bit fingerprints, about 8 bytes per row.

Two different texts share a fingerprint with a chance of n^2 / 2^65 among n rows: 3 in a million for ten million rows.
The later of such two would be counted as a duplicate.
"""

import hashlib
from bisect import bisect_left

import numpy as np

RECENT = 1 << 18  # fingerprints in the set: 20 MB


def fingerprint(*parts: str) -> int:
    """A number in [0, 2**64) that names content (BLAKE2b). `UnicodeEncodeError` for text that UTF-8 cannot hold."""
    digest = hashlib.blake2b("\x1f".join(parts).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big")


class Fingerprints:
    """A set of fingerprints: the latest in a Python set (85 bytes each), all others in one sorted array."""

    def __init__(self) -> None:
        self._recent: set[int] = set()
        self._sorted = np.empty(0, np.uint64).data

    def __len__(self) -> int:
        return len(self._sorted) + len(self._recent)

    def __contains__(self, number: int) -> bool:
        if number in self._recent:
            return True
        position = bisect_left(self._sorted, number)
        return position < len(self._sorted) and self._sorted[position] == number

    def add(self, number: int) -> None:
        """Remember a fingerprint."""
        if number in self:
            return
        self._recent.add(number)
        if len(self._recent) == RECENT:
            merged = np.concatenate([self._sorted, np.fromiter(self._recent, np.uint64, RECENT)])
            merged.sort()
            self._sorted = merged.data
            self._recent.clear()
