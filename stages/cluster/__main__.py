"""cluster: groups of web rows that are alike.

In: data/embed/vectors.parquet.
Out: data/cluster/assignments.parquet (ASSIGNMENT), data/cluster/centroids.parquet (CENTROID), metrics/cluster.json,
metrics/plots/clusters.png (the sample's map).
UMAP and HDBSCAN see a sample drawn by row id, in this process; every other row, and what HDBSCAN called noise, goes to
the nearest centroid if that is similar enough, else to cluster -1, in as many tasks as the cluster file says. Neither
tasks nor the order of rows change a byte.
Alone: python -m stages.cluster
"""

import pickle
import shutil
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import Field

from cosmopedia.errors import run_stage
from cosmopedia.execution.compute import load_compute
from cosmopedia.execution.data_tasks import DataTasks
from cosmopedia.params import Params, load
from cosmopedia.rng import draw_sample
from cosmopedia.tables.contracts import ASSIGNMENT, CENTROID, EMBEDDING
from cosmopedia.tables.parquet import TableWriter, read_batches, write_table
from cosmopedia.tables.row_counts import RowCounts, write_metrics
from cosmopedia.tables.row_ranges import checked_rows, read_parts, tasks_for
from cosmopedia.tables.vectors import vectors_of
from stages.cluster.map import draw_map
from stages.cluster.umap_hdbscan import AssignRows, Groups, find_groups

VECTORS, OUT, FIGURE = Path("data/embed/vectors.parquet"), Path("data/cluster"), Path("metrics/plots/clusters.png")
ROWS_PER_TASK = 5000  # fewer rows than this are not worth a task of their own


class ClusterParams(Params):
    """What is sampled, and when rows count as alike."""

    seed: int
    sample_size: int = Field(ge=2)
    n_neighbors: int = Field(ge=2)
    min_dist: float = Field(ge=0, lt=1)
    min_cluster_floor: int = Field(ge=2)
    min_cluster_fraction: float = Field(ge=0, le=0.5)
    min_samples: int = Field(ge=1)
    min_similarity: float = Field(ge=-1, le=1)

    def min_cluster_size(self, rows: int) -> int:
        """HDBSCAN's min_cluster_size for a sample of `rows`."""
        return max(self.min_cluster_floor, round(rows * self.min_cluster_fraction))


def read_sample(params: ClusterParams) -> tuple[list[str], np.ndarray]:
    """(row ids, vectors) of the sample."""
    ids = [i for t in read_batches([VECTORS], EMBEDDING, ["row_id"]) for i in t["row_id"].to_pylist()]
    chosen = set(draw_sample(params.seed, "cluster", ids, params.sample_size))
    found, parts = [], []
    for table in read_batches([VECTORS], EMBEDDING):
        row_ids = table["row_id"].to_pylist()
        taken = [n for n, row_id in enumerate(row_ids) if row_id in chosen]
        found += [row_ids[n] for n in taken]
        parts.append(vectors_of(table)[taken])
    return found, np.concatenate(parts) if parts else np.empty((0, 0), np.float32)


def summary(groups: Groups, sizes: np.ndarray, account: RowCounts, min_cluster_size: int) -> dict[str, Any]:
    """The stage's metrics; `sizes` are the rows of each cluster."""
    sampled, noise = len(groups.ids), int((groups.clusters < 0).sum())
    quantiles = np.quantile(sizes, [0, 0.25, 0.5, 0.75, 1])
    return {
        **account.metrics(),
        "clusters": len(sizes),
        "min_cluster_size": min_cluster_size,
        "rows_sampled": sampled,
        "noise_share_in_sample": noise / sampled,  # what HDBSCAN itself left out
        "noise_share": account.removed["noise"] / account.rows_in,  # what is still left out after assignment
        "assigned_share": (account.kept - (sampled - noise)) / account.rows_in,  # rows placed by centroid
        "cluster_sizes": dict(zip(("min", "p25", "median", "p75", "max"), quantiles.tolist(), strict=True)),
    }


def main() -> str:
    """Compute the sample here, assign the rest in tasks; returns the summary line."""
    params, data = load("cluster", ClusterParams), load_compute().data
    shutil.rmtree(OUT, ignore_errors=True)
    rows_in = checked_rows(VECTORS, EMBEDDING)
    ids, vectors = read_sample(params)
    size = params.min_cluster_size(len(ids))
    groups = find_groups(
        ids,
        vectors,
        seed=params.seed,
        n_neighbors=params.n_neighbors,
        min_dist=params.min_dist,
        min_cluster_size=size,
        min_samples=params.min_samples,
    )
    sizes, account = np.zeros(len(groups.centroids), np.int64), RowCounts("cluster", rows_in=rows_in)
    tasks = max(1, min(tasks_for(rows_in, data.tasks), rows_in // ROWS_PER_TASK))
    with DataTasks("cluster", data) as arrays, TableWriter(OUT / "assignments.parquet", ASSIGNMENT) as writer:
        parts, found = arrays.workdir / "parts", arrays.workdir / "groups.pickle"
        found.write_bytes(pickle.dumps(groups))
        step = AssignRows(VECTORS, parts, arrays.notes("assign"), found, params.min_similarity)
        arrays.run("assign", [step], tasks, total=rows_in, unit="rows")
        arrays.check()
        for rows in read_parts(parts, ASSIGNMENT, tasks, rows_in):
            writer.write_table(rows)
            clusters = rows["cluster"].to_numpy()
            sizes += np.bincount(clusters[clusters >= 0], minlength=len(sizes))
            account.kept += int((clusters >= 0).sum())
            account.remove("noise", int((clusters < 0).sum()))
    centroids = [
        {"cluster": number, "size": int(count), "centroid": centroid.tolist()}
        for number, (count, centroid) in enumerate(zip(sizes, groups.centroids, strict=True))
    ]
    write_table(OUT / "centroids.parquet", centroids, CENTROID)
    draw_map(FIGURE, groups.positions, groups.clusters)
    write_metrics("metrics/cluster.json", summary(groups, sizes, account, size))
    return f"{len(sizes)} clusters hold {account.kept} of {account.rows_in} rows, {account.removed['noise']} are noise"


if __name__ == "__main__":
    run_stage("cluster", main)
