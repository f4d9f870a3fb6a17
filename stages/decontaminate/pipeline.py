"""The datatrove blocks of decontamination: count n-grams in all documents, remove contaminated documents.

Tasks leave small files, one each, that the stage merges: sums and sorted rows, so that the number of tasks and their
order change nothing.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from datatrove.data import DocumentsPipeline
from datatrove.pipeline.base import PipelineStep
from datatrove.pipeline.writers.disk_base import DiskWriter
from datatrove.utils.batching import batched

from cosmopedia.contamination.index import Index
from cosmopedia.corpus.components import NATURAL
from cosmopedia.corpus.pipeline import WriteCells, as_document, removal
from cosmopedia.tables.contracts import DOCUMENT
from cosmopedia.tables.parquet import TableWriter, read_batches
from stages.decontaminate.paraphrases import EVIDENCE as PARAPHRASE_EVIDENCE
from stages.decontaminate.paraphrases import read_paraphrases
from stages.decontaminate.report import EVIDENCE, Row, contaminated_pairs

BATCH = 128  # documents that are looked up together


class CountNgrams(PipelineStep):
    """Counts the documents that have each n-gram of the items: `<folder>/<rank>.npy` of (number, documents)."""

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
    """Documents that have each n-gram, from what `CountNgrams` has left."""
    documents = np.zeros(ngrams, dtype=np.int64)
    for path in sorted(folder.glob("*.npy")):
        number, count = np.load(path).T
        documents[number] += count
    return documents


class RemoveContaminated(WriteCells):
    """Cells without their contaminated documents, read and written as tables; a task notes in `notes` how far it is.

    The evidence of a removal names each item: task, form, detectors, n-gram, matched text, both ratios. What is
    contaminated by any detector or ratio, removed or not, goes to `<pairs>/<rank>.jsonl`. Where paraphrases are to be
    removed, a document that has only one of those is removed for that reason.
    """

    type = "FILTER"
    name = "contamination"

    def __init__(self, cells: list[Path], out: Path, index: Path, pairs: Path, removed: DiskWriter, notes: Path):
        super().__init__(cells, out)
        self.index, self.pairs, self.removed, self.notes = index, pairs, removed, notes

    def run(self, data: DocumentsPipeline = None, rank: int = 0, world_size: int = 1) -> None:  # type: ignore[override]
        index = Index.read(self.index)
        paraphrases = read_paraphrases() if index.rule.paraphrases == "remove" else {}
        pairs: list[Row] = []
        done = 0
        with self.removed as removed:
            for cell in self.cells[rank::world_size]:
                with TableWriter(self.out / cell.name, DOCUMENT) as kept:
                    for table in read_batches([cell], DOCUMENT):
                        contaminated = self._contaminated(index, table, pairs)
                        reasons = {place: ("contaminated", items) for place, items in contaminated.items()}
                        for place, completion_id in enumerate(
                            table["completion_id"].to_pylist() if paraphrases else []
                        ):
                            if completion_id in paraphrases and place not in reasons:
                                rows = paraphrases[completion_id]
                                items = [{name: row[name] for name in PARAPHRASE_EVIDENCE} for row in rows]
                                reasons[place] = ("paraphrase", items)
                        kept.write_table(without(table, list(reasons)))
                        for place, (reason, items) in sorted(reasons.items()):
                            document = as_document(table.slice(place, 1).to_pylist()[0], cell)
                            document.metadata.update(removal(reason, items=items))
                            removed.write(document, rank)
                        done += table.num_rows
                        (self.notes / str(rank)).write_text(str(done))
        self.pairs.mkdir(parents=True, exist_ok=True)
        lines = (json.dumps(row, ensure_ascii=False) + "\n" for row in pairs)
        (self.pairs / f"{rank:05d}.jsonl").write_text("".join(lines), encoding="utf-8")

    def _contaminated(self, index: Index, table: pa.Table, pairs: list[Row]) -> dict[int, list[dict[str, Any]]]:
        """The items that contaminate each contaminated document, by its place in the table; adds to `pairs`."""
        about = table.select(["completion_id", "source", "style"])
        natural = "natural_" if table["style"][0].as_py() == NATURAL else ""  # a cell has one style
        contaminated: dict[int, list[dict[str, Any]]] = {}
        removing = index.rule.removing()
        first = 0
        for batch in table.select(["text"]).to_batches(max_chunksize=BATCH):
            for number, findings in index.findings(batch["text"]):
                self.stat_update(f"{natural}candidate.documents", value=int(findings.pairs > 0))
                self.stat_update(f"{natural}candidate.pairs", value=findings.pairs)
                self.stat_update(f"{natural}candidate.common_only", value=findings.common_only)
                place = first + number
                found = [*contaminated_pairs(about.slice(place, 1).to_pylist()[0], findings, index.rule)]
                pairs += ({name: row[name] for name in row if name not in ("matched", "ngram")} for row in found)
                if items := [row for row in found if removing & {*row["detectors"]}]:
                    contaminated[place] = [{name: row[name] for name in EVIDENCE} for row in items]
            first += batch.num_rows
        self.stat_update("documents", value=table.num_rows)
        return contaminated


def without(table: pa.Table, places: list[int]) -> pa.Table:
    """A table without the rows at some places."""
    mask = np.ones(table.num_rows, dtype=bool)
    mask[places] = False
    return table.filter(pa.array(mask)) if places else table
