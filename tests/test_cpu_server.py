"""The CPU server's promises: TGI's contract, transformers' tokens, and requests that do not disturb each other."""

import asyncio
import json
import os
import signal
import subprocess
import sys
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
import numpy as np
import pytest
import torch
from text_generation.errors import OverloadedError, ValidationError, parse_error
from text_generation.types import Response, StreamResponse

from stages.serving import decoding
from stages.serving.batching import Batcher, Job
from stages.serving.choosing import Choice, choose
from stages.serving.decoding import LlamaDecoder, LlamaWeights, StaticDecoder
from stages.serving.tiny_llama import Demonstration, train_tokenizer

TEXTS = [
    "The moon pulls the sea into two bulges, and the earth turns beneath them.",
    "Bread rises because yeast makes gas, and gluten holds the gas in small bubbles.",
    "A number is prime when only one and the number itself divide it.",
]
MAX_LENGTH = 96


@dataclass
class Running:
    """A server process and its address."""

    url: str
    process: subprocess.Popen[bytes]
    registration: Path


def tiny_llama_model() -> Any:
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(5)
    shape = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2}
    config = LlamaConfig(
        **shape,
        vocab_size=320,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=MAX_LENGTH,
        initializer_range=0.3,
        tie_word_embeddings=True,
        bos_token_id=0,
        eos_token_id=1,
        pad_token_id=2,
    )
    return LlamaForCausalLM(config).eval()


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
    command = [sys.executable, "-m", "stages.serving.cpu_server", "--model", str(folder), "--model-id", "tiny"]
    command += ["--revision", "abc", "--port", "0", "--registration", str(registration), *more]
    process = subprocess.Popen(command, env={**os.environ, "OMP_NUM_THREADS": "1"})
    end = time.monotonic() + 120
    while not registration.exists():
        assert process.poll() is None and time.monotonic() < end, "the server did not come up"
        time.sleep(0.05)
    found = json.loads(registration.read_text())
    assert found["pid"] == process.pid
    return Running(found["url"], process, registration)


