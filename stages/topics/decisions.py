"""Reviewed topic decisions, curation/topics.yaml: checked on reading, then matched to clusters."""

from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pydantic import Field

from cosmopedia.corpus.keywords import words
from cosmopedia.errors import ConfigError
from cosmopedia.params import Params, check, read_yaml

CURATION = Path("curation/topics.yaml")
COMPARED = 20  # a cluster's best keywords that are compared with an entry's


class Entry(Params):
    """One reviewed decision."""

    topic: str = Field(min_length=1)
    decision: Literal["keep", "drop"]
    reason: str = Field(min_length=1)
    labels: list[str]  # other names that models give the topic
    keywords: list[str]  # words that tell it from other topics


@dataclass(frozen=True)
class Match:
    """The entry for a cluster and what decided it: "label" or "keywords"."""

    entry: Entry
    by: str
    contradicts_label: bool = False  # the label named another entry


def fold(name: str) -> str:
    """A topic's name as it is compared: case and spacing do not count."""
    return " ".join(name.casefold().split())


def read_curation(path: Path = CURATION) -> list[Entry]:
    """The entries. `ConfigError` names the entry that is wrong.

    Refused: a topic twice (with equal or opposite decisions), a name that two entries claim, an unknown decision, a
    missing reason, a keyword that no text can match.
    """
    content = read_yaml(path)
    listed = content.get("topics")
    if not isinstance(listed, list) or content.keys() != {"topics"}:
        raise ConfigError(f"{path}: wanted one key, topics, with a list of entries; found {sorted(map(str, content))}")
    entries = [_entry(values, f"{path}: entry {number}") for number, values in enumerate(listed, 1)]
    seen: dict[str, Entry] = {}
    for entry in entries:
        if (other := seen.get(fold(entry.topic))) and fold(other.topic) == fold(entry.topic):
            how = "twice" if other.decision == entry.decision else "both as keep and as drop"
            raise ConfigError(f"{path}: topic {entry.topic!r} is listed {how}; leave one of the two entries")
        for name in dict.fromkeys(map(fold, [entry.topic, *entry.labels])):
            if name in seen:
                raise ConfigError(
                    f"{path}: the name {name!r} stands under {seen[name].topic!r} and under {entry.topic!r};"
                    " leave it under one of them"
                )
            seen[name] = entry
    return entries


def _entry(values: object, where: str) -> Entry:
    if not isinstance(values, dict):
        raise ConfigError(f"{where}: wanted topic, decision, reason, labels and keywords; found {values!r}")
    where = f"{where} ({values['topic']})" if values.get("topic") else where
    entry = check(values, Entry, where)
    if not entry.topic.strip() or not entry.reason.strip():
        raise ConfigError(f"{where}: topic and reason must say something; found {entry.topic!r} and {entry.reason!r}")
    for keyword in entry.keywords:
        if words(keyword) != {keyword}:
            raise ConfigError(
                f"{where}: keyword {keyword!r} can never match; write one word of three or more letters in lower case"
            )
    return entry


def match(entries: list[Entry], label: str | None, keywords: list[str], min_matches: int) -> Match | None:
    """The entry that a cluster belongs to, or None.

    By the model's `label` (None if it gave none), else by keywords: at least `min_matches` of the cluster's best 20
    stand in the entry, and in no other entry as many. When both speak and name different entries, the keywords decide:
    they are the words of the texts, and a model can err.
    """
    named = next((e for e in entries if label and fold(label) in map(fold, [e.topic, *e.labels])), None)
    best = set(keywords[:COMPARED])
    shared = Counter({n: len(best & set(entry.keywords)) for n, entry in enumerate(entries)})
    ranked = [(n, count) for n, count in shared.most_common(2) if count >= min_matches]
    told = entries[ranked[0][0]] if len(ranked) == 1 or (ranked and ranked[0][1] > ranked[1][1]) else None
    if named is None:
        return Match(told, "keywords") if told else None
    if told is None or told is named:
        return Match(named, "label")
    return Match(told, "keywords", contradicts_label=True)
