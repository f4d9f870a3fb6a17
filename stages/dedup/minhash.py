"""Near duplicates by datatrove's MinHash steps and files, with our own rule for which document of a cluster is kept.

1. signatures -> buckets -> clusters over what `exact` leaves: datatrove's steps, the first with cheaper words;
2. the shingles of the documents that meet another are gathered by cluster, and each cluster is verified on its own;
3. `.remove` files of datatrove's format say what is removed, and datatrove's filter removes it.

The rule: of a cluster the document with the smallest completion id is kept and the others are removed, whatever the
shards were (datatrove's own choice depends on them). With `min_jaccard` a document is removed only when its Jaccard
similarity with the one that is kept reaches that number; else it is compared with the next document that is kept, in
the order of ids, and when it is that similar to none it is kept too. A cluster is a chain: two members may be less
similar than each is to a third.
"""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, cast

import numpy as np
import polars as pl
import pyarrow as pa
from datatrove.data import Document, DocumentsPipeline
from datatrove.pipeline.base import PipelineStep
from datatrove.pipeline.dedup.minhash import (
    MinhashConfig,
    MinhashDedupBuckets,
    MinhashDedupCluster,
    MinhashDedupFilter,
    MinhashDedupSignature,
)
from datatrove.pipeline.writers.parquet import ParquetWriter
from datatrove.utils.word_tokenizers import WordTokenizer
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from cosmopedia.corpus.minhash import jaccard, signatures
from cosmopedia.corpus.pipeline import CorpusRun, ReadCells, WriteCells, removed_writer, statistic
from cosmopedia.corpus.words import shingles
from stages.dedup.removals import REMOVAL, PlannedFilter, write_removals

# at a time of a task's file: 680 kB; datatrove's five turn 99 s into 65 minutes on remote storage
READ_SIGNATURES = 10_000
MEMBERS_PER_PART = 50_000  # documents whose shingles a task has in memory: 8 bytes per word, 300 MB at 700 words
CLUSTER = np.dtype([("position", "<u4"), ("cluster", "<u4")])  # datatrove's .clusters file
REMOVE = np.dtype("<u4")  # datatrove's .remove file: positions in a task's stream
MEMBER = pa.schema(
    [
        ("cluster", pa.uint32()),
        ("completion_id", pa.string()),
        ("cell", pa.string()),
        ("rank", pa.int32()),
        ("position", pa.uint32()),
        ("shingles", pa.binary()),  # uint64, sorted and distinct
    ]
)
VERIFIED = pl.Schema({"cell": pl.String, "rank": pl.Int32, "position": pl.UInt32, **REMOVAL})


class Signatures(MinhashDedupSignature):
    """datatrove's signatures, with words and n-grams from `shingles` and the same values from compiled code."""

    def __init__(self, folder: Path, config: MinhashConfig):
        super().__init__(str(folder), config, language=cast(str, _NoTokenizer()))

    def get_shingles(self, text: str) -> np.ndarray:
        """Hashes of the n-grams; uint64, shape (n-grams, 1)."""
        return shingles(text, self.config.n_grams).reshape(-1, 1)

    def get_signature(self, shingles: np.ndarray) -> list[list[int]]:
        """The smallest value of each hash function, by bucket."""
        factors, terms = (parameter.ravel() for parameter in self.parameters)
        (values,) = signatures(shingles.ravel(), np.array([0, len(shingles)]), factors, terms)
        return [bucket.tolist() for bucket in np.split(values, self.config.num_buckets)]


class _NoTokenizer(WordTokenizer):
    """In place of datatrove's spaCy, which is not loaded; `Signatures` never calls it."""

    def word_tokenize(self, text: str) -> list[str]:
        raise NotImplementedError

    sent_tokenize = span_tokenize = word_tokenize  # type: ignore[assignment]


