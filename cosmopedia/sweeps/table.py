"""A sweep's result: one row per arm, the control first, with what it scored, what that is worth, and what it cost."""

from collections.abc import Mapping, Sequence
from typing import Any

from cosmopedia.evaluation import wording
from cosmopedia.evaluation.comparison import Row
from cosmopedia.evaluation.readings import ALL_SETS, HELD_OUT
from cosmopedia.sweeps.definition import Sweep
from cosmopedia.sweeps.outlook import changes_in_words
from cosmopedia.sweeps.running import ArmState

COSTS = ("corpus_tokens", "generated_tokens", "generation_gpu_hours", "training_hours")


def chosen(rows: Sequence[Row], measure: str | None) -> list[Row]:
    """One row per arm and headline: held-out text, and of every panel the primary measure; or a measure's own."""
    sets = [row for row in rows if row.scope.kind == "held-out"]
    together = [row for row in sets if row.scope.name == ALL_SETS] or sets
    panels = [row for row in rows if row.scope.kind == "panel"]
    if measure is None:
        return together + [row for row in panels if row.scope.measure == wording.PRIMARY]
    return together if measure == HELD_OUT else [row for row in panels if row.scope.measure == measure]


def table_rows(
    sweep: Sweep, states: Mapping[str, ArmState], rows: Sequence[Row], costs: Mapping[str, Mapping[str, Any]]
) -> list[dict[str, Any]]:
    """A dictionary per arm: its state, its headline scores with interval and verdict, its cost; None: not known.

    `rows` are of the arms that are done, under their own names; `costs` too.
    """
    result = []
    for name, arm in sweep.arms.items():
        line: dict[str, Any] = {"arm": name, "changes": changes_in_words(sweep, arm), "state": states[name].state}
        for row in rows:
            head = f"{row.scope.name} {row.scope.measure}".replace(f"{ALL_SETS} ", "")
            if name == sweep.control:
                line[head] = {"score": row.estimate.baseline}
            elif row.arm == name:
                one = row.estimate
                line[head] = {
                    "score": one.score,
                    "difference": one.difference,
                    "low": one.low,
                    "high": one.high,
                    "p": row.p_holm,
                    "verdict": row.verdict,
                    "could_see": one.seen,
                }
        cost = costs.get(name, {})
        line["cost"] = {key: cost.get(key) for key in COSTS} | {"minutes": round(states[name].seconds / 60, 1)}
        result.append(line)
    return result


def head(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """The columns: those of the arm that has most."""
    scores = max(([key for key, value in row.items() if isinstance(value, dict)][:-1] for row in rows), key=len)
    return ["arm", "changes", *scores, "corpus tokens", "minutes"]


def cells(row: Mapping[str, Any], columns: Sequence[str]) -> list[str]:
    """A row of the table in words."""
    line = [row["arm"], row["changes"]]
    for column in columns[2:-2]:
        line.append(score_in_words(column, row.get(column)) if row["state"] == "done" else row["state"])
    tokens = row["cost"]["corpus_tokens"]
    return [*line, "-" if tokens is None else f"{tokens:,}", f"{row['cost']['minutes']:.1f}"]


def score_in_words(column: str, score: Mapping[str, Any] | None) -> str:
    """ "2.9512", or "-0.0231 [-0.0402, -0.0060] better"."""
    measure = column.rpartition(" ")[2]
    if score is None:
        return "-"
    if "difference" not in score:
        return wording.shown(measure, score["score"])
    parts = [wording.shown(measure, score["difference"], sign=True)]
    if score["low"] is not None:
        parts.append(wording.interval(measure, score["low"], score["high"]))
    return " ".join([*parts, score["verdict"]])
