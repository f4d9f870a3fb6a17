"""MinHash (Broder, 1997): sets of shingles in few numbers, and the exact similarity of those that meet.

Two sets agree in one value of their signatures with the probability s of their Jaccard similarity. With b buckets of r
values each, they meet in some bucket with probability 1 - (1 - s^r)^b (Leskovec et al., Mining of Massive Datasets,
3.4). `signatures` computes every value from every shingle, `sketches` hashes a shingle about twice for all of them.
"""

from typing import Any

import numba
import numpy as np

from cosmopedia.hashing import GOLDEN, mix64

PRIME = (1 << 61) - 1
LARGEST = np.int64((1 << 63) - 1)  # of a text without shingles
EMPTY = np.uint64((1 << 64) - 1)
ROUND_BITS = np.uint64(48)  # above them a sketch's value has its round, below them a hash
LONGEST_SKETCH = 1 << 15  # twice as many rounds at most
_mix64 = numba.njit(mix64)


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
def sketches(shingles: Any, bounds: Any, size: int, seed: Any) -> Any:
    """Fast similarity sketches (Dahlgaard, Knudsen and Thorup, FOCS 2017): uint64 (texts, size).

    Like `signatures`: two texts agree in each value with the probability of their similarity. In a round each shingle
    goes to one place, and a place keeps the smallest hash of the first round that reached it; 400 shingles fill 112
    places in 2 rounds. From round `size` on, those of few shingles, the places are filled in turn. All values of a
    text without shingles are EMPTY.
    """
    found = np.full((len(bounds) - 1, size), EMPTY, np.uint64)
    for text in range(len(bounds) - 1):
        empty = size if bounds[text] < bounds[text + 1] else 0
        turn = 0
        while empty:
            salt = seed + np.uint64(turn) * GOLDEN
            high = np.uint64(turn) << ROUND_BITS
            for at in range(bounds[text], bounds[text + 1]):
                value = _mix64(shingles[at] + salt)
                place = np.int64((value >> np.uint64(32)) * np.uint64(size) >> np.uint64(32))
                if turn >= size:
                    place = turn - size
                value = high | value >> np.uint64(16)
                if value < found[text, place]:
                    empty -= found[text, place] == EMPTY
                    found[text, place] = value
            turn += 1
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