class Clusters(MinhashDedupCluster):
    """datatrove's clusters and `.clusters` files, in 85 bytes per document that meets another instead of 220.

    The numbers of the clusters differ from datatrove's, the clusters do not. No `.remove` files: verification decides.
    """

    def run(self, data: DocumentsPipeline = None, _: int = 0, world_size: int = 1) -> None:  # type: ignore[override]
        """Join the pairs of one bucket after the other; a cluster has the number of its first document."""
        nodes = np.empty(0, dtype=np.uint64)
        buckets = self.input_folder.list_files(glob_pattern="*.dups")
        for name in buckets:
            nodes = np.union1d(nodes, self._pairs(name))
        labels = np.arange(nodes.size, dtype=np.int32)
        for name in buckets:
            one, other = (labels[np.searchsorted(nodes, side)] for side in self._pairs(name).T)
            joined = coo_array((np.ones(one.size, dtype=bool), (one, other)), shape=(nodes.size, nodes.size))
            labels = connected_components(joined, directed=False)[1][labels]
        first, numbers = np.unique(labels, return_index=True)
        numbers = numbers[np.searchsorted(first, labels)]
        ranks = nodes >> np.uint64(32)
        for rank in np.unique(ranks):
            own = ranks == rank
            rows = np.empty(np.count_nonzero(own), dtype=CLUSTER)
            rows["position"] = nodes[own] & np.uint64(0xFFFFFFFF)
            rows["cluster"] = numbers[own]
            with self.output_folder.open(f"{int(rank):06d}.clusters", "wb") as file:
                file.write(rows.tobytes())

    def _pairs(self, name: str) -> np.ndarray:
        """Two documents per row, each as its task and its position in that task's stream; uint64."""
        with self.input_folder.open(name, "rb") as file:
            pairs = np.frombuffer(file.read(), dtype="<u4").reshape(-1, 4).astype(np.uint64)
        return pairs[:, ::2] << np.uint64(32) | pairs[:, 1::2]


class Members(PipelineStep):
    """Writes the documents of the clusters with their shingles, in parts by cluster, from `Signatures`' stream."""

    type = "DEDUP"
    name = "members"

    def __init__(self, clusters: Path, target: Path, n_grams: int, parts: int):
        super().__init__()
        self.clusters, self.n_grams, self.parts = clusters, n_grams, parts
        self._writer = ParquetWriter(
            str(target),
            "${part}/${rank}.parquet",
            "zstd",
            _as_member,
            batch_size=100,
            schema=MEMBER,
            max_file_size=-1,
        )

    def run(self, data: DocumentsPipeline, rank: int = 0, world_size: int = 1) -> None:  # type: ignore[override]
        """Follow datatrove's file of this task, which is in the order of the stream."""
        path = self.clusters / f"{rank:06d}.clusters"
        rows = iter(np.fromfile(path, dtype=CLUSTER).tolist() if path.is_file() else [])
        wanted = next(rows, None)
        with self._writer as writer:
            for position, document in enumerate(cast(Iterator[Document], data)):
                if wanted is not None and wanted[0] == position:
                    own = np.unique(shingles(document.text, self.n_grams))
                    place = {"cluster": wanted[1], "part": f"{wanted[1] % self.parts:05d}", "position": position}
                    document.metadata.update({**place, "rank_of_task": rank, "shingles": own.tobytes()})
                    writer.write(document, rank)
                    wanted = next(rows, None)


class VerifyClusters(PipelineStep):
    """Task `n` decides about the clusters of `<folder>/<n>/`; removals go to `<target>/<n>.parquet` (VERIFIED)."""

    type = "DEDUP"
    name = "verify"

    def __init__(self, folder: Path, target: Path, min_jaccard: float | None):
        super().__init__()
        self.folder, self.target, self.min_jaccard = folder, target, min_jaccard

    def run(self, data: DocumentsPipeline = None, rank: int = 0, world_size: int = 1) -> None:  # type: ignore[override]
        """Count `candidates`, which MinHash alone would remove, and of them those `spared`."""
        files = sorted((self.folder / f"{rank:05d}").glob("*.parquet"))
        if not files:
            return
        removals: list[dict] = []
        members = pl.read_parquet(files).sort("cluster", "completion_id")
        for cluster in members.partition_by("cluster", maintain_order=True):
            rows = cluster.drop("shingles").to_dicts()
            sets = [np.frombuffer(shingles, np.uint64) for shingles in cluster["shingles"]]
            ids = cluster["completion_id"].to_list()
            removed = near_duplicates(zip(ids, sets, strict=True), self.min_jaccard)
            for row in rows:
                if pair := removed.get(row["completion_id"]):
                    removals.append({**row, "reason": "near", "kept": pair[0], "similarity": pair[1]})
            self.stat_update("near.candidates", value=len(rows) - 1)
            self.stat_update("near.spared", value=len(rows) - 1 - len(removed))
        pl.DataFrame(removals, schema=VERIFIED).write_parquet(self.target / f"{rank:05d}.parquet")


