"""A cheap stub of a TGI server, so that the client is what is measured.

In: TGI's HTTP contract (POST /generate, GET /health, /info, /metrics). Out: texts that are a function of prompt and
seed, after the time that a slot would have needed, and GET /stub/report: what the slots did (JSON).
It runs `--slots` sequences at a time; further requests wait in its queue, as in TGI's, and above `--max-concurrent` it
answers 429 at once. Faults have probabilities and come before serving. It is written on asyncio.Protocol, because a
web framework would be the bottleneck. Loopback only; it ends when its standard input does, so that it cannot outlive
the process that started it.
Run: python -m perf.stub_server --slots 256 --speed 1000 (prints its address; end it with Ctrl-D)
"""

import argparse
import asyncio
import json
import math
import os
import random
import sys
import time
from collections import deque
from dataclasses import dataclass
from functools import cache
from hashlib import blake2b
from statistics import NormalDist
from typing import Any

MODEL = "stub-1b"
MEAN_TOKENS, SIGMA, MAX_TOKENS = 800, 0.6, 2500  # lognormal, cut; the cut takes 1.4% of the completions
CHARACTERS_PER_TOKEN = 4
SAMPLE_SECONDS = 0.05  # between two rows of the report's series
MAX_HEAD = 64 * 1024
REASONS = {200: "OK", 400: "Bad Request", 404: "Not Found", 429: "Too Many Requests", 500: "Internal Server Error"}
_NORMAL = NormalDist()


@cache
def corpus() -> str:
    """200 kB of made-up words: compresses about as well as prose, and no two slices are alike."""
    draw = random.Random(0)
    letters, words = "etaoinshrdlucmfwyp", []
    vocabulary = ["".join(draw.choices(letters, k=draw.randint(2, 9))) for _ in range(4000)]
    weights = [1 / (rank + 3) for rank in range(len(vocabulary))]
    words = draw.choices(vocabulary, weights, k=36_000)
    return " ".join(words)[:200_000]


def _digest(prompt: str, seed: int | None) -> bytes:
    return blake2b(f"{seed} {prompt}".encode("utf-8", "surrogatepass"), digest_size=16).digest()


def tokens_of(prompt: str, seed: int | None, limit: int = MAX_TOKENS) -> int:
    """How many tokens the stub writes for a prompt."""
    return _tokens(_digest(prompt, seed), limit)


def _tokens(digest: bytes, limit: int) -> int:
    uniform = (int.from_bytes(digest[:8], "little") + 0.5) / 2**64
    length = math.exp(math.log(MEAN_TOKENS) - SIGMA**2 / 2 + SIGMA * _NORMAL.inv_cdf(uniform))
    return max(min(round(length), MAX_TOKENS, limit), 1)


def text_of(prompt: str, seed: int | None, limit: int = MAX_TOKENS, characters: int = 0) -> str:
    """What the stub writes; `characters` 0: four per token."""
    digest = _digest(prompt, seed)
    return _text(digest, characters or CHARACTERS_PER_TOKEN * _tokens(digest, limit))


def _text(digest: bytes, characters: int) -> str:
    words = corpus()
    start = int.from_bytes(digest[8:], "little") % (len(words) - CHARACTERS_PER_TOKEN * MAX_TOKENS)
    return f"{digest.hex()} {words[start : start + characters]}"[: max(characters, 8)]


@dataclass(eq=False, slots=True)
class Work:
    """A request that waits in the queue or has a slot."""

    connection: "Connection"
    digest: bytes
    tokens: int
    cut: bool
    prompt_characters: int
    timer: asyncio.TimerHandle | None = None


