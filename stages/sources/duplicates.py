"""Which rows were seen before: 64-bit fingerprints in one flat table, 12 to 24 bytes a row.

Two different texts share a fingerprint with a chance of n^2 / 2^65 among n rows: 3 in a million for ten million rows.
The later of such two would be counted as a duplicate.
"""

import hashlib

import numpy as np


def fingerprint(*parts: str) -> int:
    """A number in [1, 2**64) that names content (BLAKE2b). `UnicodeEncodeError` for text that UTF-8 cannot hold."""
    digest = hashlib.blake2b("\x1f".join(parts).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") or 1


class Fingerprints:
    """A set of fingerprints: open addressing with linear probing, 0 marks a free slot, at most two thirds are filled.

    A Python set of the same numbers takes 60 to 90 bytes each.
    """

    def __init__(self) -> None:
        self._filled = 0
        self._use(np.zeros(1 << 16, np.uint64))

    def __len__(self) -> int:
        return self._filled

    def __contains__(self, number: int) -> bool:
        return self._slots[self._slot_of(number)] == number

    def add(self, number: int) -> None:
        """Remember a fingerprint."""
        slot = self._slot_of(number)
        if self._slots[slot] != number:
            self._slots[slot] = number
            self._filled += 1
            if 3 * self._filled > 2 * len(self._table):
                self._use(_spread(self._table[self._table != 0], 2 * len(self._table)))

    def _slot_of(self, number: int) -> int:
        slots, mask = self._slots, self._mask
        slot = number & mask
        while slots[slot] not in (0, number):
            slot = (slot + 1) & mask
        return slot

    def _use(self, table: np.ndarray) -> None:
        self._table, self._mask = table, len(table) - 1
        self._slots = table.data  # its items are Python numbers, three times as fast as NumPy's


def _spread(numbers: np.ndarray, size: int) -> np.ndarray:
    """A table of `size` slots (a power of two) that holds `numbers`; all that wait try the next slot together."""
    table, slots = np.zeros(size, np.uint64), (numbers & np.uint64(size - 1)).astype(np.int64)
    while len(numbers):
        free = table[slots] == 0
        table[slots[free]] = numbers[free]  # of several for one slot the last gets it
        waiting = table[slots] != numbers
        numbers, slots = numbers[waiting], (slots[waiting] + 1) & (size - 1)
    return table
