"""cluster: synthetic groups are found again, and order, batches and sharding cannot change a byte."""

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import yaml

from cosmopedia.core.errors import ConfigError, DataError
from cosmopedia.core.lineage import hash_files
from cosmopedia.core.rng import draw_sample
from cosmopedia.corpus import row_ranges
from cosmopedia.corpus.row_ranges import part_of, range_of, read_parts, read_range
from cosmopedia.corpus.vectors import table_of_vectors
from cosmopedia.execution.local_pins import local_references
from cosmopedia.tables.contracts import ASSIGNMENT, CENTROID, EMBEDDING
from cosmopedia.tables.parquet import TableWriter, read_batches, read_table
from stages.cluster import __main__ as cluster
from stages.cluster import density
from stages.cluster.lean_umap import import_umap, nearest_neighbours
from stages.cluster.umap_hdbscan import assign, find_groups
from tests.support.documents import ROOT

pytestmark = pytest.mark.slow  # UMAP is compiled at its first use, about 12 CPU s
GROUPS, EACH, DIMENSIONS, SAMPLE = 4, 30, 16, 80
PARAMS = {
    "seed": 5,
    "sample_size": SAMPLE,
    "n_neighbors": 8,
    "min_dist": 0.0,
    "min_cluster_floor": 8,
    "min_cluster_fraction": 0.0025,
    "max_cluster_fraction": 0.2,
    "min_samples": 3,
    "min_similarity": 0.5,
    "dimensions": 5,
    "runs": 3,
    "continue_from": None,
}
SETTINGS: dict[str, Any] = {
    "seed": 5,
    "n_neighbors": 8,
    "min_dist": 0.0,
    "min_cluster_sizes": [8, 16],
    "max_cluster_size": 25,
    "min_samples": 3,
    "dimensions": 5,
    "runs": 3,
}
OUTPUTS = ["data/cluster/assignments.parquet", "data/cluster/centroids.parquet"]


def unit(vectors: np.ndarray) -> np.ndarray:
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


@pytest.fixture(scope="module")
def rows() -> tuple[list[str], np.ndarray, np.ndarray]:
    """(row ids, vectors, true groups), with the groups mixed; the last row is like nothing else, nor sampled."""
    generator = np.random.default_rng(3)
    truth = np.tile(np.arange(GROUPS), EACH)
    noise = generator.normal(scale=0.12, size=(len(truth), DIMENSIONS))
    vectors = unit(np.eye(DIMENSIONS)[truth] + noise)
    outlier = np.eye(DIMENSIONS)[[-1]].astype(np.float32)
    ids = [f"web/{n:03d}" for n in range(len(truth))]
    last = (f"web/{n}" for n in range(900, 999))
    ids.append(next(i for i in last if i not in draw_sample(PARAMS["seed"], "cluster", [*ids, i], SAMPLE)))
    return ids, np.concatenate([vectors, outlier]), np.append(truth, -1)


@pytest.fixture
def folder(empty_folder: Path, rows: tuple) -> Path:
    Path("compute").mkdir()
    shutil.copy(ROOT / "compute/local.yaml", "compute")
    write_params()
    write_vectors(*rows[:2], batch=1000)
    return empty_folder


def write_params(**changes: object) -> None:
    Path("params.yaml").write_text(yaml.safe_dump({"profile": "tiny", "cluster": {**PARAMS, **changes}}))
    Path("profiles").mkdir(exist_ok=True)
    Path("profiles/tiny.yaml").write_text("{}\n")


def write_vectors(ids: list[str], vectors: np.ndarray, batch: int) -> None:
    with TableWriter("data/embed/vectors.parquet", EMBEDDING) as writer:
        for start in range(0, len(ids), batch):
            part = pa.chunked_array([ids[start : start + batch]])
            writer.write_table(table_of_vectors(part, vectors[start : start + batch]))


