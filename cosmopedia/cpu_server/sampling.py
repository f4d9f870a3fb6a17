"""Choosing the next token of every sequence in a batch, each by its own request's rules and its own seed.

The rules and their order are TGI's: repetition penalty, grammar, temperature, top-k, top-p. A draw depends only on the
request's seed and the token's position, never on who shares the batch.
"""

import functools
import re
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from cosmopedia.hashing import GOLDEN, mix64

LARGEST = np.float32(1e30)  # of a score: a penalty of any size and a temperature of LOWEST keep it a number
LOWEST = 1e-6  # temperature; colder ones choose the same token
KEPT_GRAMMARS = 64  # compiled ones; a run has few, and sends them often
# as outlines has it, with which TGI compiles schemas; a small model would write free white space forever
WHITESPACE = "[ ]?"


@dataclass(frozen=True)
class SamplingParams:
    """How the tokens of one request are chosen; the defaults switch a rule off."""

    seed: int | None = None  # None: greedy, always the most likely token
    temperature: float = 1.0
    top_k: int | None = None
    top_p: float = 1.0
    repetition_penalty: float = 1.0


class GrammarError(Exception):
    """A grammar is not valid, or too complex to go on with."""


class Grammar:
    """A grammar, and how far one text has come in it."""

    def __init__(self, matcher: Any, vocabulary: int):
        self._matcher, self._vocabulary = matcher, vocabulary

    def allowed(self) -> np.ndarray:
        """Which tokens may follow, bool [vocabulary]; only an end-of-text token once the grammar is at its end."""
        bits = np.frombuffer(self._matcher.compute_bitmask(), dtype=np.uint8)
        mask = np.unpackbits(bits, count=self._vocabulary, bitorder="little").view(bool)
        if self._matcher.is_error() or not mask.any():
            raise GrammarError(_reason(self._matcher.get_error()) or "the grammar allows no token")
        return mask

    def take(self, token: int) -> None:
        """The text goes on with an allowed token."""
        self._matcher.consume_token(token)


class Grammars:
    """Compiles grammars for a tokenizer, which is read when the first one is needed; safe between threads.

    `vocabulary` counts the model's logits; `ends` are the tokens that may follow a complete text.
    """

    def __init__(self, tokenizer: Any, vocabulary: int, ends: set[int]):
        self._tokenizer, self._vocabulary, self._ends = tokenizer, vocabulary, sorted(ends)
        self._lock = threading.Lock()
        self._compiled = functools.lru_cache(KEPT_GRAMMARS)(self._matcher)

    def compile(self, kind: str, text: str) -> Grammar:
        """The grammar of a regular expression ("regex") or a JSON schema ("json"). `GrammarError` when not valid."""
        with self._lock:
            compiled = self._compiled(kind, text)
        return Grammar(compiled.deep_copy(), self._vocabulary)

    @functools.cached_property
    def _grammar_tokenizer(self) -> Any:
        from llguidance import LLTokenizer

        return LLTokenizer(self._tokenizer.to_str(), n_vocab=self._vocabulary, eos_token=self._ends)

    def _matcher(self, kind: str, text: str) -> Any:
        from llguidance import LLMatcher, LLParserLimits

        try:
            if kind == "json":
                grammar = LLMatcher.grammar_from_json_schema(text, overrides={"whitespace_pattern": WHITESPACE})
            else:
                grammar = LLMatcher.grammar_from_regex(text)
            limits = LLParserLimits(verbose_errors=False)
            matcher = LLMatcher(self._grammar_tokenizer, grammar, log_level=0, limits=limits)
        except ValueError as error:  # among them UnicodeEncodeError, of half a character
            raise GrammarError(_reason(str(error))) from None
        if matcher.is_error():
            raise GrammarError(_reason(matcher.get_error()))
        return matcher


def _reason(error: str) -> str:
    """What is wrong, without llguidance's picture of where."""
    first = re.search(r"^error: (.*)", error, re.MULTILINE)
    return (first[1] if first else " ".join(error.split()))[:300]


