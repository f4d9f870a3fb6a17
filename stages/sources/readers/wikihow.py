"""WikiHow: titles."""

from typing import Any

from cosmopedia.core.params import Params
from cosmopedia.core.rng import content_hash
from stages.sources.reader import Reader, Rejected, Rows, SourceRow, text_of


class WikihowFilter(Params):
    min_words: int


def read(values: dict[str, Any], keep: WikihowFilter) -> Rows:
    """One title, one row."""
    title = " ".join(text_of(values, "text").split())
    if len(title.split()) < keep.min_words:
        yield Rejected("length" if title else "empty", title)
    else:
        yield SourceRow(content_hash(title.casefold()), title, "")


READER = Reader(read, WikihowFilter)
