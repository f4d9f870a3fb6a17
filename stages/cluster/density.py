"""HDBSCAN's clusters of positions, at several sizes; large ones are cut into their parts where these are distinct."""

import tempfile
from typing import Any

import numpy as np

NOISE = -1  # the label of rows without a cluster
POSITION_DIGITS = 4  # of positions
PARTS_MASS = 0.25  # of a large cluster's excess of mass: what its parts have to hold together, for it to be cut


def density_clusters(
    positions: np.ndarray, min_cluster_sizes: list[int], max_cluster_size: int, min_samples: int
) -> list[np.ndarray]:
    """Labels int64 [rows], one for each of `min_cluster_sizes`, of `positions` float32 [rows, dimensions]."""
    import hdbscan
    from joblib import Memory

    found = []
    with tempfile.TemporaryDirectory() as folder:  # the tree of all distances is the same for each size
        for size in min_cluster_sizes:
            clusterer: Any = hdbscan.HDBSCAN(
                min_cluster_size=size,
                min_samples=min(min_samples, len(positions) - 1),
                approx_min_span_tree=False,
                core_dist_n_jobs=1,
                memory=Memory(folder, verbose=0),
            ).fit(positions.astype(np.float64))
            found.append(cut(clusterer.condensed_tree_.to_numpy(), max_cluster_size))
    return found


def cut(tree: np.ndarray, largest: int) -> np.ndarray:
    """Labels int64 [rows] from HDBSCAN's condensed `tree`, by excess of mass (Campello et al. 2013).

    HDBSCAN cuts a cluster when its parts hold more mass than it does. One of more than `largest` rows is cut here when
    they hold `PARTS_MASS` of it: near that balance one run of UMAP would keep three topics in one and another apart. A
    topic that only chance divides has parts of next to no mass, and stays, however large. (HDBSCAN's own
    max_cluster_size cuts that too, and makes noise of a cluster that has no parts.)
    """
    root = tree["parent"].min()  # rows have the numbers below
    nodes = tree["parent"].max() + 1 - root
    densities = np.minimum(tree["lambda_val"], 10.0**POSITION_DIGITS)  # infinite between copies
    born, sizes, parents = np.zeros(nodes), np.full(nodes, root), np.full(nodes, -1)
    inner = tree["child"] >= root
    child = tree["child"][inner] - root
    born[child], sizes[child] = densities[inner], tree["child_size"][inner]
    parents[child] = tree["parent"][inner] - root
    at = tree["parent"] - root
    mass = np.bincount(at, (densities - born[at]) * tree["child_size"], minlength=nodes)
    below, whole = np.zeros(nodes), np.ones(nodes, bool)
    for node in range(nodes - 1, 0, -1):  # children have higher numbers
        share = PARTS_MASS if sizes[node] > largest else 1.0
        if below[node] > share * mass[node]:
            whole[node], mass[node] = False, below[node]
        below[parents[node]] += mass[node]
    cluster, count = np.full(nodes, NOISE), 0
    for node in range(1, nodes):
        cluster[node] = cluster[parents[node]]
        if cluster[node] == NOISE and whole[node]:
            cluster[node], count = count, count + 1
    labels = np.full(root, NOISE)
    labels[tree["child"][~inner]] = cluster[tree["parent"][~inner] - root]
    return labels
