"""MinHash (Broder, 1997): sets of shingles in few numbers, and the exact similarity of those that meet.

Two sets agree in one value of their signatures with the probability of their Jaccard similarity. In buckets of r values,
of which they must share one of b, they meet with probability 1 - (1 - s^r)^b (Leskovec et al., Mining of Massive
Datasets, 3.4).
"""

from typing import Any

import numba
import numpy as np

PRIME = (1 << 61) - 1


@numba.njit(cache=True, nogil=True)
def signatures(shingles: Any, bounds: Any, factors: Any, terms: Any) -> Any:
    """The smallest value of each hash function over each text's shingles: uint64 (texts, functions).

    Text `t` has the shingles `bounds[t]` to `bounds[t + 1]` (uint64). As in datatrove a hash is (shingle * factor +
    term), modulo 2^64 and then modulo the Mersenne prime 2^61 - 1: of x = high * 2^61 + low that is high + low, or the
    prime less, whichever is the smaller unsigned number.
    """
    found = np.full((len(bounds) - 1, len(factors)), 0xFFFFFFFFFFFFFFFF, np.uint64)
    prime = np.uint64(PRIME)
    for text in range(len(bounds) - 1):
        lowest = found[text]
        for at in range(bounds[text], bounds[text + 1]):
            for n in range(len(factors)):
                value = shingles[at] * factors[n] + terms[n]
                value = (value >> np.uint64(61)) + (value & prime)
                lowest[n] = min(lowest[n], min(value, value - prime))
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
