"""SplitMix64 (Steele, Lea and Flood, 2014): what mixes the bits of every hash and draw that is computed in columns.

The outputs' bytes depend on it, so it is defined here: no version of a library can move an id or a draw.
"""

from typing import Any

import numpy as np

GOLDEN = np.uint64(0x9E3779B97F4A7C15)  # SplitMix64's increment: 2^64 over the golden ratio, odd


def mix64(value: Any) -> Any:
    """SplitMix64's finaliser: a bijection in which every bit of the input moves every bit of the output.

    uint64 arrays of any shape; for a number within compiled code `numba.njit(mix64)`.
    """
    value = (value ^ (value >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    value = (value ^ (value >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return value ^ (value >> np.uint64(31))
