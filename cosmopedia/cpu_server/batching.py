"""The model threads of the CPU server: jobs wait in one queue, join a running batch as slots fall free, and leave it.

Each thread is a lane with a decoder and a batch of its own, which no other thread touches. Two lanes on a core each
decode faster than one batch on both cores, whose operators wait for each other hundreds of times a step. A job's
callbacks are called from its lane.
"""

import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from cosmopedia.cpu_server.decoding import Decoder
from cosmopedia.cpu_server.sampling import Grammar, GrammarError, SamplingParams, choose, shares

STOP_SECONDS = 2.0  # for the step that runs when the server is told to stop
NO_LANE = "the model thread has ended"


class TokenText:
    """The text that each token adds; "" while a character is not complete (TGI's way of decoding a stream)."""

    def __init__(self, tokenizer: Any):
        self._tokenizer, self._ids, self._start, self._read = tokenizer, [], 0, 0

    def add(self, token: int) -> str:
        self._ids.append(token)
        before = self._decode(self._ids[self._start : self._read])
        after = self._decode(self._ids[self._start :])
        if len(after) <= len(before) or after.endswith("\ufffd"):
            return ""
        self._start, self._read = self._read, len(self._ids)
        return after[len(before) :]

    def _decode(self, ids: list[int]) -> str:
        return self._tokenizer.decode(ids, skip_special_tokens=False)


@dataclass(eq=False)
class DecodeRequest:
    """One request in the model's terms, and what came of it."""

    prompt: list[int]
    max_new_tokens: int
    choice: SamplingParams
    stop: list[str]
    whole: bool  # log-probabilities of the prompt's tokens are wanted
    on_token: Callable[[int, float, str], object] | None  # id, log-probability, text
    on_end: Callable[["DecodeRequest"], object]
    grammar: Grammar | None = None
    inside: bool = False  # vLLM's way to stop: a stop sequence counts wherever it is, and before the length
    tokens: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    prefill: list[float | None] = field(default_factory=list)
    finish_reason: str | None = None
    error: str | None = None
    cancelled: bool = False
    queued_at: float = field(default_factory=time.monotonic)
    started_at: float = 0.0
    ended_at: float = 0.0
    text: TokenText | None = None
    tail: str = ""


