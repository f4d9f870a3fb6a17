"""How texts begin: their first words, which show what a generator repeats and what cleaning took away."""

from collections import Counter
from dataclasses import dataclass, field

import polars as pl

WORDS = 3
FIRST_WORDS = rf"^\s*((?:\S+\s+){{0,{WORDS - 1}}}\S+)"
READ = 200  # characters of a text
ENOUGH = 20_000  # rows of a cell: its first ones, and an id is a hash


@dataclass
class Openings:
    """How often texts of a cell begin with the same WORDS words, in lower case."""

    counts: Counter[str] = field(default_factory=Counter)
    rows: int = 0

    @property
    def complete(self) -> bool:
        return self.rows >= ENOUGH

    def add(self, texts: pl.Series) -> None:
        """Count some texts, as long as there are not enough."""
        some = texts[: max(ENOUGH - self.rows, 0)]
        found = some.str.slice(0, READ).str.extract(FIRST_WORDS).fill_null("").str.to_lowercase()
        found = found.str.replace_all(r"\s+", " ")
        self.counts.update(dict(found.value_counts().iter_rows()))
        self.rows += len(some)

    def most_common(self) -> tuple[str, float] | None:
        """The most common opening and its share; None without rows."""
        if not self.rows:
            return None
        text, count = max(self.counts.items(), key=lambda item: (item[1], item[0]))
        return text, count / self.rows