@pytest.fixture(scope="module")
def server(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    running = start(folder, tmp_path_factory.mktemp("server"), "--batch-size", "4", "--max-concurrent", "12")
    yield running
    running.process.terminate()
    running.process.wait(10)


def post(url: str, *bodies: Any, path: str = "/generate") -> list[tuple[int, Any]]:
    """(status, JSON) of requests that are sent at one time."""

    async def one(http: aiohttp.ClientSession, body: Any) -> tuple[int, Any]:
        async with http.post(url + path, json=body) as answer:
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


def body(inputs: str, **parameters: Any) -> dict[str, Any]:
    return {"inputs": inputs, "parameters": {"max_new_tokens": 12, "details": True, **parameters}}


def answers(url: str, *bodies: dict[str, Any]) -> list[Response]:
    """The answers, each through the types of the text-generation package."""
    results = post(url, *bodies)
    assert [status for status, _ in results] == [200] * len(bodies), results
    return [Response(**content) for _, content in results]


def ids(response: Response) -> list[int]:
    return [token.id for token in response.details.tokens]


def test_the_lean_forward_has_the_logits_of_transformers_while_sequences_join_and_leave(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(decoding, "GROWTH", 4)
    model, prompts = tiny_llama_model(), [[5, 6, 7], [8, 9, 10, 11, 12, 13, 14], [15]]

    def expected(sequence: list[int]) -> np.ndarray:
        with torch.inference_mode():
            return model(torch.tensor([sequence])).logits[0].numpy()

    sequences = [*map(list, prompts), [20, 21]]
    wanted = [expected(s) for s in sequences]
    followed = {tuple(s): expected([*s, 30, 31])[-2:] for s in sequences}
    decoder = LlamaDecoder(LlamaWeights(tiny_llama_model()), 3)
    got = decoder.admit(prompts, [True] * 3)
    for found, want in zip(got, wanted, strict=False):
        np.testing.assert_allclose(found, want, atol=1e-4)
    step = decoder.step([30, 30, 30])
    np.testing.assert_allclose(step, [followed[tuple(p)][0] for p in prompts], atol=1e-4)
    decoder.drop(0)
    np.testing.assert_allclose(decoder.admit([[20, 21]], [False])[0][-1], wanted[3][-1], atol=1e-4)
    step = decoder.step([31, 31, 30])
    want = [followed[tuple(prompts[2])][1], followed[tuple(prompts[1])][1], followed[(20, 21)][0]]
    np.testing.assert_allclose(step, want, atol=1e-4)


def test_lanes_share_one_queue_and_write_what_one_lane_writes(folder: Path) -> None:
    from tokenizers import Tokenizer

    tokenizer, weights = Tokenizer.from_file(str(folder / "tokenizer.json")), LlamaWeights(tiny_llama_model())

    def run(slots: list[int]) -> tuple[list[list[int]], int]:
        batcher = Batcher([LlamaDecoder(weights, n) for n in slots], tokenizer, {1}, threads=1)
        done, most = threading.Semaphore(0), 0
        jobs = [Job([5 + i, 6], 9 + i, Choice(seed=i), [], False, None, lambda _: done.release()) for i in range(9)]
        for job in jobs:
            batcher.submit(job)
        while any(job.ended_at == 0 for job in jobs):
            most = max(most, batcher.running())
        batcher.stop()
        assert all(done.acquire(timeout=1) for _ in jobs) and not any(job.error for job in jobs)
        return [job.tokens for job in jobs], most

    (alone, _), (shared, most) = run([1]), run([2, 2])
    assert alone == shared and 2 < most <= 4


def test_another_architecture_runs_in_padded_batches_with_the_logits_of_transformers() -> None:
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(2)
    model = GPT2LMHeadModel(GPT2Config(vocab_size=64, n_positions=64, n_embd=16, n_layer=2, n_head=2)).eval()
    decoder = StaticDecoder(model, 4)
    prompts = [[5, 6, 7], [8, 9, 10, 11, 12], [15]]
    decoder.admit(prompts, [False] * 3)
    decoder.step([1, 2, 3])
    decoder.drop(0)
    assert decoder.room() == 0
    with torch.inference_mode():
        want = [model(torch.tensor([s])).logits[0, -1].numpy() for s in ([15, 3, 4], [8, 9, 10, 11, 12, 2, 6])]
    np.testing.assert_allclose(decoder.step([4, 6]), want, atol=1e-4)


def test_greedy_answers_equal_transformers_generate(server: Running, folder: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModelForCausalLM.from_pretrained(folder)
    for penalty in (1.0, 1.7):
        found = answers(server.url, *(body(text, repetition_penalty=penalty) for text in TEXTS))
        for text, answer in zip(TEXTS, found, strict=True):
            given = tokenizer(text, return_tensors="pt")
            want = model.generate(**given, max_new_tokens=12, do_sample=False, repetition_penalty=penalty)[0]
            assert ids(answer) == want[given["input_ids"].shape[1] :].tolist()
            assert answer.generated_text == tokenizer.decode(ids(answer), skip_special_tokens=True)
            assert answer.details.seed is None and answer.details.generated_tokens == len(ids(answer))


def test_a_sampled_answer_depends_on_its_seed_and_not_on_its_neighbours(server: Running) -> None:
    asked = [body(TEXTS[i % 3], seed=i, temperature=0.9, top_p=0.95, max_new_tokens=8 + i % 5) for i in range(11)]
    together = answers(server.url, *asked)
    alone = [answers(server.url, one)[0] for one in asked]
    assert [ids(a) for a in together] == [ids(a) for a in alone]
    assert [a.details.seed for a in together] == list(range(11))
    assert len({tuple(ids(a)) for a in together[0::3]}) > 1
    unseeded = answers(server.url, body(TEXTS[0], do_sample=True), body(TEXTS[0], do_sample=True))
    assert unseeded[0].details.seed != unseeded[1].details.seed


def test_sampling_parameters_take_effect() -> None:
    rng = np.random.default_rng(0)
    logits = np.repeat(rng.normal(0, 2, (1, 50)).astype(np.float32), 2000, axis=0)
    unseen, places = np.zeros(logits.shape, dtype=bool), [0] * 2000

    def drawn(**rules: Any) -> np.ndarray:
        found, _ = choose(logits, [Choice(seed=i, **rules) for i in range(2000)], places, unseen)
        return np.bincount(found, minlength=50) / 2000

    chances = np.exp(logits[0].astype(float))
    chances /= chances.sum()
    order = np.argsort(-chances)
    np.testing.assert_allclose(drawn(), chances, atol=0.04)
    assert set(np.flatnonzero(drawn(top_k=3))) == set(order[:3])
    kept = order[: int((np.cumsum(chances[order]) < 0.6).sum()) + 1]
    assert set(np.flatnonzero(drawn(top_p=0.6))) == set(kept)
    assert set(np.flatnonzero(drawn(top_p=0.0001))) == {order[0]}
    assert drawn(temperature=0.1).max() > drawn().max() and drawn(temperature=9.0).max() < drawn().max()
    assert 0 < np.count_nonzero(drawn(typical_p=0.3)) < np.count_nonzero(drawn())
    greedy = choose(logits[:1], [Choice(repetition_penalty=50.0)], [0], logits[:1] == logits[0].max())
    assert greedy[0][0] == order[1]


def test_stop_sequences_end_of_text_and_length_are_told_apart(server: Running, folder: Path) -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    asked = [body(TEXTS[0], seed=seed, temperature=1.0, max_new_tokens=30) for seed in range(12)]
    found = answers(server.url, *asked)
    number, whole = next((i, a) for i, a in enumerate(found) if a.details.finish_reason == "length")
    assert whole.details.generated_tokens == 30
    stop = next(t.text for t in whole.details.tokens[4:] if t.text.strip())
    asked[number]["parameters"]["stop"] = [stop]
    (stopped,) = answers(server.url, asked[number])
    assert stopped.details.finish_reason == "stop_sequence" and stopped.generated_text.endswith(stop)
    assert ids(stopped) == ids(whole)[: stopped.details.generated_tokens]
    ended = answers(server.url, *(body("a", seed=i, temperature=50.0, max_new_tokens=90) for i in range(12)))
    ends = [a for a in ended if a.details.finish_reason == "eos_token"]
    assert ends and all(ids(a)[-1] == tokenizer.eos_token_id and a.details.tokens[-1].special for a in ends)
    assert not any("</s>" in a.generated_text for a in ends)


def test_a_stream_says_what_generate_says(server: Running) -> None:
    asked = body(TEXTS[1], seed=7, temperature=0.8, max_new_tokens=20)
    (whole,) = answers(server.url, asked)

    async def events(sent: Any) -> list[Any]:
        async with aiohttp.ClientSession() as http, http.post(f"{server.url}/generate_stream", json=sent) as answer:
            assert answer.status == 200 and answer.content_type == "text/event-stream"
            text = (await answer.read()).decode()
        return [json.loads(part.removeprefix("data:")) for part in text.split("\n\n") if part]

    found = [StreamResponse(**event) for event in asyncio.run(events(asked))]
    assert [e.token.id for e in found] == ids(whole)
    assert [e.token.text for e in found] == [t.text for t in whole.details.tokens]
    assert all(e.generated_text is None and e.details is None for e in found[:-1])
    assert found[-1].generated_text == whole.generated_text and found[-1].details is not None
    assert found[-1].details.finish_reason == whole.details.finish_reason and found[-1].details.seed == 7
    (refused,) = asyncio.run(events(body("", seed=1)))
    assert refused["error_type"] == "validation"


@pytest.mark.parametrize(
    ("sent", "message"),
    [
        (body("a", top_p=1.0), "`top_p` must be > 0.0 and < 1.0"),
        (body("a", top_p=0.0), "`top_p` must be > 0.0 and < 1.0"),
        (body("a", typical_p=1.0), "`typical_p` must be > 0.0 and < 1.0"),
        (body("a", temperature=0), "`temperature` must be strictly positive"),
        (body("a", top_k=0), "`top_k` must be strictly positive"),
        (body("a", repetition_penalty=0.0), "`repetition_penalty` must be strictly positive"),
        (body("a", max_new_tokens=0), "`max_new_tokens` must be strictly positive"),
        (body("a", best_of=2), "`best_of` != 1 is not allowed for this endpoint"),
        (body("a", stop=list("abcde")), "`stop` supports up to 4 stop sequences. Given: 5"),
        (body("a", truncate=0), "`truncate` must be strictly positive and less than 96. Given: 0"),
        (body("a", grammar={"type": "regex", "value": "a+"}), "grammar is not supported"),
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


def test_more_requests_than_allowed_are_answered_429_at_once_and_the_others_are_served(server: Running) -> None:
    results = post(server.url, *(body(TEXTS[i % 3], seed=i, temperature=1.0, max_new_tokens=60) for i in range(40)))
    statuses = [status for status, _ in results]
    assert statuses.count(200) >= 12 and set(statuses) == {200, 429}
    overloaded = next(content for status, content in results if status == 429)
    assert overloaded == {"error": "Model is overloaded", "error_type": "overloaded"}
    assert isinstance(parse_error(429, overloaded), OverloadedError)


def test_prompt_details_full_text_truncation_and_the_root_follow_the_contract(server: Running) -> None:
    plain, full, cut, short = answers(
        server.url,
        body(TEXTS[0], decoder_input_details=True),
        body(TEXTS[0], return_full_text=True),
        body(TEXTS[0], truncate=3, decoder_input_details=True),
        body(TEXTS[0]),
    )
    assert "".join(t.text for t in plain.details.prefill) == TEXTS[0]
    assert plain.details.prefill[0].logprob is None and all(t.logprob < 0 for t in plain.details.prefill[1:])  # type: ignore[operator]
    assert full.generated_text == TEXTS[0] + plain.generated_text and short.details.prefill == []
    assert [t.id for t in cut.details.prefill] == [t.id for t in plain.details.prefill[-3:]]
    ((_, bare),) = post(server.url, {"inputs": TEXTS[0], "parameters": {"max_new_tokens": 12}})
    assert bare == {"generated_text": plain.generated_text}
    ((_, root),) = post(server.url, {"inputs": TEXTS[0], "parameters": {"max_new_tokens": 12}}, path="/")
    assert root == [{"generated_text": full.generated_text}]


def test_gauges_rise_with_work_and_fall_after_it(server: Running) -> None:
    def gauges(text: str) -> dict[str, float]:
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
                    seen.append(gauges(await answer.text()))
            return seen

    seen = asyncio.run(watch())
    assert max(s["tgi_batch_current_size"] for s in seen) == 4
    assert max(s["tgi_queue_size"] for s in seen) >= 1
    after = gauges(fetch(f"{server.url}/metrics"))
    assert after["tgi_batch_current_size"] == after["tgi_queue_size"] == 0
    assert after["tgi_request_success"] == after["tgi_request_duration_count"] > 10
    info = json.loads(fetch(f"{server.url}/info"))
    assert (info["model_id"], info["model_sha"]) == ("tiny", "abc")
    assert (info["max_total_tokens"], info["max_concurrent_requests"]) == (MAX_LENGTH, 12)
    assert fetch(f"{server.url}/health") == ""


def test_a_client_that_leaves_frees_its_slot_and_a_signal_ends_the_server(folder: Path, tmp_path: Path) -> None:
    running = start(folder, tmp_path, "--batch-size", "1", "--max-concurrent", "1")

    async def leave() -> None:
        async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=0.03)) as http:
            await http.post(f"{running.url}/generate", json=body("a", max_new_tokens=95))

    with pytest.raises(TimeoutError):
        asyncio.run(leave())
    end = time.monotonic() + 5
    while post(running.url, body("a", max_new_tokens=1))[0][0] != 200:
        assert time.monotonic() < end, "the slot is still taken"
    running.process.send_signal(signal.SIGTERM)
    assert running.process.wait(10) == 0
    assert not running.registration.exists()
