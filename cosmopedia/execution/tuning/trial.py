"""One trial: servers with some settings complete the same requests, and their tokens per second are measured."""

import time
from collections.abc import Callable, Sequence
from dataclasses import replace

from cosmopedia.core.errors import ClusterError
from cosmopedia.execution.client.dispatcher import Dispatcher
from cosmopedia.execution.client.endpoints import Pool
from cosmopedia.execution.client.http import Identity
from cosmopedia.execution.compute import Serving
from cosmopedia.execution.servers import fleet
from cosmopedia.execution.tuning.knobs import QUANTISATION, Settings, with_settings
from cosmopedia.execution.tuning.search import Trial
from cosmopedia.generation.answers import AnswerReader
from cosmopedia.generation.model import GenerationModel
from cosmopedia.generation.requests import Completion, PendingRequest, Sampling


class _TimeUp(ClusterError):
    """The minutes of the search are used up."""


class Trials:
    """Measures settings on the same requests.

    `keep` gets the completions of trials that write the texts of a run (the store has them then, and the run need not
    send them); `note` is called with the GPU minutes of the running trial, about once a second.
    """

    def __init__(
        self,
        model: GenerationModel,
        serving: Serving,
        sampling: Sampling,
        requests: Sequence[PendingRequest],
        keep: Callable[[list[Completion]], None],
        note: Callable[[float], None],
    ):
        self.model, self.serving, self.sampling, self.requests = model, serving, sampling, requests
        self.keep, self.note = keep, note

    def __call__(self, settings: Settings, minutes: float, changes_text: bool = False) -> Trial:
        """One trial; servers that do not start, or fail, are a trial that failed."""
        serving = with_settings(self.serving, settings)
        model = replace(self.model, quantisation=settings.get(QUANTISATION, self.model.quantisation))
        clock = _Clock(serving.gpus or 1, minutes, self.note)  # without a GPU, the minutes are the machine's
        try:
            completions, speed, whole = self._run(model, serving, clock, changes_text)
        except ClusterError as error:
            return Trial(dict(settings), minutes=clock.minutes, failure=str(error).splitlines()[0][:200])
        if not completions:
            sentence = "nothing was completed in the minutes that are left"
            return Trial(dict(settings), minutes=clock.minutes, failure=sentence)
        speed /= serving.gpus or 1  # GPUs are compared by what each gives
        return Trial(dict(settings), round(speed, 2), round(clock.minutes, 3), completions, whole=whole)

    def _run(
        self, model: GenerationModel, serving: Serving, clock: "_Clock", changes_text: bool
    ) -> tuple[int, float, bool]:
        """(completions, tokens/s from when the first server is up, whether all requests were completed)."""
        whole = True
        with fleet("tune", model, serving, keep=False) as servers:
            identity = Identity(model.model, model.revision, model.max_length, model.loaded_from)
            pool = Pool(servers.members, serving, self.sampling, identity)

            def stop() -> BaseException | None:
                clock.waiting = not pool.endpoints and servers.expecting() is not None
                return servers.tend() or clock.stop()

            reader = AnswerReader(model, self.sampling.max_new_tokens)
            commit = _forget if changes_text else self.keep
            dispatcher = Dispatcher("tune", pool, serving, reader, commit, stop, servers.expecting)
            try:
                dispatcher.run(self.requests)
            except _TimeUp:
                whole = False
            ended, outcome = time.monotonic(), dispatcher.outcome
            began = min((one.since for one in (*pool.endpoints, *pool.left)), default=ended)
        return outcome.new, outcome.tokens / max(ended - began, 1e-9), whole


def _forget(completions: list[Completion]) -> None:
    """What settings wrote that change texts is no completion of the run."""


class _Clock:
    """The GPU minutes of a trial; the time in a queue, before a job runs, is not counted."""

    def __init__(self, gpus: int, left: float, note: Callable[[float], None]):
        self.gpus, self.left, self.note = gpus, left, note
        self.waiting = False
        self.minutes = 0.0
        self._last = self._noted = time.monotonic()

    def stop(self) -> _TimeUp | None:
        now = time.monotonic()
        if not self.waiting:
            self.minutes += (now - self._last) / 60 * self.gpus
        self._last = now
        if now - self._noted > 1:
            self._noted = now
            self.note(self.minutes)
        return _TimeUp("the minutes are used up") if self.minutes > self.left else None
