"""The verdict about each document of a cell, as FAITHFUL rows, and what they come to per cell and topic."""

from collections import Counter
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

from datatrove.data import DocumentsPipeline
from datatrove.pipeline.base import PipelineStep

from cosmopedia.faithfulness.judge import KINDS, Source, judge
from cosmopedia.faithfulness.prompt_source import PromptTemplate
from cosmopedia.faithfulness.ratios import Ratio
from cosmopedia.faithfulness.settings import FaithfulParams
from cosmopedia.tables.cell_files import cell_of
from cosmopedia.tables.contracts import DOCUMENT, FAITHFUL
from cosmopedia.tables.parquet import TableWriter, read_batches

COLUMNS = ["completion_id", "prompt_id", "prompt", "template", "source", "style", "topic", "text"]
CLAIMS = ("number", "date", "name")  # a unit is a number's
NOTE_EVERY = 200  # documents between two notes of a task's progress


class JudgeCells(PipelineStep):
    """Writes the verdicts of each file of documents to a file of the same name, where its prompts quote a source."""

    type = "JUDGE"
    name = "faithful"

    def __init__(self, files: list[Path], params: FaithfulParams, out: Path, notes: Path):
        super().__init__()
        self.files, self.params, self.out, self.notes = files, params, out, notes

    def run(self, data: DocumentsPipeline = None, rank: int = 0, world_size: int = 1) -> None:  # type: ignore[override]
        done, template = 0, cache(PromptTemplate)
        for path in self.files[rank::world_size]:
            kinds = self.params.kinds(cell_of(path))
            with TableWriter(self.out / path.name, FAITHFUL) as writer:
                for row in documents(path):
                    made_from = template(row["template"])
                    if made_from.quotes:
                        source = Source(made_from.source_of(row["prompt"]))
                        writer.write(verdict_row(row, source, kinds, self.params))
                    done += 1
                    if done % NOTE_EVERY == 0:
                        (self.notes / str(rank)).write_text(str(done))
        (self.notes / str(rank)).write_text(str(done))


def documents(path: Path) -> Iterator[dict[str, Any]]:
    """What is needed of a file's documents."""
    for table in read_batches([path], DOCUMENT, COLUMNS):
        yield from table.to_pylist()


def verdict_row(row: dict[str, Any], source: Source, kinds: list[str], params: FaithfulParams) -> dict[str, Any]:
    """A FAITHFUL row of a document."""
    verdict = judge(row["text"], source, kinds)
    spans = [{"kind": kind, "start": a, "end": b, "text": row["text"][a:b]} for kind, a, b in verdict.spans]
    return {
        **{name: row[name] for name in ("completion_id", "prompt_id", "source", "style", "topic")},
        "words": verdict.words,
        "source_words": len(source.words),
        **{f"{kind}s": verdict.claims[kind] for kind in CLAIMS},
        **{f"unsupported_{kind}s": verdict.unsupported[kind] for kind in KINDS},
        "word_support": round(verdict.word_support, 4),
        "ngram_support": round(verdict.ngram_support, 4),
        "spans": spans,
        "unfaithful": params.limits.exceeded(verdict),
    }


class Totals:
    """What verdicts come to: sums alone, whatever their number."""

    def __init__(self) -> None:
        self.documents = self.unfaithful = 0
        self.claims, self.unsupported = Counter[str](), Counter[str]()
        self.share, self.texts, self.words, self.ngrams = Ratio(), Ratio(), Ratio(), Ratio()

    def add(self, row: dict[str, Any]) -> None:
        """A FAITHFUL row."""
        claims = sum(row[f"{kind}s"] for kind in CLAIMS)
        unsupported = sum(row[f"unsupported_{kind}s"] for kind in KINDS)
        self.documents += 1
        self.unfaithful += bool(row["unfaithful"])
        self.claims.update({kind: row[f"{kind}s"] for kind in CLAIMS})
        self.unsupported.update({kind: row[f"unsupported_{kind}s"] for kind in KINDS})
        self.share.add(unsupported, claims)
        self.texts.add(unsupported > 0, 1)
        self.words.add(row["word_support"], 1)
        self.ngrams.add(row["ngram_support"], 1)

    def figures(self) -> dict[str, Any]:
        """For the metrics: shares with their intervals."""
        return {
            "documents": self.documents,
            "unfaithful": self.unfaithful,
            "claims": {kind: self.claims[kind] for kind in CLAIMS},
            "unsupported": {kind: self.unsupported[kind] for kind in KINDS},
            "unsupported_share": self.share.figures(),
            "texts_with_some": self.texts.figures(),
            "word_support": self.words.figures(),
            "ngram_support": self.ngrams.figures(),
        }


def count(paths: list[Path], cells: list[Path]) -> dict[str, Any]:
    """The metrics of tables of verdicts: together, by cell and by topic. `cells` names those that were judged."""
    names = [name for name in FAITHFUL.schema.names if name != "spans"]
    overall = Totals()
    by_cell = {cell_of(path): Totals() for path in cells}
    by_topic: dict[str, Totals] = {}
    for path in paths:
        for table in read_batches([path], FAITHFUL, names):
            for row in table.to_pylist():
                overall.add(row)
                by_cell[cell_of(path)].add(row)
                if row["topic"]:
                    by_topic.setdefault(row["topic"], Totals()).add(row)
    return {
        **overall.figures(),
        "cells": {cell: totals.figures() for cell, totals in sorted(by_cell.items()) if totals.documents},
        "topics": {topic: totals.figures() for topic, totals in sorted(by_topic.items())},
    }
