"""UMAP and HDBSCAN on a sample, centroids, and the nearest centroid for everything else.

Vectors have length 1, so a dot product is a cosine. Whatever decides a cluster is computed in an order fixed by row
id, and similarities are rounded to six digits, far above the error of a float64 product: neither the rows' order nor
the size of a batch can change a result.
"""

import pickle
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from cosmopedia.errors import DataError
from cosmopedia.tables.contracts import ASSIGNMENT, EMBEDDING
from cosmopedia.tables.row_ranges import RowRangeStep
from cosmopedia.tables.vectors import vectors_of

DIGITS = 6  # of similarities
POSITION_DIGITS = 4  # of map positions


@dataclass(frozen=True)
class Groups:
    """Clusters of a sample, numbered by size (largest first, then by the first row id). -1 is noise."""

    ids: list[str]  # sorted
    clusters: np.ndarray  # int32 [rows]
    positions: np.ndarray  # float32 [rows, 2]: the map
    centroids: np.ndarray  # float32 [clusters, dimensions], length 1


def find_groups(
    ids: list[str],
    vectors: np.ndarray,
    *,
    seed: int,
    n_neighbors: int,
    min_dist: float,
    min_cluster_size: int,
    min_samples: int,
) -> Groups:
    """Cluster the rows `ids` with their `vectors` (float32 [rows, dimensions]), in any order.

    UMAP to two dimensions (McInnes et al. 2018), then HDBSCAN (Campello et al. 2013) on the map. `DataError` when the
    rows are too few, or no cluster is found.
    """
    if len(ids) < 2 * min_cluster_size:
        raise DataError(
            f"{len(ids)} rows cannot make clusters of at least {min_cluster_size}; give the web source more rows,"
            " or lower cluster.min_cluster_floor in the profile"
        )
    order = sorted(range(len(ids)), key=ids.__getitem__)
    ids, vectors = [ids[i] for i in order], vectors[order]
    positions = _map(vectors, seed, min(n_neighbors, len(ids) - 1), min_dist)
    density_clusters = _density_clusters(positions, min_cluster_size, min(min_samples, len(ids) - 1))
    if density_clusters.max() < 0:
        raise DataError(
            f"HDBSCAN found no cluster of at least {min_cluster_size} among {len(ids)} rows; lower"
            " cluster.min_cluster_floor in the profile or cluster.min_cluster_fraction in params.yaml"
        )
    clusters = _by_size(density_clusters)
    sums = np.zeros((clusters.max() + 1, vectors.shape[1]))
    np.add.at(sums, clusters[clusters >= 0], vectors[clusters >= 0].astype(np.float64))
    centroids = (sums / np.linalg.norm(sums, axis=1, keepdims=True)).astype(np.float32)
    return Groups(ids, clusters, positions, centroids)


def similarities(vectors: np.ndarray, centroids: np.ndarray) -> np.ndarray:
    """Cosines [rows, clusters], rounded to six digits."""
    return np.round(vectors.astype(np.float64) @ centroids.astype(np.float64).T, DIGITS)


