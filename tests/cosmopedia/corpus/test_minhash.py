"""MinHash: signatures estimate the Jaccard similarity, and the exact one is that of Python's sets."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from cosmopedia.corpus.minhash import PRIME, jaccard, signatures
from cosmopedia.rng import draw_u64

SETS = st.sets(st.integers(0, 40), max_size=30)


def as_array(values: set[int]) -> np.ndarray:
    return np.array(sorted(values), dtype=np.uint64)


@settings(max_examples=60, deadline=None)
@given(SETS, SETS)
def test_jaccard_is_that_of_sets(first: set[int], second: set[int]) -> None:
    expected = len(first & second) / len(first | second) if first | second else 1.0
    assert jaccard(as_array(first), as_array(second)) == expected


def test_signatures_agree_as_often_as_the_sets_are_similar() -> None:
    shingles = np.array([draw_u64(1, n) for n in range(150)], dtype=np.uint64)
    factors, terms = (np.array([draw_u64(2, kind, n) % PRIME for n in range(2000)], np.uint64) for kind in "ab")
    # 0-100 and 50-150: 50 of 150 in common
    one, two = signatures(np.concatenate([shingles[:100], shingles[50:]]), np.array([0, 100, 200]), factors, terms)
    assert abs(np.mean(one == two) - 1 / 3) < 4 * (2 / 9 / 2000) ** 0.5
    only = (int(shingles[0]) * int(factors[0]) + int(terms[0])) % 2**64 % PRIME
    assert signatures(shingles[:1], np.array([0, 1]), factors[:1], terms[:1]).tolist() == [[only]]
