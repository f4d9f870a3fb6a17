"""HDBSCAN's tree, cut with its own measure and with another for large clusters."""

from typing import Any

import numpy as np
import pytest

from stages.cluster.density import NOISE, cut, density_clusters

SIZES = [200, 50, 50, 50, 50]
pytestmark = pytest.mark.slow  # hdbscan's import


@pytest.fixture(scope="module")
def points() -> np.ndarray:
    """A blob of 200 points and four of 50, of which two are so near each other that they are one by their mass."""
    dice = np.random.default_rng(4)
    places = np.repeat([[0, 0], [40, 0], [41.5, 0], [60, 0], [80, 0]], SIZES, axis=0)
    return places + dice.normal(scale=0.3, size=places.shape)


@pytest.mark.parametrize("size", [5, 20, 60])
@pytest.mark.parametrize("shift", [0, 1.5, 4])
def test_without_large_clusters_it_is_hdbscans_cut(points: np.ndarray, size: int, shift: float) -> None:
    import hdbscan

    points = points + np.where(np.arange(len(points)) % 2, shift, 0)[:, None]
    clusterer: Any = hdbscan.HDBSCAN(min_cluster_size=size, min_samples=5).fit(points)
    ours = cut(clusterer.condensed_tree_.to_numpy(), len(points))
    pairs = set(zip(ours.tolist(), clusterer.labels_.tolist(), strict=True))
    assert len(pairs) == len({one for one, _ in pairs}) == len({other for _, other in pairs}) >= 2
    assert ((ours == NOISE) == (clusterer.labels_ == NOISE)).all()


@pytest.mark.parametrize(("largest", "clusters"), [(400, 4), (60, 5)])
def test_a_large_cluster_is_cut_where_its_parts_are_distinct(points: np.ndarray, largest: int, clusters: int) -> None:
    (labels,) = density_clusters(points.astype(np.float32), [20], largest, 5)
    assert len({*labels.tolist()} - {NOISE}) == clusters
    blobs = np.split(labels, np.cumsum(SIZES)[:-1])
    assert all(len({*blob.tolist()} - {NOISE}) == 1 for blob in blobs)
    assert (blobs[0] != NOISE).mean() > 0.9  # it has no parts, and stays
