"""The benchmark items that the passages of each document are nearest to, by exact cosines of sentence vectors.

Passages meet the items in blocks: a matrix of passages times one of all items, which is never larger than `PRODUCT`
numbers. The product only says which pairs are near; a cosine that is compared and written is computed pair by pair,
so that neither the size of a block nor the order of documents decides its last digits.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import polars as pl
import pyarrow as pa
from datatrove.data import DocumentsPipeline
from datatrove.pipeline.base import PipelineStep

from cosmopedia.corpus.encoder import Encoder
from cosmopedia.corpus.pipeline import CorpusRun
from cosmopedia.corpus.row_ranges import total
from cosmopedia.corpus.sentence_model import Model
from cosmopedia.corpus.sentence_spans import Span
from cosmopedia.execution.compute import load_compute
from cosmopedia.tables.contracts import DOCUMENT, PARAPHRASE
from cosmopedia.tables.parquet import TableWriter, read_batches
from stages.paraphrases.passages import passages

DOCUMENTS = 64  # whose passages are embedded together
PRODUCT = 1 << 24  # cosines of passages and items in memory at once: 64 MB
PAIRS = 1 << 13  # cosines computed pair by pair at once
SLACK = 1e-3  # how far a cosine of the product may be from the pair's own


class Near(NamedTuple):
    """What counts as near."""

    sentences: list[int]  # lengths of passages
    threshold: float  # of the cosine
    per_document: int  # items, the nearest
    per_item: int  # documents, the nearest


class Pair(NamedTuple):
    """A document (by its place in a batch), an item (by its number), the passage that is nearest to it."""

    document: int
    item: int
    cosine: float
    passage: int


class Items(NamedTuple):
    """The benchmark items."""

    names: list[tuple[str, str]]  # item id, task
    vectors: Path  # .npy [2 x items, dimensions]: of the questions, then of the questions with their right answers


class EmbedItems(PipelineStep):
    """Writes the vectors of some texts to one file."""

    type = "EMBED"
    name = "items"

    def __init__(self, texts: list[str], file: Path, model: Model):
        super().__init__()
        self.texts, self.file, self.model = texts, file, model

    def run(self, data: DocumentsPipeline = None, rank: int = 0, world_size: int = 1) -> None:  # type: ignore[override]
        with self.model.encoder() as encoder:
            np.save(self.file, np.concatenate([block for block, _ in encoder.encode(self.texts)]))


class FindNeighbours(PipelineStep):
    """Writes, for each cell, PARAPHRASE rows without verdicts to `parts`; notes in `notes` how far it is."""

    type = "NEIGHBOURS"
    name = "passages"

    def __init__(self, cells: list[Path], items: Items, model: Model, near: Near, parts: Path, notes: Path):
        super().__init__()
        self.cells, self.items, self.model, self.near, self.parts, self.notes = cells, items, model, near, parts, notes

    def run(self, data: DocumentsPipeline = None, rank: int = 0, world_size: int = 1) -> None:  # type: ignore[override]
        items = np.load(self.items.vectors)
        done = 0
        with self.model.encoder() as encoder:
            for cell in self.cells[rank::world_size]:
                with TableWriter(self.parts / cell.name, PARAPHRASE) as writer:
                    columns = ["completion_id", "source", "text"]
                    for table in read_batches([cell], DOCUMENT, columns, batch_rows=DOCUMENTS):
                        for row in self._rows(table.to_pylist(), encoder, items):
                            writer.write(row)
                        done += table.num_rows
                        (self.notes / str(rank)).write_text(str(done))

    def _rows(self, documents: list[dict[str, str]], encoder: Encoder, items: np.ndarray) -> Iterator[dict[str, Any]]:
        """The pairs of some documents, by their ids and the items'."""
        spans: list[Span] = []
        owners: list[int] = []
        for number, document in enumerate(documents):
            own = passages(document["text"], self.near.sentences)
            spans += own
            owners += [number] * len(own)
        self.stat_update("passages", value=len(spans))
        if not spans:
            return
        texts = [documents[owner]["text"][slice(*span)] for owner, span in zip(owners, spans, strict=True)]
        vectors = np.concatenate([block for block, _ in encoder.encode(texts)])
        for pair in nearest(vectors, np.array(owners), items, self.near.threshold, self.near.per_document):
            document, (item_id, task) = documents[pair.document], self.items.names[pair.item]
            start, end = spans[pair.passage]
            yield {
                "pair_id": f"{document['completion_id']} {item_id}",
                "completion_id": document["completion_id"],
                "source": document["source"],
                "task": task,
                "item_id": item_id,
                "start": start,
                "end": end,
                "passage": document["text"][start:end],
                "cosine": pair.cosine,
                "verdict": None,
                "answer": None,
                "failure": None,
                "key": None,
            }


