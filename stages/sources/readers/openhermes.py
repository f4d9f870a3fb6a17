"""Instructions: teknium/OpenHermes-2.5 (conversations, source, category, language)."""

from typing import Any

from cosmopedia.core.params import Params
from cosmopedia.record_ids import row_id
from stages.sources.reader import Reader, Rejected, Rows, SourceRow, text_of


class OpenhermesFilter(Params):
    languages: list[str]
    drop_sources: list[str]
    drop_categories: list[str]
    min_words: int


def read(values: dict[str, Any], keep: OpenhermesFilter) -> Rows:
    """One conversation, one row: the first human turn and its answer."""
    category, source = str(values.get("category") or "").lower(), str(values.get("source") or "").lower()
    if values.get("language") not in (None, *keep.languages):
        yield Rejected("language", str(values["language"]))
    elif source in keep.drop_sources:
        yield Rejected("dropped_source", source)
    elif category in keep.drop_categories:
        yield Rejected("dropped_category", category)
    else:
        turns = [(turn["from"], text_of({"value": turn["value"] or ""}, "value")) for turn in values["conversations"]]
        first = next((n for n, (speaker, _) in enumerate(turns) if speaker == "human"), None)
        if first is None or first + 1 >= len(turns) or turns[first + 1][0] != "gpt" or not turns[first + 1][1]:
            yield Rejected("no_exchange")
            return
        question, answer = turns[first][1], turns[first + 1][1]
        if len(question.split()) < keep.min_words:
            yield Rejected("length" if question else "empty", question)
            return
        text = f"{question}\n{answer}"
        yield SourceRow(row_id(values, text), "", text)


READER = Reader(read, OpenhermesFilter)
