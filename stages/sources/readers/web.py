"""Web pages: HuggingFaceFW/fineweb (text, id, url, language, language_score), tiiuae/falcon-refinedweb (content)."""

from typing import Any

from cosmopedia.core.params import Params
from cosmopedia.record_ids import row_id
from stages.sources.reader import Reader, Rejected, Rows, SourceRow, text_of, url_of


class WebFilter(Params):
    text_column: str
    min_words: int
    max_words: int
    language: str
    min_language_score: float


def read(values: dict[str, Any], keep: WebFilter) -> Rows:
    """One page, one row."""
    text = text_of(values, keep.text_column)
    words = len(text.split())
    language, score = values.get("language") or None, values.get("language_score")
    score = None if score in (None, "") else float(score)  # CSV knows text only
    if language not in (None, keep.language) or (score is not None and score < keep.min_language_score):
        yield Rejected("language", f"{language} at {score}")
    elif words == 0:
        yield Rejected("empty")
    elif not keep.min_words <= words <= keep.max_words:
        yield Rejected("length", f"{words} words")
    else:
        yield SourceRow(row_id(values, text), "", text, {}, url_of(values))


READER = Reader(read, WebFilter)
