"""The dispatcher against a server with TGI's API and scripted faults: nothing lost, nothing twice, nothing empty."""

import os
import signal
import threading
import time
from collections.abc import Iterator

import pytest

from cosmopedia.core.errors import ClusterError
from cosmopedia.generation.requests import PendingRequest
from tests.support.dispatch import SAMPLING, Run, jobs, serving, short_rests  # noqa: F401  (the fixture)
from tests.support.fake_tgi import FakeTgi


def test_everything_is_delivered_once_under_overload_errors_resets_and_stalls() -> None:
    faults = [429, 500, "reset", "stall", 503, 424]
    work = jobs(120)

    def script(prompt: str, n: int) -> object:
        number = int(prompt.split()[1])
        return faults[number % len(faults)] if number % 4 == 0 and n == 0 else "ok"

    with FakeTgi(script) as server:
        run = Run([server.url], request_timeout_s=0.5)
        outcome = run(work)
        run.assert_all_once(work)
        assert outcome.new == 120 and outcome.failures == [] and outcome.retries.total() == 30
        assert len(server.answered) == len(set(server.answered)) == 120


def test_sampling_parameters_are_sent_as_tgi_takes_them() -> None:
    with FakeTgi() as server:
        Run([server.url])(jobs(1))
        wanted = {"temperature": 0.8, "top_k": 50, "max_new_tokens": 20, "do_sample": True, "details": True, "seed": 0}
        assert server.parameters == [wanted]  # TGI refuses top_p 1.0, so it is left out


@pytest.mark.slow
@pytest.mark.parametrize("fault", [429, 503, 502])
def test_a_server_that_cannot_take_a_request_costs_no_attempt(fault: int) -> None:
    with FakeTgi(lambda prompt, n: fault if n < 4 else "ok") as server:
        run = Run([server.url], attempts=1)
        run(jobs(3))
        run.assert_all_once(jobs(3))


@pytest.mark.slow
@pytest.mark.parametrize(("fault", "reason"), [(500, "server_error"), (504, "server_error"), ("stall", "timeout")])
def test_errors_and_timeouts_spend_the_attempts(fault: object, reason: str) -> None:
    with FakeTgi(lambda prompt, n: fault if prompt == "prompt 1" else "ok") as server:
        run = Run([server.url], request_timeout_s=0.3, attempts=2)
        outcome = run(jobs(3))
        assert [(f.key, f.reason, f.attempts) for f in outcome.failures] == [(f"{1:032x}", reason, 2)]
        assert server.asked["prompt 1"] == 2 and len(run.committed) == 2


def test_a_refused_request_fails_at_once_with_the_servers_words() -> None:
    with FakeTgi(lambda prompt, n: 422 if prompt == "prompt 0" else "ok") as server:
        outcome = Run([server.url])(jobs(4))
        (failure,) = outcome.failures
        assert failure.reason == "validation" and "fault 422" in failure.detail and server.asked["prompt 0"] == 1


def test_an_empty_text_is_never_a_completion() -> None:
    with FakeTgi(lambda prompt, n: "empty" if int(prompt.split()[1]) % 2 else "ok") as server:
        run = Run([server.url])
        outcome = run(jobs(10))
        assert [f.reason for f in outcome.failures] == ["empty"] * 5
        assert len(run.committed) == 5 and all(c.text for c in run.committed)


def test_a_prompt_that_breaks_every_connection_ends_as_a_failure() -> None:
    with FakeTgi(lambda prompt, n: "reset" if prompt == "prompt 2" else "ok") as server:
        outcome = Run([server.url], attempts=1)(jobs(6))
        assert [(f.key, f.reason) for f in outcome.failures] == [(f"{2:032x}", "connection")]
        assert outcome.new == 5


def die_once_it_has_answered(server: FakeTgi) -> None:
    while not server.answered:
        time.sleep(0.01)
    server.die()


def test_when_one_of_two_endpoints_dies_the_other_delivers_the_rest() -> None:
    work = jobs(150)
    with FakeTgi(delay=0.01) as stays, FakeTgi(delay=0.01) as dies:
        threading.Thread(target=die_once_it_has_answered, args=[dies], daemon=True).start()
        run = Run([stays.url, dies.url])
        outcome = run(work)
        run.assert_all_once(work)
        assert outcome.failures == [] and 0 < len(dies.answered) < 75


@pytest.mark.slow
def test_when_no_endpoint_answers_any_more_the_run_ends_and_names_them() -> None:
    with FakeTgi(delay=0.01) as server:
        threading.Timer(0.3, server.die).start()
        run = Run([server.url], startup_timeout_s=0.6, request_timeout_s=2.0)
        with pytest.raises(ClusterError, match=server.url):
            run(jobs(10_000))
        assert len(server.answered) - 8 <= len(run.committed) <= len(server.answered)


def test_too_many_failures_stop_the_run_with_the_reasons_counted() -> None:
    with FakeTgi(lambda prompt, n: 422 if int(prompt.split()[1]) % 2 else "empty") as server:
        with pytest.raises(
            ClusterError, match=r"requests failed \(.*\d+ (empty|validation), \d+ (empty|validation)\)"
        ):
            Run([server.url], max_failed_share=0.05)(jobs(2000))
        assert sum(server.asked.values()) < 100


def test_a_few_lasting_failures_do_not_stop_a_run_that_resumes() -> None:
    with FakeTgi(lambda prompt, n: 422) as server:
        outcome = Run([server.url], max_failed_share=0.05, before=1000)(jobs(30))
        assert len(outcome.failures) == 30


@pytest.mark.slow
def test_a_slow_completion_holds_nobody_up() -> None:
    with FakeTgi(lambda prompt, n: 1.0 if prompt == "prompt 0" else 0.005) as server:
        run = Run([server.url], concurrency=4)
        run(jobs(200))
        assert len(run.committed) == 200
        assert server.answered.index(("prompt 0", 0)) > 100


def test_the_faster_endpoint_gets_more() -> None:
    with FakeTgi(delay=0.005) as fast, FakeTgi(delay=0.4) as slow:
        Run([slow.url, fast.url])(jobs(300))
        assert len(fast.answered) > 3 * len(slow.answered) > 0


@pytest.mark.slow
def test_the_load_settles_at_what_a_server_takes() -> None:
    work = jobs(300)
    with FakeTgi(capacity=5, delay=0.01) as server:
        run = Run([server.url], concurrency=32)
        outcome = run(work)
        run.assert_all_once(work)
        assert server.most_active == 5 and outcome.retries["http_429"] < 150


@pytest.mark.slow
def test_requests_are_prepared_only_as_slots_come_free() -> None:
    ahead = []
    with FakeTgi(delay=0.002) as server:

        def lazy() -> Iterator[PendingRequest]:
            for number, job in enumerate(jobs(600)):
                ahead.append(number - len(server.answered))
                yield job

        Run([server.url], concurrency=4)(lazy())
    assert max(ahead) <= 4 + 2 * 4 + 2 * 64


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_keeps_what_is_in_flight_and_sends_no_more(number: signal.Signals) -> None:
    with FakeTgi(delay=0.3) as server:
        run = Run([server.url])
        threading.Timer(0.15, os.kill, (os.getpid(), number)).start()
        with pytest.raises(KeyboardInterrupt):
            run(jobs(1000))
        assert len(run.committed) == len(server.answered) == 8
