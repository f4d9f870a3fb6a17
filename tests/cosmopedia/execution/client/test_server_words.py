"""What a server says is bounded before it is believed: counts, pauses, texts, refusals, and its words about us."""

import time
from pathlib import Path

import pytest

from cosmopedia.core.errors import ClusterError
from cosmopedia.execution.client import dispatcher, http
from cosmopedia.execution.compute import EndpointSpec
from cosmopedia.generation.apis import TgiApi
from cosmopedia.generation.requests import PendingRequest
from cosmopedia.store.store import CompletionStore
from tests.support.dispatch import SAMPLING, Run, jobs, short_rests  # noqa: F401  (the fixture)
from tests.support.fake_tgi import FakeTgi, Script

TOKEN = "s3cret/t0ken+of=mine"


def some(action: object) -> Script:
    """A script: every fifth prompt, from prompt 0 on, gets the action."""
    return lambda prompt, n: action if prompt[-1] in "05" else "ok"


def with_token(server: FakeTgi, monkeypatch: pytest.MonkeyPatch, **changes: object) -> Run:
    monkeypatch.setenv("MY_TOKEN", TOKEN)
    run = Run([], **changes)
    run.specs = [EndpointSpec(url=server.url, token_env="MY_TOKEN")]
    return run


@pytest.mark.parametrize("api", ["tgi", "openai"])
@pytest.mark.parametrize("tokens", [10**30, 2**31, 600, 0, -7, 1.5, "5", True, None, ...])
def test_a_count_that_cannot_be_true_is_counted_again_and_everything_is_stored(
    api: str, tokens: object, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    work = jobs(20)
    with FakeTgi(some({"tokens": tokens}), api=api) as server:
        run = Run([server.url])
        outcome = run(work)
        run.assert_all_once(work)
        assert outcome.failures == [] and not outcome.retries
        assert f"{server.url} does not count the tokens" in capsys.readouterr().err
    words = {c.key: len(c.text.split()) for c in run.committed}
    odd = {job.key for job in work[::5]}
    assert all(c.tokens == words[c.key] + (c.key in odd) for c in run.committed)  # counted here: with the end of text
    assert outcome.tokens == sum(c.tokens for c in run.committed)
    with CompletionStore(tmp_path) as store:
        store.append(run.committed)
        assert store.contents().tokens == outcome.tokens


@pytest.mark.parametrize("tokens", [20, 600, 1, ...])
def test_a_text_longer_than_was_allowed_costs_an_attempt_and_is_named(tokens: object) -> None:
    long = {"text": "word " * 600, "tokens": tokens}
    with FakeTgi(
        lambda prompt, n: long if prompt == "prompt 0" or (prompt == "prompt 1" and n == 0) else "ok"
    ) as server:
        outcome = Run([server.url])(jobs(6))
    (failure,) = outcome.failures
    assert (failure.key, failure.reason, failure.attempts) == (f"{0:032x}", "server_error", 3)
    assert failure.detail.endswith("answered 200 without a completion: its text has 601 tokens, where 20 were allowed")
    assert outcome.new == 5 and outcome.retries["server_error"] == 4


def test_an_answer_is_not_read_to_its_end_when_it_has_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http, "MAX_BYTES", 1 << 20)
    with FakeTgi(some({"raw": b"x" * (3 << 20)})) as server:
        outcome = Run([server.url])(jobs(5))
    (failure,) = outcome.failures
    assert failure.detail.endswith("answered with more than 1 MB; the rest was not read") and outcome.new == 4


def test_retry_after_for_a_day_sends_the_prompt_elsewhere() -> None:
    work, later = jobs(50), {"status": 429, "headers": {"Retry-After": "86400"}}
    with FakeTgi(some(later), delay=0.01) as server, FakeTgi(delay=0.01) as other:
        run = Run([server.url, other.url])
        began = time.monotonic()
        run(work)
        assert time.monotonic() - began < 60
        run.assert_all_once(work)


def test_a_pause_for_a_day_is_a_refusal_and_is_named() -> None:
    with FakeTgi(some({"status": 429, "headers": {"Retry-After": "86400"}})) as server:
        outcome = Run([server.url])(jobs(5))
    (failure,) = outcome.failures
    assert (failure.reason, failure.attempts) == ("http_429", 3) and outcome.new == 4
    assert failure.detail.endswith("(Retry-After: 86400 s)")


