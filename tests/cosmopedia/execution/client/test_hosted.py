"""Hosted endpoints: limits per minute, a price per token, a budget in money, the chat form, forms of styles."""

import json

import pytest

from cosmopedia.core.errors import ConfigError
from cosmopedia.execution.client import charges
from cosmopedia.execution.client.charges import Limits, Size, Wallet
from cosmopedia.execution.client.dispatcher import Dispatcher, Outcome
from cosmopedia.execution.client.endpoints import Pool
from cosmopedia.execution.client.http import Identity
from cosmopedia.execution.compute import EndpointSpec
from cosmopedia.generation.answers import AnswerReader
from cosmopedia.generation.forms import Form, fault, samplings
from cosmopedia.generation.requests import Completion, PendingRequest, Request, completion_key
from tests.support.dispatch import SAMPLING, Words, jobs, serving, short_rests  # noqa: F401
from tests.support.fake_tgi import FakeTgi

SCHEMA = {"type": "object", "properties": {"answer": {"type": "integer"}}, "required": ["answer"]}
QUIZ = samplings({"quiz": Form(json_schema=SCHEMA)}, SAMPLING)["quiz"]


def dispatched(
    work: list[PendingRequest], *specs: EndpointSpec, wallet: Wallet | None = None, system: str | None = None
) -> tuple[Outcome, list[Completion]]:
    """What a dispatch to these endpoints did, and what it stored."""
    stored: list[Completion] = []
    pool = Pool(lambda: list(specs), serving(), SAMPLING, Identity("fake-1b", "r1", 400, None, system), wallet=wallet)
    reader = AnswerReader(Words(), SAMPLING.max_new_tokens)
    return Dispatcher("test", pool, serving(), reader, commit=stored.extend).run(work), stored


def endpoint(server: FakeTgi, **fields: object) -> EndpointSpec:
    return EndpointSpec.model_validate({"url": server.url, "api": server.api, **fields})


def form_job(number: int, text: str = "quiz") -> PendingRequest:
    request = Request(f"quiz-{number}", f"{text} {number}", number, 0, sampling=QUIZ)
    return PendingRequest(request, f"{number:032x}", 2)


def test_a_window_of_a_minute_takes_as_many_requests_and_tokens_as_its_limits() -> None:
    limits = Limits(EndpointSpec(url="http://a", requests_per_minute=3, tokens_per_minute=100))
    size = Size(20, 20)
    assert limits.allows(0.0, size)
    entry = limits.take(0.0, size)
    limits.take(1.0, size)
    assert not limits.allows(2.0, size)  # 120 tokens
    limits.correct(entry, 10)  # the first took 10 of its 40
    assert limits.allows(2.0, size)
    limits.take(2.0, size)
    assert not limits.allows(30.0, Size(1, 1)) and limits.waiting  # three requests
    assert limits.allows(60.0, Size(20, 0))  # the first has left the window
    assert Limits(EndpointSpec(url="http://a", tokens_per_minute=5)).allows(0.0, size)  # larger than the limit: alone


