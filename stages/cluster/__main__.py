"""cluster: groups of web rows that are alike.

In: data/embed/vectors.parquet; the clusters of an earlier run, with cluster.continue_from.
Out: data/cluster/assignments.parquet (ASSIGNMENT), data/cluster/centroids.parquet (CENTROID), metrics/cluster.json.
Contract: neither the number of tasks nor the order of rows changes a byte. UMAP and HDBSCAN see a sample drawn by row
id, several times, in this process; what most runs agree on is a cluster. Every other row, and what most runs called
noise, goes to the nearest centroid if that is similar enough, else to cluster -1, in as many tasks as the compute file
says.
Run: python -m stages.cluster
"""

import pickle
from pathlib import Path

import numpy as np

from cosmopedia.core.files import clear_folder
from cosmopedia.core.params import load
from cosmopedia.core.row_counts import RowCounts, write_metrics
from cosmopedia.corpus.row_ranges import checked_rows, read_parts, tasks_for
from cosmopedia.execution.compute import load_compute
from cosmopedia.execution.data_tasks import DataTasks
from cosmopedia.execution.stage_process import run_stage
from cosmopedia.tables.contracts import ASSIGNMENT, CENTROID, EMBEDDING
from cosmopedia.tables.parquet import TableWriter, write_table
from stages.cluster.earlier import check_earlier, read_earlier
from stages.cluster.sample import ClusterParams, read_sample, summary
from stages.cluster.umap_hdbscan import AssignRows, Groups, find_groups

VECTORS, OUT = Path("data/embed/vectors.parquet"), Path("data/cluster")
ROWS_PER_TASK = 5000  # fewer rows than this are not worth a task of their own


def settings() -> ClusterParams:
    """The stage's params; the earlier clusters are there."""
    params = load("cluster", ClusterParams)
    if params.continue_from is not None:
        check_earlier(params.continue_from)
    return params


def sample_groups(params: ClusterParams) -> tuple[Groups, int]:
    """The clusters of the sample, and how many of them are those of an earlier run."""
    ids, vectors = read_sample(VECTORS, params.seed, params.sample_size)
    earlier = None
    if params.continue_from is not None:
        earlier = read_earlier(check_earlier(params.continue_from), vectors.shape[1])
    groups = find_groups(
        ids,
        vectors,
        seed=params.seed,
        n_neighbors=params.n_neighbors,
        min_dist=params.min_dist,
        min_cluster_sizes=params.min_cluster_sizes(len(ids)),
        max_cluster_size=params.max_cluster_size(len(ids)),
        min_samples=params.min_samples,
        dimensions=params.dimensions,
        runs=params.runs,
        earlier=earlier,
    )
    return groups, 0 if earlier is None else len(earlier.centroids)


def main() -> str:
    """Cluster the sample here, assign the other rows in tasks; returns the summary line."""
    params, data = settings(), load_compute().data
    clear_folder(OUT)
    rows_in = checked_rows(VECTORS, EMBEDDING)
    groups, earlier = sample_groups(params)
    sizes, counts = np.zeros(len(groups.centroids), np.int64), RowCounts("cluster", rows_in=rows_in)
    tasks = max(1, min(tasks_for(rows_in, data.tasks), rows_in // ROWS_PER_TASK))
    with DataTasks("cluster", data) as arrays, TableWriter(OUT / "assignments.parquet", ASSIGNMENT) as writer:
        parts = arrays.workdir / "parts"
        groups_file = arrays.workdir / "groups.pickle"
        groups_file.write_bytes(pickle.dumps(groups))
        step = AssignRows(VECTORS, parts, arrays.notes("assign"), groups_file, params.min_similarity)
        arrays.run("assign", [step], tasks, total=rows_in, unit="rows")
        arrays.check()
        for rows in read_parts(parts, ASSIGNMENT, tasks, rows_in):
            writer.write_table(rows)
            clusters = rows["cluster"].to_numpy()
            sizes += np.bincount(clusters[clusters >= 0], minlength=len(sizes))
            counts.kept += int((clusters >= 0).sum())
            counts.remove("noise", int((clusters < 0).sum()))
    centroids = [
        {"cluster": number, "size": int(size), "centroid": centroid.tolist()}
        for number, (size, centroid) in enumerate(zip(sizes, groups.centroids, strict=True))
    ]
    write_table(OUT / "centroids.parquet", centroids, CENTROID)
    metrics = summary(groups, sizes, counts, params.min_cluster_sizes(len(groups.ids))[0], earlier)
    write_metrics("metrics/cluster.json", metrics)
    noise = counts.removed["noise"]
    return f"{metrics['clusters']} clusters hold {counts.kept} of {counts.rows_in} rows, {noise} are noise"


if __name__ == "__main__":
    run_stage("cluster", main)
