"""Web pages on mathematics: math-ai/AutoMathText (url, text, meta)."""

from typing import Any

from cosmopedia.core.params import Params
from cosmopedia.core.rng import content_hash
from stages.sources.reader import Reader, Rejected, Rows, SourceRow, text_of, url_of


class MathFilter(Params):
    min_words: int


def read(values: dict[str, Any], keep: MathFilter) -> Rows:
    """One web page on mathematics, one row."""
    text = text_of(values, "text")
    if len(text.split()) < keep.min_words:
        yield Rejected("length" if text else "empty", f"{len(text.split())} words")
    else:
        yield SourceRow(content_hash(text), "", text, {}, url_of(values))


READER = Reader(read, MathFilter)