class Batcher:
    """Runs jobs on decoders that share a model, each with `threads` cores."""

    def __init__(self, decoders: list[Decoder], tokenizer: Any, ends: set[int], threads: int):
        self.waiting: deque[DecodeRequest] = deque()
        self.change, self.stopped = threading.Condition(), False
        self._taken = 0
        self._lanes = [DecodeWorker(self, decoder, tokenizer, ends, threads) for decoder in decoders]
        self._living = list(self._lanes)  # before a lane starts, which asks for it
        for lane in self._lanes:
            lane.start()

    def submit(self, job: DecodeRequest) -> None:
        with self.change:
            if lives := bool(self._living):
                self.waiting.append(job)
                self.change.notify_all()
        if not lives:
            _end(job, NO_LANE)

    def cancel(self, job: DecodeRequest) -> None:
        """End a job early: now when it waits, after the step that runs when it is decoded; of no effect once ended."""
        with self.change:
            job.cancelled = True
            if waits := job in self.waiting:
                self.waiting.remove(job)
        if waits:
            _end(job)

    def stop(self) -> None:
        """End the lanes after the step that they are in."""
        with self.change:
            self.stopped = True
            self.change.notify_all()
        for lane in self._lanes:
            lane.join(STOP_SECONDS)

    def alive(self) -> bool:
        return len(self._living) == len(self._lanes)

    def load(self) -> tuple[int, int]:
        """(jobs that wait, jobs that a lane has taken) at one moment."""
        with self.change:
            return len(self.waiting), self._taken

    def take(self, lane: "DecodeWorker") -> list[DecodeRequest]:
        """Jobs that join a lane now: at most its room, and no more than evens the lanes out; call under `change`."""
        fair = -(-(self._taken + len(self.waiting)) // len(self._living))
        count = min(lane.decoder.room(), len(self.waiting), max(fair - len(lane.live), 0))
        self._taken += count
        return [self.waiting.popleft() for _ in range(count)]

    def ended(self, job: DecodeRequest, error: str | None = None) -> None:
        """A job that a lane had taken is over."""
        with self.change:
            self._taken -= 1
        _end(job, error)

    def lost(self, lane: "DecodeWorker") -> None:
        """A lane's thread is at its end; when it was not told to stop, nobody waits for it in vain."""
        orphans: list[DecodeRequest] = []
        with self.change:
            if self.stopped:
                return
            self._living.remove(lane)
            if not self._living:
                orphans, self.waiting = list(self.waiting), deque()
        for job in lane.held():
            self.ended(job, NO_LANE)
        for job in orphans:
            _end(job, NO_LANE)


class DecodeWorker(threading.Thread):
    """One decoder and the jobs in it, `live`."""

    def __init__(self, batcher: Batcher, decoder: Decoder, tokenizer: Any, ends: set[int], threads: int):
        super().__init__(name="model", daemon=True)
        self.live: list[DecodeRequest] = []
        self.joining: list[DecodeRequest] = []
        self.decoder = decoder
        self._batcher, self._tokenizer, self._ends, self._threads = batcher, tokenizer, ends, threads
        self._seen = np.zeros((0, decoder.vocabulary), dtype=bool)

    def run(self) -> None:
        try:
            self._work()
        finally:
            self._batcher.lost(self)

    def held(self) -> list[DecodeRequest]:
        """The jobs that are in the lane or about to join, and not over."""
        return [job for job in (*self.live, *self.joining) if not job.ended_at]

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
                    self._advance(self.decoder.step([job.tokens[-1] for job in self.live]), self.live, 0)
                    self._leave()
            except Exception as error:  # the batch is lost, the server is not; TGI answers such requests with 424
                self._fail(f"{type(error).__name__}: {error}")

    def _join(self, jobs: list[DecodeRequest]) -> None:
        for job in jobs:
            job.started_at = time.monotonic()
            if job.stop or job.on_token:
                job.text = TokenText(self._tokenizer)
        logits = self.decoder.admit([job.prompt for job in jobs], [job.whole for job in jobs])
        first = len(self.live)
        self.live, self.joining = [*self.live, *jobs], []
        if len(self._seen) < len(self.live):
            more = np.zeros((len(self.live) - len(self._seen), self.decoder.vocabulary), dtype=bool)
            self._seen = np.concatenate([self._seen, more])
        for number, (job, scores) in enumerate(zip(jobs, logits, strict=True), first):
            self._seen[number] = False
            self._seen[number, job.prompt] = True
            if job.whole:
                job.prefill = prompt_logprobs(job.prompt, scores)
        self._advance(np.stack([scores[-1] for scores in logits]), jobs, first)

    def _advance(self, logits: np.ndarray, jobs: list[DecodeRequest], first: int) -> None:
        """Choose one token for each of `jobs`, which are the live ones from number `first` on."""
        places = [len(job.tokens) for job in jobs]
        seen = self._seen[first : first + len(jobs)]
        ids, logprobs = choose(logits, [job.choice for job in jobs], places, seen, *self._rules(jobs))
        seen[np.arange(len(jobs)), ids] = True
        for job, token, logprob in zip(jobs, ids.tolist(), logprobs.tolist(), strict=True):
            if job.error:
                continue
            job.tokens.append(token)
            job.logprobs.append(logprob)
            if job.grammar:
                job.grammar.take(token)
            text = job.text.add(token) if job.text else ""
            job.finish_reason = self._finished(job, token, text)
            if job.on_token:
                job.on_token(token, logprob, text)

    def _rules(self, jobs: list[DecodeRequest]) -> tuple[dict[int, np.ndarray], dict[int, np.ndarray]]:
        """`used` and `allowed` for `choose`. A grammar that cannot go on fails its own job alone."""
        used, allowed = {}, {}
        for row, job in enumerate(jobs):
            if job.choice.frequency_penalty:
                used[row] = shares(job.prompt, job.tokens, self.decoder.vocabulary)
            if job.grammar:
                try:
                    allowed[row] = job.grammar.allowed()
                except GrammarError as error:
                    job.error = f"grammar: {error}"
        return used, allowed

    def _finished(self, job: DecodeRequest, token: int, text: str) -> str | None:
        """TGI's order: the length counts before the end of text, and a stop sequence must end the text so far."""
        full = "length" if len(job.tokens) >= job.max_new_tokens else None
        if full and not job.inside:
            return full
        if token in self._ends:
            return "eos_token"
        if job.stop:
            # of the text so far, no more than what can still hold the start of a stop sequence
            job.tail = (job.tail + text)[-(max(map(len, job.stop)) + len(text)) :]
            if any(stop in job.tail if job.inside else job.tail.endswith(stop) for stop in job.stop):
                return "stop_sequence"
        return full

    def _leave(self) -> None:
        for number in range(len(self.live) - 1, -1, -1):
            job = self.live[number]
            if not (job.finish_reason or job.cancelled or job.error):
                continue
            last = self.live.pop()
            if number < len(self.live):
                self.live[number] = last
                self._seen[number] = self._seen[len(self.live)]
            self.decoder.drop(number)
            self._batcher.ended(job)

    def _fail(self, error: str) -> None:
        jobs, self.live, self.joining = self.held(), [], []
        for job in jobs:
            self._batcher.ended(job, error)
        while self.decoder.count:
            self.decoder.drop(self.decoder.count - 1)


def _end(job: DecodeRequest, error: str | None = None) -> None:
    job.error = job.error or error
    job.ended_at = time.monotonic()
    job.on_end(job)


def prompt_logprobs(prompt: list[int], logits: np.ndarray) -> list[float | None]:
    """Log-probability of each prompt token; the first has none."""
    scores = logits[:-1].astype(np.float64)
    peaks = scores.max(axis=-1)
    totals = peaks + np.log(np.exp(scores - peaks[:, None]).sum(axis=-1))
    return [None, *(scores[np.arange(len(prompt) - 1), prompt[1:]] - totals).tolist()]
