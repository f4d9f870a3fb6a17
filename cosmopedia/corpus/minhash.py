"""MinHash (Broder, 1997): sets of shingles in few numbers, and the exact similarity of those that meet.

Two sets agree in one value of their signatures with the probability s of their Jaccard similarity. With b buckets of r
values each, they meet in some bucket with probability 1 - (1 - s^r)^b (Leskovec et al., Mining of Massive Datasets,
3.4).
"""

from typing import Any

import numba
import numpy as np

PRIME = (1 << 61) - 1
LARGEST = np.int64((1 << 63) - 1)  # of a text without shingles


@numba.njit(cache=True, nogil=True)
def signatures(shingles: Any, bounds: Any, factors: Any, terms: Any) -> Any:
    """The smallest value of each hash function over each text's shingles: uint64 (texts, functions).

    Text `t` has the shingles `bounds[t]` to `bounds[t + 1]` (uint64). As in datatrove a hash is (shingle * factor +
    term), modulo 2^64 and then modulo the Mersenne prime 2^61 - 1: of x = high * 2^61 + low that is high + low, less
    the prime if it reaches it.
    """
    found = np.empty((len(bounds) - 1, len(factors)), np.uint64)
    for text in range(len(bounds) - 1):
        for n in range(len(factors)):
            factor, term = factors[n], terms[n]
            lowest = LARGEST
            for at in range(bounds[text], bounds[text + 1]):
                value = shingles[at] * factor + term
                # signed from here on, which processors compare faster
                value = np.int64(value >> np.uint64(61)) + np.int64(value & np.uint64(PRIME))
                value = value - PRIME if value >= PRIME else value
                lowest = value if value < lowest else lowest
            found[text, n] = np.uint64(lowest)
    return found


@numba.njit(cache=True, nogil=True)
def jaccard(first: Any, second: Any) -> float:
    """The Jaccard similarity of two sets, each sorted and distinct (`np.unique`); 1.0 when both are empty."""
    common, a, b = 0, 0, 0
    while a < len(first) and b < len(second):
        if first[a] == second[b]:
            common, a, b = common + 1, a + 1, b + 1
        elif first[a] < second[b]:
            a += 1
        else:
            b += 1
    union = len(first) + len(second) - common
    return common / union if union else 1.0
