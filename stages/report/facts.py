"""Everything that the report shows, read from the other stages' metrics and tables in one pass."""

import csv
import heapq
import json
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import polars as pl

from cosmopedia.core.errors import DataError
from cosmopedia.core.rng import draw_u64
from cosmopedia.corpus.components import NATURAL, is_natural
from cosmopedia.corpus.openings import Openings
from cosmopedia.corpus.references import quoted_articles
from cosmopedia.tables.cell_files import cell_of, source_and_style
from cosmopedia.tables.contracts import DOCUMENT, REMOVED
from cosmopedia.tables.parquet import read_batches, read_rows, tables_in
from cosmopedia.tracing.changes import evidence_of
from stages.report.baselines import next_to_ours

METRICS, DATA = Path("metrics"), Path("data")
ASSIGNMENTS = DATA / "cluster" / "assignments.parquet"
REQUIRED = ("prompts", "pilot", "generate", "clean", "dedup", "decontaminate", "mix", "tokenize_corpus", "train")
REQUIRED += ("evaluate",)
OPTIONAL = ("generator", "knowledge", "embed", "cluster", "label", "topics", "benchmarks", "export", "baselines")
FILTERS = ("clean", "dedup", "decontaminate")  # the stages that take documents out, in order
GLANCE = ("completion_id", "source", "style", "format", "audience", "text_token_length", "model", "model_revision")


@dataclass(frozen=True)
class Cell:
    """One source and style of the finished corpus."""

    source: str
    style: str
    documents: int
    tokens: int


@dataclass(frozen=True)
class Facts:
    """What the report shows; documents are those of the synthetic part."""

    metrics: dict[str, dict[str, Any]]  # by stage; {} for an optional one that is missing
    sources: dict[str, dict[str, Any]]  # metrics/sources/<name>.json by name
    prompts: list[dict[str, str]]  # metrics/plots/prompts.csv
    contamination: list[dict[str, str]]  # metrics/plots/contamination.csv
    losses: list[dict[str, str]]  # metrics/plots/train_loss.csv
    openings: tuple[Openings, Openings]  # of the completions, and of what cleaning left of them
    cells: list[Cell]
    by_format: Counter[str]  # documents
    by_audience: Counter[str]
    generators: list[tuple[str, str]]  # model and revision that wrote the corpus
    licences: list[tuple[str, str, str]]  # source, seed licence, seed revision
    quoted: pl.DataFrame  # articles that prompts quote: licence, revision, article, title, documents
    baselines: dict[str, dict[str, Any]]  # scores by baseline, and ours on the same items; {} without baselines
    examples: dict[str, list[dict[str, Any]]]  # DOCUMENT rows by format
    removed: dict[tuple[str, str], list[dict[str, Any]]]  # REMOVED rows by stage and reason

    @property
    def documents(self) -> int:
        return sum(cell.documents for cell in self.cells)

    @property
    def tokens(self) -> int:
        return sum(cell.tokens for cell in self.cells)


def collect(seed: int, examples: int) -> Facts:
    """Read everything. `DataError` for a required file that is missing."""
    cells = published_tables()
    corpus, chosen = glance(cells, seed, examples)
    metrics = {n: read_metrics(n) for n in REQUIRED} | {n: read_metrics(n, optional=True) for n in OPTIONAL}
    first_panel = next(iter(metrics["evaluate"]["panels"].values()))
    return Facts(
        metrics=metrics,
        baselines=next_to_ours(metrics["baselines"], first_panel["tasks"]),
        sources={p.stem: _json(p) for p in sorted((METRICS / "sources").glob("*.json"))},
        prompts=read_csv(METRICS / "plots" / "prompts.csv"),
        contamination=read_csv(METRICS / "plots" / "contamination.csv"),
        quoted=quoted_articles(cells),
        losses=read_csv(METRICS / "plots" / "train_loss.csv"),
        openings=(openings_of("generate"), openings_of("clean")),
        examples=fetch(cells, chosen),
        removed={
            (stage, reason): rows
            for stage in FILTERS
            for reason, rows in removed_examples(stage, seed, examples).items()
        },
        **corpus,
    )


def published_tables() -> list[Path]:
    """The tables of the finished synthetic documents."""
    return [table for table in tables_in(DATA / "decontaminate") if not is_natural(table)]


def openings_of(stage: str) -> Openings:
    """How the synthetic documents of a stage begin; of large cells as many as are enough."""
    together = Openings()
    for path in tables_in(DATA / stage):
        cell = Openings()
        for table in () if is_natural(path) else read_batches([path], DOCUMENT, ["completion_id", "text"]):
            cell.add(pl.DataFrame(table)["text"])
            if cell.complete:
                break
        together.counts += cell.counts
        together.rows += cell.rows
    return together


