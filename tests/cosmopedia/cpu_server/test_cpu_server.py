"""The CPU server's promises: TGI's contract, transformers' tokens, and requests that do not disturb each other."""

import asyncio
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from argparse import Namespace
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
import numpy as np
import psutil
import pytest
import torch
from aiohttp.test_utils import TestClient, TestServer
from text_generation.errors import OverloadedError, ValidationError, parse_error
from text_generation.types import Response

from cosmopedia.cpu_server import app, llama
from cosmopedia.cpu_server.app import Server
from cosmopedia.cpu_server.batching import Batcher, DecodeRequest
from cosmopedia.cpu_server.decoding import Decoder, StaticDecoder
from cosmopedia.cpu_server.llama import LlamaDecoder, LlamaWeights
from cosmopedia.cpu_server.sampling import Grammars, SamplingParams, choose, largest
from stages.generator.demonstrations import Demonstration, train_tokenizer
from tests.support.tiny_llama import tiny_llama

TEXTS = [
    "The moon pulls the sea into two bulges, and the earth turns beneath them.",
    "Bread rises because yeast makes gas, and gluten holds the gas in small bubbles.",
    "A number is prime when only one and the number itself divide it.",
]
MAX_LENGTH = 96
pytestmark = pytest.mark.slow  # torch and a model for each server


@dataclass
class Running:
    """A server process and its address."""

    url: str
    process: subprocess.Popen[bytes]
    registration: Path


