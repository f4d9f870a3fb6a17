"""Choosing the next token of every sequence in a batch, each by its own request's rules and its own seed.

The rules and their order are TGI's: repetition penalty, frequency penalty, grammar, temperature, top-k, top-p,
typical-p. A draw depends on the request's seed and the token's place alone, never on who shares the batch.
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
KEPT_GRAMMARS = 64  # compiled ones; a run asks with few and asks often
# as outlines has it, with which TGI compiles schemas; a small model would write free white space forever
WHITESPACE = "[ ]?"


@dataclass(frozen=True)
class SamplingParams:
    """How one request wants its tokens; the defaults switch a rule off."""

    seed: int | None = None  # None: the most likely token, always
    temperature: float = 1.0
    top_k: int | None = None
    top_p: float = 1.0
    typical_p: float = 1.0
    repetition_penalty: float = 1.0
    frequency_penalty: float = 0.0


class GrammarError(Exception):
    """A grammar is not valid, or too complex to go on with."""


class Grammar:
    """A grammar, and the place that one text has reached in it."""

    def __init__(self, matcher: Any, vocabulary: int):
        self._matcher, self._vocabulary = matcher, vocabulary

    def allowed(self) -> np.ndarray:
        """Which tokens may follow, bool [vocabulary]; an end-of-text token alone once the grammar is at its end."""
        bits = np.frombuffer(self._matcher.compute_bitmask(), dtype=np.uint8)
        mask = np.unpackbits(bits, count=self._vocabulary, bitorder="little").view(bool)
        if self._matcher.is_error() or not mask.any():
            raise GrammarError(_reason(self._matcher.get_error()) or "the grammar allows no token")
        return mask

    def take(self, token: int) -> None:
        """The text goes on with a token that is allowed."""
        self._matcher.consume_token(token)


class Grammars:
    """Compiles grammars for a tokenizer, which is read when the first one is asked for; safe between threads.

    `vocabulary` counts the model's logits; `ends` are the tokens that may follow a complete text.
    """

    def __init__(self, tokenizer: Any, vocabulary: int, ends: set[int]):
        self._tokenizer, self._vocabulary, self._ends = tokenizer, vocabulary, sorted(ends)
        self._lock, self._compiled = threading.Lock(), functools.lru_cache(KEPT_GRAMMARS)(self._matcher)

    def compile(self, kind: str, text: str) -> Grammar:
        """The grammar of a regular expression ("regex") or a JSON schema ("json"). `GrammarError` when not valid."""
        with self._lock:
            compiled = self._compiled(kind, text)
        return Grammar(compiled.deep_copy(), self._vocabulary)

    @functools.cached_property
    def _read(self) -> Any:
        from llguidance import LLTokenizer

        return LLTokenizer(self._tokenizer.to_str(), n_vocab=self._vocabulary, eos_token=self._ends)

    def _matcher(self, kind: str, text: str) -> Any:
        from llguidance import LLMatcher, LLParserLimits

        try:
            if kind == "json":
                grammar = LLMatcher.grammar_from_json_schema(text, overrides={"whitespace_pattern": WHITESPACE})
            else:
                grammar = LLMatcher.grammar_from_regex(text)
            matcher = LLMatcher(self._read, grammar, log_level=0, limits=LLParserLimits(verbose_errors=False))
        except ValueError as error:  # among them UnicodeEncodeError, of half a character
            raise GrammarError(_reason(str(error))) from None
        if matcher.is_error():
            raise GrammarError(_reason(matcher.get_error()))
        return matcher


def _reason(error: str) -> str:
    """What is wrong, without the picture of where."""
    found = re.search(r"^error: (.*)", error, re.MULTILINE)
    return (found[1] if found else " ".join(error.split()))[:300]


def shares(prompt: Sequence[int], text: Sequence[int], vocabulary: int) -> np.ndarray:
    """Each token's share of prompt and text together, float32 [vocabulary]."""
    counts = np.bincount(prompt, minlength=vocabulary) + np.bincount(np.array(text, dtype=int), minlength=vocabulary)
    return (counts / (len(prompt) + len(text))).astype(np.float32)


def choose(
    logits: np.ndarray,
    choices: Sequence[SamplingParams],
    places: Sequence[int],
    seen: np.ndarray,
    used: Mapping[int, np.ndarray] | None = None,
    allowed: Mapping[int, np.ndarray] | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """(token ids, their log-probabilities after the rules), for float32 logits of shape [sequences, vocabulary].

    `places` counts each sequence's tokens so far; `seen` marks those of prompt and text, [sequences, vocabulary], and
    is read only for sequences with a repetition penalty. `used` holds the `shares` of those with a frequency penalty,
    `allowed` what the grammar of those with one allows, bool [vocabulary], each under the sequence's number.
    """
    scores = logits.astype(np.float32, copy=True)
    rows = [i for i, c in enumerate(choices) if c.repetition_penalty != 1.0]
    if rows:
        penalty = _column([choices[i].repetition_penalty for i in rows])
        old = scores[rows]
        with np.errstate(over="ignore"):
            penalised = np.clip(np.where(old > 0, old / penalty, old * penalty), -LARGEST, LARGEST)
        scores[rows] = np.where(seen[rows], penalised, old)
    for row, share in (used or {}).items():
        scores[row] -= share * np.float32(choices[row].frequency_penalty)
    for row, mask in (allowed or {}).items():
        scores[row, ~mask] = -np.inf
    drawn = [i for i, c in enumerate(choices) if c.seed is not None]
    if drawn:
        picked = [choices[i] for i in drawn]
        scores[drawn] = _filtered(scores[drawn] / _column([max(c.temperature, LOWEST) for c in picked]), picked)
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
    """Numbers in [0, 1) from (seed, place), by SplitMix64."""
    with np.errstate(over="ignore"):
        return (mix64(mix64(seeds + GOLDEN) + (places + np.uint64(1)) * GOLDEN) >> np.uint64(11)) / 2.0**53


def _column(values: Sequence[float]) -> np.ndarray:
    return np.array(values, dtype=np.float32)[:, None]


def _filtered(scores: np.ndarray, choices: Sequence[SamplingParams]) -> np.ndarray:
    """The scores with -inf for tokens that top-k, top-p or typical-p rule out."""
    rows = [i for i, c in enumerate(choices) if c.top_k is not None or c.top_p < 1.0]
    if rows:
        scores[rows] = _nucleus(scores[rows], [choices[i] for i in rows])
    for i, choice in enumerate(choices):
        if choice.typical_p < 1.0:
            scores[i] = _typical(scores[i], choice.typical_p)
    return scores


def _nucleus(scores: np.ndarray, choices: Sequence[SamplingParams]) -> np.ndarray:
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
