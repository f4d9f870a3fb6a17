"""Ready-made prompts: HuggingFaceTB/cosmopedia-100k (prompt, seed_data, format, audience) or any table of them."""

from typing import Any

from cosmopedia.core.params import Params
from cosmopedia.record_ids import row_id
from stages.sources.reader import Reader, Rejected, Rows, SourceRow, text_of


class ReadyFilter(Params):
    prompt_column: str
    min_words: int
    format: str  # of rows that name none
    audience: str


def read(values: dict[str, Any], keep: ReadyFilter) -> Rows:
    """One ready-made prompt, one row: `text` is the prompt, to the last space."""
    text_of(values, keep.prompt_column)
    prompt = values[keep.prompt_column]
    words = len(prompt.split())
    if words < keep.min_words:
        yield Rejected("length" if words else "empty", prompt.strip())
        return
    defaults = {"seed_data": "", "format": keep.format, "audience": keep.audience}
    context = {name: text_of(values, name) if values.get(name) else default for name, default in defaults.items()}
    yield SourceRow(row_id(values, prompt), "", prompt, context)


READER = Reader(read, ReadyFilter)
