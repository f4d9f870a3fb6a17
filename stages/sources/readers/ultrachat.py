"""Conversations: stingning/ultrachat (id, data) and HuggingFaceTB/ultrachat_questions_about_world (and question,
first_turn)."""

import json
from typing import Any

from cosmopedia.core.params import Params
from cosmopedia.record_ids import row_id
from stages.sources.reader import Pattern, Reader, Rejected, Rows, SourceRow, text_of


class UltrachatFilter(Params):
    min_words: int
    drop_requests: list[Pattern]
    concepts: dict[str, list[Pattern]]  # counted, never filtered: see `concepts_of`


def read(values: dict[str, Any], keep: UltrachatFilter) -> Rows:
    """One conversation, one row: its first question. Requests to write something are dropped, questions stay.

    HuggingFaceTB's subset has a column `first_turn`, which the published prompts quote (Cosmopedia,
    build_ultrachat_stories_prompts.py): where a row has it, it is the text, and `context` keeps the question.
    """
    turns = values["data"]
    if not isinstance(turns, list):
        raise TypeError(f"data must be a list of turns, found {type(turns).__name__}")
    question = text_of({"data[0]": turns[0] or ""}, "data[0]") if turns else ""
    if not question:
        yield Rejected("empty", str(values.get("id")))
    elif len(question.split()) < keep.min_words:
        yield Rejected("length", question)
    elif any(pattern.search(question) for pattern in keep.drop_requests):
        yield Rejected("writing_request", question[:80])
    else:
        turn = text_of(values, "first_turn") if values.get("first_turn") else ""
        yield SourceRow(row_id(values, question), "", turn or question, {"question": question} if turn else {})


def concepts_of(question: str, concepts: dict[str, list[Pattern]]) -> list[str]:
    """The concepts that a question touches, by the words of `concepts`; ["other"] where it touches none."""
    touched = [name for name, patterns in concepts.items() if any(pattern.search(question) for pattern in patterns)]
    return touched or ["other"]


def _concepts(row: dict[str, Any], keep: UltrachatFilter) -> list[str]:
    return concepts_of(json.loads(row["context"]).get("question", row["text"]), keep.concepts)


READER = Reader(read, UltrachatFilter, _concepts)
