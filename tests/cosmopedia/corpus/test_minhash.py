"""MinHash: signatures estimate the Jaccard similarity, and the exact one is that of Python's sets."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from cosmopedia.core.rng import draw_u64
from cosmopedia.corpus.minhash import PRIME, jaccard, signatures, sketches

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


def test_sketches_agree_as_often_as_the_sets_are_similar() -> None:
    """In each place alike, for sets smaller and larger than the sketch, and no more clustered than independent values.

    Of n pairs with similarity s the mean number of equal places of 112 is within 4 standard errors; their variance is
    at most the 112 s (1 - s) of independent ones, as the paper has it (with 10% of room for chance).
    """
    for size, pairs in ((6, 3000), (90, 1000), (900, 500)):
        shingles = np.array([draw_u64(size, n) for n in range(size * pairs)], np.uint64).reshape(pairs, size)
        one, two = shingles[:, : 2 * size // 3], shingles[:, size // 3 :]  # a third of the whole in common
        bounds = np.arange(pairs + 1) * (2 * size // 3)
        found = [sketches(side.ravel(), bounds, 112, np.uint64(7)) for side in (one, two)]
        equal = (found[0] == found[1]).sum(axis=1)
        variance = 112 * 2 / 9 if size > 112 else equal.var()
        assert abs(equal.mean() - 112 / 3) < 4 * (variance / pairs) ** 0.5
        if size > 112:
            assert equal.var() < 1.1 * variance
    places = (found[0] == found[1]).mean(axis=0)
    assert abs(places - 1 / 3).max() < 5 * (2 / 9 / 500) ** 0.5


def test_a_sketch_is_of_the_set_and_depends_on_the_seed() -> None:
    some = np.array([draw_u64(3, n) for n in range(40)], np.uint64)
    bounds = np.array([0, 40, 80, 80, 120])
    found = sketches(np.concatenate([some, some[::-1], some]), bounds, 112, np.uint64(1))
    assert (found[0] == found[1]).all() and (found[0] == found[3]).all()
    assert (found[2] == np.uint64(2**64 - 1)).all() and not (found[0] == found[2]).any()
    assert (found[0] != sketches(some, bounds[:2], 112, np.uint64(2))[0]).all()