class Stub:
    """Slots, queue and what they did. Times are the system's monotonic clock, the same in every process."""

    def __init__(self, options: argparse.Namespace):
        self.options = options
        self.speed: float = options.speed
        self.slots: int = options.slots
        self.max_concurrent: int = options.max_concurrent or options.slots * 4
        self.faulty: bool = any((options.p429, options.p500, options.preset, options.pstall))
        self.draw = random.Random(options.fault_seed)
        self.busy = 0
        self.queue: deque[Work] = deque()
        self.integral = self.changed = 0.0
        self.work = 0.0  # slot-seconds that the completed requests are worth
        self.requests = self.answered = self.stalled = 0
        self.faults = {"429": 0, "500": 0, "reset": 0, "stall": 0, "overload": 0, "gone": 0}
        self.first = self.last = self.full = self.last_answer = 0.0
        self.answers: dict[bytes, int] = {}
        self.series: list[tuple[float, int, int, float, int]] = []

    # -- serving

    def generate(self, connection: "Connection", body: bytes) -> None:
        """Answer at once, begin, queue, refuse or break, depending on chance and load."""
        now = time.monotonic()
        if not self.requests:
            self.first = self.changed = now
            self._sample()
        self.requests, self.last = self.requests + 1, now
        if self._broken(connection):
            return
        try:
            content = json.loads(body)
            prompt, parameters = content["inputs"], content.get("parameters") or {}
            seed, limit = parameters.get("seed"), int(parameters.get("max_new_tokens") or MAX_TOKENS)
        except (ValueError, KeyError, TypeError, AttributeError):
            return connection.error(400, "the body is not a request", "validation")
        digest = _digest(prompt, seed)
        tokens = _tokens(digest, limit)
        work = Work(connection, digest, tokens, limit < MAX_TOKENS and tokens == limit, len(prompt))
        connection.seed = seed
        if not self.speed:
            return self._answer(work)
        if self.busy + len(self.queue) >= self.max_concurrent:
            self.faults["overload"] += 1
            return connection.error(429, "Model is overloaded", "overloaded")
        connection.work = work
        if self.busy < self.slots:
            self._begin(work, now)
        else:
            self.queue.append(work)

    def _broken(self, connection: "Connection") -> bool:
        if not self.faulty:
            return False
        options = self.options
        chance = self.draw.random()
        for name, share in (
            ("429", options.p429),
            ("500", options.p500),
            ("reset", options.preset),
            ("stall", options.pstall),
        ):
            if chance < share:
                self.faults[name] += 1
                if name == "429":
                    connection.error(429, "Model is overloaded", "overloaded")
                elif name == "500":
                    connection.error(500, "a fault was drawn", "generation")
                elif name == "reset":
                    connection.transport.abort()
                return True
            chance -= share
        return False

    def _count(self, change: int, now: float) -> None:
        self.integral += self.busy * (now - self.changed)
        self.changed, self.busy = now, self.busy + change
        if not self.full and self.busy == self.slots:
            self.full = now

    def _begin(self, work: Work, now: float) -> None:
        self._count(1, now)
        work.timer = asyncio.get_running_loop().call_later(work.tokens / self.speed, self._finish, work)

    def _finish(self, work: Work) -> None:
        self._leave(work)
        self._answer(work)

    def _leave(self, work: Work) -> None:
        """Free the slot and give it to the next."""
        now = time.monotonic()
        self._count(-1, now)
        work.timer, work.connection.work = None, None
        if self.queue:
            self._begin(self.queue.popleft(), now)

    def gone(self, work: Work) -> None:
        """The client closed the connection: TGI drops such a request, wherever it is."""
        self.faults["gone"] += 1
        if work.timer is not None:
            work.timer.cancel()
            self._leave(work)
        else:
            self.queue.remove(work)

    def _answer(self, work: Work) -> None:
        digest, connection = work.digest, work.connection
        self.answered += 1
        self.answers[digest] = self.answers.get(digest, 0) + 1
        self.last_answer = time.monotonic()
        if self.speed:
            self.work += work.tokens / self.speed
        text = _text(digest, self.options.text_chars or CHARACTERS_PER_TOKEN * work.tokens)
        reason = "length" if work.cut else "eos_token"
        seed = "null" if connection.seed is None else connection.seed
        # The text is ASCII without quotes, so the JSON needs no encoder.
        content = (
            f'{{"generated_text":"{text}","details":{{"finish_reason":"{reason}","generated_tokens":{work.tokens},'
            f'"seed":{seed},"prefill":[],"tokens":[]}}}}'
        )
        head = f"x-prompt-tokens: {work.prompt_characters // CHARACTERS_PER_TOKEN + 1}\r\n"
        connection.answer(200, content.encode("ascii"), extra=head)

    # -- what it says about itself

    def _sample(self) -> None:
        now = time.monotonic()
        self._count(0, now)
        row = (now, self.busy, len(self.queue), self.integral, self.answered)
        # While nothing happens, one row at each end is enough.
        if len(self.series) > 1 and self.series[-1][1:] == row[1:] == self.series[-2][1:]:
            self.series.pop()
        self.series.append(row)
        asyncio.get_running_loop().call_later(SAMPLE_SECONDS, self._sample)

    def report(self, whole: bool, keys: bool) -> dict[str, Any]:
        """What happened so far. `whole` adds the series, `keys` how often each (prompt, seed) was answered."""
        if self.requests:
            self._count(0, time.monotonic())
        report: dict[str, Any] = {
            "slots": self.slots,
            "speed": self.speed,
            "now": time.monotonic(),
            "requests": self.requests,
            "answered": self.answered,
            "distinct": len(self.answers),
            "duplicates": self.answered - len(self.answers),
            "busy_slot_seconds": self.integral,
            "work_slot_seconds": self.work,
            "busy": self.busy,
            "queued": len(self.queue),
            "first_request": self.first,
            "last_request": self.last,
            "all_busy": self.full,
            "last_answer": self.last_answer,
            "faults": self.faults,
            "cpu_seconds": time.process_time(),
        }
        if whole:
            report["series"] = self.series  # rows of (time, busy, queued, busy slot-seconds so far, answered so far)
        if keys:
            report["answers"] = {key.hex(): count for key, count in self.answers.items()}
        return report

    def get(self, path: str) -> tuple[int, bytes, str]:
        """(status, body, content type) of a GET."""
        name, _, query = path.partition("?")
        if name == "/health":
            return 200, b"", "text/plain"
        if name == "/info":
            info = {"model_id": self.options.model_id, "model_sha": None, "router": "stub", "version": "1.0.0"}
            return (
                200,
                json.dumps({**info, "max_concurrent_requests": self.max_concurrent}).encode(),
                "application/json",
            )
        if name == "/metrics":
            lines = [
                "# TYPE tgi_queue_size gauge",
                f"tgi_queue_size {len(self.queue)}",
                "# TYPE tgi_batch_current_size gauge",
                f"tgi_batch_current_size {self.busy}",
                "",
            ]
            return 200, "\n".join(lines).encode(), "text/plain; version=0.0.4"
        if name == "/stub/report":
            return 200, json.dumps(self.report("series" in query, "keys" in query)).encode(), "application/json"
        return 404, b"{}", "application/json"


