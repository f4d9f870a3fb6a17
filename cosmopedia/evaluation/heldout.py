"""Held-out sets: documents of several domains that no corpus is made from, and how well a model predicts them."""

import itertools
from collections.abc import Iterator
from typing import Any

from pydantic import Field

from cosmopedia.core.errors import DataError
from cosmopedia.core.params import Params
from cosmopedia.evaluation.encoding import Encoder, Sequence
from cosmopedia.evaluation.scorer import Scorer
from cosmopedia.records.reading import read_records


class HeldoutSet(Params):
    """Where a set's documents come from."""

    dataset: str  # hub id, file or folder
    subset: str | None
    split: str | None  # null for local files
    revision: str | None  # commit of a hub dataset; the pin of a local file of one's own
    text: str  # the column of the documents' texts
    limit: int | None = Field(ge=1)  # documents from the set's beginning; null: all


def read_set(name: str, source: HeldoutSet) -> list[dict[str, Any]]:
    """A set's documents: `document_id` ("<set>/<6-digit position>"), `set`, `text`.

    Documents without text are left out, as the empty lines of wikitext are. `DataError` when none is left, or for a
    record that cannot be read or lacks the column.
    """
    records, _ = read_records(source.dataset, source.subset, source.split, source.revision)
    documents = []
    for record in records:
        if len(documents) == source.limit:
            break
        text = record.values.get(source.text)
        if record.problem or not isinstance(text, str):
            problem = record.problem or f"column {source.text!r} must be a text, found columns {sorted(record.values)}"
            raise DataError(f"{record.place}: {problem}; correct evaluate.heldout.{name} or the record")
        if text.strip():
            documents.append({"document_id": f"{name}/{len(documents):06d}", "set": name, "text": text.strip()})
    if not documents:
        raise DataError(f"{source.dataset} has no document for evaluate.heldout.{name}; check its dataset and column")
    return documents


def windows(ids: list[int], positions: int) -> Iterator[Sequence]:
    """A document's ids as windows that score each of them once, except the first, which stands before the document.

    A document that fits is one window. Of a longer one each window begins half a window after the one before it and
    scores what that one did not, so that every token is predicted from half a window at least.
    """
    scored, stride = 1, max(1, positions // 2)
    for start in itertools.count(0, stride):
        end = min(start + positions + 1, len(ids))
        yield Sequence(tuple(ids[start:end]), end - scored)
        scored = end
        if end == len(ids):
            return


def score_heldout(scorer: Scorer, encoder: Encoder, documents: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """HELDOUT rows, in the order of their ids."""
    cut = [list(windows(encoder.document(one["document_id"], one["text"]), encoder.positions)) for one in documents]
    values = iter(scorer.logprobs([window for several in cut for window in several], "windows"))
    rows = []
    for document, several in zip(documents, cut, strict=True):
        nats = -sum(next(values) for _ in several)
        rows.append(
            {
                "set": document["set"],
                "document_id": document["document_id"],
                "nats": nats,
                "tokens": sum(window.scored for window in several),
                "bytes": len(document["text"].encode()),
            }
        )
    return sorted(rows, key=lambda row: row["document_id"])
