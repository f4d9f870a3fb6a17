"""One clustering from several: rows are together that most of the runs put together.

A run of UMAP and HDBSCAN ends elsewhere with another seed, or when one row is missing (ARI .4 to .8 between two runs).
What several runs agree on moves much less: evidence accumulation (Fred & Jain 2005), here over the rows' label tuples
and not over all pairs of rows.
"""

from itertools import combinations

import numpy as np

TUPLES = 2000  # compared with each other; rows with a rarer one get no cluster here
APART = 0.5  # of the runs: groups that more of the runs keep apart do not become one


def agree(labels: np.ndarray) -> np.ndarray:
    """Clusters int64 [rows] of `labels` [runs, rows]; -1 for rows whose labels are too rare to be compared.

    Average linkage of the different label tuples, weighted by their rows; the distance of two tuples is the share of
    runs in which they differ.
    """
    if len(labels) == 1:
        return labels[0].astype(np.int64)
    tuples, tuple_of, rows = np.unique(labels.T, axis=0, return_inverse=True, return_counts=True)
    common = np.sort(np.argsort(-rows, kind="stable")[:TUPLES])
    clusters = np.full(len(tuples), -1, np.int64)
    clusters[common] = _linked(tuples[common], rows[common].astype(np.float64))
    return clusters[tuple_of.reshape(-1)]


def agreement(labels: np.ndarray) -> float:
    """The mean adjusted Rand index of two runs of `labels` [runs, rows]; 1 for a single run."""
    from sklearn.metrics import adjusted_rand_score

    pairs = [adjusted_rand_score(one, other) for one, other in combinations(labels, 2)]
    return float(np.mean(pairs)) if pairs else 1.0


def _linked(tuples: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Average linkage of `tuples` [count, runs] until all groups are more than `APART` from each other."""
    count = len(tuples)
    distances = (tuples[:, None, :] != tuples[None, :, :]).mean(axis=2, dtype=np.float32).astype(np.float64)
    np.fill_diagonal(distances, np.inf)
    members = [[n] for n in range(count)]
    nearest, nearest_at = distances.argmin(axis=1), distances.min(axis=1)
    while (one := int(nearest_at.argmin())) >= 0 and nearest_at[one] <= APART:
        other = int(nearest[one])
        # `other` joins `one`, whose distances become the means over both groups' rows.
        total = weights[one] + weights[other]
        joined = (weights[one] * distances[one] + weights[other] * distances[other]) / total
        joined[[one, other]] = np.inf
        distances[one], distances[:, one] = joined, joined
        distances[other], distances[:, other] = np.inf, np.inf
        weights[one] = total
        members[one] += members[other]
        members[other] = []
        nearer = np.isfinite(joined) & (joined <= nearest_at)  # groups that are no more are at infinity
        changed = np.flatnonzero((nearest == one) | (nearest == other) | nearer)
        for row in {*changed.tolist(), one, other}:
            nearest[row], nearest_at[row] = distances[row].argmin(), distances[row].min()
    clusters = np.empty(count, np.int64)
    for number, group in enumerate(group for group in members if group):
        clusters[group] = number
    return clusters
