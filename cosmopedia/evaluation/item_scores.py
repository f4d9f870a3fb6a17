"""The scores of one benchmark item, from the log-probabilities of its choices.

`acc` and `acc_norm` are lighteval's (loglikelihood_acc and loglikelihood_acc_norm_nospace); `bpb` is the bits per byte
of the right answer that AI2's Signal and Noise (arXiv 2508.13144) found the steadiest for small models; `prob` and
`prob_norm` are the probability of the right choice among the choices, `margin` how far it is ahead.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

METRICS = ("acc", "acc_norm", "bpb", "prob", "prob_norm", "margin")
LOWER_IS_BETTER = frozenset({"bpb"})


def item_scores(row: Mapping[str, Any]) -> dict[str, float]:
    """The METRICS of a DETAIL row.

    acc, acc_norm: 1 where the right choice is the likeliest, as a whole or per character. bpb: bits per UTF-8 byte of
    the right choice. prob: softmax over the log-probabilities of the choices, at the right one; prob_norm: over those
    per character. margin: nats per character by which the right choice is ahead of the best wrong one; below 0 behind.
    Higher is better, except bpb.
    """
    logprobs, gold = row["logprobs"], row["gold"]
    normed = by_character(logprobs, row["choices"])
    return {
        "acc": float(best(logprobs) == gold),
        "acc_norm": float(best(normed) == gold),
        "bpb": -logprobs[gold] / (math.log(2) * row["bytes"][gold]),
        "prob": softmax_at(logprobs, gold),
        "prob_norm": softmax_at(normed, gold),
        "margin": normed[gold] - max(value for choice, value in enumerate(normed) if choice != gold),
    }


def without_space(choice: str) -> str:
    """A choice without the space that separates it from the query."""
    return choice.removeprefix(" ")


def by_character(logprobs: Sequence[float], choices: Sequence[str]) -> list[float]:
    """Log-probabilities divided by the characters of their choices, without a leading space."""
    return [value / len(without_space(choice)) for value, choice in zip(logprobs, choices, strict=True)]


def best(values: Sequence[float]) -> int:
    """Index of the greatest value, the first of equals."""
    return max(range(len(values)), key=lambda i: (values[i], -i))


def softmax_at(values: Sequence[float], position: int) -> float:
    """The softmax of values, at one position."""
    top = max(values)
    return math.exp(values[position] - top) / math.fsum(math.exp(value - top) for value in values)