def assign(
    vectors: np.ndarray, centroids: np.ndarray, min_similarity: float, fixed: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """(cluster int32 [rows], similarity float32 [rows]) of each vector.

    A row whose `fixed` cluster is not -1 keeps it; any other goes to the nearest centroid (the lower number if two are
    as near), or to -1 with similarity 0 when that is less similar than `min_similarity`.
    """
    cosines = similarities(vectors, centroids)
    nearest = cosines.argmax(axis=1)
    if fixed is not None:
        nearest = np.where(fixed >= 0, fixed, nearest)
    similarity = cosines[np.arange(len(vectors)), nearest]
    near = similarity >= min_similarity
    if fixed is not None:
        near |= fixed >= 0
    return np.where(near, nearest, -1).astype(np.int32), np.where(near, similarity, 0).astype(np.float32)


def assignment_rows(table: pa.Table, groups: Groups, position_of: dict[str, int], min_similarity: float) -> pa.Table:
    """ASSIGNMENT rows for EMBEDDING rows; `position_of` a sampled row id is its position in `groups`."""
    sampled = [position_of.get(row_id) for row_id in table["row_id"].to_pylist()]
    fixed = np.array([-1 if n is None else groups.clusters[n] for n in sampled], dtype=np.int32)
    clusters, similarity = assign(vectors_of(table), groups.centroids, min_similarity, fixed)
    x, y = ([None if n is None else groups.positions[n, axis] for n in sampled] for axis in (0, 1))
    return pa.table(
        {
            "row_id": table["row_id"],
            "cluster": clusters,
            "similarity": similarity,
            "in_sample": [n is not None for n in sampled],
            "x": pa.array(x, pa.float32()),
            "y": pa.array(y, pa.float32()),
        }
    )


class AssignRows(RowRangeStep):
    """An ASSIGNMENT row for each EMBEDDING row of a range; `groups` is a pickled `Groups`."""

    name = "assign"
    reads, columns, writes = EMBEDDING, ("row_id", "embedding"), ASSIGNMENT

    def __init__(self, source: Path, parts: Path, notes: Path, groups: Path, min_similarity: float):
        super().__init__(source, parts, notes)
        self.groups, self.min_similarity = groups, min_similarity

    def tables(self, batches: Iterator[pa.Table], note: Path) -> Iterator[pa.Table]:
        groups = pickle.loads(self.groups.read_bytes())
        position_of = {row_id: n for n, row_id in enumerate(groups.ids)}
        done = 0
        for batch in batches:
            yield assignment_rows(batch, groups, position_of, self.min_similarity)
            done += batch.num_rows
            note.write_text(str(done))


def _map(vectors: np.ndarray, seed: int, n_neighbors: int, min_dist: float) -> np.ndarray:
    import umap
    from threadpoolctl import threadpool_limits

    _keep_compiled()
    with warnings.catch_warnings(), threadpool_limits(1):
        warnings.filterwarnings("ignore", message=".*n_jobs value.*")
        warnings.filterwarnings("ignore", message=".*[Ss]pectral.*")
        reducer: Any = umap.UMAP(
            n_components=2, n_neighbors=n_neighbors, min_dist=min_dist, metric="cosine", random_state=seed, n_jobs=1
        )
        return np.round(np.asarray(reducer.fit_transform(vectors)), POSITION_DIGITS).astype(np.float32)


def _keep_compiled() -> None:
    """Let numba keep UMAP's compiled functions on disk, where it keeps pynndescent's: saves 20 CPU s per process."""
    from numba.core.dispatcher import Dispatcher
    from umap import distances, layouts, sparse, umap_, utils

    for module in (distances, layouts, sparse, umap_, utils):
        for name, function in vars(module).items():
            own = isinstance(function, Dispatcher) and function.py_func.__module__ == module.__name__
            # numba's cache takes a function and its parallel twin for one; a seeded UMAP never calls the twin
            if own and not name.endswith("_parallel"):
                function.enable_caching()


def _density_clusters(positions: np.ndarray, min_cluster_size: int, min_samples: int) -> np.ndarray:
    import hdbscan

    clusterer: Any = hdbscan.HDBSCAN(
        min_cluster_size=min_cluster_size, min_samples=min_samples, approx_min_span_tree=False, core_dist_n_jobs=1
    )
    return clusterer.fit_predict(positions.astype(np.float64))


def _by_size(clusters: np.ndarray) -> np.ndarray:
    """Renumber clusters by size, then by their first row."""
    names, first, sizes = np.unique(clusters[clusters >= 0], return_index=True, return_counts=True)
    ranked = names[np.lexsort((first, -sizes))]
    number = {int(name): rank for rank, name in enumerate(ranked)}
    return np.array([number.get(int(name), -1) for name in clusters], dtype=np.int32)
