"""UMAP and HDBSCAN on a sample, several times; centroids, and the nearest centroid for everything else.

Vectors have length 1, so a dot product is a cosine. Whatever decides a cluster is computed in an order fixed by row
id, and similarities are rounded to six digits, far above the error of a float64 product: neither the rows' order nor
the size of a batch can change a result.
"""

import pickle
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from cosmopedia.core.errors import DataError
from cosmopedia.core.rng import draw_u64
from cosmopedia.corpus.row_ranges import RowRangeStep
from cosmopedia.corpus.vectors import vectors_of
from cosmopedia.tables.contracts import ASSIGNMENT, EMBEDDING
from stages.cluster.consensus import agree, agreement
from stages.cluster.density import NOISE, POSITION_DIGITS, density_clusters
from stages.cluster.earlier import Earlier
from stages.cluster.lean_umap import import_umap, nearest_neighbours

DIGITS = 6  # of similarities
EXACT_ROWS = 20_000  # up to which all pairs of rows are compared for their neighbours: 2 CPU s for 10,000
BLOCK = 1024  # rows whose neighbours are sought at once
EPOCHS = {"clusters": 50, "map": 200}  # of UMAP; what a run has too few of, the others make up for
SAME = 0.98  # cosine of two centroids from which the clusters are one: copies of a page are no topics of their own


@dataclass(frozen=True)
class Groups:
    """Clusters of a sample, numbered by size (largest first, then by the first row id). -1 is noise."""

    ids: list[str]  # sorted
    clusters: np.ndarray  # int32 [rows]
    positions: np.ndarray  # float32 [rows, 2]: the map
    centroids: np.ndarray  # float32 [clusters, dimensions], length 1
    agreement: float | None  # mean adjusted Rand index of two of the runs that made new clusters


def find_groups(
    ids: list[str],
    vectors: np.ndarray,
    *,
    seed: int,
    n_neighbors: int,
    min_dist: float,
    min_cluster_sizes: list[int],
    max_cluster_size: int,
    min_samples: int,
    dimensions: int,
    runs: int,
    earlier: Earlier | None = None,
) -> Groups:
    """Cluster the rows `ids` with their `vectors` (float32 [rows, dimensions]), in any order.

    UMAP (McInnes et al. 2018) and HDBSCAN run several times from one graph of neighbours, each run with a start of its
    own and cut at each of `min_cluster_sizes`; `density.cut` says what becomes of clusters of more than
    `max_cluster_size` rows. Rows are together that most of the labels put together.

    With `earlier` clusters, rows that are like these belong to them; clusters that are mostly of other rows are new,
    and numbered behind them. The map is a projection of its own. `DataError` when the rows are too few, or no cluster
    is found.
    """
    min_cluster_size = min(min_cluster_sizes)
    if len(ids) < 2 * min_cluster_size:
        raise DataError(
            f"{len(ids)} rows cannot make clusters of at least {min_cluster_size}: at least {2 * min_cluster_size} are"
            " needed, for two; give the web source more rows, or lower cluster.min_cluster_floor in the profile"
        )
    order = sorted(range(len(ids)), key=ids.__getitem__)
    ids, vectors = [ids[i] for i in order], vectors[order]
    with _one_thread():
        graph = neighbour_graph(vectors, n_neighbors, seed)
        positions = layout(vectors, graph, 2, min_dist, EPOCHS["map"], seed, "map")
        found = []
        for run in range(runs):
            own = draw_u64(seed, "run", run)
            dense = layout(vectors, graph, dimensions, min_dist, EPOCHS["clusters"], own, run)
            found += density_clusters(dense, min_cluster_sizes, max_cluster_size, min_samples)
        clusters, similar = consensus(vectors, found, min_cluster_size)
        centroids = centroids_of(vectors, clusters)
    if earlier is not None:
        members = earlier.members(similarities(vectors, earlier.centroids))
        new = _by_size(_large(others(clusters, members), min_cluster_size))
        centroids = np.concatenate([earlier.centroids, centroids_of(vectors, new)])
        clusters = np.where(new >= 0, new + len(earlier.centroids), members)
    if not len(centroids):
        raise DataError(
            f"HDBSCAN found no cluster of at least {min_cluster_size} among {len(ids)} rows; lower"
            " cluster.min_cluster_floor in the profile or cluster.min_cluster_fraction in params.yaml"
        )
    return Groups(ids, clusters.astype(np.int32), positions, centroids, similar)


def consensus(vectors: np.ndarray, found: list[np.ndarray], min_cluster_size: int) -> tuple[np.ndarray, float | None]:
    """(clusters [rows], mean adjusted Rand index of two of `found`): what most of the labels [rows] `found` agree on.

    A row that is noise in most of those that have clusters is -1; all are when none has any. Copies of one page are
    one cluster.
    """
    one = np.zeros(len(vectors), np.int64)
    if similarities(vectors, centroids_of(vectors, one)).min() >= SAME:  # HDBSCAN finds two clusters or none
        return one, None
    found = [labels for labels in found if labels.max() >= 0]
    if not found:
        return np.full(len(vectors), -1), None
    noise = np.mean([labels == NOISE for labels in found], axis=0) > 0.5
    # Noise goes to the nearest centroid before runs are compared: what HDBSCAN leaves out differs from run to run.
    whole = np.stack([assign(vectors, centroids_of(vectors, labels), -1, labels)[0] for labels in found])
    clusters = _large(np.where(noise, -1, agree(whole)), min_cluster_size)
    if clusters.max() < 0:  # the runs agree on nothing: one of them, then
        clusters = found[0]
    return _by_size(merged(clusters, centroids_of(vectors, clusters))), agreement(whole)


