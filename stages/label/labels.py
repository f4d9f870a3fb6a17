"""From the model's results to the label table."""

from collections import Counter
from typing import Any

from cosmopedia.errors import ClusterError, ConfigError
from cosmopedia.generation.requests import Completion, Failure
from stages.label.answers import parse_answer
from stages.label.clusters import ClusterExamples

WORDS_IN_LABEL = 3  # keywords that stand in for a name


def check_results(results: list[Completion | Failure]) -> None:
    """Refuse results that another run, or another setting, would improve.

    `ClusterError` when the servers failed to answer for a cluster, `ConfigError` when not one prompt fits the model.
    """
    if results and all(isinstance(r, Failure) and r.reason == "too_long" for r in results):
        raise ConfigError(
            f"not one of {len(results)} labelling prompts fits the model; lower label.example_chars in the profile"
        )
    failures = [r for r in results if isinstance(r, Failure) and not r.lasting]
    if failures:
        last = failures[-1]
        raise ClusterError(
            f"{len(failures)} of {len(results)} clusters got no answer from the servers (the last: {last.reason},"
            f" {last.detail}); run it again: the answers that came are in the store"
        )


def label_rows(clusters: ClusterExamples, results: list[Completion | Failure]) -> list[dict[str, Any]]:
    """A LABEL row per cluster, from the model's answer or, where that does not parse, its keywords."""
    rows = []
    for (cluster, ids), result in zip(clusters.rows.items(), results, strict=True):
        text = result.text if isinstance(result, Completion) else ""
        answer, keywords = parse_answer(text), clusters.keywords[cluster]
        row = {
            "cluster": cluster,
            "size": len(ids),
            "label": answer.topic if answer else ", ".join(keywords[:WORDS_IN_LABEL]) or f"cluster {cluster}",
            "label_source": "model" if answer else "keywords",
            "educational_score": answer.score if answer else None,
            "keywords": keywords,
            "examples": clusters.examples[cluster],
            "answer": text,
        }
        rows.append(row)
    return rows


def label_metrics(rows: list[dict[str, Any]], results: list[Completion | Failure]) -> dict[str, Any]:
    """metrics/label.json."""
    scores = [row["educational_score"] for row in rows if row["educational_score"] is not None]
    failed = Counter(result.reason for result in results if isinstance(result, Failure))
    return {
        "clusters": len(rows),
        "labelled_by_model": len(scores),
        "labelled_by_keywords": len(rows) - len(scores),
        "without_answer": dict(sorted(failed.items())),
        "mean_educational_score": sum(scores) / len(scores) if scores else None,
        "scores": {score: scores.count(score) for score in sorted(set(scores))},
    }
