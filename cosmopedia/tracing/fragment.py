"""Documents that have a piece of text in them. Text is read and searched, a file at a time, so there is a bound."""

import re
from dataclasses import dataclass, field
from pathlib import Path

import polars as pl
import pyarrow.parquet as pq

from cosmopedia.tables.cell_files import cell_of
from cosmopedia.tracing.corpus import PATH, Corpus, collect, scan

AROUND = 60  # characters that are shown before and after a match
GB = 1e9


@dataclass
class Matches:
    """What a search found, and how much it read."""

    rows: list[dict[str, str]] = field(default_factory=list)  # id, cell, stage, excerpt
    read: int = 0  # bytes of text, uncompressed
    unread: int = 0  # that the bound left out


def pattern(fragment: str) -> str:
    """A pattern for a fragment: any white space fits any, since what is copied from a page has other line ends."""
    return r"\s+".join(map(re.escape, fragment.split()))


def search(corpus: Corpus, fragment: str, limit: int, most_gb: float, source: str | None = None) -> Matches:
    """Documents with the fragment in their text, `limit` at most: of the corpus, else of what was generated.

    Reads `most_gb` of text at most (each file's size is in its footer); files are read in the order of their names.
    """
    matches = Matches()
    for stage in dict.fromkeys((corpus.final(), "generate")):
        cells = corpus.cells(f"data/{stage}", source=source) if stage else {}
        for name, path in cells.items():
            size = text_bytes(path)
            if matches.read + size > most_gb * GB:
                matches.unread += size
                continue
            matches.read += size
            matches.rows += _in_file(stage or "", name, path, fragment, limit - len(matches.rows))
            if len(matches.rows) >= limit:
                return matches
        if matches.rows:
            break
    return matches


def _in_file(stage: str, name: str, path: Path, fragment: str, limit: int) -> list[dict[str, str]]:
    text, words = pl.col("text"), fragment.split()
    # The first word alone is a cheap test that most texts fail.
    condition = text.str.contains(words[0], literal=True) & text.str.contains(pattern(fragment))
    if len(words) == 1:
        condition = text.str.contains(words[0], literal=True)
    found = collect(scan([path]).filter(condition).select("completion_id", "text", PATH).head(limit))
    return [
        {"id": i, "stage": stage, "cell": cell_of(name), "excerpt": excerpt(text, fragment)}
        for i, text in found.select("completion_id", "text").iter_rows()
    ]


def excerpt(text: str, fragment: str) -> str:
    """The first match with some text around it, in one line."""
    match = re.search(pattern(fragment), text)
    start, end = (match.start(), match.end()) if match else (0, 0)
    before = "… " if start > AROUND else ""
    after = " …" if end + AROUND < len(text) else ""
    return " ".join(f"{before}{text[max(start - AROUND, 0) : end + AROUND]}{after}".split())


def text_bytes(path: Path) -> int:
    """Bytes of a file's texts, uncompressed, from its footer."""
    metadata = pq.read_metadata(path)
    column = metadata.schema.to_arrow_schema().names.index("text")  # flat schemas: one leaf per column
    return sum(metadata.row_group(n).column(column).total_uncompressed_size for n in range(metadata.num_row_groups))
