"""coverage: what the corpus has of each topic of a taxonomy, and how far its topics are from those of the source rows.

In: data/decontaminate/<cell>.parquet (DOCUMENT), data/sources/<source>.parquet (SOURCE: the rows they were written
from), coverage.taxonomy, the sentence model of embed.
Out: data/coverage/documents.parquet (TOPIC_OF_DOCUMENT), data/coverage/topics.parquet (COVERAGE),
metrics/coverage.json. With `enabled: false` both tables are empty, and no model is loaded.
Contract: on a CPU a document's topic is a function of its text, the taxonomy and the model. Of more documents than
`documents` some are drawn by their ids, and the counts extrapolated. Memory grows with the documents drawn.
Run: python -m stages.coverage
"""

import json
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import Field

from cosmopedia.core.errors import ConfigError
from cosmopedia.core.files import clear_folder
from cosmopedia.core.params import Params, load
from cosmopedia.core.rng import draw_unit
from cosmopedia.core.row_counts import write_metrics
from cosmopedia.corpus.encoder import Encoder
from cosmopedia.corpus.sentence_model import SentenceModel
from cosmopedia.corpus.taxonomy import Topic, leaves, read_taxonomy
from cosmopedia.execution.stage_process import run_stage
from cosmopedia.records.pins import split_pin
from cosmopedia.tables.contracts import COVERAGE, DOCUMENT, SOURCE, TOPIC_OF_DOCUMENT
from cosmopedia.tables.parquet import count_rows, read_batches, tables_in, write_table
from stages.coverage.assign import Assigned, assign, encode, fewest_topics, topic_vectors
from stages.coverage.measures import covered, measures

DOCUMENTS, OUT, METRICS = Path("data/decontaminate"), Path("data/coverage"), Path("metrics/coverage.json")
AT_ONCE = 256  # texts


class CoverageParams(Params):
    """The taxonomy, and how documents are assigned to it."""

    enabled: bool
    taxonomy: str  # a file or a folder, with its pin behind an @
    documents: int = Field(ge=1)  # assigned at most
    wanted: int = Field(ge=1)  # documents of a topic below which it is a gap
    outstanding: float = Field(gt=0)  # standard deviations
    permutations: int = Field(ge=100)
    seed: int


def settings() -> tuple[CoverageParams, SentenceModel, list[Topic]]:
    """The stage's params, the sentence model, and the topics that documents are assigned to and those above them: none
    where the stage is off."""
    params, sentence_model = load("coverage", CoverageParams), load("embed", SentenceModel)
    if not params.enabled:
        return params, sentence_model, []
    topics, _ = read_taxonomy(*split_pin(params.taxonomy))
    fewest = fewest_topics(params.outstanding)
    if len(leaves(topics)) < fewest:
        raise ConfigError(
            f"coverage.outstanding is {params.outstanding:g}, which no text can reach among the {len(leaves(topics))}"
            f" topics of {params.taxonomy}: lower it, or take a taxonomy of {fewest} or more"
        )
    return params, sentence_model, topics


def main() -> str:
    params, sentence_model, topics = settings()
    clear_folder(OUT)
    if not params.enabled:
        write_table(OUT / "documents.parquet", [], TOPIC_OF_DOCUMENT)
        write_table(OUT / "topics.parquet", [], COVERAGE)
        write_metrics(METRICS, {"enabled": False})
        return "off (coverage.enabled): nothing is assigned"

    files = tables_in(DOCUMENTS)
    total = sum(map(count_rows, files))
    share = min(1.0, params.documents / max(total, 1))
    with sentence_model.find().encoder() as encoder:
        assigner = Assigner(encoder, leaves(topics), params.outstanding)
        rows = list(assigner.documents(files, params.seed, share))
        seed_topics = assigner.source_rows({row["seed_id"] for row in rows if row["seed_id"]})
    for row in rows:
        row["seed_topic"] = seed_topics.get(row["seed_id"])
    write_table(OUT / "documents.parquet", sorted(rows, key=lambda row: row["completion_id"]), TOPIC_OF_DOCUMENT)
    table = covered(topics, rows, total, params.wanted)
    write_table(OUT / "topics.parquet", table, COVERAGE)
    metrics = measures(topics, rows, table, params.permutations, params.seed)
    write_metrics(METRICS, {"enabled": True, "documents": total, "assigned_from": len(rows), **metrics})
    return (
        f"{metrics['topics_covered']} of {metrics['topics']} topics have {params.wanted} documents or more,"
        f" {metrics['topics_empty']} have none; {metrics['near_no_topic']:.0%} of {len(rows)} documents are near to no"
        " topic"
    )


class Assigner:
    """Assigns documents and source rows to topics."""

    def __init__(self, encoder: Encoder, topics: list[Topic], outstanding: float):
        self.encoder, self.outstanding = encoder, outstanding
        self.names = np.array([*(topic.id for topic in topics), None])  # the last one is for NONE
        self.vectors = topic_vectors(topics, encoder)

    def _assign(self, texts: list[str]) -> Assigned:
        return assign(encode(self.encoder, texts), self.vectors, self.outstanding)

    def documents(self, files: list[Path], seed: int, share: float) -> Iterator[dict[str, Any]]:
        """TOPIC_OF_DOCUMENT rows, without the source rows' topics, of the documents that are drawn."""
        columns = ["completion_id", "source", "style", "model", "seed_id", "text"]
        for table in read_batches(files, DOCUMENT, columns, batch_rows=AT_ONCE):
            ids = table["completion_id"].to_pylist()
            rows = table.filter([share == 1 or draw_unit(seed, "coverage", name) < share for name in ids]).to_pylist()
            if not rows:
                continue
            found = self._assign([row.pop("text") for row in rows])
            for row, topic, deviations in zip(rows, self.names[found.topics], found.deviations.tolist(), strict=True):
                # natural text is its own source row
                seed_id = row["seed_id"] if row["model"] else None
                yield row | {
                    "topic": topic,
                    "deviations": round(deviations, 4),
                    "seed_id": seed_id,
                    "seed_topic": None,
                }

    def source_rows(self, ids: set[str]) -> dict[str, str | None]:
        """The topics of source rows."""
        topics: dict[str, str | None] = {}
        of_source: dict[str, set[str]] = defaultdict(set)
        for name in ids:
            of_source[name.split("/", 1)[0]].add(name)
        columns = ["row_id", "title", "text", "context"]
        for source, wanted in sorted(of_source.items()):
            for table in read_batches([f"data/sources/{source}.parquet"], SOURCE, columns, batch_rows=AT_ONCE):
                rows = [row for row in table.to_pylist() if row["row_id"] in wanted]
                if rows:
                    found = self._assign([text_of_row(row) for row in rows])
                    topics |= zip((row["row_id"] for row in rows), self.names[found.topics], strict=True)
        return topics


def text_of_row(row: dict[str, str]) -> str:
    """What a source row is about: its title, the names it belongs under (course, chapter), its text."""
    context = json.loads(row["context"])
    names = [value for value in context.values() if isinstance(value, str)]
    return ". ".join(part for part in (row["title"], *names, row["text"]) if part)


if __name__ == "__main__":
    run_stage("coverage", main)