def others(clusters: np.ndarray, members: np.ndarray) -> np.ndarray:
    """`clusters` [rows] without those of which most rows have a cluster in `members` [rows]; the rows that have one
    stay there, and are -1 here."""
    inside = np.bincount(clusters[(clusters >= 0) & (members >= 0)], minlength=clusters.max() + 1)
    new = inside * 2 < np.bincount(clusters[clusters >= 0], minlength=clusters.max() + 1)
    return np.where((clusters >= 0) & (members < 0) & np.append(new, False)[clusters], clusters, -1)


def centroids_of(vectors: np.ndarray, clusters: np.ndarray) -> np.ndarray:
    """The mean directions of the clusters, float32 [clusters, dimensions]."""
    sums = np.zeros((clusters.max(initial=-1) + 1, vectors.shape[1]))
    np.add.at(sums, clusters[clusters >= 0], vectors[clusters >= 0].astype(np.float64))
    return (sums / np.linalg.norm(sums, axis=1, keepdims=True)).astype(np.float32)


def merged(clusters: np.ndarray, centroids: np.ndarray) -> np.ndarray:
    """Clusters whose centroids are as good as equal become one."""
    from scipy.sparse.csgraph import connected_components

    _, number = connected_components(similarities(centroids, centroids) >= SAME, directed=False)
    return np.where(clusters >= 0, number[clusters], -1)


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


def neighbour_graph(vectors: np.ndarray, n_neighbors: int, seed: int) -> Any:
    """UMAP's fuzzy graph of the nearest neighbours by cosine, sparse [rows, rows]."""
    import_umap()
    from umap.umap_ import fuzzy_simplicial_set

    n_neighbors = min(n_neighbors, len(vectors) - 1)
    state = np.random.RandomState(draw_u64(seed, "neighbours") % 2**32)
    if len(vectors) <= EXACT_ROWS:
        indices, distances = nearest(vectors, n_neighbors)
    else:
        indices, distances = nearest_neighbours(vectors, n_neighbors, state)
    return fuzzy_simplicial_set(vectors, n_neighbors, state, "cosine", {}, indices, distances)[0]


def nearest(vectors: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    """The `count` nearest rows of each row, itself first: (indices int32, distances float32) [rows, count]."""
    indices = np.empty((len(vectors), count), np.int32)
    distances = np.empty((len(vectors), count), np.float32)
    for start in range(0, len(vectors), BLOCK):
        rows = slice(start, start + BLOCK)
        apart = 1 - vectors[rows] @ vectors.T
        apart[np.arange(len(apart)), np.arange(start, start + len(apart))] = -1  # a row comes before its copies
        near = np.argpartition(apart, count - 1, axis=1)[:, :count]
        order = np.lexsort((near, np.take_along_axis(apart, near, axis=1)), axis=1)
        indices[rows] = np.take_along_axis(near, order, axis=1)
        distances[rows] = np.take_along_axis(apart, indices[rows], axis=1).clip(0)
    return indices, distances


def layout(
    vectors: np.ndarray, graph: Any, dimensions: int, min_dist: float, epochs: int, seed: int, name: object
) -> np.ndarray:
    """UMAP's layout of a graph from its spectral one: positions float32 [rows, dimensions], rounded."""
    import_umap()
    from umap.spectral import spectral_layout
    from umap.umap_ import find_ab_params, simplicial_set_embedding

    state = np.random.RandomState(draw_u64(seed, "start") % 2**32)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*[Ss]pectral.*")
        start = spectral_layout(vectors, graph, dimensions, state, metric="cosine", metric_kwds={})
    largest = np.abs(start).max() or 1.0
    start = (start * (10 / largest) + state.normal(scale=1e-4, size=start.shape)).astype(np.float32)
    a, b = find_ab_params(1.0, min_dist)
    positions, _ = simplicial_set_embedding(
        vectors,
        graph.copy(),
        n_components=dimensions,
        initial_alpha=1.0,
        a=a,
        b=b,
        gamma=1.0,
        negative_sample_rate=5,
        n_epochs=epochs,
        init=start,
        random_state=np.random.RandomState(draw_u64(seed, "layout", name) % 2**32),
        metric="cosine",
        metric_kwds={},
        densmap=False,
        densmap_kwds={},
        output_dens=False,
    )
    return np.round(positions, POSITION_DIGITS).astype(np.float32)


@contextmanager
def _one_thread() -> Iterator[None]:
    """Sums in one order, whatever the machine has."""
    import numba
    from threadpoolctl import threadpool_limits

    threads = numba.get_num_threads()
    numba.set_num_threads(1)  # UMAP's mean of all distances, a bound for those of copies, depends on it
    try:
        with threadpool_limits(1):
            yield
    finally:
        numba.set_num_threads(threads)


def _large(clusters: np.ndarray, min_cluster_size: int) -> np.ndarray:
    """Clusters numbered anew, without those of fewer rows."""
    names, sizes = np.unique(clusters[clusters >= 0], return_counts=True)
    number = np.full(clusters.max() + 2, -1)
    kept = names[sizes >= min_cluster_size]
    number[kept] = np.arange(len(kept))
    return number[clusters]


def _by_size(clusters: np.ndarray) -> np.ndarray:
    """Renumber clusters by size, then by their first row."""
    names, first, sizes = np.unique(clusters[clusters >= 0], return_index=True, return_counts=True)
    ranked = names[np.lexsort((first, -sizes))]
    number = {int(name): rank for rank, name in enumerate(ranked)}
    return np.array([number.get(int(name), -1) for name in clusters], dtype=np.int32)
