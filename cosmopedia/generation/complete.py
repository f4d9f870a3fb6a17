"""Completions for a stage: from the completion store where it has them, else from whoever sends the rest.

In: requests, `models/generator/`, the store, and a callable that gets completed what the store lacks. Out: for each
request, in the order given, a completion or a failure with its reason. `complete` iterates over the requests several
times (look up, send, hand out), so that neither their texts nor their keys need be in memory: give it something that
can be iterated over again.
"""

import hashlib
import heapq
import json
import os
import tempfile
from array import array
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from itertools import islice
from typing import IO, Any, NamedTuple, TypeVar

import numpy as np

from cosmopedia.core.errors import ConfigError, InternalError
from cosmopedia.core.files import write_text
from cosmopedia.core.lineage import store_root
from cosmopedia.generation.answers import AnswerReader
from cosmopedia.generation.model import GenerationModel
from cosmopedia.generation.requests import (
    Completion,
    Failure,
    PendingRequest,
    Request,
    Sampling,
    completion_key,
    sampling_seed,
)
from cosmopedia.store.claims import claimed
from cosmopedia.store.documents import Table
from cosmopedia.store.segments import writing
from cosmopedia.store.store import CompletionStore

T = TypeVar("T")

TOKENISED = 64  # prompts that are tokenised together
SAMPLED = 256  # completions in the store whose mean length forecasts that of the rest
COUNTED = 512  # prompts whose tokens are counted for a forecast
LOOKED_UP = 1024  # keys that are looked up together
CACHED, MISSING, TOO_LONG = range(3)  # states of a request


class KeyFile:
    """The 16-byte keys of the requests, in their order, in a file without a name: 480 MB for 30 million."""

    def __init__(self) -> None:
        self._folder = store_root() / "runs"
        self._digest = hashlib.blake2b(digest_size=8)
        with writing(self._folder):
            self._folder.mkdir(parents=True, exist_ok=True)
            self._file: IO[bytes] = tempfile.TemporaryFile(dir=self._folder)  # noqa: SIM115

    def write(self, keys: list[bytes]) -> None:
        """Append some."""
        with writing(self._folder):
            self._file.write(b"".join(keys))
        self._digest.update(b"".join(keys))

    @property
    def digest(self) -> str:
        """Names the set of requests: 16 hex characters over all keys in their order."""
        return self._digest.hexdigest()

    def __iter__(self) -> Iterator[str]:
        """Each key as 32 hex characters; several iterators may be in use at once."""
        with writing(self._folder):
            self._file.flush()
        offset = 0
        while block := os.pread(self._file.fileno(), 16 * LOOKED_UP, offset):
            offset += len(block)
            for start in range(0, len(block), 16):
                yield block[start : start + 16].hex()


@dataclass
class CompletionRun:
    """What `complete` returns: counts, and the results when they are iterated over."""

    stage: str
    total: int
    requests: Iterable[Request]
    store: CompletionStore
    keys: Iterable[str]  # of the requests, in their order
    reader: AnswerReader
    cached: int = 0
    new: int = 0
    failed: int = 0
    tokens_new: int = 0
    reasons: Counter[str] = field(default_factory=Counter)  # of failures
    figures: dict[str, Any] = field(default_factory=dict)  # of the sending: forecast, actual, rates
    throughput: list[dict[str, float]] = field(default_factory=list)  # points over time
    failures: dict[str, Failure] = field(default_factory=dict)  # by key

    @property
    def results(self) -> Iterator[tuple[Request, Completion | Failure]]:
        """Each request, in the order given, with its result."""
        for request, key in zip(self.requests, self.keys, strict=True):
            stored = self.store.get(key)
            result = self.reader.result(stored) if stored else self.failures.get(key)
            if result is None:
                raise InternalError(f"{self.stage}: {request.id} has neither a completion nor a failure (key {key})")
            yield request, result

    @property
    def sent(self) -> int:
        """Requests that went to a server."""
        return self.new + self.failed - self.reasons["too_long"]

    def record(self) -> dict[str, Any]:
        """What this run sent and reused; differs between runs with equal results."""
        return {
            "requests": self.total,
            "from_store": self.cached,
            "sent": self.sent,
            "completed": self.new,
            "failed": dict(sorted(self.reasons.items())),
            **self.figures,
        }

    def write_record(self) -> None:
        """`<store root>/runs/<stage>.json`."""
        write_text(store_root() / "runs" / f"{self.stage}.json", json.dumps(self.record(), indent=2) + "\n")


