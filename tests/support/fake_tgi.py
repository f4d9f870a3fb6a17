"""A server with TGI's HTTP API, or an OpenAI-style one, without a model: texts depend on prompt and seed, faults are
scripted.

`FakeTgi(script)` runs in a thread; `python tests/support/fake_tgi.py --registration FILE ...` takes the CPU server's
arguments, takes $FAKE_TGI_DELAY seconds per completion and appends each completed prompt to $FAKE_TGI_LOG. While the
file $FAKE_TGI_HOLDS exists, prompts wait for which the pattern in it matches "<job> <prompt>".
"""

import argparse
import asyncio
import contextlib
import hashlib
import json
import os
import re
import threading
from collections import Counter
from collections.abc import Callable
from pathlib import Path

from aiohttp import web

from cosmopedia.core.files import write_text

Script = Callable[[str, int], object]


def text_of(prompt: str, seed: int) -> str:
    """What the fake writes: the same for the same prompt and seed."""
    return f"Text {hashlib.sha256(f'{prompt} {seed}'.encode()).hexdigest()[:12]} for {prompt[:200]}"


class FakeTgi:
    """`script(prompt, n)` says what happens at the n-th request (from 0) for a prompt.

    "ok" | "empty" | "length" | "reset" | "stall" | a status (429, 500, 422, ...) | seconds to wait before "ok" | a
    dict of what is otherwise than in a good answer: `status`, `headers`, `error`, `raw` (the whole body), `text`,
    `tokens`, `finish_reason`, `message` (of the chat form); `tokens` may be anything, and `...` leaves it out.
    """

    def __init__(
        self,
        script: Script = lambda prompt, n: "ok",
        capacity: int = 10_000,
        delay: float = 0.0,
        model_id: str = "fake-1b",
        model_sha: str | None = None,
        log: Path | None = None,
        port: int = 0,
        api: str = "tgi",
        slots: int | None = None,
        token: str | None = None,
        holds: Path | None = None,
    ):
        self.holds = holds
        self.script, self.capacity, self.delay, self.log, self.port = script, capacity, delay, log, port
        self.api, self.slots, self.token = api, slots, token
        self.batch = asyncio.Semaphore(slots or 10**6)
        self.silent = False  # true: it no longer answers
        self.most_waiting = 0
        self.info = {"model_id": model_id, "model_sha": model_sha, "version": "3.0.0", "router": "fake"}
        self.cards: list[object] = []  # instead of the card of an OpenAI-style server's model
        self.asked: Counter[str] = Counter()
        self.answered: list[tuple[str, int]] = []
        self.parameters: list[dict] = []
        self.active = self.most_active = 0

    async def generate(self, request: web.Request) -> web.Response:
        if self.token and request.headers.get("Authorization") != f"Bearer {self.token}":
            return self.error(401, "a token is needed", "authorisation")
        if self.active >= self.capacity:
            return self.error(429, "Model is overloaded", "overloaded")
        self.active += 1
        self.most_active = max(self.active, self.most_active)
        self.most_waiting = max(self.most_waiting, self.active - (self.slots or self.active))
        try:
            async with self.batch:
                return await self.complete(request)
        finally:
            self.active -= 1

    async def complete(self, request: web.Request) -> web.Response:
        body = await request.json()
        prompts = {"tgi": lambda: body["inputs"], "chat": lambda: body["messages"][-1]["content"]}
        prompt = prompts.get(self.api, lambda: body["prompt"])()
        parameters = body["parameters"] if self.api == "tgi" else body
        self.parameters.append(parameters)
        action = self.script(prompt, self.asked[prompt])
        self.asked[prompt] += 1
        if action == "stall" or self.silent:
            await asyncio.sleep(30)
        if action == "reset":
            assert request.transport is not None
            request.transport.abort()
            return web.Response()
        scripted = action if isinstance(action, dict) else {}
        if "raw" in scripted:
            return web.Response(body=scripted["raw"], content_type="application/json")
        if "status" in scripted:
            answer = self.error(scripted["status"], scripted.get("error", "scripted"), "fault")
            answer.headers.update(scripted.get("headers", {}))
            return answer
        if isinstance(action, int):
            kinds = {429: "overloaded", 422: "validation", 424: "generation"}
            return self.error(action, f"fault {action}", kinds.get(action, "fault"))
        await asyncio.sleep(action if isinstance(action, float) else self.delay)
        while self._waits(prompt):
            await asyncio.sleep(0.2)
        text = "" if action == "empty" else scripted.get("text", text_of(prompt, parameters["seed"]))
        self.answered.append((prompt, parameters["seed"]))
        if self.log:
            with self.log.open("a") as log:
                log.write(json.dumps(prompt) + "\n")
        tokens = scripted.get("tokens", len(str(text).split()))
        if self.api != "tgi":
            reason = scripted.get("finish_reason", "length" if action == "length" else "stop")
            message = {"role": "assistant", "content": text, **scripted.get("message", {})}
            choice = {"index": 0, "finish_reason": reason}
            choice |= {"text": text} if self.api == "openai" else {"message": message}
            tokens = parameters["max_tokens"] if action == "length" else tokens
            usage = {"prompt_tokens": len(prompt.split()), "completion_tokens": tokens}
            usage = {name: value for name, value in usage.items() if value is not ...}
            return web.json_response({"object": "text_completion", "choices": [choice], "usage": usage})
        details = {
            "finish_reason": scripted.get("finish_reason", "length" if action == "length" else "eos_token"),
            "generated_tokens": tokens,
            "seed": parameters["seed"],
            "prefill": [],
            "tokens": [{"id": 1, "text": "T", "logprob": -0.1, "special": False}],
        }
        details = {name: value for name, value in details.items() if value is not ...}
        return web.json_response({"generated_text": text, "details": details})

    def _waits(self, prompt: str) -> bool:
        """Whether the prompt must wait; `<holds>.<job>` tells the test that this server's job has such a prompt."""
        if self.holds is None or not self.holds.exists():
            return False
        job = os.environ.get("SLURM_JOB_ID", "")
        with contextlib.suppress(FileNotFoundError):
            if re.search(self.holds.read_text(), f"{job} {prompt}"):
                self.holds.with_name(f"{self.holds.name}.{job}").touch()
                return True
        return False

    def error(self, status: int, message: str, kind: str) -> web.Response:
        if self.api != "tgi":
            return web.json_response({"error": {"message": message, "type": kind, "code": status}}, status=status)
        return web.json_response({"error": message, "error_type": kind}, status=status)

    async def serve(self) -> web.AppRunner:
        app = web.Application()

        async def health(_: web.Request) -> web.Response:
            if self.silent:
                await asyncio.sleep(30)
            return web.Response()

        async def info(_: web.Request) -> web.Response:
            return web.json_response(self.info)

        async def models(request: web.Request) -> web.Response:
            if self.token and request.headers.get("Authorization") != f"Bearer {self.token}":
                return self.error(401, "a token is needed", "authorisation")
            card = {"id": self.info["model_id"], "object": "model", "owned_by": "vllm", "root": "/models/x"}
            return web.json_response({"object": "list", "data": self.cards or [card]})

        async def metrics(_: web.Request) -> web.Response:
            if self.silent:
                await asyncio.sleep(30)
            slots = self.slots or 0
            names = {"tgi": ("tgi_batch_current_size", "tgi_queue_size")}
            running, waiting = names.get(self.api, ("vllm:num_requests_running", "vllm:num_requests_waiting"))
            labels = "" if self.api == "tgi" else '{engine="0",model_name="x"}'
            load = {running: min(self.active, slots), waiting: max(self.active - slots, 0)}
            return web.Response(text="".join(f"# TYPE {n} gauge\n{n}{labels} {v}.0\n" for n, v in load.items()))

        app.add_routes([web.get("/health", health)])
        if self.api == "tgi":
            app.add_routes([web.post("/generate", self.generate), web.get("/info", info)])
        else:
            path = "/v1/completions" if self.api == "openai" else "/v1/chat/completions"
            app.add_routes([web.post(path, self.generate), web.get("/v1/models", models)])
        if self.slots:
            app.add_routes([web.get("/metrics", metrics)])
        runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", self.port)
        await site.start()
        self.port = site._server.sockets[0].getsockname()[1]  # type: ignore[union-attr]
        self.url = f"http://127.0.0.1:{self.port}"
        return runner

    def __enter__(self) -> "FakeTgi":
        self._loop = asyncio.new_event_loop()
        self._runner = self._loop.run_until_complete(self.serve())
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        return self

    def die(self) -> None:
        """Break every connection and stop answering."""

        def abort() -> None:
            for connection in list(self._runner.server.connections):  # type: ignore[union-attr]
                if connection.transport is not None:
                    connection.transport.abort()

        asyncio.run_coroutine_threadsafe(self._stop_sites(), self._loop).result(5)
        self._loop.call_soon_threadsafe(abort)

    async def _stop_sites(self) -> None:
        for site in list(self._runner.sites):
            await site.stop()

    def __exit__(self, *_: object) -> None:
        asyncio.run_coroutine_threadsafe(self._end(), self._loop).result(10)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(5)

    async def _end(self) -> None:
        """Requests that are still slept over end too: a task left behind complains in whatever test runs later."""
        await self._runner.cleanup()
        left = asyncio.all_tasks() - {asyncio.current_task()}
        for task in left:
            task.cancel()
        await asyncio.gather(*left, return_exceptions=True)


