"""Choosing the next token of every sequence in a batch, each by its own request's rules and its own seed.

The rules and their order are TGI's: repetition penalty, temperature, top-k, top-p, typical-p. A draw depends on the
request's seed and the token's place alone, never on who shares the batch.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

_GOLDEN, _FIRST, _SECOND = (np.uint64(n) for n in (0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB))


@dataclass(frozen=True)
class Choice:
    """How one request wants its tokens; the defaults switch a rule off."""

    seed: int | None = None  # None: the most likely token, always
    temperature: float = 1.0
    top_k: int | None = None
    top_p: float = 1.0
    typical_p: float = 1.0
    repetition_penalty: float = 1.0


def choose(
    logits: np.ndarray, choices: Sequence[Choice], places: Sequence[int], seen: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """(token ids, their log-probabilities after the rules), for float32 logits of shape [sequences, vocabulary].

    `places` counts each sequence's tokens so far; `seen` marks those of prompt and text, [sequences, vocabulary], and
    is read only for sequences with a repetition penalty.
    """
    scores = logits.astype(np.float32, copy=True)
    rows = [i for i, c in enumerate(choices) if c.repetition_penalty != 1.0]
    if rows:
        penalty = _column([choices[i].repetition_penalty for i in rows])
        old = scores[rows]
        scores[rows] = np.where(seen[rows], np.where(old > 0, old / penalty, old * penalty), old)
    drawn = [i for i, c in enumerate(choices) if c.seed is not None]
    if drawn:
        picked = [choices[i] for i in drawn]
        scores[drawn] = _filtered(scores[drawn] / _column([c.temperature for c in picked]), picked)
    peaks = scores.max(axis=-1, keepdims=True)
    weights = np.exp(scores - peaks)
    totals = weights.sum(axis=-1, dtype=np.float64)
    ids = scores.argmax(axis=-1)
    if drawn:
        cumulated = np.cumsum(weights[drawn], axis=-1, dtype=np.float64)
        seeds = np.array([choices[i].seed for i in drawn], dtype=np.uint64)
        targets = uniform(seeds, np.array([places[i] for i in drawn], dtype=np.uint64)) * cumulated[:, -1]
        ids[drawn] = (cumulated > targets[:, None]).argmax(axis=-1)
    at = np.arange(len(ids))
    return ids, scores[at, ids] - peaks[:, 0] - np.log(totals)


def uniform(seeds: np.ndarray, places: np.ndarray) -> np.ndarray:
    """Numbers in [0, 1) from (seed, place), by SplitMix64 (Steele, Lea and Flood, 2014)."""
    with np.errstate(over="ignore"):
        return (_mix(_mix(seeds + _GOLDEN) + (places + np.uint64(1)) * _GOLDEN) >> np.uint64(11)) / 2.0**53


def _mix(state: np.ndarray) -> np.ndarray:
    state = (state ^ (state >> np.uint64(30))) * _FIRST
    state = (state ^ (state >> np.uint64(27))) * _SECOND
    return state ^ (state >> np.uint64(31))


def _column(values: Sequence[float]) -> np.ndarray:
    return np.array(values, dtype=np.float32)[:, None]


def _filtered(scores: np.ndarray, choices: Sequence[Choice]) -> np.ndarray:
    """The scores with -inf for tokens that top-k, top-p or typical-p rule out."""
    rows = [i for i, c in enumerate(choices) if c.top_k is not None or c.top_p < 1.0]
    if rows:
        scores[rows] = _nucleus(scores[rows], [choices[i] for i in rows])
    for i, choice in enumerate(choices):
        if choice.typical_p < 1.0:
            scores[i] = _typical(scores[i], choice.typical_p)
    return scores


def _nucleus(scores: np.ndarray, choices: Sequence[Choice]) -> np.ndarray:
    """Top-k, then the smallest set of what is left whose probability reaches top-p; ties at the border stay."""
    vocabulary = scores.shape[1]
    limits = np.array([min(c.top_k or vocabulary, vocabulary) for c in choices])
    most = limits.max()
    best = np.partition(scores, vocabulary - most, axis=-1)[:, vocabulary - most :] if most < vocabulary else scores
    rising = np.sort(best, axis=-1)
    at, first = np.arange(len(choices)), most - limits
    weights = np.exp(rising - rising[:, -1:])
    weights[np.arange(most) < first[:, None]] = 0.0
    below = np.cumsum(weights, axis=-1, dtype=np.float64)
    share = np.array([1.0 - c.top_p for c in choices]) * below[:, -1]
    border = np.maximum(first, (below > share[:, None]).argmax(axis=-1))
    return np.where(scores >= rising[at, border][:, None], scores, -np.inf).astype(np.float32)


def _typical(scores: np.ndarray, mass: float) -> np.ndarray:
    """The tokens whose surprise is nearest to the entropy, up to `mass` (Meister et al., 2022)."""
    logs = scores - scores.max()
    logs = logs - np.log(np.exp(logs).sum())
    chances = np.exp(logs)
    entropy = -(chances[chances > 0] * logs[chances > 0]).sum()
    distance = np.where(chances > 0, np.abs(-logs - entropy), np.inf)
    order = np.argsort(distance, kind="stable")
    last = min(int((np.cumsum(chances[order]) < mass).sum()), len(order) - 1)
    return np.where(distance <= distance[order[last]], scores, -np.inf).astype(np.float32)
