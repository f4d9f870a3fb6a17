"""Which documents are checked, the further samples of their prompts, and what the model is asked about them."""

from collections.abc import Iterator
from itertools import groupby
from pathlib import Path
from string import Template
from typing import Any, NamedTuple

import pyarrow.compute as pc

from cosmopedia.core.rng import draw_u64
from cosmopedia.corpus.sentence_spans import Span, sentences
from cosmopedia.generation.complete import PromptRequests
from cosmopedia.generation.requests import Request
from cosmopedia.generation.template import read_template
from cosmopedia.tables.cell_files import cell_of
from cosmopedia.tables.contracts import DOCUMENT
from cosmopedia.tables.parquet import read_batches

TEMPLATE = Path("curation/selfcheck.txt")
COLUMNS = ["completion_id", "prompt_id", "prompt", "source", "style", "topic", "text", "sample_index"]


class Checked(NamedTuple):
    """A document, its sentences that are checked, and the further samples of its prompt."""

    row: dict[str, Any]
    spans: list[Span]
    samples: list[str]

    @property
    def sentences(self) -> list[str]:
        return [self.row["text"][start:end] for start, end in self.spans]


def draw_documents(files: list[Path], seed: int, per_cell: int) -> list[dict[str, Any]]:
    """`per_cell` documents of each cell, of those that are their prompts' first samples; by completion id.

    The draw is of source rows: two styles that have the same rows, such as a grounded one and its plain one, are
    compared on the same ones.
    """
    drawn = []
    for _, group in groupby(files, key=cell_of):
        cell, best = list(group), list[tuple[int, str]]()
        for table in read_batches(cell, DOCUMENT, ["completion_id", "seed_id", "sample_index"], batch_rows=20_000):
            first = table.filter(pc.field("sample_index") == 0)
            pairs = zip(first["seed_id"].to_pylist(), first["completion_id"].to_pylist(), strict=True)
            best = sorted([*best, *((draw_u64(seed, "selfcheck", row), name) for row, name in pairs)])[:per_cell]
        ids = [name for _, name in best]
        for table in read_batches(cell, DOCUMENT, COLUMNS):
            drawn += table.filter(pc.field("completion_id").isin(ids)).to_pylist()
    return sorted(drawn, key=lambda row: row["completion_id"])


class FurtherSamples:
    """Requests for all samples of prompts but the first, with the keys that generate would give them."""

    def __init__(self, requests: PromptRequests):
        self.requests = requests

    def __iter__(self) -> Iterator[Request]:
        return (request for request in self.requests if request.sample_index > 0)


def checked_sentences(text: str, most: int) -> list[Span]:
    """The first sentences that say something: three words or more, and no heading."""
    spans = [span for span in sentences(text) if len(text[slice(*span)].split()) >= 3]
    return [span for span in spans if text[span[0]] != "#"][:most]


def read_question() -> Template:
    """The template of what the model is asked. `ConfigError` for a missing file or a wrong slot."""
    return read_template(TEMPLATE, {"context", "sentence"})


class Questions:
    """(id, prompt) for each sentence and sample; made anew at each iteration, since they are longer than both."""

    def __init__(self, checked: list[Checked], template: Template):
        self.checked, self.template = checked, template

    def __iter__(self) -> Iterator[tuple[str, str]]:
        for one in self.checked:
            for number, sentence in enumerate(one.sentences):
                for place, sample in enumerate(one.samples):
                    values = {"context": " ".join(sample.split()), "sentence": " ".join(sentence.split())}
                    yield f"{one.row['completion_id']} {number:04d} {place}", self.template.substitute(values)
