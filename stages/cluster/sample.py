"""The sample that is clustered, and the stage's parameters and metrics."""

from pathlib import Path
from typing import Any

import numpy as np
from pydantic import Field

from cosmopedia.core.errors import DataError
from cosmopedia.core.params import Params
from cosmopedia.core.rng import draw_sample
from cosmopedia.core.row_counts import RowCounts
from cosmopedia.corpus.vectors import vectors_of
from cosmopedia.tables.contracts import EMBEDDING
from cosmopedia.tables.parquet import read_batches
from stages.cluster.umap_hdbscan import Groups

CUTS = (1, 2)  # times min_cluster_fraction: each run is cut at both, so that no one size decides what is a cluster
PARTS = 10  # times the smallest min_cluster_size: a cluster of fewer rows is never too large


class ClusterParams(Params):
    """What is sampled, and when rows count as alike."""

    seed: int
    sample_size: int = Field(ge=2)
    n_neighbors: int = Field(ge=2)
    min_dist: float = Field(ge=0, lt=1)
    min_cluster_floor: int = Field(ge=2)
    min_cluster_fraction: float = Field(ge=0, le=0.5)
    max_cluster_fraction: float = Field(gt=0, le=1)
    min_samples: int = Field(ge=1)
    min_similarity: float = Field(ge=-1, le=1)
    dimensions: int = Field(ge=2)
    runs: int = Field(ge=1)
    continue_from: str | None

    def min_cluster_sizes(self, rows: int) -> list[int]:
        """HDBSCAN's min_cluster_size for a sample of `rows`: one for each cut, the smallest first."""
        fractions = [times * self.min_cluster_fraction for times in CUTS]
        return sorted({max(self.min_cluster_floor, round(rows * fraction)) for fraction in fractions})

    def max_cluster_size(self, rows: int) -> int:
        """Rows above which a cluster of a sample of `rows` is cut into its parts, if these are distinct."""
        return max(PARTS * self.min_cluster_sizes(rows)[0], round(rows * self.max_cluster_fraction))


def read_sample(path: Path, seed: int, size: int) -> tuple[list[str], np.ndarray]:
    """(row ids, vectors) of `size` rows of an EMBEDDING file, drawn by row id; vectors of 0 have no direction, and no
    place in it."""
    ids = [row_id for table in read_batches([path], EMBEDDING, ["row_id"]) for row_id in table["row_id"].to_pylist()]
    sample = set(draw_sample(seed, "cluster", ids, size))
    sampled_ids, parts = [], []
    for table in read_batches([path], EMBEDDING):
        row_ids, vectors = table["row_id"].to_pylist(), vectors_of(table)
        positions = [n for n, row_id in enumerate(row_ids) if row_id in sample and vectors[n].any()]
        sampled_ids += [row_ids[n] for n in positions]
        parts.append(vectors[positions])
        if vectors.shape[1] != parts[0].shape[1]:
            raise DataError(
                f"{path}: vectors of {parts[0].shape[1]} dimensions, but {vectors.shape[1]} from {row_ids[0]} on; run"
                " the embed stage again"
            )
    return sampled_ids, np.concatenate(parts) if parts else np.empty((0, 0), np.float32)


def summary(
    groups: Groups, sizes: np.ndarray, counts: RowCounts, min_cluster_size: int, earlier: int
) -> dict[str, Any]:
    """The stage's metrics; `sizes` are the rows of each cluster, `earlier` of which are those of an earlier run."""
    sampled, noise = len(groups.ids), int((groups.clusters < 0).sum())
    quantiles = np.quantile(sizes[sizes > 0], [0, 0.25, 0.5, 0.75, 1])
    return {
        **counts.metrics(),
        "clusters": int((sizes > 0).sum()),
        "clusters_continued": int((sizes[:earlier] > 0).sum()),
        "clusters_left_empty": int((sizes == 0).sum()),
        "runs_agreement": groups.agreement,  # mean adjusted Rand index of two single runs, before their consensus
        "min_cluster_size": min_cluster_size,
        "rows_sampled": sampled,
        "noise_share_in_sample": noise / sampled,  # what HDBSCAN left out in most runs
        "noise_share": counts.removed["noise"] / counts.rows_in,  # what is still left out after assignment
        "assigned_share": (counts.kept - (sampled - noise)) / counts.rows_in,  # rows assigned by centroid
        "cluster_sizes": dict(zip(("min", "p25", "median", "p75", "max"), quantiles.tolist(), strict=True)),
    }
