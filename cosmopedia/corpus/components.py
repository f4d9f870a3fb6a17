"""Which part of the corpus a document is of: `synthetic`, or a component of natural text.

A cell `<component>-natural` has natural text: no model wrote it and no prompt asked for it, so it has rules of its own
where a rule is about completions, and what is counted of the synthetic part never counts it.
"""

from collections.abc import Iterable
from pathlib import Path

from cosmopedia.tables.cell_files import cell_of, source_and_style

NATURAL, SYNTHETIC = "natural", "synthetic"


def component(source: str, style: str) -> str:
    """The component of a cell's documents."""
    return source if style == NATURAL else SYNTHETIC


def component_of(path: Path | str) -> str:
    """The component of a cell's file, or of a cell's name."""
    return component(*source_and_style(cell_of(path)))


def is_natural(path: Path | str) -> bool:
    """Whether a cell's file (or name) is of natural text."""
    return component_of(path) != SYNTHETIC


def copy_id(document_id: str, copy: int) -> str:
    """The id of a document's n-th copy in a mix, from 1; no document's own id has the sign."""
    return document_id if copy == 1 else f"{document_id}#{copy}"


def original_id(copied: str) -> str:
    """The id of the document that a copy is of."""
    return copied.partition("#")[0]


def synthetic_first(paths: Iterable[Path]) -> list[Path]:
    """Files of cells by name, those of natural text last: the numbers of synthetic documents do not depend on them."""
    return sorted(paths, key=lambda path: (is_natural(path), path.name))
