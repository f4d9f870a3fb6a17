"""The pipeline's blocks of decontamination: count n-grams in all documents, take contaminated documents out.

Tasks leave small files, one each, that the stage merges: sums and sorted rows, so that the number of tasks and their
order change nothing.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from datatrove.data import DocumentsPipeline
from datatrove.pipeline.base import PipelineStep
from datatrove.pipeline.writers.disk_base import DiskWriter
from datatrove.utils.batching import batched

from cosmopedia.corpus.pipeline import WriteCells, as_document, removal
from cosmopedia.tables.contracts import DOCUMENT
from cosmopedia.tables.parquet import TableWriter, read_batches
from stages.decontaminate.index import RULES, DecontaminateParams, Findings, Index, Match

BATCH = 128  # documents that are looked up together


class CountNgrams(PipelineStep):
    """Counts in how many documents each n-gram of the items stands: `<folder>/<rank>.npy` of (number, documents)."""

    type = "STATS"
    name = "n-grams"

    def __init__(self, index: Path, folder: Path):
        super().__init__()
        self.index, self.folder = index, folder

    def run(self, data: DocumentsPipeline, rank: int = 0, world_size: int = 1) -> None:  # type: ignore[override]
        index = Index.read(self.index)
        documents = np.zeros(index.ngrams, dtype=np.int64)
        for batch in batched(data, BATCH):
            index.count([document.text for document in batch], documents)
        seen = np.flatnonzero(documents)
        self.folder.mkdir(parents=True, exist_ok=True)
        np.save(self.folder / f"{rank:05d}.npy", np.column_stack([seen, documents[seen]]))


def merged_counts(folder: Path, ngrams: int) -> np.ndarray:
    """Documents that each n-gram stands in, from what `CountNgrams` left."""
    documents = np.zeros(ngrams, dtype=np.int64)
    for path in sorted(folder.glob("*.npy")):
        number, count = np.load(path).T
        documents[number] += count
    return documents


class TakeContaminatedOut(WriteCells):
    """Cells without their contaminated documents, read and written as tables; a task notes in `notes` how far it is.

    The evidence of a removal names each item: task, n-gram, matched text, both ratios. What either rule calls
    contaminated, removed or not, goes to `<verdicts>/<rank>.jsonl`.
    """

    type = "FILTER"
    name = "contamination"

    def __init__(self, cells: list[Path], out: Path, index: Path, verdicts: Path, removed: DiskWriter, notes: Path):
        super().__init__(cells, out)
        self.index, self.verdicts, self.removed, self.notes = index, verdicts, removed, notes

    def run(self, data: DocumentsPipeline = None, rank: int = 0, world_size: int = 1) -> None:  # type: ignore[override]
        index, rows, done = Index.read(self.index), [], 0
        with self.removed as removed:
            for cell in self.cells[rank::world_size]:
                with TableWriter(self.out / cell.name, DOCUMENT) as kept:
                    for table in read_batches([cell], DOCUMENT):
                        guilty = self._guilty(index, table, rows)
                        kept.write_table(without(table, list(guilty)))
                        for number, items in guilty.items():
                            document = as_document(table.slice(number, 1).to_pylist()[0], cell)
                            document.metadata.update(removal("contaminated", items=items))
                            removed.write(document, rank)
                        done += table.num_rows
                        (self.notes / str(rank)).write_text(str(done))
        self.verdicts.mkdir(parents=True, exist_ok=True)
        lines = (json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        (self.verdicts / f"{rank:05d}.jsonl").write_text("".join(lines), encoding="utf-8")

    def _guilty(self, index: Index, table: pa.Table, rows: list[dict[str, Any]]) -> dict[int, list[dict[str, Any]]]:
        """The items that contaminate each contaminated document, by its place; `rows` gets the verdicts."""
        about = table.select(["completion_id", "source"])
        guilty: dict[int, list[dict[str, Any]]] = {}
        first = 0
        for batch in table.select(["text"]).to_batches(max_chunksize=BATCH):
            for number, findings in index.findings(batch["text"]):
                self.stat_update("candidate.documents", value=int(findings.pairs > 0))
                self.stat_update("candidate.pairs", value=findings.pairs)
                self.stat_update("candidate.common_only", value=findings.common_only)
                rows += verdicts_of(about.slice(first + number, 1).to_pylist()[0], findings, index.rule)
                if items := [match for match in findings.matches if match.contaminated(index.rule)]:
                    guilty[first + number] = [evidence_of(match) | {"matched": match.matched} for match in items]
            first += batch.num_rows
        self.stat_update("documents", value=table.num_rows)
        return guilty


def without(table: pa.Table, places: list[int]) -> pa.Table:
    """A table without the rows at some places."""
    mask = np.ones(table.num_rows, dtype=bool)
    mask[places] = False
    return table.filter(pa.array(mask)) if places else table


def verdicts_of(about: dict[str, str], findings: Findings, params: DecontaminateParams) -> Iterator[dict[str, Any]]:
    """A row for each item that either rule finds in a document (`about`: what it is), with the rules that do."""
    for match in findings.matches:
        if rules := [rule for rule in RULES if match.contaminated(params, rule)]:
            yield about | {"rules": rules} | evidence_of(match)


def evidence_of(match: Match) -> dict[str, Any]:
    """What shows that a pair matches, but for the text."""
    return {
        "task": match.item.task,
        "item_id": match.item.item_id,
        "ngram": match.ngram,
        "ratio": round(match.plain, 4),
        "window_ratio": round(match.window, 4),
    }


def merged_verdicts(folder: Path) -> list[dict[str, Any]]:
    """What `TakeContaminatedOut` called contaminated, by either rule, by document and item."""
    lines = (line for path in folder.glob("*.jsonl") for line in path.read_text(encoding="utf-8").splitlines())
    return sorted(map(json.loads, lines), key=lambda row: (row["completion_id"], row["source"], row["item_id"]))