def tiny_llama_model() -> Any:
    return tiny_llama(
        5,
        hidden_size=32,
        intermediate_size=48,
        vocab_size=320,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=MAX_LENGTH,
        initializer_range=0.3,
        bos_token_id=0,
        eos_token_id=1,
        pad_token_id=2,
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("model")
    rows = [Demonstration("", text, text) for text in TEXTS]
    tokenizer = train_tokenizer(rows, 320, MAX_LENGTH)
    assert len(tokenizer) == 320
    tokenizer.save_pretrained(path)
    tiny_llama_model().save_pretrained(path)
    return path


def start(folder: Path, place: Path, *more: str) -> Running:
    registration = place / "server.json"
    command = [sys.executable, "-m", "cosmopedia.cpu_server.app", "--model", str(folder), "--model-id", "tiny"]
    command += ["--revision", "abc", "--port", "0", "--registration", str(registration), *more]
    process = subprocess.Popen(command, env={**os.environ, "OMP_NUM_THREADS": "1"})
    end = time.monotonic() + 120
    while not registration.exists():
        assert process.poll() is None and time.monotonic() < end, "the server did not come up"
        time.sleep(0.05)
    written = json.loads(registration.read_text())
    assert written["pid"] == process.pid
    return Running(written["url"], process, registration)


@pytest.fixture(scope="module")
def server(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    running = start(folder, tmp_path_factory.mktemp("server"), "--batch-size", "4", "--max-concurrent", "12")
    yield running
    running.process.terminate()
    running.process.wait(60)


def post(url: str, *bodies: Any) -> list[tuple[int, Any]]:
    """(status, JSON) of requests to /generate that are sent at one time."""

    async def one(http: aiohttp.ClientSession, body: Any) -> tuple[int, Any]:
        async with http.post(f"{url}/generate", json=body) as answer:
            return answer.status, await answer.json(content_type=None)

    async def every() -> list[tuple[int, Any]]:
        async with aiohttp.ClientSession() as http:
            return list(await asyncio.gather(*(one(http, body) for body in bodies)))

    return asyncio.run(every())


def fetch(url: str) -> str:
    async def one() -> str:
        async with aiohttp.ClientSession() as http, http.get(url) as answer:
            assert answer.status == 200
            return await answer.text()

    return asyncio.run(one())


def prompt_length(folder: Path, text: str) -> int:
    from tokenizers import Tokenizer

    return len(Tokenizer.from_file(str(folder / "tokenizer.json")).encode(text).ids)


def body(inputs: str, **parameters: Any) -> dict[str, Any]:
    return {"inputs": inputs, "parameters": {"max_new_tokens": 12, "details": True, **parameters}}


def answers(url: str, *bodies: dict[str, Any]) -> list[Response]:
    """The answers, each through the types of the text-generation package."""
    results = post(url, *bodies)
    assert [status for status, _ in results] == [200] * len(bodies), results
    return [Response(**content) for _, content in results]


def ids(response: Response) -> list[int]:
    return [token.id for token in response.details.tokens]


def admitted(decoder: Decoder, prompts: list[list[int]]) -> list[np.ndarray]:
    """The logits after prompts that join; the sequences that are there get no token meanwhile."""
    first, logits = decoder.count, dict[int, np.ndarray]()
    decoder.admit(prompts)
    while len(logits) < len(prompts):
        logits.update(zip(*decoder.step([None] * decoder.count), strict=True))
    return [logits[number] for number in range(first, decoder.count)]


def stepped(decoder: Decoder, tokens: list[int]) -> np.ndarray:
    """The logits after one more token of each sequence."""
    numbers, logits = decoder.step(tokens)
    assert numbers == list(range(len(tokens)))
    return logits


def test_the_lean_forward_has_the_logits_of_transformers_while_sequences_join_and_leave(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(llama, "GROWTH", 4)
    model, prompts = tiny_llama_model(), [[5, 6, 7], [8, 9, 10, 11, 12, 13, 14], [15]]

    def expected(sequence: list[int]) -> np.ndarray:
        with torch.inference_mode():
            return model(torch.tensor([sequence])).logits[0].numpy()

    decoder = LlamaDecoder(LlamaWeights(tiny_llama_model()), 3)
    for prompt in prompts:
        for length in range(1, len(prompt) + 1):
            np.testing.assert_allclose(
                admitted(decoder, [prompt[:length]])[0], expected(prompt)[length - 1], atol=1e-4
            )
            decoder.drop(0)
    after = {tuple(sequence): expected([*sequence, 30, 31])[-2:] for sequence in (*prompts, [20, 21])}
    np.testing.assert_allclose(admitted(decoder, prompts), [expected(p)[-1] for p in prompts], atol=1e-4)
    step = stepped(decoder, [30, 30, 30])
    np.testing.assert_allclose(step, [after[tuple(p)][0] for p in prompts], atol=1e-4)
    decoder.drop(0)
    np.testing.assert_allclose(admitted(decoder, [[20, 21]])[0], expected([20, 21])[-1], atol=1e-4)
    step = stepped(decoder, [31, 31, 30])
    want = [after[tuple(prompts[2])][1], after[tuple(prompts[1])][1], after[(20, 21)][0]]
    np.testing.assert_allclose(step, want, atol=1e-4)


def test_workers_share_one_queue_and_write_what_one_worker_writes() -> None:
    weights = LlamaWeights(tiny_llama_model())

    def run(slots: list[int]) -> tuple[list[list[int]], int]:
        batcher = Batcher([LlamaDecoder(weights, n) for n in slots], {1}, threads=1)
        done, highest = threading.Semaphore(0), 0
        requests = [
            DecodeRequest([5 + i, 6], 9 + i, SamplingParams(seed=i), lambda _: done.release()) for i in range(9)
        ]
        for request in requests:
            batcher.submit(request)
        while not all(request.ended for request in requests):
            highest = max(highest, batcher.load()[1])
            time.sleep(0.0002)
        batcher.stop()
        assert all(done.acquire(timeout=30) for _ in requests) and not any(request.error for request in requests)
        return [request.tokens for request in requests], highest

    (alone, _), (shared, highest) = run([1]), run([2, 2])
    assert alone == shared and 2 < highest <= 4


def test_another_architecture_runs_in_padded_batches_with_the_logits_of_transformers() -> None:
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(2)
    model = GPT2LMHeadModel(GPT2Config(vocab_size=64, n_positions=64, n_embd=16, n_layer=2, n_head=2)).eval()
    decoder = StaticDecoder(model, 4)
    prompts = [[5, 6, 7], [8, 9, 10, 11, 12], [15]]
    with torch.inference_mode():
        first = [model(torch.tensor([p])).logits[0, -1].numpy() for p in prompts]
    np.testing.assert_allclose(admitted(decoder, prompts), first, atol=1e-4)
    decoder.step([1, 2, 3])
    decoder.drop(0)
    assert decoder.room() == 0
    with torch.inference_mode():
        want = [model(torch.tensor([s])).logits[0, -1].numpy() for s in ([15, 3, 4], [8, 9, 10, 11, 12, 2, 6])]
    np.testing.assert_allclose(stepped(decoder, [4, 6]), want, atol=1e-4)


def test_greedy_answers_equal_transformers_generate(server: Running, folder: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModelForCausalLM.from_pretrained(folder)
    for penalty in (1.0, 1.7):
        greedy = answers(server.url, *(body(text, repetition_penalty=penalty) for text in TEXTS))
        for text, answer in zip(TEXTS, greedy, strict=True):
            given = tokenizer(text, return_tensors="pt")
            want = model.generate(**given, max_new_tokens=12, do_sample=False, repetition_penalty=penalty)[0]
            assert ids(answer) == want[given["input_ids"].shape[1] :].tolist()
            assert answer.generated_text == tokenizer.decode(ids(answer), skip_special_tokens=True)
            assert answer.details.seed is None and answer.details.generated_tokens == len(ids(answer))


def test_a_sampled_answer_depends_on_its_seed_and_not_on_its_neighbours(server: Running) -> None:
    bodies = [body(TEXTS[i % 3], seed=i, temperature=0.9, top_p=0.95, max_new_tokens=8 + i % 5) for i in range(11)]
    together = answers(server.url, *bodies)
    alone = [answers(server.url, one)[0] for one in bodies]
    assert [ids(a) for a in together] == [ids(a) for a in alone]
    assert [a.details.seed for a in together] == list(range(11))
    assert len({tuple(ids(a)) for a in together[0::3]}) > 1
    unseeded = answers(server.url, body(TEXTS[0], do_sample=True), body(TEXTS[0], do_sample=True))
    assert unseeded[0].details.seed != unseeded[1].details.seed


def test_sampling_parameters_take_effect() -> None:
    rng = np.random.default_rng(0)
    logits = np.repeat(rng.normal(0, 2, (1, 50)).astype(np.float32), 2000, axis=0)
    unseen, positions = np.zeros(logits.shape, dtype=bool), [0] * 2000

    def drawn(**rules: Any) -> np.ndarray:
        drawn_ids, _ = choose(logits, [SamplingParams(seed=i, **rules) for i in range(2000)], positions, unseen)
        return np.bincount(drawn_ids, minlength=50) / 2000

    chances = np.exp(logits[0].astype(float))
    chances /= chances.sum()
    order = np.argsort(-chances)
    np.testing.assert_allclose(drawn(), chances, atol=0.04)
    assert set(np.flatnonzero(drawn(top_k=3))) == set(order[:3])
    kept = order[: int((np.cumsum(chances[order]) < 0.6).sum()) + 1]
    assert set(np.flatnonzero(drawn(top_p=0.6))) == set(kept)
    assert set(np.flatnonzero(drawn(top_p=0.0001))) == {order[0]}
    assert drawn(temperature=0.1).max() > drawn().max() and drawn(temperature=9.0).max() < drawn().max()
    greedy = choose(logits[:1], [SamplingParams(repetition_penalty=50.0)], [0], logits[:1] == logits[0].max())
    assert greedy[0][0] == order[1]


def test_the_largest_scores_are_those_of_a_sort_also_with_ties() -> None:
    rng = np.random.default_rng(4)
    for size, count in [(49_152, 50), (49_152, 1024), (400, 50), (60, 59), (9, 1), (2, 2)]:
        for scores in (
            rng.normal(size=size) * 3,
            rng.integers(0, 9, size),
            np.where(rng.random(size) < 0.4, -np.inf, 1),
        ):
            found = largest(scores.astype(np.float32), count)
            np.testing.assert_array_equal(np.sort(found), np.sort(scores)[size - count :].astype(np.float32))
            assert count == size or found[0] == found.min()
    assert len(largest(np.full(400, np.nan, np.float32), 50)) == 50


def test_end_of_text_and_length_are_told_apart(server: Running, folder: Path) -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    some = answers(server.url, *(body(TEXTS[0], seed=i, temperature=1.0, max_new_tokens=30) for i in range(12)))
    whole = next(answer for answer in some if answer.details.finish_reason == "length")
    assert whole.details.generated_tokens == len(ids(whole)) == 30
    ended = answers(server.url, *(body("a", seed=i, temperature=50.0, max_new_tokens=90) for i in range(12)))
    ends = [a for a in ended if a.details.finish_reason == "eos_token"]
    assert ends and all(ids(a)[-1] == tokenizer.eos_token_id and a.details.tokens[-1].special for a in ends)
    assert all(a.details.generated_tokens == len(ids(a)) < 90 for a in ends)  # the end of the text counts
    assert not any("</s>" in a.generated_text for a in ends)


@pytest.mark.parametrize(
    ("sent", "message"),
    [
        (body("a", top_p=1.0), "`top_p` must be > 0.0 and < 1.0"),
        (body("a", top_p=0.0), "`top_p` must be > 0.0 and < 1.0"),
        (body("a", temperature=0), "`temperature` must be strictly positive"),
        (body("a", top_k=0), "`top_k` must be strictly positive"),
        (body("a", repetition_penalty=0.0), "`repetition_penalty` must be strictly positive"),
        (body("a", max_new_tokens=0), "`max_new_tokens` must be strictly positive"),
        (body("a", grammar={"type": "regex", "value": "(a"}), "grammar is not valid: unclosed group"),
        (body("a", grammar={"type": "json", "value": 3}), "grammar is not supported"),
        (
            body("a", grammar={"type": "json", "value": {"type": "object"}}),
            "grammar is not valid: Grammar must have a 'properties' field",
        ),
        (
            body("a", grammar={"type": "json", "value": {"properties": {}, "type": "banana"}}),
            "grammar is not valid: Invalid type: banana",
        ),
        (body(""), "`inputs` cannot be empty"),
        (
            body("a", max_new_tokens=96),
            "`inputs` tokens + `max_new_tokens` must be <= 96. Given: 1 `inputs` tokens and 96 `max_new_tokens`",
        ),
    ],
)
def test_a_request_out_of_bounds_is_refused_in_the_words_of_tgi(server: Running, sent: Any, message: str) -> None:
    ((status, content),) = post(server.url, sent)
    assert (status, content) == (422, {"error": f"Input validation error: {message}", "error_type": "validation"})
    assert isinstance(parse_error(status, content), ValidationError)


def test_a_body_of_wrong_types_is_refused_with_the_place_that_is_wrong(server: Running) -> None:
    results = post(server.url, {"inputs": 3}, body("a", top_k="5"), ["a"], body("a", seed=-1))
    assert [status for status, _ in results] == [422] * 4
    assert "inputs" in results[0][1]["error"] and "parameters.top_k" in results[1][1]["error"]


def test_a_parameter_that_is_not_served_is_refused_unless_it_is_off(server: Running) -> None:
    for name, value in (("typical_p", 0.5), ("stop", ["a"]), ("truncate", 3), ("watermark", True), ("best_of", 2)):
        ((status, content),) = post(server.url, body("a", **{name: value}))
        assert status == 422 and f"parameters.{name}" in content["error"], content
    off = {"typical_p": None, "stop": [], "watermark": False, "decoder_input_details": False, "seed": 0}
    (one, two) = answers(server.url, body("a", do_sample=True, **off), body("a", do_sample=True, seed=0))
    assert ids(one) == ids(two) and one.details.seed == 0


def test_more_requests_than_allowed_are_answered_429_at_once_and_the_others_are_served(server: Running) -> None:
    results = post(server.url, *(body(TEXTS[i % 3], seed=i, temperature=1.0, max_new_tokens=60) for i in range(40)))
    statuses = [status for status, _ in results]
    assert statuses.count(200) >= 12 and set(statuses) == {200, 429}
    overloaded = next(content for status, content in results if status == 429)
    assert overloaded == {"error": "Model is overloaded", "error_type": "overloaded"}
    assert isinstance(parse_error(429, overloaded), OverloadedError)


def test_an_answer_has_details_on_request_and_the_number_of_prompt_tokens(server: Running, folder: Path) -> None:
    from tokenizers import Tokenizer

    async def ask(parameters: dict[str, Any]) -> tuple[str, Any]:
        sent = {"inputs": TEXTS[0], "parameters": {"max_new_tokens": 12, **parameters}}
        async with aiohttp.ClientSession() as http, http.post(f"{server.url}/generate", json=sent) as answer:
            return answer.headers["x-prompt-tokens"], await answer.json()

    (count, bare), (_, detailed) = asyncio.run(ask({})), asyncio.run(ask({"details": True}))
    assert bare == {"generated_text": detailed["generated_text"]}
    tokens = Response(**detailed).details.tokens
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    assert tokenizer.decode([token.id for token in tokens]) == bare["generated_text"]
    assert all(token.text == tokenizer.decode([token.id]) and token.logprob < 0 for token in tokens)
    assert int(count) == prompt_length(folder, TEXTS[0])


def test_gauges_rise_with_work_and_fall_after_it(server: Running) -> None:
    def values(text: str) -> dict[str, float]:
        return {k: float(v) for k, v in (line.rsplit(" ", 1) for line in text.splitlines() if line[0] != "#")}

    async def watch() -> list[dict[str, float]]:
        async with aiohttp.ClientSession() as http:

            async def ask(number: int) -> None:
                sent = body("a", seed=number, temperature=0.01, max_new_tokens=90)
                async with http.post(f"{server.url}/generate", json=sent) as answer:
                    assert answer.status == 200

            tasks, seen = [asyncio.create_task(ask(n)) for n in range(10)], []
            while not all(task.done() for task in tasks):
                async with http.get(f"{server.url}/metrics") as answer:
                    seen.append(values(await answer.text()))
            return seen

    seen = asyncio.run(watch())
    assert max(s["tgi_batch_current_size"] for s in seen) == 4
    assert max(s["tgi_queue_size"] for s in seen) >= 1
    after = values(fetch(f"{server.url}/metrics"))
    assert after["tgi_batch_current_size"] == after["tgi_queue_size"] == 0
    info = json.loads(fetch(f"{server.url}/info"))
    assert (info["model_id"], info["model_sha"]) == ("tiny", "abc")
    assert (info["max_total_tokens"], info["max_concurrent_requests"]) == (MAX_LENGTH, 12)
    assert fetch(f"{server.url}/health") == ""


def test_a_grammar_holds_whatever_the_seed_and_its_end_is_the_end_of_the_text(server: Running) -> None:
    schema = {
        "type": "object",
        "properties": {"a": {"type": "boolean"}, "b": {"enum": ["x", "y"]}},
        "required": ["a", "b"],
        "additionalProperties": False,
    }
    forms = [
        {"type": "regex", "value": "[0-9]{3}-(moon|sea)"},
        {"type": "json", "value": schema},
        {"type": "json", "value": json.dumps(schema)},
    ]
    free = [body(TEXTS[i], seed=i, temperature=1.0) for i in range(3)]
    bound = [body("a", seed=i, temperature=3.0, max_new_tokens=80, grammar=forms[i % 3]) for i in range(6)]
    texts = answers(server.url, *free, *bound, body("a", grammar=forms[0], max_new_tokens=80))
    for number, answer in enumerate(texts[3:]):
        assert answer.details.finish_reason == "eos_token" and answer.details.tokens[-1].special
        if number % 3 == 0:
            assert re.fullmatch("[0-9]{3}-(moon|sea)", answer.generated_text)
        else:
            value = json.loads(answer.generated_text)
            assert set(value) == {"a", "b"} and value["a"] in (True, False) and value["b"] in ("x", "y")
    assert len({a.generated_text for a in texts[3::3]}) > 1
    assert [ids(a) for a in texts[:3]] == [ids(a) for a in answers(server.url, *free)]
    (cut,) = answers(server.url, body("a", grammar=forms[0], max_new_tokens=2))
    assert cut.details.finish_reason == "length" and cut.details.generated_tokens == 2


def test_extreme_parameters_still_choose_a_token_that_is_likely() -> None:
    logits = np.array([[-3.0, -2.0, -900.0]], dtype=np.float32)
    for params in (
        SamplingParams(seed=1, temperature=1e-37),
        SamplingParams(seed=1, temperature=1e-37, repetition_penalty=1e-37),
    ):
        tokens, logprobs = choose(logits, [params], [0], np.ones((1, 3), dtype=bool))
        assert tokens[0] in (0, 1) and np.isfinite(logprobs).all()


def test_no_body_breaks_the_server(server: Running) -> None:
    deep = b'{"inputs":' + b"[" * 100_000 + b"]" * 100_000 + b"}"
    schema = '{"properties":{"a":' * 300 + "{}" + "}}" * 300
    bodies = [
        b"",
        b"{",
        b"null",
        b"\xff\xfe\xfa",
        b'{"inputs": "\xc3\x28"}',
        b'{"inputs": "a", "parameters": 3}',
        b'{"inputs": "a", "parameters": {"temperature": NaN}}',
        b'{"inputs": "a", "parameters": {"temperature": 1e999}}',
        b'{"inputs": "\\ud800"}',
        b'{"inputs": "a", "parameters": {"top_p": %d}}' % 10**400,
        b'{"inputs": "a", "parameters": {"seed": %s}}' % (b"9" * 5000),
        deep,
        json.dumps({"inputs": "a", "parameters": {"grammar": {"type": "json", "value": schema}}}).encode(),
        json.dumps({"inputs": "a ", "parameters": {"grammar": {"type": "x", "value": 1}}}).encode(),
        json.dumps({"inputs": "a b" * 200_000}).encode(),
    ]
    big = b'{"inputs": "' + b"a" * (8 << 20) + b'"}'

    async def send() -> list[bytes]:
        errors = []
        async with aiohttp.ClientSession() as http:
            for sent in (*bodies, big):
                kind = {"Content-Type": "application/json"}
                async with http.post(f"{server.url}/generate", data=sent, headers=kind) as answer:
                    errors.append(await answer.read())
                    assert 400 <= answer.status < 500 and (answer.status == 413) == (sent is big), sent[:80]
        return errors

    assert all("error" in json.loads(content) for content in asyncio.run(send()))
    assert fetch(f"{server.url}/health") == "" and gauges(server.url) == (0, 0)


def gauges(url: str) -> tuple[float, float]:
    """(queue, batch) of /metrics."""
    values = dict(line.rsplit(" ", 1) for line in fetch(f"{url}/metrics").splitlines())
    return float(values["tgi_queue_size"]), float(values["tgi_batch_current_size"])


class Brittle:
    """A decoder that fails at its third step, the first of which reads prompts, and, when `fatal`, ends its thread."""

    vocabulary = 320

    def __init__(self, fatal: bool):
        self.count, self.fatal, self.steps = 0, fatal, 0

    def room(self) -> int:
        return 2 - self.count

    def admit(self, prompts: list[list[int]]) -> None:
        self.count += len(prompts)

    def step(self, tokens: Sequence[int | None]) -> tuple[list[int], np.ndarray]:
        self.steps += 1
        if self.steps == 3:
            raise (SystemExit if self.fatal else ValueError)("broken")
        return list(range(self.count)), np.zeros((self.count, 320), dtype=np.float32)

    def drop(self, number: int) -> None:
        self.count -= 1


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
@pytest.mark.parametrize("fatal", [False, True])
def test_an_error_of_the_model_fails_the_requests_it_meets_and_health_tells_of_a_dead_thread(
    folder: Path, fatal: bool
) -> None:
    served, batcher = served_in_process(folder, fatal, host="127.0.0.1")

    async def ask() -> tuple[list[int], int, int]:
        async with TestClient(TestServer(served.application())) as http:

            async def one() -> int:
                async with http.post("/generate", json=body("a")) as answer:
                    content = await answer.json()
                    assert answer.status == 200 or content["error_type"] == "generation"
                    return answer.status

            first = list(await asyncio.gather(*(one() for _ in range(4))))
            return first, await one(), (await http.get("/health")).status

    first, later, health = asyncio.run(ask())
    assert first.count(424) == (4 if fatal else 2), first
    assert (later, health) == ((424, 503) if fatal else (200, 200))
    assert batcher.load() == (0, 0) and served.active == 0
    batcher.stop()


def raw(url: str, *lines: bytes, then: bytes = b"") -> bytes:
    """The first line that the server answers to these header lines, and the rest of the body."""
    with socket.create_connection(("127.0.0.1", int(url.rsplit(":", 1)[1]))) as connection:
        connection.settimeout(10)
        connection.sendall(b"\r\n".join(lines) + b"\r\n\r\n" + then)
        return connection.recv(1000).split(b"\r\n")[0]


FOREIGN = [
    b"Host: evil.example",
    b"Host: evil.example:8080",
    b"Host: 127.0.0.1.evil.example",
    b"Host: [::2]:80",
    b"Host: [",
    b"Host: localhost\r\nOrigin: https://evil.example",
    b"Host: localhost\r\nOrigin: null",
]
OURS = [b"Host: 127.0.0.1:8080", b"Host: [::1]", b"Host: LOCALHOST:1\r\nOrigin: http://127.0.0.1:3000"]


def test_the_loopback_server_answers_to_no_foreign_host_or_origin(server: Running) -> None:
    for request in (b"GET /info HTTP/1.1", b"POST /generate HTTP/1.1"):
        for header in FOREIGN:
            status = raw(server.url, request, header, b"Content-Length: 2", then=b"{}")
            assert status.startswith((b"HTTP/1.1 403", b"HTTP/1.0 400")), (header, status)
    for header in OURS:
        assert raw(server.url, b"GET /info HTTP/1.1", header) == b"HTTP/1.1 200 OK"


def served_in_process(folder: Path, fatal: bool = False, **options: object) -> tuple[Server, Batcher]:
    """The HTTP side over a decoder that fails."""
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    batcher = Batcher([Brittle(fatal)], {1}, threads=1)
    chosen = Namespace(max_concurrent=4, batch_size=2, model_id="tiny", revision="abc", **options)
    return Server(batcher, Grammars(tokenizer, 320, {1}), tokenizer, MAX_LENGTH, chosen), batcher


def test_an_authorisation_that_is_no_text_is_refused_as_a_wrong_one(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COSMO_SERVING_KEY", "right")
    served, batcher = served_in_process(folder, host="0.0.0.0")

    async def statuses() -> list[bytes]:
        async with TestServer(served.application()) as http:
            head = (b"POST /generate HTTP/1.1", b"Host: node12", b"Content-Length: 2")
            shown = (b"Bearer \xff", b"Bearer \xc3\xa4", b"Bearer wrong", b"", b"Bearer right")
            keys = [b"Authorization: " + key for key in shown]
            return [
                await asyncio.to_thread(raw, str(http.make_url("")).rstrip("/"), *head, k, then=b"{}") for k in keys
            ]

    results = asyncio.run(statuses())
    batcher.stop()
    assert [status.split()[1] for status in results] == [b"401"] * 4 + [b"422"]  # {} is no request


def test_half_sent_requests_time_out_and_others_do_not(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(app, "REQUEST_SECONDS", 0.5)
    served, batcher = served_in_process(folder, host="127.0.0.1")
    halves = [b"", b"POST /generate HTTP/1.1\r\nHost: loc", b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n"]
    body = b"POST /generate HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100\r\n\r\n{"

    async def one(port: int, sent: bytes) -> tuple[bytes, float]:
        began = time.monotonic()
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(sent)
        try:
            return await reader.read(), time.monotonic() - began
        except ConnectionResetError:
            return b"", time.monotonic() - began
        finally:
            writer.close()

    async def every() -> list[tuple[bytes, float]]:
        async with TestServer(served.application()) as http:

            async def sweep() -> None:
                while True:
                    served.close_half_sent(http.handler.connections if http.handler else [], time.monotonic())
                    await asyncio.sleep(0.05)

            sweeper = asyncio.create_task(sweep())
            results = await asyncio.wait_for(asyncio.gather(*(one(http.port or 0, x) for x in (*halves, body))), 10)
            sweeper.cancel()
            return results

    answers = asyncio.run(every())
    batcher.stop()
    assert all(0.4 < seconds < 5 for _, seconds in answers)
    assert [content.split(b"\r\n")[0] for content, _ in answers] == [
        b"",
        b"",
        b"HTTP/1.1 200 OK",
        b"HTTP/1.1 408 Request Timeout",
    ]
    assert b"was not complete within 0.5 s" in answers[3][0]


@pytest.fixture(scope="module")
def narrow(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A server that decodes one sequence at a time, so that many wait."""
    running = start(folder, tmp_path_factory.mktemp("narrow"), "--batch-size", "1", "--max-concurrent", "64")
    yield running
    if running.process.poll() is None:
        running.process.terminate()
        running.process.wait(60)


def leave(url: str, sent: dict[str, Any], count: int) -> None:
    """Send a request over each of `count` sockets and close them a moment later."""
    content = json.dumps(sent).encode()
    kind = "Content-Type: application/json"
    head = f"POST /generate HTTP/1.1\r\nHost: localhost\r\n{kind}\r\nContent-Length: {len(content)}\r\n\r\n"
    address = ("127.0.0.1", int(url.rsplit(":", 1)[1]))
    sockets = [socket.create_connection(address) for _ in range(count)]
    for connection in sockets:
        connection.sendall(head.encode() + content)
    end = time.monotonic() + 60
    while sum(gauges(url)) < count / 2:
        assert time.monotonic() < end, "the requests do not arrive"
    for connection in sockets:
        connection.close()


def test_clients_that_leave_free_their_slots_and_rows(narrow: Running) -> None:
    def worked() -> float:  # CPU seconds, which a busy machine does not stretch
        spent = psutil.Process(narrow.process.pid).cpu_times()
        return spent.user + spent.system

    sent = body("a", max_new_tokens=90, seed=1, repetition_penalty=1.1)
    before = worked()
    post(narrow.url, sent)
    one = worked() - before
    leave(narrow.url, sent, 64)
    before = worked()
    while gauges(narrow.url) != (0, 0):
        assert worked() - before < 20 * one + 2, "the slots are still taken"  # answering all takes 64
        time.sleep(0.05)
    results = post(narrow.url, *[body("a", max_new_tokens=1)] * 64)
    assert [status for status, _ in results] == [200] * 64


def test_gauges_and_health_are_quick_and_true_while_all_slots_are_taken(narrow: Running) -> None:
    waits: list[float] = []

    async def watch() -> tuple[list[int], list[float]]:
        connector = aiohttp.TCPConnector(limit=0)
        async with aiohttp.ClientSession(connector=connector) as http:

            async def ask(number: int) -> int:
                sent = body("a", seed=number, temperature=0.01, max_new_tokens=30)
                async with http.post(f"{narrow.url}/generate", json=sent) as answer:
                    await answer.read()
                    return answer.status

            tasks, sums = [asyncio.create_task(ask(n)) for n in range(80)], []
            while not all(task.done() for task in tasks):
                for path in ("/metrics", "/health"):
                    began = time.monotonic()
                    async with http.get(narrow.url + path) as answer:
                        assert answer.status == 200
                        text = await answer.text()
                    waits.append(time.monotonic() - began)
                    if path == "/metrics":
                        values = dict(line.rsplit(" ", 1) for line in text.splitlines())
                        sums.append(float(values["tgi_queue_size"]) + float(values["tgi_batch_current_size"]))
            return [task.result() for task in tasks], sums

    statuses, sums = asyncio.run(watch())
    assert statuses.count(200) >= 64 and set(statuses) <= {200, 429}
    assert 32 < max(sums) <= 64 and gauges(narrow.url) == (0, 0)
    assert sorted(waits)[int(len(waits) * 0.99)] < 1, sorted(waits)[-5:]  # one behind all 64 waits for seconds
    assert statuses.count(429) > 0


def test_a_signal_ends_the_server_at_once_however_many_wait(narrow: Running) -> None:
    async def ask() -> list[Any]:
        async with aiohttp.ClientSession() as http:
            sent = body("a", max_new_tokens=90)
            tasks = [
                asyncio.create_task(http.post(f"{narrow.url}/generate", json=sent).__aenter__()) for _ in range(60)
            ]
            await asyncio.sleep(0.1)
            narrow.process.send_signal(signal.SIGTERM)
            return list(await asyncio.gather(*tasks, return_exceptions=True))

    results = asyncio.run(ask())
    assert narrow.process.wait(60) == 0
    assert sum(isinstance(result, aiohttp.ClientError) for result in results) > 30  # not answered first
    assert not narrow.registration.exists()