def glance(cells: list[Path], seed: int, examples: int) -> tuple[dict[str, Any], dict[str, list[str]]]:
    """Counts of the corpus, and for each format the ids of the documents that are shown."""
    by_cell: dict[str, Cell] = {}
    formats, audiences = Counter[str](), Counter[str]()
    generators, licences = set(), set()
    drawn: dict[str, list[tuple[int, str]]] = {}
    for path in cells:
        name = cell_of(path)
        documents = tokens = 0
        for table in read_batches([path], DOCUMENT, [*GLANCE, "seed_licence", "seed_revision"], batch_rows=20_000):
            rows = pl.DataFrame(table)
            documents, tokens = documents + rows.height, tokens + int(rows["text_token_length"].sum())
            formats.update(dict(rows["format"].value_counts().iter_rows()))
            audiences.update(dict(rows["audience"].value_counts().iter_rows()))
            generators |= set(rows.select("model", "model_revision").unique().iter_rows())
            licences |= set(rows.select("source", "seed_licence", "seed_revision").unique().iter_rows())
            for kind, completion_id in rows.select("format", "completion_id").iter_rows():
                entry = (-draw_u64(seed, "report", completion_id), completion_id)
                heap = drawn.setdefault(kind, [])
                heapq.heappush(heap, entry) if len(heap) < examples else heapq.heappushpop(heap, entry)
        earlier = by_cell.get(name, Cell(*source_and_style(name), 0, 0))
        by_cell[name] = replace(earlier, documents=earlier.documents + documents, tokens=earlier.tokens + tokens)
    counts = {"cells": list(by_cell.values()), "by_format": formats, "by_audience": audiences}
    counts |= {"generators": sorted(generators), "licences": sorted(licences)}
    return counts, {kind: sorted(i for _, i in heap) for kind, heap in sorted(drawn.items())}


def fetch(cells: list[Path], chosen: dict[str, list[str]]) -> dict[str, list[dict[str, Any]]]:
    """The DOCUMENT rows with the chosen ids, by format."""
    ids = {completion_id for several in chosen.values() for completion_id in several}
    rows: dict[str, dict[str, Any]] = {}
    for path in cells:
        for row in pl.scan_parquet(path).filter(pl.col("completion_id").is_in(ids)).collect().iter_rows(named=True):
            rows[row["completion_id"]] = row
    return {kind: [rows[i] for i in several] for kind, several in chosen.items()}


def removed_examples(stage: str, seed: int, examples: int) -> dict[str, list[dict[str, Any]]]:
    """For each reason some of the rows that a stage removed, drawn by the seed, with the evidence parsed."""
    drawn: dict[str, list[tuple[int, str, dict[str, Any]]]] = {}
    for row in read_rows([DATA / stage / "removed" / "removed.parquet"], REMOVED):
        if row["style"] == NATURAL:
            continue
        heap = drawn.setdefault(row["reason"], [])
        entry = (-draw_u64(seed, "report", row["completion_id"]), row["completion_id"], row)
        heapq.heappush(heap, entry) if len(heap) < examples else heapq.heappushpop(heap, entry)
    return {
        reason: [row | {"evidence": evidence(row["evidence"])} for _, _, row in sorted(heap, key=lambda e: e[1])]
        for reason, heap in sorted(drawn.items())
    }


def evidence(text: str) -> list[tuple[str, str]]:
    """The evidence of a removal as names and values; lists are laid out one after another."""
    content = evidence_of(text)
    flat: list[tuple[str, str]] = []
    for name, value in content.items() if isinstance(content, dict) else [("evidence", content)]:
        for part in value if isinstance(value, list) else [value]:
            pairs = part.items() if isinstance(part, dict) else [(name, part)]
            flat += [(str(k), f"{v:.3g}" if isinstance(v, float) else str(v)) for k, v in pairs]
    return flat


def read_metrics(stage: str, optional: bool = False) -> dict[str, Any]:
    """metrics/<stage>.json; {} for an optional one that is not there."""
    path = METRICS / f"{stage}.json"
    return {} if optional and not path.is_file() else _json(path)


def _json(path: Path) -> dict[str, Any]:
    try:
        return json.loads(_text(path))
    except ValueError as error:
        raise DataError(f"{path} is no JSON: {error}; run the stage that writes it again") from None


def read_csv(path: Path) -> list[dict[str, str]]:
    """A plot's table."""
    return list(csv.DictReader(_text(path).splitlines()))


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise DataError(f"{path} is missing; run the stage that writes it (dvc repro), or dvc pull") from None


def totals(rows: Iterable[dict[str, str]], column: str, value: str) -> list[tuple[str, int]]:
    """Sums of `value` by `column`, greatest first, equals by name."""
    sums: Counter[str] = Counter()
    for row in rows:
        sums[row[column]] += int(row[value])
    return sorted(sums.items(), key=lambda item: (-item[1], item[0]))
