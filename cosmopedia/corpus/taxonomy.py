"""A taxonomy: topics with an id, a name, keywords or a description, and a parent. One record per topic.

A topic without a parent is a field; documents are assigned to topics that no other topic has as its parent (leaves).
What `cosmo topics gaps` writes has the same form, with `path` (the names of the topics above) in place of a parent.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from cosmopedia.core.errors import DataError
from cosmopedia.records.reading import Record, read_records

COLUMNS = "id, name, parent, keywords, description"
FIRST = 3  # topics that a message names


@dataclass(frozen=True)
class Topic:
    """One topic. `path`: the names of the topics above it, the field first; `place`: file and line."""

    id: str
    name: str
    parent: str | None
    keywords: list[str]
    description: str
    place: str
    path: list[str] = field(default_factory=list)
    missing: int | None = None  # documents that are wanted of it; only in rows of `cosmo topics gaps`

    @property
    def texts(self) -> list[str]:
        """What is embedded: the name, and each keyword and the description behind it."""
        return [self.name, *(f"{self.name}: {words}" for words in (*self.keywords, self.description) if words)]


def read_taxonomy(dataset: str, revision: str | None) -> tuple[list[Topic], str]:
    """(the topics of a file, a folder or a hub dataset, its revision). `DataError` names the line of what is wrong."""
    records, resolved = read_records(dataset, None, None, revision)
    return topics_of(records, dataset), resolved


def topics_of(records: Iterable[Record], where: str) -> list[Topic]:
    """Records as topics in their order, each with its path; unknown parents and circles are `DataError`s."""
    topics: dict[str, Topic] = {}
    for record in records:
        topic = _topic(record)
        if topic.id in topics:
            raise DataError(
                f"{record.place}: the topic id {topic.id!r} is also in {topics[topic.id].place}; give one of them"
                " another"
            )
        topics[topic.id] = topic
    if not topics:
        raise DataError(f"{where} holds no topic; wanted one record per topic with {COLUMNS}")
    return [_with_path(topic, topics) for topic in topics.values()]


def leaves(topics: Iterable[Topic]) -> list[Topic]:
    """The topics that are no other one's parent."""
    topics = list(topics)
    parents = {topic.parent for topic in topics}
    return [topic for topic in topics if topic.id not in parents]


def _topic(record: Record) -> Topic:
    if record.problem:
        raise DataError(f"{record.place}: {record.problem}; correct the line")
    values = record.values
    for key in ("id", "name"):
        if not isinstance(values.get(key), str) or not values[key].strip():
            found = repr(values[key]) if key in values else f"only {', '.join(sorted(values)) or 'nothing'}"
            raise DataError(f"{record.place}: {key} must be text that is not empty, found {found}; write one")
    missing = values.get("missing")
    if missing is not None and (isinstance(missing, bool) or not isinstance(missing, int) or missing < 1):
        raise DataError(f"{record.place}: missing must be a number of documents, 1 or more, found {missing!r}")
    return Topic(
        values["id"].strip(),
        values["name"].strip(),
        _text(record, "parent") or None,
        _names(record, "keywords"),
        _text(record, "description"),
        record.place,
        _names(record, "path"),
        missing,
    )


def _text(record: Record, key: str) -> str:
    value = record.values.get(key)
    if value is not None and not isinstance(value, str):
        raise DataError(f"{record.place}: {key} must be text or null, found {type(value).__name__}; correct it")
    return (value or "").strip()


def _names(record: Record, key: str) -> list[str]:
    """A list of texts; in CSV files they are parted by semicolons."""
    value: Any = record.values.get(key) or []
    value = value.split(";") if isinstance(value, str) else value
    if not isinstance(value, list) or not all(isinstance(name, str) for name in value):
        raise DataError(f"{record.place}: {key} must be a list of texts, found {value!r:.80}; correct it")
    return [name.strip() for name in value if name.strip()]


def _with_path(topic: Topic, topics: Mapping[str, Topic]) -> Topic:
    """The topic with the names above it, from its parents or as its row has them."""
    above: list[Topic] = []
    here = topic
    while here.parent is not None:
        if here.parent not in topics:
            raise DataError(
                f"{here.place}: the parent {here.parent!r} of {here.id!r} is no topic of the file; correct it, or"
                " write a line for it"
            )
        here = topics[here.parent]
        above.append(here)
        if here.id == topic.id or len(above) > len(topics):
            circle = " -> ".join([topic.id, *(other.id for other in above[:FIRST])])
            raise DataError(f"{topic.place}: {circle} is a circle of parents; one of them must have none (a field)")
    path = [other.name for other in reversed(above)] or topic.path
    return replace(topic, path=path)
