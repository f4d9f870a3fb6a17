"""What a source's reader is, stages/sources/readers/<source>.py, and what readers share.

A reader takes (a record's values, the source's filter params) and yields `SourceRow` and `Rejected`. What is missing
in a record it raises as `KeyError` or `TypeError`, which the stage counts as "malformed" with the key's name. Its
module has `READER`. docs/sources.md has a section on each, with the public schema.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Annotated, Any

from pydantic import PlainValidator

from cosmopedia import patterns
from cosmopedia.core.errors import ConfigError
from cosmopedia.core.params import Params
from cosmopedia.records.reading import Record

FOLDER = Path(__file__).parent / "readers"


Pattern = Annotated[patterns.Pattern, PlainValidator(lambda pattern: patterns.Pattern("sources", pattern))]


@dataclass(frozen=True)
class SourceRow:
    """A row that a prompt can be made from. `context` holds the source's own slots (see stages/prompts/slots.py)."""

    original_id: str
    title: str
    text: str
    context: dict[str, Any] = field(default_factory=dict)
    url: str | None = None


@dataclass(frozen=True)
class Rejected:
    """A row left out, and why: `reason` is counted, `detail` is for a person."""

    reason: str
    detail: str = ""


Rows = Iterator[SourceRow | Rejected]


@dataclass(frozen=True)
class Reader:
    """A source's reader and the model of its filter params."""

    read: Callable[[dict[str, Any], Any], Rows]
    keep: type[Params]
    concepts: Callable[[dict[str, Any], Any], list[str]] | None = (
        None  # of `keep.concepts`, those a SOURCE row touches
    )
    # Of a dataset whose records refer to each other: (all records, its name) -> the records to read.
    whole: Callable[[Iterator[Record], str], Iterator[Record]] | None = None

    def all_of(self, records: Iterator[Record], dataset: str) -> Iterator[Record]:
        """The records to read of a dataset's."""
        return self.whole(records, dataset) if self.whole else records


def sources() -> list[str]:
    """The sources that have a reader, sorted."""
    return sorted(path.stem for path in FOLDER.glob("[!_]*.py"))


def reader_of(source: str) -> Reader:
    """A source's reader. `ConfigError` for an unknown source."""
    if source not in sources():
        raise ConfigError(f"unknown source {source!r}; known sources: {', '.join(sources())}")
    return import_module(f"stages.sources.readers.{source}").READER


def url_of(values: dict[str, Any]) -> str | None:
    """The row's own address, if it has one."""
    return text_of(values, "url") if values.get("url") is not None else None


def text_of(values: dict[str, Any], key: str) -> str:
    """A column's text, stripped. `KeyError` or `TypeError` when there is none."""
    value = values[key]
    if not isinstance(value, str):
        raise TypeError(f"{key} must be text, found {type(value).__name__}")
    return value.strip()
