"""What is removed of each cluster, and why.

Of the documents with the same fingerprint the smallest completion id stays (`exact`). Of the rest of a cluster the
document with the smallest completion id is kept and the others are removed (`near`), whatever the shards were. With
`min_jaccard` a document is removed only when its Jaccard similarity with the one that is kept reaches that number;
else it is compared with the next document that is kept, in the order of ids, and when it is that similar to none it is
kept too. Natural text comes after all synthetic documents, whatever its ids, and decides about none of them: these are
judged in the clusters that they make among themselves. A cluster is a chain: two members may be less similar than each
is to a third. Similarities are of n-grams of words with numbers and signs, whatever the keys had been made of.
"""

from collections.abc import Iterable
from contextlib import ExitStack
from itertools import groupby
from operator import itemgetter
from pathlib import Path

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
from datatrove.data import DocumentsPipeline
from datatrove.pipeline.base import PipelineStep

from cosmopedia.core.errors import InternalError
from cosmopedia.corpus.minhash import jaccard
from cosmopedia.corpus.pipeline import WriteCells, removal
from cosmopedia.tables.contracts import DOCUMENT, REMOVED
from cosmopedia.tables.parquet import ROW_GROUP, TableWriter, count_rows, read_batches
from stages.dedup.index import numbered
from stages.dedup.words import Shingles, fingerprints, hashed_words

MEMBERS_PER_PART = 8_000  # documents that a task has in memory, with their words and n-grams: 200 MB at 700 words
MEMBER = pa.schema(
    [(name, pa.int64()) for name in ("cluster", "chain", "document")]
    + [("completion_id", pa.string()), ("text", pa.string())]
)
REMOVAL = pl.Schema(
    {
        "document": pl.Int64,
        "reason": pl.String,  # copy | exact | near
        "kept": pl.String,  # the document that is kept for it; null for a copy
        "similarity": pl.Float64,  # Jaccard, with `kept`; of a copy the share that is in its extract
    }
)
KINDS = {"exact": "exact", "near": "minhash"}


class Members(PipelineStep):
    """Writes the documents of the clusters, in parts by cluster: `<target>/<part>/<rank>.parquet` (MEMBER)."""

    type = "DEDUP"
    name = "members"

    def __init__(self, cells: list[Path], clusters: Path, target: Path, parts: int):
        super().__init__()
        self.cells, self.clusters, self.target, self.parts = numbered(cells), clusters, target, parts

    def run(self, data: DocumentsPipeline = None, rank: int = 0, world_size: int = 1) -> None:  # type: ignore[override]
        clusters = np.load(self.clusters, mmap_mode="r")
        with ExitStack() as files:
            writers: dict[int, pq.ParquetWriter] = {}
            for cell, first in self.cells[rank::world_size]:
                for table in read_batches([cell], DOCUMENT, ["completion_id", "text"]):
                    places = np.searchsorted(clusters[:, 0], [first, first + table.num_rows])
                    own = np.array(clusters[slice(*places)])
                    members = table.take(own[:, 0] - first)
                    rows = pa.table([own[:, 1], own[:, 2], own[:, 0], *members.columns], schema=MEMBER)
                    for part in np.unique(own[:, 1] % self.parts).tolist():
                        if part not in writers:
                            path = self.target / f"{part:05d}" / f"{rank:05d}.parquet"
                            path.parent.mkdir(parents=True, exist_ok=True)
                            writers[part] = files.enter_context(pq.ParquetWriter(path, MEMBER, compression="lz4"))
                        writers[part].write_table(rows.filter(pa.array(own[:, 1] % self.parts == part)))
                    first += table.num_rows


