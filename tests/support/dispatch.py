"""A dispatch in one call, with waits that suit a test."""

import time
from collections.abc import Iterable, Iterator

import pytest

from cosmopedia.execution.client import endpoints
from cosmopedia.execution.client.dispatcher import Dispatcher, Outcome
from cosmopedia.execution.client.endpoints import Pool
from cosmopedia.execution.client.http import Identity
from cosmopedia.execution.compute import EndpointSpec, ExternalServing
from cosmopedia.generation.answers import AnswerReader
from cosmopedia.generation.requests import Completion, PendingRequest, Request, Sampling
from tests.support.fake_tgi import text_of


class Words:
    """A model whose tokens are words."""

    max_length = 400
    opens_thought = False

    def count_tokens(self, rendered: list[str]) -> list[int]:
        return [self.count_text(text) for text in rendered]

    def count_text(self, text: str) -> int:
        return len(text.split())


SAMPLING = Sampling(temperature=0.8, top_p=1.0, top_k=50, repetition_penalty=None, max_new_tokens=20)


@pytest.fixture(autouse=True)
def short_rests(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(endpoints, "REST_SECONDS", (0.02, 0.1))
    monkeypatch.setattr(endpoints, "MEMBER_SECONDS", 0.05)
    monkeypatch.setattr(endpoints, "POLL_SECONDS", 0.05)


def serving(**changes: object) -> ExternalServing:
    values = {
        "engine": "external",
        "endpoints": [],
        "gpus": 0,
        "tokens_per_second": None,
        "concurrency": 8,
        "request_timeout_s": 5.0,
        "startup_timeout_s": 5.0,
        "attempts": 3,
        "max_failed_share": 1.0,
    }
    return ExternalServing.model_validate({**values, **changes})


def jobs(count: int, word: str = "prompt") -> list[PendingRequest]:
    return [PendingRequest(Request(f"{word}-{n}", f"{word} {n}", n, 0), f"{n:032x}", 3) for n in range(count)]


class Run:
    """One dispatch; `committed` is what reached the store, `urls` the servers that are up, also while it runs.

    It begins when all servers have joined: on a busy machine one could otherwise be done before another is there.
    """

    def __init__(self, urls: Iterable[str], concurrency: int = 8, before: int = 0, **changes: object):
        self.committed: list[Completion] = []
        self.settings = serving(concurrency=concurrency, **changes)
        self.urls = list(urls)
        self.specs: list[EndpointSpec] = []
        self.before = before

    def __call__(self, work: Iterable[PendingRequest]) -> Outcome:
        def members() -> list[EndpointSpec]:
            return self.specs or [EndpointSpec(url=url) for url in self.urls]

        self.pool = Pool(members, self.settings, SAMPLING, Identity("fake-1b", "r1", 400))
        reader = AnswerReader(Words(), SAMPLING.max_new_tokens)
        store = self.committed.extend
        return Dispatcher("test", self.pool, self.settings, reader, commit=store, before=self.before).run(
            self._once_all_have_joined(work, len(members()))
        )

    def _once_all_have_joined(self, work: Iterable[PendingRequest], count: int) -> Iterator[PendingRequest]:
        deadline = time.monotonic() + 10
        while len(self.pool.endpoints) < count > 1 and time.monotonic() < deadline:
            time.sleep(0.01)
        yield from work

    def assert_all_once(self, work: list[PendingRequest]) -> None:
        wanted = {job.key: text_of(job.request.prompt, job.request.seed) for job in work}
        assert len(self.committed) == len(wanted)
        assert {c.key: c.text for c in self.committed} == wanted