def test_groups_are_found_again_and_a_row_like_nothing_else_is_noise(folder: Path, rows: tuple) -> None:
    ids, _, truth = rows
    assert cluster.main() == "4 clusters hold 120 of 121 rows, 1 are noise"
    table = read_table(OUTPUTS[0], ASSIGNMENT).to_pylist()
    assert [row["row_id"] for row in table] == ids
    found: dict[int, set[int]] = {}
    for row, true in zip(table, truth, strict=True):
        found.setdefault(row["cluster"], set()).add(int(true))
    assert found.pop(-1) == {-1} and sorted(map(sorted, found.values())) == [[0], [1], [2], [3]]
    outlier = table[-1]
    assert (outlier["similarity"], outlier["in_sample"]) == (0, False)
    metrics = json.loads(Path("metrics/cluster.json").read_text())
    assert (metrics["rows_in"], metrics["rows_kept"], metrics["removed"]) == (121, 120, {"noise": 1})
    assert metrics["clusters"] == 4 and metrics["cluster_sizes"]["max"] == 30
    assert metrics["rows_sampled"] == sum(row["in_sample"] for row in table) == SAMPLE
    assert metrics["assigned_share"] >= 40 / 121
    assert all((row["x"] is not None) == row["in_sample"] for row in table)
    for row in read_table(OUTPUTS[1], CENTROID).to_pylist():
        assert row["size"] == 30 and abs(np.linalg.norm(row["centroid"]) - 1) < 1e-6


def test_a_rerun_and_another_sharding_give_the_same_bytes(folder: Path, rows: tuple) -> None:
    cluster.main()
    first = [hash_files([Path(path)]) for path in OUTPUTS]
    write_vectors(*rows[:2], batch=7)
    cluster.main()
    assert [hash_files([Path(path)]) for path in OUTPUTS] == first


@pytest.mark.parametrize("group", [7, 20, 1000])
def test_row_ranges_have_every_row_once_in_the_same_batches(folder: Path, rows: tuple, group: int) -> None:
    path, size = Path("data/embed/vectors.parquet"), 10
    write_vectors(*rows[:2], batch=group)
    whole = list(read_batches([path], EMBEDDING, batch_rows=size))
    for tasks in (1, 2, 5, 13):
        ranges = [range_of(rank, tasks, 121, size) for rank in range(tasks)]
        found = [t for some in ranges for t in read_range(path, EMBEDDING, ("row_id", "embedding"), some, size)]
        assert [table.to_pylist() for table in found] == [table.to_pylist() for table in whole]


def test_a_part_that_lacks_rows_is_named(folder: Path, rows: tuple, monkeypatch: pytest.MonkeyPatch) -> None:
    ids, vectors, _ = rows
    monkeypatch.setattr(row_ranges, "BATCH_ROWS", 120)
    with TableWriter(part_of(Path("parts"), 0), EMBEDDING) as writer:
        writer.write_table(table_of_vectors(pa.chunked_array([ids[:120]]), vectors[:120]))
    with pytest.raises(DataError, match=r"parts/00000.parquet: wanted the 121 rows of task 0 of 1, found 120 rows"):
        list(read_parts(Path("parts"), EMBEDDING, tasks=1, rows=121))
    with pytest.raises(DataError, match=r"parts/00001.parquet: wanted .* found no file"):
        list(read_parts(Path("parts"), EMBEDDING, tasks=2, rows=121))


def test_vectors_in_a_truncated_file_are_refused(folder: Path) -> None:
    path = Path("data/embed/vectors.parquet")
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(DataError, match=r"data/embed/vectors.parquet: not a whole parquet file"):
        cluster.main()


def test_a_permutation_of_rows_gives_the_same_groups(rows: tuple) -> None:
    ids, vectors, _ = rows
    order = np.random.default_rng(9).permutation(len(ids))
    first = find_groups(ids, vectors, **SETTINGS)
    second = find_groups([ids[n] for n in order], vectors[order], **SETTINGS)
    assert first.ids == second.ids == sorted(ids)
    for name in ("clusters", "positions", "centroids"):
        assert getattr(first, name).tobytes() == getattr(second, name).tobytes()


