"""Going on from the clusters of an earlier run, so that topics keep their numbers when data are added.

`cluster.continue_from` names a copy of an earlier data/cluster. Its centroids stay as they are; a sampled row that is
as similar to the nearest of them as that cluster's own rows were belongs to it. The sample is clustered all the same,
and a cluster that is mostly of other rows is a new one.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl

from cosmopedia.core.errors import ConfigError, DataError
from cosmopedia.core.lineage import content_revision
from cosmopedia.records.pins import check_pin, split_pin
from cosmopedia.tables.contracts import ASSIGNMENT, CENTROID
from cosmopedia.tables.parquet import read_table

FILES = ("assignments.parquet", "centroids.parquet")
OWN = Path("data/cluster")
QUANTILE = 0.05  # of the similarities of a cluster's rows: whoever is less similar is not one of them


@dataclass(frozen=True)
class Earlier:
    """Clusters of an earlier run."""

    centroids: np.ndarray  # float32 [clusters, dimensions], length 1
    least: np.ndarray  # float64 [clusters]: the similarity from which a row belongs to the cluster

    def members(self, cosines: np.ndarray) -> np.ndarray:
        """The cluster of each row of `cosines` [rows, clusters], -1 where it is like none."""
        best = cosines.argmax(axis=1)
        return np.where(cosines[np.arange(len(best)), best] >= self.least[best], best, -1)


def check_earlier(reference: str) -> Path:
    """The folder of `path@sha256:...`. `ConfigError` when it is no copy of a data/cluster, or not what is pinned."""
    name, pin = split_pin(reference)
    folder = Path(name)
    if folder.resolve() == OWN.resolve():
        raise ConfigError(
            f"cluster.continue_from: {name} is what the stage itself writes, and empties first; copy it"
            " (cp -r data/cluster clusters-before) and name the copy"
        )
    missing = [file for file in FILES if not (folder / file).is_file()]
    if missing:
        raise ConfigError(
            f"cluster.continue_from: {folder / missing[0]} is missing; name a copy of an earlier data/cluster, or null"
        )
    check_pin(name, pin, content_revision(sorted(path for path in folder.rglob("*") if path.is_file())))
    return folder


def read_earlier(folder: Path, dimensions: int) -> Earlier:
    """The clusters of a folder. `DataError` when its vectors are not of the model that is used now."""
    rows = pl.DataFrame(read_table(folder / FILES[0], ASSIGNMENT, ["row_id", "cluster", "similarity", "in_sample"]))
    sampled = rows.filter(pl.col("in_sample") & (pl.col("cluster") >= 0))
    least = dict(sampled.group_by("cluster").agg(pl.col("similarity").quantile(QUANTILE, "linear")).iter_rows())
    table = read_table(folder / FILES[1], CENTROID).to_pylist()
    centroids = np.array([row["centroid"] for row in table], np.float32)
    if centroids.ndim != 2 or centroids.shape[1] != dimensions:
        raise DataError(
            f"{folder / FILES[1]}: centroids of {centroids.shape[-1]} dimensions, but {dimensions} in data/embed;"
            " clusters go on only with the same embed.model: set cluster.continue_from to null, or the model back"
        )
    # A cluster without a sampled row takes none but copies of its centroid.
    return Earlier(centroids, np.array([least.get(row["cluster"], 1.0) for row in table]))
