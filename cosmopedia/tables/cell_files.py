"""Cells and their files: a cell, `<source>-<style>`, is one file of that name, or several in the order of their keys.

`web-wikihow.parquet`, or `web-wikihow.00000.parquet`, `web-wikihow.00001.parquet`, ...: the files of a cell, by name,
are one table sorted by its key. Only this module knows the names.
"""

from pathlib import Path


def cell_of(path: Path | str) -> str:
    """The cell that a file belongs to."""
    return Path(path).name.partition(".")[0]


def shard_names(cell: str, count: int) -> list[str]:
    """The names of a cell's files, in the order of their keys."""
    return [f"{cell}.parquet"] if count == 1 else [f"{cell}.{number:05d}.parquet" for number in range(count)]


def source_and_style(cell: str) -> tuple[str, str]:
    """The two parts of a cell's name."""
    source, _, style = cell.partition("-")
    return source, style


def in_name(path: Path | str) -> dict[str, str]:
    """The columns whose values a table's name has in it: those of a cell, or of `<source>` or `<task>`."""
    source, style = source_and_style(cell_of(path))
    return {"source": source, "style": style, "task": cell_of(path)}
