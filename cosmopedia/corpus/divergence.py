"""How far apart two distributions over the same names are."""

import numpy as np


def divergence(first: np.ndarray, second: np.ndarray) -> float:
    """The Jensen-Shannon divergence, in bits, of two arrays of counts; 0 where one has no counts."""
    if not first.sum() or not second.sum():
        return 0.0
    shares = first / first.sum(), second / second.sum()
    return max(0.0, entropy((shares[0] + shares[1]) / 2) - (entropy(shares[0]) + entropy(shares[1])) / 2)


def entropy(counts: np.ndarray) -> float:
    """The entropy of counts, in bits."""
    shares = counts[counts > 0] / max(counts.sum(), 1e-12)
    return max(0.0, float(-(shares * np.log2(shares)).sum()))