async def main() -> None:
    parser = argparse.ArgumentParser()
    for name in ("model", "model-id", "revision", "port", "batch-size", "max-concurrent"):
        parser.add_argument(f"--{name}", required=True)
    parser.add_argument("--registration")
    parser.add_argument("--host", default="127.0.0.1")
    arguments = parser.parse_args()
    if os.environ.get("FAKE_TGI_SLEEPS"):
        await asyncio.Event().wait()  # it never becomes healthy
    if os.environ.get("FAKE_TGI_DIES"):
        raise SystemExit("cannot load the weights: the fake was told to die")
    log = os.environ.get("FAKE_TGI_LOG")
    holds = os.environ.get("FAKE_TGI_HOLDS")
    fake = FakeTgi(
        delay=float(os.environ.get("FAKE_TGI_DELAY", "0")),
        model_id=arguments.model_id,
        log=Path(log) if log else None,
        port=int(arguments.port),
        token=os.environ.get("COSMO_SERVING_KEY"),
        slots=int(os.environ.get("FAKE_TGI_SLOTS", "0")) or None,
        holds=Path(holds) if holds else None,
    )
    await fake.serve()
    if arguments.registration:
        write_text(Path(arguments.registration), json.dumps({"url": fake.url, "pid": os.getpid()}))
    await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(main())
