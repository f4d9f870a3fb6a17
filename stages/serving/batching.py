"""The model thread of the CPU server: jobs wait in a queue, join the running batch as slots fall free, and leave it.

One thread runs the model; it is the only one that touches the decoder. A job's callbacks are called from that thread.
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
    """Runs jobs on a decoder: `waiting` and `live` are its queue and its batch."""

    def __init__(self, decoder: Decoder, tokenizer: Any, ends: set[int]):
        self.waiting: deque[Job] = deque()
        self.live: list[Job] = []
        self._decoder, self._tokenizer, self._ends = decoder, tokenizer, ends
        self._seen = np.zeros((0, decoder.vocabulary), dtype=bool)
        self._change, self._stopped = threading.Condition(), False
        self._thread = threading.Thread(target=self._run, name="model", daemon=True)
        self._thread.start()

    def submit(self, job: Job) -> None:
        with self._change:
            self.waiting.append(job)
            self._change.notify()

    def stop(self) -> None:
        """End the thread after the step that it is in."""
        with self._change:
            self._stopped = True
            self._change.notify()
        self._thread.join(STOP_SECONDS)

    def alive(self) -> bool:
        return self._thread.is_alive()

    def _run(self) -> None:
        while True:
            with self._change:
                self._change.wait_for(lambda: self.waiting or self.live or self._stopped)
                if self._stopped:
                    return
                self.waiting = deque(job for job in self.waiting if not job.cancelled)
                joining = [self.waiting.popleft() for _ in range(min(self._decoder.room(), len(self.waiting)))]
            try:
                if joining:
                    self._join(joining)
                self._leave()
                if self.live:
                    self._advance(self._decoder.step([job.tokens[-1] for job in self.live]), self.live, 0)
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
        logits = self._decoder.admit([job.prompt for job in jobs], [job.whole for job in jobs])
        first = len(self.live)
        self.live += jobs
        if len(self._seen) < len(self.live):
            more = np.zeros((len(self.live) - len(self._seen), self._decoder.vocabulary), dtype=bool)
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
            self._decoder.drop(number)
            self._end(job)

    def _fail(self, error: str, jobs: list[Job]) -> None:
        self.live.clear()
        while self._decoder.count:
            self._decoder.drop(self._decoder.count - 1)
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
