"""Topics of a taxonomy, or the gaps that `cosmo topics gaps` wrote: id, name, parent, keywords, description."""

from collections.abc import Iterator
from dataclasses import asdict
from itertools import islice
from typing import Any

from cosmopedia.core.params import Params
from cosmopedia.corpus.taxonomy import leaves, topics_of
from cosmopedia.records.reading import Record
from stages.sources.reader import Reader, Rejected, Rows, SourceRow


class TaxonomyFilter(Params):
    subtopics: bool  # a row per keyword, too


def with_paths(records: Iterator[Record], dataset: str) -> Iterator[Record]:
    """The topics with the names above them, once all are known to fit together (`DataError`)."""
    topics = topics_of(records, dataset)
    own = {topic.id for topic in leaves(topics)}
    return (Record(topic.place, {**asdict(topic), "leaf": topic.id in own}) for topic in topics)


def read(values: dict[str, Any], keep: TaxonomyFilter) -> Rows:
    """One topic: a row for it and one per keyword; of a gap as many as are missing. Topics with others below: none."""
    if not values["leaf"]:
        yield Rejected("has_topics_below", values["name"])
        return
    subjects = ["", *(values["keywords"] if keep.subtopics else [])]
    for subtopic in islice(dict.fromkeys(subjects), values["missing"]):
        own = {"field": " / ".join(values["path"]), "topic": values["name"], "subtopic": subtopic}
        context = {**own, "keywords": [] if subtopic else values["keywords"]}
        row_id = f"{values['id']}/{subtopic}" if subtopic else values["id"]
        yield SourceRow(row_id, subtopic or values["name"], values["description"], context)


READER = Reader(read, TaxonomyFilter, whole=with_paths)
