"""What the assigned documents say about the corpus: documents per topic, evenness, drift from the source rows."""

from collections import Counter, defaultdict
from typing import Any

import numpy as np

from cosmopedia.corpus.divergence import entropy
from cosmopedia.corpus.taxonomy import Topic, leaves
from stages.coverage.drift import Drift, drift

Row = dict[str, Any]


def covered(topics: list[Topic], rows: list[Row], total: int, wanted: int) -> list[Row]:
    """COVERAGE rows, sorted by id, from TOPIC_OF_DOCUMENT rows of a corpus with `total` documents."""
    times = total / max(len(rows), 1)
    own = {name: Counter(row[name] for row in rows) for name in ("topic", "seed_topic")}
    parents = {topic.id: topic.parent for topic in topics}
    table = {topic.id: _blank(topic) for topic in topics}
    for leaf in leaves(topics):
        documents, seeds = (round(own[name][leaf.id] * times) for name in ("topic", "seed_topic"))
        counts = {"documents": documents, "seeds": seeds, "wanted": wanted, "missing": max(0, wanted - documents)}
        table[leaf.id]["leaf"] = True
        here: str | None = leaf.id
        while here is not None:
            for name, count in counts.items():
                table[here][name] += count
            here = parents[here]
    return [table[name] for name in sorted(table)]


def _blank(topic: Topic) -> Row:
    named = {"id": topic.id, "name": topic.name, "parent": topic.parent, "path": topic.path}
    counts = dict.fromkeys(("documents", "seeds", "wanted", "missing"), 0)
    return named | {"keywords": topic.keywords, "description": topic.description, "leaf": False} | counts


def measures(topics: list[Topic], rows: list[Row], table: list[Row], permutations: int, seed: int) -> Row:
    """The stage's metrics about the topics."""
    own = [row for row in table if row["leaf"]]
    counts = np.array(list(Counter(row["topic"] for row in rows if row["topic"]).values()))
    bits = entropy(counts)
    of_model: dict[str, list[Row]] = defaultdict(list)
    for row in rows:
        if row["model"] and row["seed_id"]:
            of_model[row["model"]].append(row)
    return {
        "topics": len(own),
        "topics_covered": sum(not row["missing"] for row in own),
        "topics_empty": sum(not row["documents"] for row in own),
        "documents_missing": sum(row["missing"] for row in own),
        "near_no_topic": sum(row["topic"] is None for row in rows) / max(len(rows), 1),
        "entropy_bits": bits,
        "evenness": bits / np.log2(len(own)),
        "effective_topics": 2**bits,
        "generators": {
            model: drift_metrics(topics, of_model[model], permutations, seed) for model in sorted(of_model)
        },
    }


def drift_metrics(topics: list[Topic], rows: list[Row], permutations: int, seed: int) -> Row:
    """Of one generator's documents: how many keep the topic of their source row, and the drift."""
    places = {topic.id: number for number, topic in enumerate(leaves(topics))}
    fields = {name: number for number, name in enumerate(sorted({_field(topic) for topic in topics}))}
    field_of = {topic.id: fields[_field(topic)] for topic in topics}
    seeds = {name: number for number, name in enumerate(sorted({row["seed_id"] for row in rows}))}
    owners = np.array([seeds[row["seed_id"]] for row in rows])

    def drifted(numbers: dict[str, int]) -> Row:
        before, after = (np.array([numbers.get(row[name], -1) for row in rows]) for name in ("seed_topic", "topic"))
        return _words(drift(before, after, owners, permutations, seed))

    both = [row for row in rows if row["topic"] and row["seed_topic"]]
    return {
        "documents": len(rows),
        "source_rows": len(seeds),
        "same_topic": sum(row["topic"] == row["seed_topic"] for row in both) / max(len(both), 1),
        "same_field": sum(field_of[row["topic"]] == field_of[row["seed_topic"]] for row in both) / max(len(both), 1),
        "near_no_topic": sum(row["topic"] is None for row in rows) / len(rows),
        "source_rows_near_no_topic": sum(row["seed_topic"] is None for row in rows) / len(rows),
        "drift_of_topics": drifted(places),
        "drift_of_fields": drifted(field_of),
    }


def _field(topic: Topic) -> str:
    return topic.path[0] if topic.path else topic.name


def _words(found: Drift) -> Row:
    return {name: round(value, 4) for name, value in found._asdict().items()}
