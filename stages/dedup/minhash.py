"""Near duplicates by datatrove's MinHash steps and files, with a rule of our own for which document of a group stays.

1. signatures -> buckets -> clusters over what `exact` leaves: datatrove's steps, the first with cheaper words;
2. the shingles of the documents that meet another are gathered by cluster, and each cluster is judged alone;
3. `.remove` files of datatrove's format say what goes, and datatrove's filter takes it out.

The rule: of a cluster the document with the smallest completion id stays. Another one goes for it, whatever the shards
were (datatrove's own choice depends on them). With `min_jaccard` it goes only when its Jaccard similarity with the one
that stays reaches that number; else it is compared with the next document that stays, in the order of ids, and when it
is that similar to none it stays too. A cluster is a chain: two members may be less alike than each is to a third.
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

from cosmopedia.corpus.pipeline import CorpusRun, ReadCells, WriteCells, removed_writer, statistic
from cosmopedia.corpus.words import jaccard, shingles
from stages.dedup.removals import GONE, PlannedFilter, write_removals

READ_SIGNATURES = (
    10_000  # at a time of a task's file: 680 kB; datatrove's five make 65 minutes of 99 s on remote storage
)
MEMBERS_PER_PART = 50_000  # documents whose shingles a judge holds: 8 bytes a word, 300 MB at 700 words
SHINGLES_AT_ONCE = 128  # x 112 hashes x 8 bytes: stays in the processor's cache
PRIME = np.uint64((1 << 61) - 1)
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
JUDGED = pl.Schema({"cell": pl.String, "rank": pl.Int32, "position": pl.UInt32, **GONE})


class Signatures(MinhashDedupSignature):
    """datatrove's signatures, with words and n-grams from `shingles` and the same values from fewer passes.

    A hash is (shingle * a + b) modulo the Mersenne prime 2^61 - 1. Of x = high * 2^61 + low it is high + low, or that
    less the prime, whichever is smaller as an unsigned number.
    """

    def __init__(self, folder: Path, config: MinhashConfig):
        super().__init__(str(folder), config, language=cast(str, _NoTokenizer()))

    def get_shingles(self, text: str) -> np.ndarray:
        """Hashes of the n-grams; uint64, shape (n-grams, 1)."""
        return shingles(text, self.config.n_grams).reshape(-1, 1)

    def get_signature(self, shingles: np.ndarray) -> list[list[int]]:
        """The smallest value of each hash function, by bucket."""
        a, b = self.parameters
        best = np.full(self.num_hashes, np.iinfo(np.uint64).max, dtype=np.uint64)
        for start in range(0, len(shingles), SHINGLES_AT_ONCE):
            value = shingles[start : start + SHINGLES_AT_ONCE] * a
            value += b
            high = value >> np.uint64(61)
            value &= PRIME
            value += high
            np.subtract(value, PRIME, out=high)
            np.minimum(value, high, out=value)
            np.minimum(best, value.min(axis=0), out=best)
        return [part.tolist() for part in np.split(best, self.config.num_buckets)]


class _NoTokenizer(WordTokenizer):
    """Stands where datatrove would load spaCy; `Signatures` never asks it."""

    def word_tokenize(self, text: str) -> list[str]:
        raise NotImplementedError

    sent_tokenize = span_tokenize = word_tokenize  # type: ignore[assignment]


class Clusters(MinhashDedupCluster):
    """datatrove's clusters and `.clusters` files, in 85 bytes a document that meets another instead of 220.

    The numbers of the clusters differ from datatrove's, the clusters do not. No `.remove` files: the judge decides.
    """

    def run(self, data: DocumentsPipeline = None, _: int = 0, world_size: int = 1) -> None:  # type: ignore[override]
        """Join the pairs of a bucket after the other's; a number is that of the cluster's first document."""
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
            rows["position"], rows["cluster"] = nodes[own] & np.uint64(0xFFFFFFFF), numbers[own]
            with self.output_folder.open(f"{int(rank):06d}.clusters", "wb") as file:
                file.write(rows.tobytes())

    def _pairs(self, name: str) -> np.ndarray:
        """Two documents a row, each as its task and its position in that task's stream; uint64."""
        with self.input_folder.open(name, "rb") as file:
            found = np.frombuffer(file.read(), dtype="<u4").reshape(-1, 4).astype(np.uint64)
        return found[:, ::2] << np.uint64(32) | found[:, 1::2]


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
                    found = {"cluster": wanted[1], "part": f"{wanted[1] % self.parts:05d}", "position": position}
                    document.metadata.update({**found, "rank_of_task": rank, "shingles": own.tobytes()})
                    writer.write(document, rank)
                    wanted = next(rows, None)