@pytest.mark.parametrize("seconds", ["500", "86400", "9" * 400, "-1", "soon", "²"])
def test_no_pause_is_longer_than_the_longest(seconds: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http, "PAUSE_SECONDS", 0.1)
    later = {"status": 429, "headers": {"Retry-After": seconds}}
    with FakeTgi(lambda prompt, n: later if n == 0 else "ok") as server:
        run = Run([server.url])
        run(jobs(5))
        run.assert_all_once(jobs(5))


@pytest.mark.slow
def test_a_run_without_progress_ends_whatever_was_the_last_answer() -> None:
    """The last prompt waits for a server that completed every other one, and so has no last error."""
    later = {"status": 429, "headers": {"Retry-After": "500"}}

    def script(prompt: str, n: int) -> object:
        return later if prompt == "prompt 0" else 0.2 if prompt == "prompt 9" else "ok"

    with FakeTgi(script) as server:
        run = Run([server.url], startup_timeout_s=1.0, request_timeout_s=1.0)
        with pytest.raises(
            ClusterError, match=r"no completion for \d s \(0 requests are in flight, 1 wait, 1 x http_429 so far\)"
        ):
            run(jobs(10))
        assert len(run.committed) == 9


def test_a_prompt_that_a_limit_never_lets_through_becomes_a_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dispatcher, "OVERLOADS_PER_ATTEMPT", 4)
    monkeypatch.setattr(dispatcher, "OVERLOAD_SECONDS", (0.001, 0.01))
    with FakeTgi(some(429)) as server:
        outcome = Run([server.url])(jobs(5))
        assert [(f.reason, f.attempts) for f in outcome.failures] == [("http_429", 3)] and outcome.new == 4
        assert server.asked["prompt 0"] == 12


@pytest.mark.parametrize("status", [301, 302, 307, 308])
def test_no_redirect_is_followed(status: int) -> None:
    with FakeTgi() as elsewhere:
        location = f"{elsewhere.url.replace('http://', 'http://me:pass@')}/generate?key=hidden"
        with FakeTgi(lambda prompt, n: {"status": status, "headers": {"Location": location}}) as server:
            run = Run([server.url])
            with pytest.raises(
                ClusterError, match=rf"{server.url}: {status} it redirects to http://127\.0\.0\.1;"
            ) as error:
                run(jobs(10))
            assert "hidden" not in str(error.value) and "pass" not in str(error.value)
        assert not elsewhere.asked and run.committed == []


@pytest.mark.parametrize("status", [403, 404])
def test_a_firewall_that_refuses_some_prompts_costs_these_alone(status: int) -> None:
    refused = {"status": status, "error": "blocked by rule 17"}
    with FakeTgi(lambda prompt, n: refused if prompt in ("prompt 0", "prompt 1", "prompt 7") else "ok") as server:
        outcome = Run([server.url])(jobs(40))
    assert sorted(f.key for f in outcome.failures) == [f"{n:032x}" for n in (0, 1, 7)] and outcome.new == 37
    assert {(f.reason, f.attempts) for f in outcome.failures} == {(f"http_{status}", 3)}
    assert all("blocked by rule 17" in f.detail for f in outcome.failures)


def test_a_prompt_that_one_endpoint_refuses_is_completed_by_another() -> None:
    work = jobs(40)
    with FakeTgi(some(403), delay=0.01) as picky, FakeTgi(delay=0.01) as other:
        run = Run([picky.url, other.url])
        outcome = run(work)
        run.assert_all_once(work)
        assert outcome.failures == [] and len(picky.answered) > 5


def test_an_endpoint_that_refuses_every_prompt_is_named_at_once() -> None:
    with FakeTgi(lambda prompt, n: {"status": 403, "error": "no access to this model"}) as server:
        with pytest.raises(ClusterError, match=r"403 .*no access to this model; fix the address, token_env"):
            Run([server.url])(jobs(500))
        assert sum(server.asked.values()) < 30


@pytest.mark.parametrize("api", ["tgi", "openai"])
def test_what_a_content_filter_takes_back_is_a_failure_that_is_not_tried_again(api: str) -> None:
    with FakeTgi(some({"finish_reason": "content_filter"}), api=api) as server:
        outcome = Run([server.url])(jobs(10))
        assert [(f.reason, f.attempts) for f in outcome.failures] == [("content_filter", 1)] * 2 and outcome.new == 8
        assert server.asked["prompt 0"] == 1 and not outcome.retries