class Connection(asyncio.Protocol):
    """HTTP/1.1 with keep-alive and Content-Length, one request at a time; what arrives early waits."""

    transport: asyncio.Transport

    def __init__(self, stub: Stub):
        self.stub = stub
        self.work: Work | None = None
        self.seed: int | None = None
        self._buffer = b""
        self._serving = self._closing = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport

    def connection_lost(self, exc: Exception | None) -> None:
        if self.work is not None:
            self.stub.gone(self.work)

    def data_received(self, data: bytes) -> None:
        self._buffer = self._buffer + data if self._buffer else data
        if not self._serving:
            self._next()

    def _next(self) -> None:
        buffer = self._buffer
        end = buffer.find(b"\r\n\r\n")
        if end < 0:
            if len(buffer) > MAX_HEAD:
                self.transport.abort()
            return
        head = buffer[:end].decode("latin-1")
        first, _, rest = head.partition("\r\n")
        method, _, target = first.partition(" ")
        length = 0
        for line in rest.split("\r\n"):
            name, _, value = line.partition(":")
            name = name.lower()
            if name == "content-length":
                length = int(value) if value.strip().isdigit() else -1
            elif name == "connection":
                self._closing = value.strip().lower() == "close"
            elif name == "transfer-encoding":
                length = -1
        if length < 0:
            self._serving, self._closing = True, True
            return self.error(400, "only bodies with a Content-Length are understood", "validation")
        start = end + 4
        if len(buffer) < start + length:
            return
        body, self._buffer = buffer[start : start + length], buffer[start + length :]
        self._serving = True
        target = target.rpartition(" ")[0]
        if method == "POST" and target == "/generate":
            self.stub.generate(self, body)
        elif method == "GET":
            self.answer(*self.stub.get(target))
        else:
            self.answer(404, b"{}")

    def error(self, status: int, message: str, kind: str) -> None:
        """A refusal in TGI's form."""
        self.answer(status, json.dumps({"error": message, "error_type": kind}).encode())

    def answer(self, status: int, body: bytes, kind: str = "application/json", extra: str = "") -> None:
        """Write one response, then look at what came meanwhile."""
        if self.transport.is_closing():
            return
        if self._closing:
            extra += "connection: close\r\n"
        head = f"HTTP/1.1 {status} {REASONS[status]}\r\ncontent-type: {kind}\r\ncontent-length: {len(body)}\r\n"
        self.transport.write(f"{head}{extra}\r\n".encode("latin-1") + body)
        self._serving = False
        if self._closing:
            self.transport.close()
        elif self._buffer:
            asyncio.get_running_loop().call_soon(self._resume)

    def _resume(self) -> None:
        if not self._serving and not self.transport.is_closing():
            self._next()


def parser() -> argparse.ArgumentParser:
    """The options."""
    options = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    options.add_argument("--port", type=int, default=0, help="0: any free port")
    options.add_argument("--slots", type=int, default=256, help="sequences at a time")
    options.add_argument("--max-concurrent", type=int, default=0, help="with the queue; 0: four times the slots")
    options.add_argument("--speed", type=float, default=1000.0, help="tokens/s of one slot; 0: no latency")
    options.add_argument("--text-chars", type=int, default=0, help="length of each text; 0: four characters per token")
    options.add_argument("--model-id", default=MODEL)
    options.add_argument("--cpu", type=int, default=None, help="the core to stay on")
    options.add_argument("--fault-seed", type=int, default=0)
    for name, meaning in (
        ("429", "answered 429"),
        ("500", "answered 500"),
        ("reset", "connection reset"),
        ("stall", "never answered"),
    ):
        options.add_argument(f"--p{name}", type=float, default=0.0, help=f"share of requests: {meaning}")
    return options


async def serve(options: argparse.Namespace) -> None:
    """Serve until standard input ends."""
    corpus()
    loop, ended = asyncio.get_running_loop(), asyncio.Event()
    stub = Stub(options)
    server = await loop.create_server(lambda: Connection(stub), "127.0.0.1", options.port, backlog=4096)
    print(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}", flush=True)

    def look() -> None:
        if not os.read(sys.stdin.fileno(), 4096):
            ended.set()

    loop.add_reader(sys.stdin.fileno(), look)
    await ended.wait()


if __name__ == "__main__":
    arguments = parser().parse_args()
    if arguments.cpu is not None:
        os.sched_setaffinity(0, {arguments.cpu})
    asyncio.run(serve(arguments))