class Judge(PipelineStep):
    """Task `n` decides about the clusters of `<folder>/<n>/`; who goes is in `<target>/<n>.parquet` (JUDGED)."""

    type = "DEDUP"
    name = "judge"

    def __init__(self, folder: Path, target: Path, min_jaccard: float | None):
        super().__init__()
        self.folder, self.target, self.min_jaccard = folder, target, min_jaccard

    def run(self, data: DocumentsPipeline = None, rank: int = 0, world_size: int = 1) -> None:  # type: ignore[override]
        """Count `candidates`, which MinHash alone would remove, and of them those `spared`."""
        files = sorted((self.folder / f"{rank:05d}").glob("*.parquet"))
        if not files:
            return
        gone: list[dict] = []
        members = pl.read_parquet(files).sort("cluster", "completion_id")
        for group in members.partition_by("cluster", maintain_order=True):
            candidates = [(row.pop("completion_id"), row.pop("shingles"), row) for row in group.iter_rows(named=True)]
            found = judge(((name, np.frombuffer(own, np.uint64)) for name, own, _ in candidates), self.min_jaccard)
            for name, _, row in candidates:
                if name in found:
                    kept, likeness = found[name]
                    place = {key: row[key] for key in ("cell", "rank", "position")}
                    gone.append({**place, "completion_id": name, "reason": "near", "kept": kept, "likeness": likeness})
            self.stat_update("near.candidates", value=len(candidates) - 1)
            self.stat_update("near.spared", value=len(candidates) - 1 - len(found))
        pl.DataFrame(gone, schema=JUDGED).write_parquet(self.target / f"{rank:05d}.parquet")


def judge(members: Iterable[tuple[str, np.ndarray]], min_jaccard: float | None) -> dict[str, tuple[str, float]]:
    """{who goes: (who stays for it, their similarity)} of a cluster's (id, set of shingles) in the order of ids."""
    heads: list[tuple[str, np.ndarray]] = []
    gone: dict[str, tuple[str, float]] = {}
    for name, own in members:
        for head, other in heads:
            least, most = sorted((own.size, other.size))
            if min_jaccard is not None and least < min_jaccard * most:  # cannot reach it
                continue
            alike = jaccard(own, other)
            if min_jaccard is None or alike >= min_jaccard:
                gone[name] = head, round(alike, 4)
                break
        else:
            heads.append((name, own))
    return gone


def find_near(run: CorpusRun, gone: Path, config: MinhashConfig, min_jaccard: float | None) -> tuple[Path, dict]:
    """Near duplicates among what is not `gone`: (folder of all removals, candidates and spared); `.remove` files."""
    signatures, buckets, clusters = (run.scratch / name for name in ("signatures", "buckets", "clusters"))
    left = [ReadCells(run.cells), PlannedFilter(gone, ("copy", "exact"))]
    run.run("signatures", [*left, Signatures(signatures, config)], total=run.rows)
    steps: list[Any] = [
        MinhashDedupBuckets(str(signatures), str(buckets), config=config, lines_to_buffer=READ_SIGNATURES)
    ]
    run.run("buckets", steps, tasks=config.num_buckets)
    run.run("clusters", [Clusters(str(buckets), str(clusters), config)], tasks=1)
    members, judged, counts = run.scratch / "members", run.scratch / "judged", {}
    judged.mkdir()
    run.arrays.check()
    if size := sum(path.stat().st_size for path in clusters.glob("*.clusters")):
        parts = 1 + size // CLUSTER.itemsize // MEMBERS_PER_PART
        left = [ReadCells(run.cells), PlannedFilter(gone, ("copy", "exact"))]
        run.run("members", [*left, Members(clusters, members, config.n_grams, parts)], total=run.rows)
        counts = statistic(run.run("judge", [Judge(members, judged, min_jaccard)], tasks=parts), "near.")
        run.arrays.check()
    plan = _plan(run, gone, judged)
    return plan, {"candidates": counts.get("candidates", 0), "spared": counts.get("spared", 0)}


def _plan(run: CorpusRun, gone: Path, judged: Path) -> Path:
    """Join both kinds of removals, cell by cell, and write datatrove's `.remove` files of the near ones."""
    plan, remove = run.scratch / "plan", run.scratch / "remove"
    remove.mkdir()
    found = sorted(judged.glob("*.parquet"))
    near = pl.scan_parquet(found) if found else pl.LazyFrame(schema=JUDGED)
    kept = near.select("completion_id", stays="kept", alike="likeness")
    for cell in run.cells:
        rows = pl.scan_parquet(gone / f"{cell.stem}.parquet").join(
            kept, left_on="kept", right_on="completion_id", how="left"
        )
        earlier = rows.with_columns(  # the twin of a document that goes too
            kept=pl.coalesce("stays", "kept"), likeness=pl.coalesce("alike", "likeness")
        ).select(GONE.names())
        own = near.filter(pl.col("cell") == cell.stem).select(GONE.names())
        write_removals(plan, cell.stem, pl.concat([earlier, own]).collect())
    ranks = near.select(pl.col("rank").unique().sort()).collect().to_series()
    for rank in ranks:
        rows = near.filter(pl.col("rank") == rank).select(pl.col("position").sort()).collect()
        positions = rows["position"].to_numpy().astype(REMOVE)
        (remove / f"{rank:06d}.remove").write_bytes(positions.tobytes())
    return plan


def take_out(run: CorpusRun, plan: Path) -> list[Path]:
    """Write the cells without what goes; returns the folders of what was removed."""
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
