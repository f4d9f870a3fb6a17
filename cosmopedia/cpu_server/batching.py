"""The model threads of the CPU server: requests wait in a queue, join a running batch as slots become free, leave it.

Each thread has a decoder and a batch of its own, which no other thread touches. Two threads with a core each decode
faster than one batch on both cores, whose operators wait for each other hundreds of times per step. A request's
`on_end` is called from its thread.
"""

import threading
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np

from cosmopedia.cpu_server.decoding import Decoder
from cosmopedia.cpu_server.sampling import Grammar, GrammarError, SamplingParams, choose

STOP_SECONDS = 2.0  # for the step that runs when the server is stopped
NO_WORKER = "the model thread has ended"


@dataclass(eq=False)
class DecodeRequest:
    """One request in the model's terms, and what came of it."""

    prompt: list[int]
    max_new_tokens: int
    sampling: SamplingParams
    on_end: Callable[["DecodeRequest"], object]
    grammar: Grammar | None = None
    tokens: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    finish_reason: str | None = None
    error: str | None = None
    cancelled: bool = False
    ended: bool = False

    def end(self, error: str | None = None) -> None:
        """It is over."""
        self.error = self.error or error
        self.ended = True
        self.on_end(self)


class Batcher:
    """Runs requests on decoders that share a model, each with `threads` cores; `ends` are the ids that end a text."""

    def __init__(self, decoders: Sequence[Decoder], ends: set[int], threads: int):
        self.waiting: deque[DecodeRequest] = deque()
        self.change = threading.Condition()
        self.stopped = False
        self._taken = 0
        self._workers = [DecodeWorker(self, decoder, ends, threads) for decoder in decoders]
        self._living = list(self._workers)  # before a worker starts, which reads it
        for worker in self._workers:
            worker.start()

    def submit(self, request: DecodeRequest) -> None:
        """Queue a request."""
        with self.change:
            alive = bool(self._living)
            if alive:
                self.waiting.append(request)
                self.change.notify_all()
        if not alive:
            request.end(NO_WORKER)

    def cancel(self, request: DecodeRequest) -> None:
        """End a request early: now if it waits, after the current step if it is decoded. No effect once it ended."""
        with self.change:
            request.cancelled = True
            waits = request in self.waiting
            if waits:
                self.waiting.remove(request)
        if waits:
            request.end()

    def stop(self) -> None:
        """End the workers after their current step."""
        with self.change:
            self.stopped = True
            self.change.notify_all()
        for worker in self._workers:
            worker.join(STOP_SECONDS)

    def alive(self) -> bool:
        """Whether every worker lives."""
        return len(self._living) == len(self._workers)

    def load(self) -> tuple[int, int]:
        """(requests that wait, requests that a worker has taken) at one moment."""
        with self.change:
            return len(self.waiting), self._taken

    def take(self, worker: "DecodeWorker") -> list[DecodeRequest]:
        """Requests that join a worker now: at most its room, and no more than its fair share. Call under `change`."""
        share = -(-(self._taken + len(self.waiting)) // len(self._living))
        count = min(worker.decoder.room(), len(self.waiting), max(share - len(worker.live), 0))
        self._taken += count
        return [self.waiting.popleft() for _ in range(count)]

    def ended(self, request: DecodeRequest, error: str | None = None) -> None:
        """A request that a worker had taken is over."""
        with self.change:
            self._taken -= 1
        request.end(error)

    def lost(self, worker: "DecodeWorker") -> None:
        """A worker's thread has ended; if nobody stopped it, end the requests that only it could serve."""
        orphans: list[DecodeRequest] = []
        with self.change:
            if self.stopped:
                return
            self._living.remove(worker)
            if not self._living:
                orphans, self.waiting = list(self.waiting), deque()
        for request in worker.unfinished():
            self.ended(request, NO_WORKER)
        for request in orphans:
            request.end(NO_WORKER)


class DecodeWorker(threading.Thread):
    """A model thread: one decoder and the requests in it, `live`."""

    def __init__(self, batcher: Batcher, decoder: Decoder, ends: set[int], threads: int):
        super().__init__(name="model", daemon=True)
        self.live: list[DecodeRequest] = []
        self.joining: list[DecodeRequest] = []
        self.decoder = decoder
        self._batcher, self._ends, self._threads = batcher, ends, threads
        self._seen = np.zeros((0, decoder.vocabulary), dtype=bool)  # tokens of prompt and text of each live request

    def run(self) -> None:
        try:
            self._work()
        finally:
            self._batcher.lost(self)

    def unfinished(self) -> list[DecodeRequest]:
        """The requests that are in the batch or about to join, and not over."""
        return [request for request in (*self.live, *self.joining) if not request.ended]

    def _work(self) -> None:
        import torch

        torch.set_num_threads(self._threads)
        batcher = self._batcher
        while True:
            with batcher.change:
                while not (batcher.stopped or self.live or self.joining):
                    self.joining = batcher.take(self)
                    if not self.joining:
                        batcher.change.wait()
                if batcher.stopped:
                    return
                self.joining = self.joining or batcher.take(self)
            try:
                if self.joining:
                    self._join(self.joining)
                self._leave()
                if self.live:
                    numbers, logits = self.decoder.step([r.tokens[-1] if r.tokens else None for r in self.live])
                    if numbers:
                        self._advance(numbers, logits)
                    self._leave()
            except Exception as error:  # the batch is lost, the server is not; TGI answers such requests with 424
                self._fail(f"{type(error).__name__}: {error}")

    def _join(self, requests: list[DecodeRequest]) -> None:
        self.decoder.admit([request.prompt for request in requests])
        first = len(self.live)
        self.live, self.joining = [*self.live, *requests], []
        if len(self._seen) < len(self.live):
            more = np.zeros((len(self.live) - len(self._seen), self.decoder.vocabulary), dtype=bool)
            self._seen = np.concatenate([self._seen, more])
        for number, request in enumerate(requests, first):
            self._seen[number] = False
            self._seen[number, request.prompt] = True

    def _advance(self, numbers: list[int], logits: np.ndarray) -> None:
        """Choose a token for each of the live requests with these numbers."""
        requests = [self.live[number] for number in numbers]
        positions = [len(request.tokens) for request in requests]
        sampling = [request.sampling for request in requests]
        seen = self._seen[numbers] if any(p.repetition_penalty != 1.0 for p in sampling) else self._seen[:0]
        ids, logprobs = choose(logits, sampling, positions, seen, self._allowed(requests))
        self._seen[numbers, ids] = True
        for request, token, logprob in zip(requests, ids.tolist(), logprobs.tolist(), strict=True):
            if request.error:
                continue
            request.tokens.append(token)
            request.logprobs.append(logprob)
            if request.grammar:
                request.grammar.take(token)
            # TGI's order: the length counts before the end of the text.
            if len(request.tokens) >= request.max_new_tokens:
                request.finish_reason = "length"
            elif token in self._ends:
                request.finish_reason = "eos_token"

    def _allowed(self, requests: list[DecodeRequest]) -> dict[int, np.ndarray]:
        """What the grammars allow, by position in the batch. A grammar that cannot go on fails only its request."""
        allowed = {}
        for row, request in enumerate(requests):
            if request.grammar:
                try:
                    allowed[row] = request.grammar.allowed()
                except GrammarError as error:
                    request.error = f"grammar: {error}"
        return allowed

    def _leave(self) -> None:
        for number in range(len(self.live) - 1, -1, -1):
            request = self.live[number]
            if not (request.finish_reason or request.cancelled or request.error):
                continue
            last = self.live.pop()
            if number < len(self.live):
                self.live[number] = last
                self._seen[number] = self._seen[len(self.live)]
            self.decoder.drop(number)
            self._batcher.ended(request)

    def _fail(self, error: str) -> None:
        requests, self.live, self.joining = self.unfinished(), [], []
        for request in requests:
            self._batcher.ended(request, error)
        while self.decoder.count:
            self.decoder.drop(self.decoder.count - 1)