def test_requests_wait_for_an_endpoints_limit_and_all_arrive(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(charges, "WINDOW_SECONDS", 0.5)
    with FakeTgi(api="openai") as server:
        outcome, stored = dispatched(jobs(6), endpoint(server, requests_per_minute=3))
    assert outcome.new == len(stored) == 6 and server.most_active <= 3


def test_a_budget_in_money_is_never_exceeded_and_nothing_paid_is_lost() -> None:
    # A prompt of 3 tokens and 20 new ones cost 23 at most; the fake counts 2 and writes 5.
    wallet = Wallet(limit=100.0, elsewhere=10.0)
    price = {"prompt": 1e6, "completion": 1e6}
    with FakeTgi(api="openai") as server:
        spec = endpoint(server, price=price)
        stored: list[Completion] = []
        pool = Pool(lambda: [spec], serving(), SAMPLING, Identity("fake-1b", "r1", 400), wallet=wallet)
        reader = AnswerReader(Words(), SAMPLING.max_new_tokens)
        with pytest.raises(ConfigError, match=r"max_money is 100, .* of it is spent .* raise it to go on"):
            Dispatcher("test", pool, serving(), reader, commit=stored.extend).run(jobs(50))
    assert len(stored) == len(server.answered), "everything that the server wrote is stored"
    assert wallet.paid == pytest.approx(7 * len(stored)) and wallet.reserved == pytest.approx(0)
    assert 100 - 23 < wallet.elsewhere + wallet.paid <= 100, "as far as the budget goes, and no further"


def test_what_a_provider_may_have_counted_is_paid_and_a_refusal_is_not() -> None:
    price, tokens = {"prompt": 1e6, "completion": 1e6}, SAMPLING.max_new_tokens
    for action, cost in (("empty", 3 + tokens), (422, 0.0)):
        wallet = Wallet()
        with FakeTgi(lambda prompt, n, action=action: action, api="openai") as server:
            dispatched_failing(endpoint(server, price=price), wallet)
        assert wallet.paid == pytest.approx(cost), action


def dispatched_failing(spec: EndpointSpec, wallet: Wallet) -> None:
    from cosmopedia.core.errors import ClusterError

    with pytest.raises(ClusterError):  # its only request fails
        dispatched(jobs(1), spec, wallet=wallet)


def test_the_chat_form_sends_roles_and_has_the_same_key() -> None:
    request = Request("a", "Write of bees.", 1, 0, render=lambda text: f"[system] Be brief. [user] {text}")
    with FakeTgi(api="chat") as server:
        outcome, stored = dispatched([PendingRequest(request, "0" * 32, 3)], endpoint(server), system="Be brief.")
    assert outcome.new == 1 and stored[0].text.startswith("Text ")
    sent = server.parameters[0]
    assert sent["messages"] == [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Write of bees."},
    ]
    assert sent["top_k"] == 50 and "repetition_penalty" not in sent and "prompt" not in sent
    assert completion_key(request, "m", SAMPLING) == completion_key(request, "m", SAMPLING, request.prompt)


def test_a_thought_that_a_server_has_parted_is_kept_apart_and_a_cut_one_is_a_failure() -> None:
    thinking = {"reasoning_content": "Bees dance.", "content": "They dance."}
    cut = {"reasoning_content": "Bees da", "content": None}
    with FakeTgi(lambda prompt, n: {"message": cut if prompt.endswith("1") else thinking}, api="chat") as server:
        outcome, stored = dispatched(jobs(2), endpoint(server))
    assert [one.text for one in stored] == ["<think>Bees dance.</think>They dance."]
    result = AnswerReader(Words(), 20).result(stored[0])
    assert isinstance(result, Completion) and (result.text, result.thought) == ("They dance.", "Bees dance.")
    assert [failure.reason for failure in outcome.failures] == ["truncated_thought"]


@pytest.mark.parametrize(
    ("api", "name", "wanted"),
    [
        ("tgi", "grammar", {"type": "json", "value": SCHEMA}),
        ("openai", "structured_outputs", {"json": SCHEMA}),
        (
            "chat",
            "response_format",
            {"type": "json_schema", "json_schema": {"name": "form", "schema": SCHEMA, "strict": True}},
        ),
    ],
)
def test_a_styles_form_goes_to_each_engine_in_its_own_parameter_and_is_checked(
    api: str, name: str, wanted: object
) -> None:
    texts = {"quiz 0": '{"answer": 4}', "quiz 1": '{"answer": "four"}', "quiz 2": '{"answer": 4'}

    def script(prompt: str, n: int) -> object:
        return {"text": texts[prompt], "tokens": 3} if prompt in texts else "ok"

    with FakeTgi(script, api=api) as server:
        outcome, stored = dispatched([*map(form_job, range(3)), *jobs(1, "plain")], endpoint(server))
    assert sorted(json.dumps(sent.get(name)) for sent in server.parameters) == sorted(
        [*[json.dumps(wanted)] * 3, "null"]
    )
    assert sorted(one.text[:11] for one in stored) == ["Text " + stored_text(stored), '{"answer": ']
    assert [failure.reason for failure in outcome.failures] == ["invalid_form", "invalid_form"]
    assert "$.answer: 'four' is not of type 'integer'" in " ".join(failure.detail for failure in outcome.failures)


def stored_text(stored: list[Completion]) -> str:
    return next(one.text for one in stored if one.text.startswith("Text "))[5:11]


def test_a_form_changes_the_key_of_its_own_style_alone() -> None:
    plain, own = (Request("a", "x", 1, 0), Request("a", "x", 1, 0, sampling=QUIZ))
    assert completion_key(plain, "m", SAMPLING) != completion_key(own, "m", SAMPLING)
    assert "json_schema" not in SAMPLING.canonical
    assert fault("42", samplings({"n": Form(regex="[0-9]+")}, SAMPLING)["n"]) is None


@pytest.mark.parametrize(
    ("form", "complaint"),
    [
        ({}, "give either json_schema or regex"),
        ({"regex": "("}, "not a regular expression"),
        ({"json_schema": {"type": "object"}}, "`properties`"),
        ({"json_schema": {"properties": {"a": {"type": "nonsense"}}}}, "not a JSON schema"),
    ],
)
def test_a_wrong_form_is_refused(form: dict, complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        Form.model_validate(form)


def test_a_form_of_an_unknown_style_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"generate\.forms\.quizz is no style; there are: quiz"):
        samplings({"quizz": Form(regex="a")}, SAMPLING, ["quiz"])