def near_duplicates(
    members: Iterable[tuple[str, np.ndarray]], min_jaccard: float | None
) -> dict[str, tuple[str, float]]:
    """{removed: (kept for it, their similarity)} of a cluster's (id, set of shingles) in the order of ids."""
    kept: list[tuple[str, np.ndarray]] = []
    removed: dict[str, tuple[str, float]] = {}
    for name, own in members:
        for earlier, other in kept:
            smaller, larger = sorted((own.size, other.size))
            if min_jaccard is not None and smaller < min_jaccard * larger:  # cannot reach it
                continue
            similarity = jaccard(own, other)
            if min_jaccard is None or similarity >= min_jaccard:
                removed[name] = earlier, round(similarity, 4)
                break
        else:
            kept.append((name, own))
    return removed


def find_near_duplicates(
    run: CorpusRun, earlier: Path, config: MinhashConfig, min_jaccard: float | None
) -> tuple[Path, dict]:
    """Near duplicates among what the removals in `earlier` leave.

    Writes datatrove's `.remove` files; (folder of all removals, candidates and spared).
    """
    signatures, buckets, clusters = (run.scratch / name for name in ("signatures", "buckets", "clusters"))
    left = [ReadCells(run.cells), PlannedFilter(earlier, ("copy", "exact"))]
    run.run("signatures", [*left, Signatures(signatures, config)], total=run.rows)
    steps: list[Any] = [
        MinhashDedupBuckets(str(signatures), str(buckets), config=config, lines_to_buffer=READ_SIGNATURES)
    ]
    run.run("buckets", steps, tasks=config.num_buckets)
    run.run("clusters", [Clusters(str(buckets), str(clusters), config)], tasks=1)
    members = run.scratch / "members"
    verified = run.scratch / "verified"
    verified.mkdir()
    run.arrays.check()
    counts = {}
    if size := sum(path.stat().st_size for path in clusters.glob("*.clusters")):
        parts = 1 + size // CLUSTER.itemsize // MEMBERS_PER_PART
        left = [ReadCells(run.cells), PlannedFilter(earlier, ("copy", "exact"))]
        run.run("members", [*left, Members(clusters, members, config.n_grams, parts)], total=run.rows)
        counts = statistic(run.run("verify", [VerifyClusters(members, verified, min_jaccard)], tasks=parts), "near.")
        run.arrays.check()
    plan = _plan(run, earlier, verified)
    return plan, {"candidates": counts.get("candidates", 0), "spared": counts.get("spared", 0)}


def _plan(run: CorpusRun, earlier: Path, verified: Path) -> Path:
    """Join both kinds of removals, cell by cell, and write datatrove's `.remove` files of the near ones."""
    plan = run.scratch / "plan"
    remove = run.scratch / "remove"
    remove.mkdir()
    files = sorted(verified.glob("*.parquet"))
    near = pl.scan_parquet(files) if files else pl.LazyFrame(schema=VERIFIED)
    kept = near.select("completion_id", kept_for_kept="kept", its_similarity="similarity")
    for cell in run.cells:
        rows = pl.scan_parquet(earlier / f"{cell.stem}.parquet").join(
            kept, left_on="kept", right_on="completion_id", how="left"
        )
        # an exact duplicate of a document that is itself removed as a near one gets the document that stays
        exact = rows.with_columns(
            kept=pl.coalesce("kept_for_kept", "kept"), similarity=pl.coalesce("its_similarity", "similarity")
        ).select(REMOVAL.names())
        own = near.filter(pl.col("cell") == cell.stem).select(REMOVAL.names())
        write_removals(plan, cell.stem, pl.concat([exact, own]).collect())
    ranks = near.select(pl.col("rank").unique().sort()).collect().to_series()
    for rank in ranks:
        rows = near.filter(pl.col("rank") == rank).select(pl.col("position").sort()).collect()
        positions = rows["position"].to_numpy().astype(REMOVE)
        (remove / f"{rank:06d}.remove").write_bytes(positions.tobytes())
    return plan


def write_kept(run: CorpusRun, plan: Path) -> list[Path]:
    """Write the cells without what is removed; returns the folders of what was removed."""
    parts = [run.scratch / "removed-planned", run.scratch / "removed-near"]
    run.run(
        "filter",
        [
            ReadCells(run.cells),
            PlannedFilter(plan, ("copy", "exact"), removed_writer(parts[0])),
            MinhashDedupFilter(str(run.scratch / "remove"), removed_writer(parts[1])),
            WriteCells(run.cells, run.out),
        ],
        total=run.rows,
    )
    return parts


def _as_member(writer: object, document: Document) -> dict[str, Any]:
    own = {"completion_id": document.id, "rank": document.metadata["rank_of_task"]}
    return {name: own[name] if name in own else document.metadata[name] for name in MEMBER.names}