def nearest(
    vectors: np.ndarray, owners: np.ndarray, items: np.ndarray, threshold: float, per_document: int
) -> list[Pair]:
    """The pairs of documents and items with a cosine of at least `threshold`, by document and item.

    `vectors` [passages, dimensions] belong to the documents `owners` [passages]; `items` [2 x items, dimensions] are
    questions, then questions with answers, of which the nearer counts. Of each document the `per_document` nearest
    items, of equally near ones the first.
    """
    count = len(items) // 2
    block = max(1, PRODUCT // len(items))
    near: list[np.ndarray] = [np.empty((0, 2), np.int64)]
    for first in range(0, len(vectors), block):
        passage, row = np.nonzero(vectors[first : first + block] @ items.T >= threshold - SLACK)
        near.append(np.column_stack([passage + first, row]))
    passage, row = np.concatenate(near).T
    cosine = _cosines(vectors, passage, items, row)
    kept = cosine >= threshold
    passage, item, cosine = passage[kept], row[kept] % count, cosine[kept]
    document = owners[passage]
    # the nearest passage of each document and item, of equally near ones the first
    order = np.lexsort((passage, -cosine, item, document))
    pairs = np.column_stack([document[order], item[order]])
    new = np.ones(len(pairs), bool)
    new[1:] = (pairs[1:] != pairs[:-1]).any(axis=1)
    best = order[new]
    # then each document's nearest items
    best = best[np.lexsort((item[best], -cosine[best], document[best]))]
    begins = np.searchsorted(document[best], document[best], "left")
    best = best[np.arange(len(best)) - begins < per_document]
    columns = (column[best].tolist() for column in (document, item, cosine, passage))
    return sorted(Pair(*values) for values in zip(*columns, strict=True))


def _cosines(vectors: np.ndarray, passage: np.ndarray, items: np.ndarray, row: np.ndarray) -> np.ndarray:
    """The cosine of each pair, to four digits."""
    parts = [np.empty(0)]
    for first in range(0, len(passage), PAIRS):
        left = vectors[passage[first : first + PAIRS]].astype(np.float64)
        right = items[row[first : first + PAIRS]].astype(np.float64)
        parts.append(np.einsum("ij,ij->i", left, right))
    return np.round(np.concatenate(parts), 4)


class Candidates(NamedTuple):
    """The pairs to judge, and what was looked at."""

    pairs: pa.Table  # PARAPHRASE without verdicts
    documents: int
    passages: int
    left_out: int  # pairs beyond `per_item`


def find_candidates(items: list[dict[str, Any]], out: Path, model: Model, near: Near) -> Candidates:
    """The pairs of synthetic documents and items that are near to each other. Empties `out`."""
    data = load_compute().data
    with CorpusRun("paraphrases", "data/dedup", out, data) as run:
        # Here one process uses all cores; elsewhere a task for each cell.
        tasks = 1 if data.executor == "local" else max(1, min(data.tasks, len(run.synthetic)))
        vectors, parts = run.scratch / "items.npy", run.scratch / "parts"
        texts = [item["question"] for item in items] + [f"{item['question']} {item['answer']}" for item in items]
        run.arrays.run("items", [EmbedItems(texts, vectors, model)], 1)
        indexed = Items([(item["item_id"], item["task"]) for item in items], vectors)
        step = FindNeighbours(run.synthetic, indexed, model, near, parts, run.arrays.notes("neighbours"))
        stats = run.arrays.run("neighbours", [step], tasks, total=run.synthetic_rows)
        run.arrays.check()
        pairs, left_out = nearest_of_items(parts, near.per_item)
        return Candidates(pairs, run.synthetic_rows, total(stats, "passages"), left_out)


def nearest_of_items(parts: Path, per_item: int) -> tuple[pa.Table, int]:
    """(of each item the `per_item` nearest pairs in the files of a folder, by pair id; how many others there are)."""
    rows = pl.scan_parquet(parts / "*.parquet")
    order = rows.select("pair_id", "item_id", -pl.col("cosine")).sort("item_id", "cosine", "pair_id")
    kept = order.group_by("item_id", maintain_order=True).head(per_item).select("pair_id").collect()
    pairs = rows.join(kept.lazy(), on="pair_id", how="semi").sort("pair_id").collect()
    everything = rows.select(pl.len()).collect().item()
    return PARAPHRASE.conform(pairs.to_arrow(), str(parts)), everything - len(kept)
