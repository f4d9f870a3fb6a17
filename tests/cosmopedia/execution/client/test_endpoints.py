"""Endpoints that differ, join, leave, stall and ask for a token: each gets what it can take, and nothing is lost."""

import threading
import time

import pytest

from cosmopedia.core.errors import ClusterError, ConfigError
from cosmopedia.execution.client import endpoints
from cosmopedia.execution.compute import EndpointSpec
from cosmopedia.generation.answers import Answer, MalformedAnswer
from cosmopedia.generation.apis import Load, OpenAiApi, TgiApi
from cosmopedia.generation.requests import Request, Sampling
from tests.support.dispatch import SAMPLING, Run, jobs, short_rests  # noqa: F401  (the fixture)
from tests.support.fake_tgi import FakeTgi


def test_an_openai_style_endpoint_is_found_out_and_asked_in_its_own_words() -> None:
    with FakeTgi(lambda prompt, n: "length" if prompt == "prompt 3" else "ok", api="openai") as server:
        run = Run([server.url])
        run(jobs(20))
        run.assert_all_once(jobs(20))
        sent = server.parameters[0]
        wanted = {"model": "fake-1b", "max_tokens": 20, "temperature": 0.8, "top_p": 1.0, "top_k": 50}
        assert sent.items() >= {**wanted, "repetition_penalty": 1.0}.items()
        assert {c.finish_reason for c in run.committed} == {"eos_token", "length"}
        assert {c.engine for c in run.committed} == {"vllm/unknown"}


def test_a_mixed_fleet_works_together() -> None:
    with FakeTgi(delay=0.005) as tgi, FakeTgi(delay=0.005, api="openai") as vllm:
        run = Run([tgi.url, vllm.url])
        run(jobs(200))
        run.assert_all_once(jobs(200))
        assert min(len(tgi.answered), len(vllm.answered)) > 20


@pytest.mark.parametrize("fault", [400, 422])
def test_an_openai_error_is_a_failure_in_the_servers_words(fault: int) -> None:
    with FakeTgi(lambda prompt, n: fault if prompt == "prompt 0" else "ok", api="openai") as server:
        (failure,) = Run([server.url])(jobs(5)).failures
        assert failure.reason == "validation" and f"fault {fault}" in failure.detail


def test_an_openai_answer_is_read_whole_or_not_at_all() -> None:
    api = OpenAiApi(SAMPLING, "m")
    usage = {"prompt_tokens": 4, "completion_tokens": 2}
    good = {"choices": [{"text": "a b", "finish_reason": "stop", "stop_reason": None}], "usage": usage}
    assert api.answer(good, {}) == Answer("a b", "eos_token", 2, 4)
    stopped = {"choices": [{"text": "a b", "finish_reason": "stop", "stop_reason": "\n"}], "usage": usage}
    assert api.answer(stopped, {}).finish_reason == "stop_sequence"
    cut = {"choices": [{"text": "a", "finish_reason": "length"}], "usage": {**usage, "completion_tokens": 19}}
    aborted = {"choices": [{"text": "a", "finish_reason": "abort"}], "usage": usage}
    half = {"choices": [{"text": "a \ud83d", "finish_reason": "stop"}], "usage": usage}
    for bad in (
        cut,
        aborted,
        half,
        {"choices": [], "usage": usage},
        {"choices": [{"text": "x"}]},
        [],
        None,
        {"error": "x"},
    ):
        with pytest.raises(MalformedAnswer):
            api.answer(bad, {})


def test_prompt_tokens_come_from_the_server() -> None:
    details = {"finish_reason": "eos_token", "generated_tokens": 3, "seed": 1, "prefill": [], "tokens": []}
    payload = {"generated_text": "abc", "details": details}
    assert TgiApi(SAMPLING).answer(payload, {"x-prompt-tokens": "17"}) == Answer("abc", "eos_token", 3, 17)
    assert TgiApi(SAMPLING).answer(payload, {}).prompt_tokens is None


def test_gauges_are_read_from_tgi_vllm_and_sglang() -> None:
    tgi = "# HELP x\n# TYPE tgi_queue_size gauge\ntgi_queue_size 3\ntgi_batch_current_size 12\n"
    assert TgiApi(SAMPLING).load(tgi) == Load(12, 3)
    vllm = 'vllm:num_requests_running{engine="0"} 5.0\nvllm:num_requests_running{engine="1"} 6.0\n'
    api = OpenAiApi(SAMPLING, "m")
    assert api.load(vllm + 'vllm:num_requests_waiting{engine="0"} 1e0\n') == Load(11, 1)
    assert api.load("sglang:num_running_reqs 4\nsglang:num_queue_reqs 0\n") == Load(4, 0)
    assert api.load(vllm) is None and api.load("nothing 1\n") is None