def test_a_row_joins_the_nearest_centroid_or_none(rows: tuple) -> None:
    centroids = np.eye(3, dtype=np.float32)
    vectors = unit(np.array([[1, 0.2, 0], [0.1, 1, 0], [1, 1, 0], [0, 0.1, 1]]))
    clusters, similarity = assign(vectors, centroids, min_similarity=0.8)
    assert clusters.tolist() == [0, 1, -1, 2] and similarity[2] == 0
    kept, similarity = assign(vectors, centroids, 0.8, fixed=np.array([-1, -1, 1, 0]))
    assert kept.tolist() == [0, 1, 1, 0] and similarity[3] == 0  # HDBSCAN's own rows stay where it put them


def test_too_few_rows_and_no_cluster_say_what_to_change(rows: tuple) -> None:
    ids, vectors, truth = rows
    with pytest.raises(DataError, match=r"10 rows cannot .* at least 8: at least 16 are needed.*min_cluster_floor"):
        find_groups(ids[:10], vectors[:10], **SETTINGS)
    with pytest.raises(DataError, match=r"no cluster of at least 45 among 90 rows; lower cluster.min_cluster_floor"):
        three = [n for n in range(120) if truth[n] < 3]  # 30 + 60 is no split into two clusters of 45
        find_groups([ids[n] for n in three], vectors[three], **{**SETTINGS, "min_cluster_sizes": [45]})


def test_copies_of_one_page_are_one_cluster(rows: tuple) -> None:
    _, vectors, truth = rows
    copies = np.concatenate([np.repeat(vectors[:1], 60, axis=0), vectors[truth == 1]])
    ids = [f"web/{n:03d}" for n in range(len(copies))]
    found = find_groups(ids, copies, **SETTINGS)
    assert len(set(found.clusters[:60].tolist())) == 1 and len(found.centroids) <= 3
    groups = find_groups(ids[:60], copies[:60], **SETTINGS)  # nothing but copies
    assert len(groups.centroids) == 1 and np.isfinite(groups.positions).all()


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda vectors: [[float("nan")] * DIMENSIONS, *vectors[1:]], r"vector of web/000 .* not finite"),
        (lambda vectors: [*vectors[:7], vectors[7][:-1], *vectors[8:]], r"vector of web/007 has 15 dimensions"),
        (lambda vectors: [], r"0 rows cannot make clusters of at least 8: at least 16 are needed"),
    ],
)
def test_vectors_that_are_none_are_a_sentence(folder: Path, rows: tuple, damage: Callable, message: str) -> None:
    ids, vectors, _ = rows
    damaged = damage(vectors.tolist())
    table = pa.table({"row_id": ids[: len(damaged)], "embedding": pa.array(damaged, pa.list_(pa.float32()))})
    with TableWriter("data/embed/vectors.parquet", EMBEDDING) as writer:
        writer.write_table(table)
    with pytest.raises(DataError, match=message):
        cluster.main()


def test_a_vector_without_a_direction_is_noise(folder: Path, rows: tuple) -> None:
    ids, vectors, _ = rows
    write_vectors(ids, np.where(np.arange(len(ids))[:, None] < 20, 0, vectors).astype(np.float32), batch=1000)
    cluster.main()
    table = read_table(OUTPUTS[0], ASSIGNMENT, ["cluster", "in_sample"]).slice(0, 20).to_pylist()
    assert all(row == {"cluster": -1, "in_sample": False} for row in table)


