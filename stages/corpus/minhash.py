"""Near duplicates by MinHash: datatrove's four steps, with a rule of our own for which document of a group stays.

1. exact duplicates go first (equal normalised text);
2. datatrove: signatures -> buckets -> clusters, over the rest;
3. of each cluster the document with the smallest completion id stays, whatever the shards were (datatrove's own choice
   depends on them); its `.remove` files are written accordingly;
4. datatrove's filter takes the others out.
"""

import contextlib
import io
import unicodedata
from collections.abc import Iterator
from pathlib import Path
from typing import cast

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
from datatrove.pipeline.filters.base_filter import BaseFilter
from datatrove.pipeline.writers.disk_base import DiskWriter
from datatrove.pipeline.writers.parquet import ParquetWriter

from stages.corpus.cells import CorpusRun, ReadCells, WriteCells, removal, removed_writer
from stages.corpus.words import NORMALISED, SimplifiedWords, ngrams, simplified_words
from stages.draws import content_hash
from stages.errors import DataError
from stages.tables.contracts import DOCUMENT
from stages.tables.parquet import read_batches

FINGERPRINT = pa.schema([("completion_id", pa.string()), ("fingerprint", pa.string())])
ORDER = pa.schema([("completion_id", pa.string())])
READ_ALL = -1  # datatrove's buckets step otherwise reads five signatures at a time


def fingerprint(text: str) -> str:
    """Equal for texts that differ in case, white space or Unicode composition alone."""
    return content_hash(" ".join(unicodedata.normalize("NFC", text).casefold().split()))


def jaccard(first: str, second: str, n: int) -> float:
    """Exact Jaccard similarity of two texts' n-grams of words, as MinHash estimates it; 1.0 when both have none."""
    a, b = (ngrams(simplified_words(text), n) for text in (first, second))
    return len(a & b) / len(a | b) if a or b else 1.0


class ExactFilter(BaseFilter):
    """Removes the documents that `duplicates` (a parquet file: completion_id, kept) names."""

    name = "exact duplicates"

    def __init__(self, duplicates: Path, exclusion_writer: DiskWriter | None = None):
        super().__init__(exclusion_writer)  # type: ignore[arg-type]
        self.duplicates = duplicates
        self._gone: frozenset[str] | None = None

    def filter(self, doc: Document) -> bool:
        if self._gone is None:
            self._gone = frozenset(pl.read_parquet(self.duplicates)["completion_id"].to_list())
        if doc.id in self._gone:
            doc.metadata.update(removal("exact"))
            return False
        return True


class NameReason(PipelineStep):
    """Marks documents as near duplicates, ahead of the filter that may remove them."""

    type = "DEDUP"
    name = "reason"

    def run(self, data: DocumentsPipeline, rank: int = 0, world_size: int = 1) -> Iterator[Document]:  # type: ignore[override]
        for document in cast(Iterator[Document], data):
            document.metadata.update(removal("near"))
            yield document


def find_exact(run: CorpusRun) -> Path:
    """Fingerprints of all documents; writes and returns the table of exact duplicates (completion_id, kept)."""
    parts = run.scratch / "fingerprints"
    write = ParquetWriter(str(parts), "${rank}.parquet", "zstd", _as_fingerprint, schema=FINGERPRINT, max_file_size=-1)
    run.run("exact", [ReadCells(run.cells), write], total=run.rows)
    target = run.scratch / "exact.parquet"
    empty = pl.DataFrame(schema={"completion_id": pl.String, "fingerprint": pl.String})
    rows = pl.concat([empty, *(pl.read_parquet(part) for part in sorted(parts.glob("*.parquet")))])
    if (twice := rows.filter(pl.col("completion_id").is_duplicated())).height:
        raise DataError(
            f"{run.cells[0].parent}: completion_id {twice['completion_id'].min()!r} stands in more than one file;"
            " ids must be unique over all cells"
        )
    rows = rows.with_columns(kept=pl.col("completion_id").min().over("fingerprint"))
    rows.filter(pl.col("completion_id") != pl.col("kept")).select("completion_id", "kept").write_parquet(target)
    return target