def choose(
    logits: np.ndarray,
    params: Sequence[SamplingParams],
    positions: Sequence[int],
    seen: np.ndarray,
    allowed: Mapping[int, np.ndarray] | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """(token ids, their log-probabilities after the rules), for float32 logits of shape [sequences, vocabulary].

    `positions` counts each sequence's new tokens so far; `seen` marks the tokens of prompt and text, [sequences,
    vocabulary], and is read only for sequences with a repetition penalty. `allowed` holds what the grammar of a
    sequence allows, bool [vocabulary], by the sequence's number.
    """
    scores = logits.astype(np.float32, copy=True)
    penalised = [i for i, p in enumerate(params) if p.repetition_penalty != 1.0]
    if penalised:
        penalty = _column([params[i].repetition_penalty for i in penalised])
        plain = scores[penalised]
        with np.errstate(over="ignore"):
            lower = np.clip(np.where(plain > 0, plain / penalty, plain * penalty), -LARGEST, LARGEST)
        scores[penalised] = np.where(seen[penalised], lower, plain)
    for row, mask in (allowed or {}).items():
        scores[row, ~mask] = -np.inf
    drawn = [i for i, p in enumerate(params) if p.seed is not None]
    if drawn:
        rules = [params[i] for i in drawn]
        scores[drawn] = _filtered(scores[drawn] / _column([max(p.temperature, LOWEST) for p in rules]), rules)
    peaks = scores.max(axis=-1, keepdims=True)
    weights = np.exp(scores - peaks)
    totals = weights.sum(axis=-1, dtype=np.float64)
    ids = scores.argmax(axis=-1)
    if drawn:
        cumulated = np.cumsum(weights[drawn], axis=-1, dtype=np.float64)
        seeds = np.array([params[i].seed for i in drawn], dtype=np.uint64)
        targets = uniform(seeds, np.array([positions[i] for i in drawn], dtype=np.uint64)) * cumulated[:, -1]
        ids[drawn] = (cumulated > targets[:, None]).argmax(axis=-1)
    return ids, scores[np.arange(len(ids)), ids] - peaks[:, 0] - np.log(totals)


def uniform(seeds: np.ndarray, positions: np.ndarray) -> np.ndarray:
    """Numbers in [0, 1) from (seed, position), by SplitMix64."""
    with np.errstate(over="ignore"):
        return (mix64(mix64(seeds + GOLDEN) + (positions + np.uint64(1)) * GOLDEN) >> np.uint64(11)) / 2.0**53


def _column(values: Sequence[float]) -> np.ndarray:
    return np.array(values, dtype=np.float32)[:, None]


def _filtered(scores: np.ndarray, params: Sequence[SamplingParams]) -> np.ndarray:
    """The scores with -inf for tokens that top-k, then top-p rule out; ties at the border stay.

    Top-p keeps the smallest set, of what top-k has left, whose probability reaches p.
    """
    rows = [i for i, p in enumerate(params) if p.top_k is not None or p.top_p < 1.0]
    if not rows:
        return scores
    filtered, vocabulary = scores[rows], scores.shape[1]
    limits = np.array([min(params[i].top_k or vocabulary, vocabulary) for i in rows])
    widest = limits.max()
    best = filtered
    if widest < vocabulary:
        best = np.partition(filtered, vocabulary - widest, axis=-1)[:, vocabulary - widest :]
    rising = np.sort(best, axis=-1)
    first = widest - limits
    weights = np.exp(rising - rising[:, -1:])
    weights[np.arange(widest) < first[:, None]] = 0.0
    below = np.cumsum(weights, axis=-1, dtype=np.float64)
    share = np.array([1.0 - params[i].top_p for i in rows]) * below[:, -1]
    border = np.maximum(first, (below > share[:, None]).argmax(axis=-1))
    lowest = rising[np.arange(len(rows)), border][:, None]
    scores[rows] = np.where(filtered >= lowest, filtered, -np.inf).astype(np.float32)
    return scores