def test_topics_keep_their_numbers_when_data_are_added(folder: Path, rows: tuple) -> None:
    """Three groups first; then another seed, without some rows, and with a fourth group."""
    ids, vectors, truth = rows
    first = [n for n in range(120) if truth[n] in (0, 1, 3)]
    write_vectors([ids[n] for n in first], vectors[first], batch=1000)
    cluster.main()
    before = {row["row_id"]: row["cluster"] for row in read_table(OUTPUTS[0], ASSIGNMENT).to_pylist()}
    centroids = read_table(OUTPUTS[1], CENTROID).to_pylist()
    shutil.copytree("data/cluster", "before")
    later = [n for n in range(120) if n % 30]
    write_vectors([ids[n] for n in later], vectors[later], batch=1000)
    write_params(continue_from="before", seed=6)
    assert cluster.main() == "4 clusters hold 116 of 116 rows, 0 are noise"
    after = {row["row_id"]: row["cluster"] for row in read_table(OUTPUTS[0], ASSIGNMENT).to_pylist()}
    assert all(after[ids[n]] == before[ids[n]] for n in later if truth[n] != 2)
    assert {after[ids[n]] for n in later if truth[n] == 2} == {3}
    kept = read_table(OUTPUTS[1], CENTROID).to_pylist()[:3]
    assert [row["centroid"] for row in kept] == [row["centroid"] for row in centroids]
    metrics = json.loads(Path("metrics/cluster.json").read_text())
    assert (metrics["clusters"], metrics["clusters_continued"], metrics["clusters_left_empty"]) == (4, 3, 0)


def test_earlier_clusters_that_cannot_be_had_are_named(folder: Path) -> None:
    write_params(continue_from="data/cluster")
    with pytest.raises(ConfigError, match=r"continue_from: data/cluster is what the stage itself writes.*; copy it"):
        cluster.settings()
    write_params(continue_from="nowhere")
    with pytest.raises(ConfigError, match=r"continue_from: nowhere/assignments.parquet is missing; name a copy"):
        cluster.settings()
    write_params()
    cluster.main()
    shutil.copytree("data/cluster", "before")
    write_params(continue_from="before@sha256:0123456789abcdef")
    with pytest.raises(ConfigError, match=r"before is sha256:\w{16}, but the profile pins sha256:0123456789abcdef"):
        cluster.settings()
    assert [reference.path for reference in local_references({"cluster": {"continue_from": "before"}})] == ["before"]


def test_neighbours_of_many_rows_are_those_that_umap_finds(monkeypatch: pytest.MonkeyPatch) -> None:
    import_umap()
    import pynndescent
    from umap import umap_

    monkeypatch.setattr(umap_, "NNDescent", pynndescent.NNDescent)
    vectors = unit(np.random.default_rng(4).normal(size=(600, DIMENSIONS)).astype(np.float32))
    ours = nearest_neighbours(vectors, 10, np.random.RandomState(7))
    theirs = umap_.nearest_neighbors(vectors, 10, "cosine", {}, True, np.random.RandomState(7), n_jobs=1)
    assert all(np.array_equal(one, other) for one, other in zip(ours, theirs[:2], strict=True))


def test_a_sample_is_clustered_without_pynndescent() -> None:
    code = (
        "import sys, numpy as np; from stages.cluster.umap_hdbscan import find_groups;"
        " vectors = np.repeat(np.eye(4, dtype=np.float32), 20, axis=0);"
        " vectors += np.random.default_rng(1).normal(scale=0.1, size=vectors.shape).astype(np.float32);"
        " vectors /= np.linalg.norm(vectors, axis=1, keepdims=True);"
        f" find_groups([f'{{i:03}}' for i in range(80)], vectors, **{SETTINGS!r});"
        " assert 'umap' in sys.modules and 'pynndescent' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)


def test_a_topic_that_is_half_of_the_sample_is_not_cut_by_chance(monkeypatch: pytest.MonkeyPatch) -> None:
    dice = np.random.default_rng(2)
    truth = np.repeat(np.arange(6), [500, 100, 100, 100, 100, 100])
    vectors = dice.normal(size=(6, 64))[truth] + dice.normal(scale=1.6, size=(len(truth), 64))
    settings = {**SETTINGS, "max_cluster_size": 150}

    def together() -> list[float]:
        """The share of each topic's rows that its commonest cluster has."""
        found = find_groups([f"{n:04d}" for n in range(len(truth))], unit(vectors), **settings).clusters
        return [float(np.bincount(found[truth == topic] + 1).max() / (truth == topic).sum()) for topic in range(6)]

    assert min(together()) > 0.95
    monkeypatch.setattr(density, "PARTS_MASS", 0.0)
    assert together()[0] < 0.8