def _as_fingerprint(writer: object, document: Document) -> dict[str, str]:
    return {"completion_id": document.id, "fingerprint": fingerprint(document.text)}


def _as_id(writer: object, document: Document) -> dict[str, str]:
    return {"completion_id": document.id}


def find_near(run: CorpusRun, exact: Path, config: MinhashConfig) -> dict[str, str]:
    """datatrove's signatures, buckets and clusters; {removed completion id: kept one}, and the `.remove` files."""
    signatures, buckets, clusters = (str(run.scratch / name) for name in ("signatures", "buckets", "clusters"))
    order = run.scratch / "order"
    run.run(
        "signatures",
        [
            ReadCells(run.cells),
            ExactFilter(exact),
            ParquetWriter(str(order), "${rank}.parquet", "zstd", _as_id, schema=ORDER, max_file_size=-1),
            MinhashDedupSignature(signatures, config, language=cast(str, SimplifiedWords())),
        ],
        total=run.rows,
    )
    run.run(
        "buckets",
        [MinhashDedupBuckets(signatures, buckets, config=config, lines_to_buffer=READ_ALL)],
        tasks=config.num_buckets,
    )
    with contextlib.redirect_stderr(io.StringIO()):  # datatrove's own progress bar
        run.run("clusters", [MinhashDedupCluster(buckets, clusters, config, save_cluster_id=True)], tasks=1)
    members = _members(Path(clusters), order).with_columns(kept=pl.col("completion_id").min().over("cluster"))
    removed = members.filter(pl.col("completion_id") != pl.col("kept")).sort("rank", "position")
    (run.scratch / "remove").mkdir()
    for (rank,), rows in removed.group_by("rank", maintain_order=True):
        positions = rows["position"].to_numpy().astype("<u4")
        (run.scratch / "remove" / f"{rank:06d}.remove").write_bytes(positions.tobytes())
    return dict(removed.select("completion_id", "kept").iter_rows())


def _members(clusters: Path, order: Path) -> pl.DataFrame:
    """The documents of datatrove's clusters: rank (the task), position in its stream, cluster, completion_id."""
    schema = pl.Schema({"rank": pl.Int64, "position": pl.Int64, "cluster": pl.Int64, "completion_id": pl.String})
    frames = [pl.DataFrame(schema=schema)]
    for file in sorted(clusters.glob("*.clusters")):
        pairs = np.fromfile(file, dtype="<u4").reshape(-1, 2).astype(np.int64)
        ids = pl.read_parquet(order / f"{int(file.stem):05d}.parquet")["completion_id"].gather(pairs[:, 0])
        columns = {"rank": int(file.stem), "position": pairs[:, 0], "cluster": pairs[:, 1], "completion_id": ids}
        frames.append(pl.DataFrame(columns, schema_overrides=schema))
    return pl.concat(frames)


def take_out(run: CorpusRun, exact: Path) -> list[Path]:
    """Write the cells without the duplicates; returns the folders of what was removed."""
    parts = [run.scratch / "removed-exact", run.scratch / "removed-near"]
    run.run(
        "filter",
        [
            ReadCells(run.cells),
            ExactFilter(exact, removed_writer(parts[0])),
            NameReason(),
            MinhashDedupFilter(str(run.scratch / "remove"), removed_writer(parts[1])),
            WriteCells(run.cells, run.out),
        ],
        total=run.rows,
    )
    return parts


def texts_of(cells: list[Path], ids: set[str]) -> dict[str, str]:
    """The texts of some documents."""
    wanted, found = pl.Series("ids", sorted(ids), dtype=pl.String), {}
    if ids:
        for table in read_batches(cells, DOCUMENT, ["completion_id", "text"]):
            rows = cast(pl.DataFrame, pl.from_arrow(table)).filter(pl.col("completion_id").is_in(wanted.implode()))
            found.update(rows.iter_rows())
    return found


def minhash_config(n_grams: int, buckets: int, hashes: int, seed: int) -> MinhashConfig:
    """datatrove's configuration with this repository's normalisation."""
    return MinhashConfig(n_grams, buckets, hashes, seed, norm_config=NORMALISED)
