"""metrics/report.json: the few numbers that DVC compares; and the tables of removals and tokens that it draws.

The important ones come first: `dvc exp show` leaves out columns from the right where a terminal is too narrow. No name
here comes from a model's text, or is that of a dep (`dvc exp show` takes the two for one column). Nothing here differs
between two runs of equal results.
"""

import csv
import io
from collections import Counter
from collections.abc import Iterable
from typing import Any

from stages.report.facts import FILTERS, Facts

DIGITS = 4  # significant: a change beyond them is far below any standard error


def headline(facts: Facts) -> dict[str, Any]:
    """The headline numbers; those that a run cannot have are left out. Shares are between 0 and 1.

    `kept` is documents per completion; `duplicates` and `contaminated` are shares of the documents that the stage was
    given; `loss` is the validation loss in nats per token; `heldout_bpb` is bits per byte of the held-out sets. The
    averages over benchmarks begin with the name of their panel, the first one of params: `bpb` of the right answers,
    `acc_norm` and the `floor` that it should exceed. `_se` is a standard error over items, `_sd` the standard
    deviation over training seeds, if there are several.
    """
    m = facts.metrics
    prompts, generate, dedup, decontaminate = (m[n] for n in ("prompts", "generate", "dedup", "decontaminate"))
    train, heldout = m["train"], m["evaluate"]["heldout"]["together"]
    panel, mean = next(iter(m["evaluate"]["panels"].items()))
    numbers = {
        "tokens": facts.tokens,
        "kept": _share(decontaminate["rows_kept"], generate["completed"]),
        "loss": train.get("validation_loss"),
        "heldout_bpb": heldout["bpb"],
        f"{panel}_bpb": mean["bpb"],
        f"{panel}_acc_norm": mean["acc_norm"],
        f"{panel}_acc_norm_se": mean["acc_norm_stderr"],
        f"{panel}_acc_norm_floor": mean["floor"]["acc_norm"],
        "contaminated": _share(decontaminate["rows_removed"], decontaminate["rows_in"]),
        "duplicates": _share(dedup["rows_removed"], dedup["rows_in"]),
        "train_loss": train["train_loss"],
        "loss_sd": train.get("validation_loss_sd"),
        "heldout_bpb_sd": heldout.get("bpb_sd"),
        f"{panel}_bpb_sd": mean.get("bpb_sd"),
        f"{panel}_acc_norm_sd": mean.get("acc_norm_sd"),
        "prompt_duplicates": prompts.get("duplicate_rate", 0) + prompts.get("near_duplicate_rate", 0),
        "truncated": _share(generate.get("finish_reasons", {}).get("length", 0), generate["completed"]),
        "failed": _share(generate["failed"], generate["requests"]),
    }
    return {n: float(f"{v:.{DIGITS}g}") if isinstance(v, float) else v for n, v in numbers.items() if v is not None}


def removed_table(facts: Facts) -> str:
    """metrics/plots/removed.csv: documents that each stage removed, by reason."""
    rows = [
        (f"{stage}: {reason.replace('_', ' ')}", count)
        for stage in FILTERS
        for reason, count in facts.metrics[stage]["removed"].items()
    ]
    return _table(("reason", "documents"), rows)


def tokens_table(facts: Facts) -> str:
    """metrics/plots/tokens.csv: tokens of the finished corpus by source."""
    tokens: Counter[str] = Counter()
    for cell in facts.cells:
        tokens[cell.source] += cell.tokens
    return _table(("source", "tokens"), sorted(tokens.items()))


def _share(part: int, whole: int) -> float:
    return part / whole if whole else 0.0


def _table(head: tuple[str, ...], rows: Iterable[tuple[object, ...]]) -> str:
    table = io.StringIO()
    csv.writer(table, lineterminator="\n").writerows([head, *rows])
    return table.getvalue()
