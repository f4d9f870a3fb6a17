"""What the finished corpus consists of, for its card: documents and tokens by kind, and how the texts were sampled."""

import json
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

import polars as pl

from cosmopedia.tables.contracts import DOCUMENT
from cosmopedia.tables.parquet import read_batches

BY = ("source", "format", "audience")
AT_ONCE = 1 << 16  # documents


@dataclass
class Composition:
    """Documents and tokens by value of each column of BY, and the sets of sampling parameters."""

    documents: dict[str, Counter[str]] = field(default_factory=lambda: {name: Counter() for name in BY})
    tokens: dict[str, Counter[str]] = field(default_factory=lambda: {name: Counter() for name in BY})
    sampling: set[str] = field(default_factory=set)

    def table(self, column: str) -> list[tuple[str, int, int]]:
        """(value, documents, tokens), most tokens first."""
        tokens = self.tokens[column]
        return [
            (name, self.documents[column][name], tokens[name])
            for name in sorted(tokens, key=lambda n: (-tokens[n], n))
        ]

    def settings(self) -> list[str]:
        """The sampling parameters of the corpus in words, one line for each set of them."""
        lines = []
        for text in sorted(self.sampling):
            values = {name: value for name, value in json.loads(text).items() if value is not None}
            lines.append(", ".join(f"{name} {value}" for name, value in values.items()) or "not recorded")
        return lines


def composition(tables: Iterable[Path]) -> Composition:
    """Count the rows of DOCUMENT tables."""
    whole = Composition()
    for table in read_batches(tables, DOCUMENT, [*BY, "text_token_length", "sampling"], batch_rows=AT_ONCE):
        rows = pl.DataFrame(table)
        whole.sampling |= set(rows["sampling"].unique())
        for name in BY:
            for value, documents, tokens in (
                rows.group_by(name).agg(pl.len(), pl.col("text_token_length").cast(pl.Int64).sum()).iter_rows()
            ):
                whole.documents[name][value] += documents
                whole.tokens[name][value] += tokens
    return whole