class PromptRequests:
    """Requests for prompts, `samples` each, that can be iterated over again and again.

    pilot and generate both use this class, so that the same prompt has the same key in both.
    """

    def __init__(
        self,
        prompts: Iterable[tuple[str, str] | tuple[str, str, Sampling | None]],
        model: GenerationModel,
        seed: int,
        samples: int,
    ):
        self.prompts, self.model, self.seed, self.samples = prompts, model, seed, samples

    def __iter__(self) -> Iterator[Request]:
        """In the order of `prompts` (id, text, and its own sampling if it has one); the samples of one in the order of
        their ids as text."""
        samples, render = sorted(range(self.samples), key=str), self.model.render
        for prompt_id, prompt, *own in self.prompts:
            for sample in samples:
                seed = sampling_seed(self.seed, prompt_id, sample)
                yield Request(f"{prompt_id}-{sample}", prompt, seed, sample, render, *own)


class StageRequests(NamedTuple):
    """The requests of a stage, and the model that it sends them to."""

    stage: str
    requests: Iterable[Request]
    model: GenerationModel
    sampling: Sampling


class LookUp:
    """What a run would reuse and what it would send: a state and a key per request."""

    def __init__(
        self, requests: Iterable[Request], model: GenerationModel, sampling: Sampling, store: CompletionStore
    ):
        self.requests, self.model, self.sampling, self.store = requests, model, sampling, store
        self.reader = AnswerReader(model, sampling.max_new_tokens)
        self.room = model.max_length - sampling.max_new_tokens
        if self.room <= 0:
            raise ConfigError(
                f"max_new_tokens is {sampling.max_new_tokens}, but {model.model} takes {model.max_length} tokens,"
                " prompt included; choose a smaller max_new_tokens"
            )
        self.refresh()

    def refresh(self) -> None:
        """Look every request up, again if the store has grown."""
        self.is_stale()
        self.states = bytearray()
        self.keys = KeyFile()
        self.too_long: list[Failure] = []
        missing = array("Q")
        self.missing_chars = 0  # of the prompts to send, as they are sent
        sample: list[tuple[int, str]] = []
        for batch in _batches(self.requests, LOOKED_UP):
            prompts = [request.prompt for request in batch]
            keys = [
                completion_key(request, self.model.identity, self.sampling, prompt)
                for request, prompt in zip(batch, prompts, strict=True)
            ]
            raw = [bytes.fromhex(key) for key in keys]
            self.keys.write(raw)
            states = [CACHED if present else MISSING for present in self.store.present(raw)]
            self._mark_too_long(prompts, keys, states)
            for prompt, key, state in zip(prompts, keys, states, strict=True):
                if state == MISSING:
                    self.missing_chars += len(prompt)
                    _keep_lowest(sample, int(key[:16], 16), prompt)
            missing.extend(int(key[:16], 16) for key, state in zip(keys, states, strict=True) if state == MISSING)
            self.states.extend(states)
        self._sample = [prompt for _, prompt in sample]
        prefixes = np.frombuffer(missing, np.uint64)
        prefixes.sort()  # in place: eight bytes per request, and no copy
        self.prefixes = prefixes  # of what is missing: the first eight bytes of its keys
        self._repeated = set(prefixes[1:][prefixes[1:] == prefixes[:-1]].tolist())  # of keys that occur more than once

    def is_stale(self) -> bool:
        """Whether the store has grown since the last look."""
        return self.store.refresh()

    def _mark_too_long(self, prompts: list[str], keys: list[str], states: list[int]) -> None:
        """Missing prompts that leave no room for `max_new_tokens` are failures, and are never sent."""
        # A token is at least a byte, so a short text needs no counting; 8 leaves room for special tokens.
        long = [n for n, p in enumerate(prompts) if states[n] == MISSING and len(p.encode()) + 8 > self.room]
        for batch in _batches(long, TOKENISED):
            counts = self.model.count_tokens([prompts[number] for number in batch])
            for number, count in zip(batch, counts, strict=True):
                if count > self.room:
                    states[number] = TOO_LONG
                    detail = (
                        f"{count} prompt tokens + {self.sampling.max_new_tokens} new > {self.model.max_length} of"
                        f" {self.model.model}"
                    )
                    self.too_long.append(Failure(keys[number], "too_long", detail, 0))

    @property
    def missing(self) -> int:
        """Requests that the store has no completion for, and that can be sent."""
        return self.states.count(MISSING)

    def mean_tokens(self, least: int = 1) -> float | None:
        """Mean tokens of the completions in the store, from `SAMPLED` of them; None for fewer than `least`."""
        lengths = []
        for key, state in zip(self.keys, self.states, strict=True):
            if state == CACHED and (completion := self.store.get(key)):
                lengths.append(min(max(completion.tokens, 0), self.sampling.max_new_tokens))
                if len(lengths) == SAMPLED:
                    break
        return sum(lengths) / len(lengths) if len(lengths) >= least else None

    def prompt_tokens(self) -> int:
        """Tokens of the prompts to send: counted in `COUNTED` prompts at most, which stand for the others by their
        length in characters."""
        chars = sum(map(len, self._sample))
        return round(self.missing_chars * sum(self.model.count_tokens(self._sample)) / chars) if chars else 0

    def reuse(self, import_from: Callable[[], Iterable[Table]]) -> int:
        """Take over what the store lacks from tables of earlier runs; returns how many completions.

        `import_from` is called, and the tables are read, only if something is missing.
        """
        if not self.missing:
            return 0
        imported = self.store.import_documents(import_from(), np.unique(self.prefixes))
        if imported:
            self.refresh()
        return imported

    def pending(self) -> Iterator[PendingRequest]:
        """The requests to send, each key once."""
        seen: set[str] = set()
        for request, key, state in zip(self.requests, self.keys, self.states, strict=True):
            if state == MISSING and key not in seen:
                if int(key[:16], 16) in self._repeated:
                    seen.add(key)
                yield PendingRequest(request, key)