def test_a_token_is_sent_from_the_environment_and_stands_nowhere(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with FakeTgi(api="openai", token="s3cret-token") as server:
        spec = EndpointSpec(url=server.url, token_env="MY_TOKEN")
        with pytest.raises(ConfigError, match=r"needs a token, but \$MY_TOKEN is not set"):
            spec.token()
        monkeypatch.setenv("MY_TOKEN", "s3cret-token")
        run = Run([])
        run.specs = [spec]
        run(jobs(5))
        run.assert_all_once(jobs(5))
        monkeypatch.setenv("MY_TOKEN", "0ther-token")
        with pytest.raises(ClusterError, match=r"401.*\$MY_TOKEN is refused") as error:
            run(jobs(5))
        shown = "".join(capsys.readouterr()) + str(error.value) + repr(spec)
        assert "s3cret" not in shown and "0ther" not in shown


def test_an_address_with_a_password_in_it_is_refused() -> None:
    with pytest.raises(ValueError, match="url"):
        EndpointSpec(url="http://me:pass@host:80")


@pytest.mark.slow
def test_a_server_that_tells_its_load_gets_a_short_queue_that_never_runs_dry(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(endpoints, "START_LIMIT", 16.0)
    with FakeTgi(delay=0.05, slots=10) as server:
        run = Run([server.url], concurrency=100)
        run(jobs(600))
        run.assert_all_once(jobs(600))
        (endpoint,) = run.pool.left or run.pool.endpoints
        assert endpoint.peak == 10 and endpoint.limit < 20


@pytest.mark.slow
def test_a_slow_servers_queue_does_not_hold_up_a_fast_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(endpoints, "START_LIMIT", 16.0)
    with FakeTgi(delay=0.4, slots=4) as slow, FakeTgi(delay=0.04, slots=20) as fast:
        run = Run([slow.url, fast.url], concurrency=200)
        run(jobs(800))
        run.assert_all_once(jobs(800))
        assert slow.most_waiting <= endpoints.START_LIMIT - 4 and len(fast.answered) > 8 * len(slow.answered)
        (limit,) = [e.limit for e in (*run.pool.endpoints, *run.pool.left) if e.url == slow.url]
        assert limit < 12


@pytest.mark.slow
def test_an_endpoint_that_joins_is_used_and_one_that_leaves_finishes_what_it_has() -> None:
    work = jobs(400)
    with FakeTgi(delay=0.02) as first, FakeTgi(delay=0.02) as second:
        run = Run([first.url], concurrency=4)

        def change() -> None:
            time.sleep(0.4)
            run.urls = [first.url, second.url]
            time.sleep(0.4)
            run.urls = [second.url]

        thread = threading.Thread(target=change)
        thread.start()
        outcome = run(work)
        thread.join()
        run.assert_all_once(work)
        assert outcome.failures == [] and not outcome.retries
        assert len(first.answered) > 50 and len(second.answered) > 100
        assert [e.url for e in run.pool.left if e.draining] == [first.url]


@pytest.mark.slow
def test_what_a_stalled_server_holds_goes_elsewhere_long_before_its_deadline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(endpoints, "STALL_SECONDS", 0.3)
    monkeypatch.setattr("cosmopedia.execution.client.http.PROBE_SECONDS", 0.1)
    work = jobs(300)
    with FakeTgi(delay=0.01, slots=8) as stays, FakeTgi(delay=0.01, slots=8) as stalls:
        threading.Timer(0.1, setattr, (stalls, "silent", True)).start()
        run = Run([stays.url, stalls.url], request_timeout_s=20.0)
        began = time.monotonic()
        outcome = run(work)
        assert time.monotonic() - began < 15
        run.assert_all_once(work)
        assert outcome.retries["stalled"] > 0 and outcome.failures == []


@pytest.mark.slow
def test_a_server_that_comes_back_is_used_again() -> None:
    work = jobs(500)
    with FakeTgi(delay=0.01) as stays:
        fails = {"now": True}

        def script(prompt: str, n: int) -> object:
            return 503 if fails["now"] else "ok"

        with FakeTgi(script, delay=0.005) as back:
            threading.Timer(0.5, fails.update, [{"now": False}]).start()
            run = Run([stays.url, back.url], concurrency=4)
            run(work)
            run.assert_all_once(work)
            assert len(back.answered) > 50
            assert run.pool.endpoints == [] or not any(e.broken for e in run.pool.endpoints)


@pytest.mark.slow
def test_an_open_breaker_lets_one_request_through_at_a_time() -> None:
    with FakeTgi(delay=0.01) as good, FakeTgi(lambda prompt, n: 500) as bad:
        run = Run([good.url, bad.url], concurrency=16, attempts=5)
        outcome = run(jobs(400))
        assert outcome.failures == []
        assert sum(bad.asked.values()) < 16 + 30  # a full limit before the breaker opens, single requests after


def test_an_endpoint_that_refuses_all_alike_is_left_out_and_named(capsys: pytest.CaptureFixture[str]) -> None:
    with FakeTgi(delay=0.005) as good, FakeTgi(lambda prompt, n: 404) as bad:
        run = Run([good.url, bad.url])
        run(jobs(100))
        run.assert_all_once(jobs(100))
        assert f"{bad.url}: 404" in capsys.readouterr().err
        with pytest.raises(ClusterError, match=f"{bad.url}: 404"):
            Run([bad.url])(jobs(100))


def test_no_limit_and_no_penalty_are_said_not_left_to_the_servers_defaults() -> None:
    sampling = Sampling(temperature=0.5, top_p=1.0, top_k=None, repetition_penalty=None, max_new_tokens=9)
    body = OpenAiApi(sampling, "m").body(Request("id", "text", 1, 0))
    assert (body["top_k"], body["repetition_penalty"], body["top_p"]) == (-1, 1.0, 1.0)


def test_a_server_with_a_shorter_context_than_the_models_is_refused() -> None:
    with FakeTgi() as server:
        server.info["max_total_tokens"] = 399
        with pytest.raises(ClusterError, match=r"takes 399 tokens, but generator\.max_length is 400"):
            Run([server.url])(jobs(5))
        server.info["max_total_tokens"] = 400
        Run([server.url])(jobs(5))
