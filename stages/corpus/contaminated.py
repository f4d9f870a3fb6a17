"""The pipeline's blocks of decontamination: count n-grams in all documents, take contaminated documents out.

Tasks leave small files, one each, that the stage merges: sums and sorted rows, so that the number of tasks and their
order change nothing.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from datatrove.data import Document, DocumentsPipeline
from datatrove.pipeline.base import PipelineStep
from datatrove.pipeline.writers.disk_base import DiskWriter
from datatrove.utils.batching import batched

from stages.corpus.cells import removal
from stages.corpus.contamination import RULES, DecontaminateParams, Findings, Index, Match

BATCH = 32  # documents that are looked up together


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


class TakeContaminatedOut(PipelineStep):
    """Removes contaminated documents; the evidence names each item: task, n-gram, matched text, both ratios.

    What either rule calls contaminated, removed or not, goes to `<verdicts>/<rank>.jsonl`.
    """

    type = "FILTER"
    name = "contamination"

    def __init__(self, index: Path, verdicts: Path, removed: DiskWriter):
        super().__init__()
        self.index, self.verdicts, self.removed = index, verdicts, removed

    def run(self, data: DocumentsPipeline, rank: int = 0, world_size: int = 1) -> Iterator[Document]:  # type: ignore[override]
        index, rows = Index.read(self.index), []
        with self.removed as writer:
            for batch in batched(data, BATCH):
                guilty = set()
                for number, findings in index.findings([document.text for document in batch]):
                    self.stat_update("candidate.documents", value=int(findings.pairs > 0))
                    self.stat_update("candidate.pairs", value=findings.pairs)
                    self.stat_update("candidate.common_only", value=findings.common_only)
                    rows += verdicts_of(batch[number], findings, index.rule)
                    if items := [match for match in findings.matches if match.contaminated(index.rule)]:
                        shown = [evidence_of(match) | {"matched": match.matched} for match in items]
                        batch[number].metadata.update(removal("contaminated", items=shown))
                        guilty.add(number)
                for number, document in enumerate(batch):
                    if number in guilty:
                        writer.write(document, rank)
                    else:
                        yield document
        self.verdicts.mkdir(parents=True, exist_ok=True)
        lines = (json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        (self.verdicts / f"{rank:05d}.jsonl").write_text("".join(lines), encoding="utf-8")


def verdicts_of(document: Document, findings: Findings, params: DecontaminateParams) -> Iterator[dict[str, Any]]:
    """A row for each item that either rule finds in a document, with the rules that do."""
    about = {"source": document.metadata["source"], "completion_id": document.id}
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