def complete(
    stage: str,
    requests: Iterable[Request],
    model: GenerationModel,
    sampling: Sampling,
    store: CompletionStore,
    send: Callable[[CompletionRun, LookUp], None],
    import_from: Callable[[], Iterable[Table]] = tuple,
) -> CompletionRun:
    """A completion or a failure for each request.

    `send` gets what the store lacks completed (execution/sending.py): it appends completions to the store, and puts
    counts and failures into the run. What another process is sending is waited for (store/claims.py). `import_from`
    gives tables of earlier runs (execution/earlier.py), for a store that lacks them. What `send` raises is raised
    here; what was completed until then is in the store.
    """
    if iter(requests) is requests:
        requests = list(requests)
    lookup = LookUp(requests, model, sampling, store)
    if imported := lookup.reuse(import_from):
        print(f"{stage}: {imported} completions of earlier runs taken over into the store", flush=True)
    with claimed(stage, lookup):
        run = CompletionRun(stage, len(lookup.states), requests, store, lookup.keys, lookup.reader)
        run.cached = lookup.states.count(CACHED)
        run.failures = {failure.key: failure for failure in lookup.too_long}
        if lookup.too_long:
            run.reasons["too_long"] = len(lookup.too_long)
        send(run, lookup)
    run.failed = sum(run.reasons.values())
    return run


def _keep_lowest(sample: list[tuple[int, str]], number: int, prompt: str) -> None:
    """Keep the prompts of the `COUNTED` lowest keys: a draw that no order of the requests changes."""
    if len(sample) < COUNTED:
        heapq.heappush(sample, (-number, prompt))
    elif -number > sample[0][0]:
        heapq.heapreplace(sample, (-number, prompt))


def _batches(items: Iterable[T], size: int) -> Iterator[list[T]]:
    iterator = iter(items)
    while batch := list(islice(iterator, size)):
        yield batch
