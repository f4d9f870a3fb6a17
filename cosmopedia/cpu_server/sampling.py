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
COLUMNS = 8  # as many as scores are sought, times this; their maxima say which scores cannot be among the largest
CANDIDATES = 1024  # tokens among which top-p looks first
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
    ids = np.zeros(len(logits), dtype=np.int64)
    logprobs = np.zeros(len(logits))
    for row, (p, position) in enumerate(zip(params, positions, strict=True)):
        scores = logits[row].astype(np.float32, copy=True)
        if p.repetition_penalty != 1.0:
            _penalise(scores, np.flatnonzero(seen[row]), np.float32(p.repetition_penalty))
        if allowed and row in allowed:
            scores[~allowed[row]] = -np.inf
        ids[row], logprobs[row] = _choose_one(scores, p, position)
    return ids, logprobs


def _penalise(scores: np.ndarray, seen: np.ndarray, penalty: np.float32) -> None:
    plain = scores[seen]
    with np.errstate(over="ignore"):
        scores[seen] = np.clip(np.where(plain > 0, plain / penalty, plain * penalty), -LARGEST, LARGEST)


def _choose_one(scores: np.ndarray, p: SamplingParams, position: int) -> tuple[int, float]:
    """(token id, log-probability) for one sequence's scores, float32 [vocabulary]."""
    if p.seed is None:
        best = int(scores.argmax())
        return best, -float(np.log(np.exp(scores - scores[best]).sum(dtype=np.float64)))
    scores = scores / np.float32(max(p.temperature, LOWEST))
    lowest = _lowest(scores, p)
    kept = None if lowest is None else np.flatnonzero(scores >= lowest)
    if kept is not None:
        scores = scores[kept]
    cumulated = np.cumsum(np.exp(scores - scores.max()), dtype=np.float64)
    total = cumulated[-1]
    drawn = uniform(np.array([p.seed], dtype=np.uint64), np.array([position], dtype=np.uint64))[0] * total
    place = int(np.searchsorted(cumulated, min(drawn, np.nextafter(total, 0.0)), side="right"))
    logprob = float(scores[place] - scores.max()) - float(np.log(total))
    return place if kept is None else int(kept[place]), logprob


def uniform(seeds: np.ndarray, positions: np.ndarray) -> np.ndarray:
    """Numbers in [0, 1) from (seed, position), by SplitMix64."""
    with np.errstate(over="ignore"):
        return (mix64(mix64(seeds + GOLDEN) + (positions + np.uint64(1)) * GOLDEN) >> np.uint64(11)) / 2.0**53


def _lowest(scores: np.ndarray, p: SamplingParams) -> float | None:
    """The lowest score that top-k, then top-p let through, ties included; None when they are off.

    Top-p keeps the smallest set, of what top-k has left, whose probability reaches p.
    """
    vocabulary = len(scores)
    most = min(p.top_k or vocabulary, vocabulary)
    if p.top_p >= 1.0:
        return None if most == vocabulary else float(largest(scores, most)[0])
    # The set is nearly always small, and sorting the vocabulary is what takes long.
    for count in (CANDIDATES, vocabulary):
        best = np.sort(largest(scores, min(most, count)))
        likely = np.exp(best - best[-1])
        rest = 0.0
        if count < most == vocabulary:
            rest = np.exp(scores - best[-1]).sum(dtype=np.float64) - likely.sum(dtype=np.float64)
        below = max(rest, 0.0) + np.cumsum(likely, dtype=np.float64)
        share = (1.0 - p.top_p) * below[-1]
        if most <= count or (most == vocabulary and rest <= share):
            break
    return float(best[(below > share).argmax()])


def largest(scores: np.ndarray, count: int) -> np.ndarray:
    """The `count` largest, the lowest of them first."""
    if count == len(scores):
        return scores
    # A few of them are candidates: `count` scores are as large as the count-th largest of the columns' maxima.
    columns = min(COLUMNS * count, len(scores))
    highest = scores[: len(scores) // columns * columns].reshape(-1, columns).max(axis=0)
    candidates = scores[scores >= np.partition(highest, columns - count)[columns - count]]
    if len(candidates) >= count:  # fewer when a model's scores are no numbers
        scores = candidates
    border = len(scores) - count
    return np.partition(scores, border)[border:]
