"""The clusters that people have decided about, and which of today's rows and clusters belong to them.

Cluster numbers, labels and keywords change with every clustering; where the texts lie does not.
curation/clusters.jsonl keeps the centroid of each reviewed cluster, under an id that an entry of curation/topics.yaml
names; `cosmo topics propose` writes both. A row belongs to the reviewed centroid nearest to it, unless it is clearly
nearer to its own cluster's; a cluster follows the one that most of its rows belong to. The figures are in
docs/decisions/2026-11-29-topics.md.
"""

import base64
import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from cosmopedia.core.errors import ConfigError, DataError
from cosmopedia.core.files import write_text
from cosmopedia.core.rng import content_hash
from cosmopedia.core.text import read_text
from cosmopedia.corpus.vectors import vectors_of
from cosmopedia.tables.contracts import ASSIGNMENT, EMBEDDING
from cosmopedia.tables.parquet import read_batches

REVIEWED = Path("curation/clusters.jsonl")
VECTORS, ASSIGNMENTS = Path("data/embed/vectors.parquet"), Path("data/cluster/assignments.parquet")
SLACK = 0.12  # cosine by which a row may be nearer to its own cluster's centroid than to the reviewed one
FOLLOWS = 0.5  # share of a cluster's rows that must belong to reviewed clusters, for it to follow one
PART = 0.2  # share of a cluster from which a part of it that went elsewhere is worth a person's look


class ReviewedCluster(NamedTuple):
    """A cluster as it was when somebody decided about it."""

    id: str
    centroid: np.ndarray  # float32 [dimensions]

    @classmethod
    def of(cls, centroid: np.ndarray) -> "ReviewedCluster":
        """Of a centroid; the id is its content's."""
        kept = np.asarray(centroid, np.float16)
        return cls(content_hash(kept.tobytes().hex(), size=4), kept.astype(np.float32))

    def line(self) -> str:
        """Its line in the file."""
        content = base64.b64encode(self.centroid.astype("<f2").tobytes()).decode()
        return json.dumps({"id": self.id, "centroid": content})


def read_reviewed(path: Path = REVIEWED) -> dict[str, ReviewedCluster]:
    """The reviewed clusters by id; none when the file is missing. `ConfigError` names the line that is wrong."""
    if not path.is_file():
        return {}
    clusters = {}
    for number, line in enumerate(read_text(path).splitlines(), 1):
        try:
            content = json.loads(line)
            values = np.frombuffer(base64.b64decode(content["centroid"], validate=True), "<f2").astype(np.float32)
            cluster = ReviewedCluster(content["id"], values)
        except (ValueError, KeyError, TypeError) as error:
            raise ConfigError(f"{path}:{number}: no reviewed cluster ({error}); restore the file with git") from None
        if not np.isfinite(values).all() or ReviewedCluster.of(values).id != cluster.id:
            raise ConfigError(
                f"{path}:{number}: the centroid is not the one of {cluster.id}; restore the file with git"
            )
        clusters[cluster.id] = cluster
    return clusters


def write_reviewed(clusters: Iterable[ReviewedCluster], path: Path = REVIEWED) -> None:
    """Write the file, in the order of the ids."""
    write_text(path, "".join(f"{cluster.line()}\n" for cluster in sorted(clusters)))


@dataclass(frozen=True)
class Overlap:
    """Which reviewed cluster each row belongs to, and how many rows of each cluster do."""

    ids: list[str]  # of the reviewed clusters
    nearest: np.ndarray  # int32 [rows]: position in `ids`, or -1
    counts: np.ndarray  # int64 [clusters, reviewed]
    sizes: np.ndarray  # int64 [clusters]

    def follows(self, cluster: int) -> int | None:
        """The position of the reviewed cluster that most rows of a cluster belong to; None when it is a new one."""
        counts = self.counts[cluster]
        return int(counts.argmax()) if counts.sum() and counts.sum() >= FOLLOWS * self.sizes[cluster] else None

    def parts(self, cluster: int) -> list[int]:
        """The positions of the reviewed clusters that a large part of a cluster belongs to."""
        return [int(n) for n in np.flatnonzero(self.counts[cluster] >= PART * self.sizes[cluster])]


def overlap_with(reviewed: list[ReviewedCluster], clusters: int) -> Overlap:
    """How the rows of `clusters` clusters lie to the reviewed ones."""
    centroids = np.stack([cluster.centroid for cluster in reviewed]).astype(np.float64)
    columns = ["row_id", "cluster", "similarity"]
    tables = list(read_batches([ASSIGNMENTS], ASSIGNMENT, columns))
    own = np.concatenate([table["cluster"].to_numpy() for table in tables])
    similarity = np.concatenate([table["similarity"].to_numpy() for table in tables])
    parts = [nearest_reviewed(vectors_of(table), centroids) for table in read_batches([VECTORS], EMBEDDING)]
    best = np.concatenate([part for part, _ in parts]) if parts else np.empty(0, np.int32)
    if len(best) != len(own):
        raise DataError(f"{VECTORS} has {len(best)} rows and {ASSIGNMENTS} {len(own)}; run cluster again (dvc repro)")
    cosine = np.concatenate([part for _, part in parts]) if parts else np.empty(0)
    return count_overlap([cluster.id for cluster in reviewed], own, similarity, best, cosine, clusters)


def count_overlap(
    ids: list[str], own: np.ndarray, similarity: np.ndarray, best: np.ndarray, cosine: np.ndarray, clusters: int
) -> Overlap:
    """How rows lie to the reviewed clusters `ids`.

    A row has its own cluster with the similarity to it, and the nearest reviewed one with its cosine.
    """
    nearest = np.where((own >= 0) & (cosine >= similarity - SLACK), best, -1).astype(np.int32)
    counts = np.zeros((clusters, len(ids)), np.int64)
    np.add.at(counts, (own[nearest >= 0], nearest[nearest >= 0]), 1)
    sizes = np.bincount(own[own >= 0], minlength=clusters)
    return Overlap(ids, nearest, counts, sizes)


def nearest_reviewed(vectors: np.ndarray, centroids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(position of the nearest centroid, its cosine) of each vector."""
    if vectors.shape[1] != centroids.shape[1]:
        raise ConfigError(
            f"{REVIEWED} has centroids of {centroids.shape[1]} numbers, and embed.model gives {vectors.shape[1]}: they"
            " are another model's; remove its lines and the `clusters` of curation/topics.yaml, and propose again"
        )
    cosines = np.round(vectors.astype(np.float64) @ centroids.T, 6)
    best = cosines.argmax(axis=1)
    return best.astype(np.int32), cosines[np.arange(len(best)), best]