class VerifyClusters(PipelineStep):
    """Task `n` decides about the clusters of `<folder>/<n>/`; removals go to `<target>/<n>.parquet` (REMOVAL)."""

    type = "DEDUP"
    name = "verify"

    def __init__(self, folder: Path, target: Path, n_grams: int, min_jaccard: float | None):
        super().__init__()
        self.folder, self.target, self.n_grams, self.min_jaccard = folder, target, n_grams, min_jaccard

    def run(self, data: DocumentsPipeline = None, rank: int = 0, world_size: int = 1) -> None:  # type: ignore[override]
        """Count `candidates`, which MinHash alone would remove, and of them those `spared`."""
        files = sorted((self.folder / f"{rank:05d}").glob("*.parquet"))
        if not files:
            return
        members = pa.concat_tables(map(pq.read_table, files))
        hashed = hashed_words(members["text"])
        shingles = Shingles.of(hashed, self.n_grams).distinct()
        marks = fingerprints(members["text"], hashed)
        rows = pl.DataFrame(
            {name: members[name].to_numpy() for name in ("cluster", "chain", "document")}
            | {"completion_id": members["completion_id"], "one": marks[:, 0], "other": marks[:, 1]}
        ).with_row_index("place")
        rows = rows.sort("cluster", pl.col("chain") < 0, "completion_id").with_columns(
            same=pl.col("completion_id").first().over("cluster", "one", "other")
        )
        removals: list[tuple] = []
        in_order = rows.select("cluster", "place", "document", "chain", "completion_id", "same").rows()
        for _, cluster in groupby(in_order, itemgetter(0)):
            removals += self._decide([member[1:] for member in cluster], shingles)
        self.target.mkdir(exist_ok=True)
        pl.DataFrame(removals, schema=REMOVAL, orient="row").sort("document").write_parquet(
            self.target / f"{rank:05d}.parquet"
        )

    def _decide(self, members: list[tuple[int, int, int, str, str]], shingles: Shingles) -> list[tuple]:
        """The removals of a cluster of (place, document, chain, id, first id with the same words).

        Members come in the order of ids, synthetic documents first. These are decided chain by chain, as if there
        were no natural text; that is compared with all that stay.
        """
        chains: dict[int, list[tuple[str, np.ndarray]]] = {}
        for place, _, chain, name, same in members:
            if name == same:
                chains.setdefault(chain, []).append((name, shingles[place]))
        natural = chains.pop(-1, [])
        near: dict[str, tuple[str, float]] = {}
        for first in chains.values():
            removed = near_duplicates(first, self.min_jaccard)
            near |= removed
            self.stat_update("near.candidates", value=len(first) - 1)
            self.stat_update("near.spared", value=len(first) - 1 - len(removed))
        kept = [member for first in chains.values() for member in first if member[0] not in near]
        near |= near_duplicates(natural, self.min_jaccard, kept)
        removals = []
        for _, document, _, name, same in members:
            if name != same:
                removals.append((document, "exact", *near.get(same, (same, 1.0))))  # the one that stays for both
            elif name in near:
                removals.append((document, "near", *near[name]))
        return removals


def near_duplicates(
    members: Iterable[tuple[str, np.ndarray]], min_jaccard: float | None, others: Iterable[tuple[str, np.ndarray]] = ()
) -> dict[str, tuple[str, float]]:
    """{removed: (kept for it, their similarity)} of a cluster's (id, set of shingles) in the order of ids.

    `others` stay, whatever the members are.
    """
    kept = [*others]
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


class WriteKept(WriteCells):
    """Writes the cells without what `copies` and `verified` list; that goes to `removed` with its evidence."""

    def __init__(self, cells: list[Path], out: Path, scratch: Path, notes: Path):
        super().__init__(cells, out)
        self.numbered, self.notes, self.removed = numbered(cells), notes, scratch / "removed"
        self.tables = [scratch / "copies", scratch / "verified"]

    def run(self, data: DocumentsPipeline = None, rank: int = 0, world_size: int = 1) -> None:  # type: ignore[override]
        done = 0
        for cell, first in self.numbered[rank::world_size]:
            removals = self._removals(first, first + count_rows(cell))
            with ExitStack() as files:
                kept = files.enter_context(TableWriter(self.out / cell.name, DOCUMENT))
                if removals.height:
                    removed = files.enter_context(TableWriter(self.removed / cell.name, REMOVED))
                for table in read_batches([cell], DOCUMENT, batch_rows=ROW_GROUP):
                    own = removals.filter(pl.col("document").is_between(first, first + table.num_rows, closed="left"))
                    places = own["document"].to_numpy() - first
                    stays = np.ones(table.num_rows, dtype=bool)
                    stays[places] = False
                    kept.write_table(table.filter(pa.array(stays)))
                    if own.height:
                        removed.write_table(as_removed(table.take(places), own))
                    first, done = first + table.num_rows, done + table.num_rows
                    (self.notes / str(rank)).write_text(str(done))

    def _removals(self, first: int, end: int) -> pl.DataFrame:
        """The removals of the documents from `first` to `end`."""
        files = [path for folder in self.tables for path in sorted(folder.glob("*.parquet"))]
        own = [
            pl.scan_parquet(path).filter(pl.col("document").is_between(first, end, closed="left")) for path in files
        ]
        rows = pl.concat([pl.LazyFrame(schema=REMOVAL), *own], how="diagonal").collect().sort("document")
        if (twice := rows.filter(pl.col("document").is_duplicated())).height:
            raise InternalError(f"{self.tables[1]}: document {twice['document'][0]} is to be removed twice")
        return rows


def as_removed(documents: pa.Table, removals: pl.DataFrame) -> pa.Table:
    """REMOVED rows of documents, each with its removal (REMOVAL, in the same order)."""
    evidence = []
    for _, reason, kept, similarity in removals.select(REMOVAL.names()).iter_rows():
        own = {"share": similarity}
        if reason != "copy":
            own = {"kept": kept, "kind": KINDS[reason], "jaccard": similarity}
        evidence.append(removal(reason, **own)["evidence"])
    columns = {"reason": removals["reason"].to_arrow(), "evidence": pa.array(evidence, pa.string())}
    columns |= {name: documents[name] for name in REMOVED.schema.names if name not in columns}
    return REMOVED.conform(pa.table(columns), "dedup")
