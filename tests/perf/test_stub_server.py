"""The stub server of perf/: its slots bind, its texts are a function of prompt and seed, its faults are drawn."""

import asyncio
import json
import time
from collections import Counter

import aiohttp
import pytest

from perf.generation import bound, ideal, utilisation
from perf.stub_server import Connection, Stub, parser, text_of, tokens_of


async def exchange(requests: int, *options: str, timeout_s: float = 30.0) -> tuple[Counter, list[str], dict]:
    """(statuses and kinds of trouble, texts, report) of requests that are sent at once."""
    chosen = parser().parse_args(options)
    stub = Stub(chosen)
    loop = asyncio.get_running_loop()
    server = await loop.create_server(lambda: Connection(stub), "127.0.0.1", 0, backlog=1000)
    url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    outcomes: Counter = Counter()
    deadline = aiohttp.ClientTimeout(total=timeout_s)
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0), timeout=deadline) as http:

        async def ask(number: int) -> str:
            body = {"inputs": f"prompt {number}", "parameters": {"seed": number, "max_new_tokens": 2500}}
            try:
                async with http.post(f"{url}/generate", json=body) as answer:
                    outcomes[answer.status] += 1
                    return (await answer.json())["generated_text"] if answer.status == 200 else ""
            except TimeoutError:
                outcomes["timeout"] += 1
            except aiohttp.ClientError:
                outcomes["reset"] += 1
            return ""

        texts = await asyncio.gather(*(ask(number) for number in range(requests)))
        async with http.get(f"{url}/stub/report?series&keys") as answer:
            report = await answer.json()
        async with http.get(f"{url}/metrics") as answer:
            assert "tgi_batch_current_size 0" in await answer.text()
    server.close()
    return outcomes, texts, report


def test_a_text_depends_on_prompt_and_seed_alone() -> None:
    outcomes, texts, report = asyncio.run(exchange(50, "--speed", "0"))
    assert outcomes == {200: 50} and texts == [text_of(f"prompt {n}", n) for n in range(50)]
    assert len(set(texts)) == 50
    assert (report["answered"], report["duplicates"], set(report["answers"].values())) == (50, 0, {1})


def test_no_more_requests_run_than_there_are_slots() -> None:
    speed = 40_000.0
    work = sum(tokens_of(f"prompt {n}", n) / speed for n in range(60))
    started = time.monotonic()
    outcomes, _, report = asyncio.run(exchange(60, "--speed", str(speed), "--slots", "5", "--max-concurrent", "60"))
    assert outcomes == {200: 60} and time.monotonic() - started >= work / 5
    assert report["work_slot_seconds"] == pytest.approx(work)
    assert report["busy_slot_seconds"] >= work and utilisation(report)[0] <= 1
    assert max(row[1] for row in report["series"]) <= 5


def test_what_its_queue_does_not_hold_is_answered_429() -> None:
    outcomes, _, report = asyncio.run(exchange(40, "--speed", "20000", "--slots", "4", "--max-concurrent", "10"))
    assert outcomes[429] == report["faults"]["overload"] > 0 and outcomes[200] + outcomes[429] == 40


def test_a_client_that_leaves_frees_its_slot() -> None:
    outcomes, _, report = asyncio.run(
        exchange(10, "--speed", "100", "--slots", "2", "--max-concurrent", "10", timeout_s=0.8)
    )
    assert outcomes == {"timeout": 10}
    assert (report["busy"], report["queued"], report["faults"]["gone"]) == (0, 0, 10)


@pytest.mark.slow
def test_faults_are_drawn_and_counted() -> None:
    options = ("--speed", "0", "--p429", "0.2", "--p500", "0.2", "--preset", "0.2", "--pstall", "0.1")
    outcomes, _, report = asyncio.run(exchange(200, *options, timeout_s=5.0))  # time out by the stall alone
    faults = report["faults"]
    assert (outcomes[429], outcomes[500], outcomes["timeout"]) == (faults["429"], faults["500"], faults["stall"])
    assert outcomes["reset"] == faults["reset"] > 20 and outcomes[200] == report["answered"] > 20


def test_requests_in_pieces_and_in_one_piece_are_both_understood() -> None:
    async def talk() -> bytes:
        stub = Stub(parser().parse_args(["--speed", "0"]))
        server = await asyncio.get_running_loop().create_server(lambda: Connection(stub), "127.0.0.1", 0)
        reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
        body = json.dumps({"inputs": "a", "parameters": {"seed": 1}}).encode()
        post = b"POST /generate HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body)
        writer.write(post[:30])
        await asyncio.sleep(0.02)
        writer.write(post[30:-5])
        await asyncio.sleep(0.02)
        writer.write(post[-5:] + post + b"GET /health HTTP/1.1\r\nConnection: close\r\n\r\n")
        answers = await asyncio.wait_for(reader.read(), 5)
        writer.close()
        server.close()
        return answers

    answers = asyncio.run(talk())
    assert answers.count(b"HTTP/1.1 200 OK") == 3 and answers.count(text_of("a", 1).encode()) == 2


def test_the_bounds_of_unequal_servers() -> None:
    never = float("inf")
    assert bound(30, [(0.0, 10)]) == 3
    assert bound(30, [(0.0, 10), (2.0, 5), (3.0, 10)]) == 3.5  # 20 + 5 + 5
    assert ideal([1.0] * 10, [(0.0, never)] * 5) == 2
    assert ideal([1.0, 1.0, 1.0], [(0.0, never), (0.0, 0.5)]) == 3  # the second slot dies with what it has begun
    assert ideal([1.0, 1.0], [(0.0, never), (0.25, never)]) == 1.25
