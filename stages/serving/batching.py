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

from stages.serving.choosing import Choice, choose
from stages.serving.decoding import Decoder

STOP_SECONDS = 2.0  # for the step that runs when the server is told to stop


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
class Job:
    """One request in the model's terms, and what came of it."""

    prompt: list[int]
    max_new_tokens: int
    choice: Choice
    stop: list[str]
    whole: bool  # log-probabilities of the prompt's tokens are wanted
    on_token: Callable[[int, float, str], object] | None  # id, log-probability, text
    on_end: Callable[["Job"], object]
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
        self.waiting: deque[Job] = deque()
        self.change, self.stopped = threading.Condition(), False
        self._lanes = [Lane(self, decoder, tokenizer, ends, threads) for decoder in decoders]
        for lane in self._lanes:
            lane.start()

    def submit(self, job: Job) -> None:
        with self.change:
            self.waiting.append(job)
            self.change.notify_all()

    def stop(self) -> None:
        """End the lanes after the step that they are in."""
        with self.change:
            self.stopped = True
            self.change.notify_all()
        for lane in self._lanes:
            lane.join(STOP_SECONDS)

    def alive(self) -> bool:
        return all(lane.is_alive() for lane in self._lanes)

    def running(self) -> int:
        """Jobs that are being decoded."""
        return sum(len(lane.live) for lane in self._lanes)

    def take(self, lane: "Lane") -> list[Job]:
        """Jobs that join a lane now: at most its room, and no more than evens the lanes out; call under `change`."""
        self.waiting = deque(job for job in self.waiting if not job.cancelled)
        fair = -(-(self.running() + len(self.waiting)) // len(self._lanes))
        count = min(lane.decoder.room(), len(self.waiting), max(fair - len(lane.live), 0))
        return [self.waiting.popleft() for _ in range(count)]


class Lane(threading.Thread):
    """One decoder and the jobs in it, `live`."""

    def __init__(self, batcher: Batcher, decoder: Decoder, tokenizer: Any, ends: set[int], threads: int):
        super().__init__(name="model", daemon=True)
        self.live: list[Job] = []
        self.decoder = decoder
        self._batcher, self._tokenizer, self._ends, self._threads = batcher, tokenizer, ends, threads
        self._seen = np.zeros((0, decoder.vocabulary), dtype=bool)

    def run(self) -> None:
        import torch

        torch.set_num_threads(self._threads)
        batcher = self._batcher
        while True:
            with batcher.change:
                joining: list[Job] = []
                while not (batcher.stopped or self.live or (joining := batcher.take(self))):
                    batcher.change.wait()
                if batcher.stopped:
                    return
                joining = joining or batcher.take(self)
            try:
                if joining:
                    self._join(joining)
                self._leave()
                if self.live:
                    self._advance(self.decoder.step([job.tokens[-1] for job in self.live]), self.live, 0)
                    self._leave()
            except Exception as error:  # the batch is lost, the server is not; TGI answers such requests with 424
                self._fail(
                    f"{type(error).__name__}: {error}", [*self.live, *(j for j in joining if j not in self.live)]
                )

    def _join(self, jobs: list[Job]) -> None:
        for job in jobs:
            job.started_at = time.monotonic()
            if job.stop or job.on_token:
                job.text = TokenText(self._tokenizer)
        logits = self.decoder.admit([job.prompt for job in jobs], [job.whole for job in jobs])
        first = len(self.live)
        self.live += jobs
        if len(self._seen) < len(self.live):
            more = np.zeros((len(self.live) - len(self._seen), self.decoder.vocabulary), dtype=bool)
            self._seen = np.concatenate([self._seen, more])
        for number, (job, scores) in enumerate(zip(jobs, logits, strict=True), first):
            self._seen[number] = False
            self._seen[number, job.prompt] = True
            if job.whole:
                job.prefill = prompt_logprobs(job.prompt, scores)
        self._advance(np.stack([scores[-1] for scores in logits]), jobs, first)

    def _advance(self, logits: np.ndarray, jobs: list[Job], first: int) -> None:
        """Choose one token for each of `jobs`, which are the live ones from number `first` on."""
        places = [len(job.tokens) for job in jobs]
        seen = self._seen[first : first + len(jobs)]
        ids, logprobs = choose(logits, [job.choice for job in jobs], places, seen)
        seen[np.arange(len(jobs)), ids] = True
        for job, token, logprob in zip(jobs, ids.tolist(), logprobs.tolist(), strict=True):
            job.tokens.append(token)
            job.logprobs.append(logprob)
            text = job.text.add(token) if job.text else ""
            job.finish_reason = self._finished(job, token, text)
            if job.on_token:
                job.on_token(token, logprob, text)

    def _finished(self, job: Job, token: int, text: str) -> str | None:
        """TGI's order: the length counts before the end of text, and a stop sequence must end the text so far."""
        if len(job.tokens) >= job.max_new_tokens:
            return "length"
        if token in self._ends:
            return "eos_token"
        if job.stop:
            job.tail = (job.tail + text)[-300:]
            if any(job.tail.endswith(stop) for stop in job.stop):
                return "stop_sequence"
        return None

    def _leave(self) -> None:
        for number in range(len(self.live) - 1, -1, -1):
            job = self.live[number]
            if not (job.finish_reason or job.cancelled):
                continue
            last = self.live.pop()
            if number < len(self.live):
                self.live[number] = last
                self._seen[number] = self._seen[len(self.live)]
            self.decoder.drop(number)
            self._end(job)

    def _fail(self, error: str, jobs: list[Job]) -> None:
        self.live.clear()
        while self.decoder.count:
            self.decoder.drop(self.decoder.count - 1)
        for job in jobs:
            job.error = error
            self._end(job)

    def _end(self, job: Job) -> None:
        job.ended_at = time.monotonic()
        job.on_end(job)


def prompt_logprobs(prompt: list[int], logits: np.ndarray) -> list[float | None]:
    """Log-probability of each prompt token; the first has none."""
    scores = logits[:-1].astype(np.float64)
    peaks = scores.max(axis=-1)
    totals = peaks + np.log(np.exp(scores - peaks[:, None]).sum(axis=-1))
    return [None, *(scores[np.arange(len(prompt) - 1), prompt[1:]] - totals).tolist()]