ECHOES = [
    {"status": 500, "error": f"cannot parse header 'Authorization: Bearer {TOKEN}'"},
    {"status": 422, "error": "token s3cret%2Ft0ken%2Bof%3Dmine, of hf_abcdefghijkl at https://me:pass@host/"},
    {"finish_reason": f"Bearer {TOKEN}"},
    {"text": f"Once upon a time, {TOKEN}", "tokens": 5},
]


@pytest.mark.parametrize("api", ["tgi", "openai"])
@pytest.mark.parametrize("echo", ECHOES)
def test_an_echoed_token_is_in_no_failure_no_message_and_no_text(
    echo: dict, api: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with FakeTgi(some(echo), api=api, token=TOKEN) as server:
        run = with_token(server, monkeypatch)
        outcome = run(jobs(5))
        assert len(outcome.failures) == 1 and outcome.new == 4
        with pytest.raises(ClusterError) as error:
            with_token(server, monkeypatch, max_failed_share=0.01)([jobs(1)[0]])
    shown = [*map(str, outcome.failures), *map(str, run.committed), str(error.value), *capsys.readouterr()]
    shown += [endpoint.last_error for endpoint in (*run.pool.endpoints, *run.pool.left)]
    assert not any(secret in words for words in shown for secret in ("s3cret", "hf_abc", "pass@"))


BAD = [
    {"raw": b"<html>welcome</html>"},
    {"raw": b"[" * 200_000},
    {"raw": b"{}"},
    {"raw": b'{"generated_text": 5, "details": null, "choices": [3]}'},
    {"finish_reason": "abort"},
    {"finish_reason": ["stop"]},
    {"finish_reason": None},
    {"text": 7},
    {"text": None},
    "reset",
]


@pytest.mark.parametrize("api", ["tgi", "openai"])
@pytest.mark.parametrize("bad", BAD)
def test_a_failures_detail_is_a_sentence(api: str, bad: object) -> None:
    with FakeTgi(some(bad), api=api) as server:
        (failure,) = Run([server.url], attempts=1)(jobs(5)).failures
    assert failure.detail.startswith(f"{server.url}") and len(failure.detail) <= 300
    for python in ("Error", "{'", "b'", "None", "pydantic", "type=", "['"):
        assert python not in failure.detail


def test_a_servers_words_about_itself_are_short_and_of_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    with FakeTgi(token=TOKEN) as server:
        server.info |= {"router": f"x\ud800\n{TOKEN}", "version": ["v" * 10_000]}
        run = with_token(server, monkeypatch)
        run(jobs(1))
    (engine,) = {c.engine for c in run.committed}
    assert engine.startswith("x [redacted]/") and len(engine) < 130 and engine.isprintable()


@pytest.mark.parametrize("value", ["nan", "inf", "-1", "1e300"])
def test_a_gauge_that_cannot_be_true_is_none(value: str) -> None:
    assert TgiApi(SAMPLING).load(f"tgi_queue_size {value}\ntgi_batch_current_size 3\n") is None


def test_a_prompt_is_counted_here_where_the_servers_count_cannot_be_true() -> None:
    with FakeTgi(api="openai") as server:
        pending = [PendingRequest(job.request, job.key) for job in jobs(3)]
        run = Run([server.url])
        run(pending)
        assert {c.prompt_tokens for c in run.committed} == {2}
    details = {"finish_reason": "eos_token", "generated_tokens": 3, "seed": 1, "prefill": [], "tokens": []}
    payload = {"generated_text": "abc", "details": details}
    for header in ("9" * 5000, "-3", "1e3", "²"):
        assert TgiApi(SAMPLING).answer(payload, {"x-prompt-tokens": header}).prompt_tokens is None


def test_a_token_that_would_cross_the_network_in_clear_is_warned_of_once(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("MY_TOKEN", TOKEN)
    http._warn_of_plain_http.cache_clear()
    for url in ("http://node12:8080", "http://node12:8080", "https://node12", "http://127.0.0.1:9", "http://[::1]:9"):
        http.headers_of(EndpointSpec(url=url, token_env="MY_TOKEN"))
    http.headers_of(EndpointSpec(url="http://node13:8080"))
    shown = capsys.readouterr().err
    assert shown.count("\n") == 1 and "http://node12:8080: the token goes over plain http" in shown
    assert TOKEN not in shown


def test_what_names_a_model_need_not_be_a_text() -> None:
    for card in ({"id": ["x"]}, {"id": "other", "root": ["x"]}, "x", None):
        with FakeTgi(api="openai") as server:
            server.cards = [card]
            with pytest.raises(ClusterError, match=r"an OpenAI-style server|serves other"):
                Run([server.url])(jobs(1))
