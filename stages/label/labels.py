"""From the model's answers to the label table: names that are unique, scores with their spread."""

import re
from collections import Counter, defaultdict
from dataclasses import replace
from typing import Any

from cosmopedia.core.errors import ClusterError, ConfigError
from cosmopedia.generation.requests import Completion, Failure
from stages.label.answers import Answer, parse_answer
from stages.label.clusters import STEM, ClusterExamples, stem

WORDS_IN_LABEL = 3  # keywords that stand in for a name
DANGLING = re.compile(r"and|&|an?|the|of|in|on|for|to|by|from|with|or|its|his|her|our|their|your", re.IGNORECASE)

Result = Completion | Failure


def check_results(results: list[Result], grammar: bool) -> None:
    """Refuse results that another run, or another setting, would improve.

    `ClusterError` when the servers failed to answer for a cluster, `ConfigError` when not one prompt fits the model,
    or the servers refuse every prompt with its grammar.
    """
    reasons = Counter(result.reason if isinstance(result, Failure) else None for result in results)
    if results and reasons["too_long"] == len(results):
        raise ConfigError(
            f"not one of {len(results)} labelling prompts fits the model; lower label.example_chars in the profile"
        )
    failures = [result for result in results if isinstance(result, Failure)]
    if results and grammar and reasons["validation"] == len(results):
        raise ConfigError(
            f"the servers refuse every labelling prompt ({failures[0].detail}); if they take no grammar, set"
            " label.grammar to false"
        )
    passing = [failure for failure in failures if not failure.lasting]
    if passing:
        last = passing[-1]
        raise ClusterError(
            f"{len(passing)} of {len(results)} prompts got no answer from the servers (the last: {last.reason},"
            f" {last.detail}); run it again: the answers that came are in the store"
        )


def answer_of(result: Result) -> Answer | None:
    """What a result says, if it is an answer."""
    return parse_answer(result.text) if isinstance(result, Completion) else None


def without_invented_words(topic: str, stems: frozenset[str]) -> str:
    """A topic cut before the first word that no page has, which small models make up: "Ancient Civilizations and
    Theirbolics". The first word stays."""
    words = topic.split()
    for number, word in enumerate(words):
        letters = re.sub(r"\W", "", word)
        if number and letters.isalpha() and len(letters) > STEM and stem(letters) not in stems:
            words = words[:number]
            break
    else:
        return topic  # "Vitamin A", "Work and Social Work" end as they should
    while len(words) > 1 and (DANGLING.fullmatch(words[-1]) or words[-1] in words[:-1]):
        words.pop()
    return " ".join(words)


def label_rows(clusters: ClusterExamples, results: dict[int, list[Result]]) -> list[dict[str, Any]]:
    """A LABEL row per cluster, from its draws' `results`; from its keywords where none of them is an answer.

    The name is the one that most draws gave, of equally frequent ones the first; the score is the median, of two the
    lower one.
    """
    rows = []
    for cluster, ids in clusters.rows.items():
        answers = [
            answer and replace(answer, topic=without_invented_words(answer.topic, clusters.stems))
            for answer in map(answer_of, results[cluster])
        ]
        names = Counter(answer.topic.casefold() for answer in answers if answer)
        best = names.most_common(1)[0][0] if names else None
        draw, topic = next(
            ((n, a.topic) for n, a in enumerate(answers) if a and a.topic.casefold() == best), (0, None)
        )
        scores = [answer.score for answer in answers if answer]
        shown, keywords = results[cluster][draw], clusters.keywords[cluster]
        row = {
            "cluster": cluster,
            "size": len(ids),
            "label": topic or ", ".join(keywords[:WORDS_IN_LABEL]) or f"cluster {cluster}",
            "label_source": "model" if topic else "keywords",
            "topic": topic,
            "educational_score": sorted(scores)[(len(scores) - 1) // 2] if scores else None,
            "scores": scores,
            "draws": len(answers),
            "keywords": keywords,
            "examples": clusters.draws[cluster][draw],
            "answer": shown.text if isinstance(shown, Completion) else "",
        }
        rows.append(row)
    make_unique(rows)
    return rows


def make_unique(rows: list[dict[str, Any]]) -> None:
    """Give what tells it apart to each label that an earlier row has: its best keyword that the others lack.

    Rows are in the order of their size, so that the largest cluster keeps the bare name.
    """
    namesakes: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for row in rows:
        namesakes[row["label"].casefold()].append(row)
    taken = set(namesakes)
    for same in namesakes.values():
        for row in same[1:]:
            name = row["label"]
            others = {word for other in same if other is not row for word in other["keywords"]}
            apart = [word for word in row["keywords"] if word not in others and word not in name.casefold()]
            marks = (f"{name} ({mark})" for mark in [*apart, *(f"group {n}" for n in range(2, len(rows) + 2))])
            row["label"] = next(label for label in marks if label.casefold() not in taken)
            taken.add(row["label"].casefold())


def label_metrics(rows: list[dict[str, Any]], results: dict[int, list[Result]]) -> dict[str, Any]:
    """metrics/label.json."""
    scores = [row["educational_score"] for row in rows if row["educational_score"] is not None]
    everything = [result for several in results.values() for result in several]
    failed = Counter(result.reason for result in everything if isinstance(result, Failure))
    spreads = [max(row["scores"]) - min(row["scores"]) for row in rows if len(row["scores"]) > 1]
    return {
        "clusters": len(rows),
        "labelled_by_model": len(scores),
        "labelled_by_keywords": len(rows) - len(scores),
        "draws": len(everything),
        "unusable_answers": len(everything) - failed.total() - sum(len(row["scores"]) for row in rows),
        "without_answer": dict(sorted(failed.items())),
        "mean_educational_score": sum(scores) / len(scores) if scores else None,
        "mean_score_spread": sum(spreads) / len(spreads) if spreads else None,
        "scores": {score: scores.count(score) for score in sorted(set(scores))},
    }
