"""A server for one model on this machine's CPU, with TGI's HTTP contract, for the rehearsal, the laptop and the tests.

`/generate`, `/generate_stream`, `/` (the one of the two that `stream` says), `/info`, `/health`, `/metrics`; on
loopback only. At most `--batch-size` requests are decoded together, and a new one joins as soon as a slot is free;
more than `--max-concurrent` at a time are answered 429 at once. When it is ready it writes {"url", "pid"} to
`--registration`, and removes that file when it ends. SIGTERM ends it at once; clients see a broken connection and ask
elsewhere.

Alone: python -m stages.serving.cpu_server --model models/generator --model-id tiny --revision local --port 8080
"""

import argparse
import asyncio
import contextlib
import json
import os
import signal
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from aiohttp import web

from stages.errors import ConfigError
from stages.serving.batching import Batcher, Job, TokenText
from stages.serving.decoding import load_model, make_decoders, plan_lanes, torch_threads
from stages.serving.validation import (
    MAX_STOP_SEQUENCES,
    GenerateRequest,
    Refusal,
    check_length,
    check_parameters,
    parse_body,
)

VERSION = "0.1.0"
MAX_BODY = 8 << 20  # bytes
OVERLOADED = {"error": "Model is overloaded", "error_type": "overloaded"}


class Server:
    """The HTTP side: everything here runs in the event loop; `Batcher` holds the model threads."""

    def __init__(self, batcher: Batcher, tokenizer: Any, max_total_tokens: int, options: argparse.Namespace):
        self.batcher, self.tokenizer, self.options = batcher, tokenizer, options
        self.max_total_tokens, self.active = max_total_tokens, 0
        self.special = {i for i, t in tokenizer.get_added_tokens_decoder().items() if t.special}
        self.counts: Counter[str] = Counter()

    def application(self) -> web.Application:
        app = web.Application(client_max_size=MAX_BODY)
        app.router.add_post("/generate", self.generate)
        app.router.add_post("/generate_stream", self.generate_stream)
        app.router.add_post("/", self.compatible)
        app.router.add_get("/info", self.info)
        app.router.add_get("/health", self.health)
        app.router.add_get("/metrics", self.metrics)
        return app

    async def generate(self, http: web.Request) -> web.Response:
        """One whole answer."""
        return await self._whole(http, lambda answer: answer)

    async def compatible(self, http: web.Request) -> web.StreamResponse:
        """The root of TGI: the full text is the default here, and an answer stands in a list."""
        with contextlib.suppress(ValueError):
            body = await http.json()
            if isinstance(body, dict) and body.get("stream") is True:
                return await self.generate_stream(http)
        return await self._whole(http, lambda answer: [answer], full_text=True)

    async def _whole(
        self, http: web.Request, shape: Callable[[dict[str, Any]], Any], full_text: bool = False
    ) -> web.Response:
        began = time.monotonic()
        self.counts["tgi_request_count"] += 1
        if self.active >= self.options.max_concurrent:
            return self._failure(429, OVERLOADED)
        self.active += 1
        waiting: Job | None = None
        try:
            request = parse_body(await _body(http))
            loop = asyncio.get_running_loop()
            done: asyncio.Future[Job] = loop.create_future()
            waiting = self._job(request, False, None, lambda j: loop.call_soon_threadsafe(_settle, done, j))
            self.batcher.submit(waiting)
            job = await done
        except Refusal as refusal:
            return self._failure(422, _validation(refusal))
        finally:
            self.active -= 1
            if waiting:
                waiting.cancelled = True  # of no effect when it is done; frees the slot when the client has gone
        if job.error:
            return self._failure(
                424, {"error": f"Request failed during generation: {job.error}", "error_type": "generation"}
            )
        self._count(job, began)
        answer = shape(self._answer(job, request, full_text))
        return web.json_response(answer, headers=_timings(job, began, len(request.inputs)))

    async def generate_stream(self, http: web.Request) -> web.StreamResponse:
        """Server-sent events, one a token; the status is always 200 and an error is an event."""
        began = time.monotonic()
        self.counts["tgi_request_count"] += 1
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream", "Cache-Control": "no-cache"})
        await response.prepare(http)
        if self.active >= self.options.max_concurrent:
            return await self._last_event(response, 429, OVERLOADED)
        self.active += 1
        job = None
        try:
            request = parse_body(await _body(http))
            loop = asyncio.get_running_loop()
            events: asyncio.Queue[tuple[int, float, str] | None] = asyncio.Queue()

            def on_token(token: int, logprob: float, text: str) -> None:
                loop.call_soon_threadsafe(events.put_nowait, (token, logprob, text))

            job = self._job(request, True, on_token, lambda j: loop.call_soon_threadsafe(events.put_nowait, None))
            self.batcher.submit(job)
            index, held = 0, None
            while (event := await events.get()) is not None:
                if held:
                    await _send(response, self._event(index, held))
                index, held = index + 1, event
            if job.error or held is None:
                error = {"error": f"Request failed during generation: {job.error}", "error_type": "generation"}
                return await self._last_event(response, 424, error)
            self._count(job, began)
            answer = self._answer(job, request)
            details = {k: self._details(job)[k] for k in ("finish_reason", "generated_tokens", "seed")}
            details["input_length"] = len(job.prompt)
            final = {"generated_text": answer["generated_text"], "details": details}
            await _send(response, {**self._event(index, held), **final})
        except Refusal as refusal:
            return await self._last_event(response, 422, _validation(refusal))
        finally:
            self.active -= 1
            if job:
                job.cancelled = True
        await response.write_eof()
        return response

    async def info(self, http: web.Request) -> web.Response:
        """What is served, and within which bounds."""
        return web.json_response(
            {
                "model_id": self.options.model_id,
                "model_sha": self.options.revision,
                "model_dtype": "torch.float32",
                "model_device_type": "cpu",
                "model_pipeline_tag": "text-generation",
                "max_concurrent_requests": self.options.max_concurrent,
                "max_best_of": 1,
                "max_stop_sequences": MAX_STOP_SEQUENCES,
                "max_input_tokens": self.max_total_tokens - 1,
                "max_total_tokens": self.max_total_tokens,
                "max_batch_size": self.options.batch_size,
                "max_client_batch_size": 1,
                "validation_workers": 1,
                "router": "cosmopedia-cpu-server",
                "version": VERSION,
                "sha": None,
                "docker_label": None,
            }
        )

    async def health(self, http: web.Request) -> web.Response:
        """200 while the model threads live."""
        if self.batcher.alive():
            return web.Response()
        return web.json_response({"error": "unhealthy", "error_type": "healthcheck"}, status=503)

    async def metrics(self, http: web.Request) -> web.Response:
        """Prometheus text: gauges of queue and batch, counters of requests."""
        gauges = {"tgi_queue_size": len(self.batcher.waiting), "tgi_batch_current_size": self.batcher.running()}
        lines = [f"# TYPE {name} gauge\n{name} {value}" for name, value in gauges.items()]
        for kind, names in (("counter", ("tgi_request_count", "tgi_request_success")), ("summary", SUMMARIES)):
            for name in names:
                lines.append(f"# TYPE {name} {kind}")
                parts = ("_sum", "_count") if kind == "summary" else ("",)
                lines += [f"{name}{part} {self.counts[name + part]:g}" for part in parts]
        lines.append("# TYPE tgi_request_failure counter")
        failures = sorted((k, v) for k, v in self.counts.items() if k.startswith("tgi_request_failure"))
        lines += [f"{name} {value}" for name, value in failures]
        return web.Response(text="\n".join(lines) + "\n", content_type="text/plain")

    def _job(
        self,
        request: GenerateRequest,
        stream: bool,
        on_token: Callable[[int, float, str], object] | None,
        on_end: Callable[[Job], object],
    ) -> Job:
        """The request as a job for the model. `Refusal` when it breaks a bound."""
        parameters = request.parameters
        choice = check_parameters(parameters, stream, self.max_total_tokens)
        ids = self.tokenizer.encode(request.inputs).ids if request.inputs else []
        if not ids:
            raise Refusal("`inputs` cannot be empty")
        prompt, new = check_length(ids, parameters, self.max_total_tokens)
        whole = parameters.decoder_input_details
        return Job(prompt, new, choice, list(parameters.stop), whole, on_token, on_end)

    def _answer(self, job: Job, request: GenerateRequest, full_text: bool = False) -> dict[str, Any]:
        text = self.tokenizer.decode(job.tokens, skip_special_tokens=True)
        wanted = request.parameters.return_full_text
        if full_text if wanted is None else wanted:
            text = request.inputs + text
        if not request.parameters.details:
            return {"generated_text": text}
        return {"generated_text": text, "details": self._details(job)}

    def _details(self, job: Job) -> dict[str, Any]:
        texts = TokenText(self.tokenizer)
        spans = TokenText(self.tokenizer)
        return {
            "finish_reason": job.finish_reason,
            "generated_tokens": len(job.tokens),
            "seed": job.choice.seed,
            "prefill": [
                {"id": i, "text": spans.add(i), "logprob": p}
                for i, p in zip(job.prompt if job.whole else [], job.prefill, strict=True)
            ],
            "tokens": [
                self._token(token, logprob, texts.add(token))
                for token, logprob in zip(job.tokens, job.logprobs, strict=True)
            ],
        }

    def _token(self, token: int, logprob: float, text: str) -> dict[str, Any]:
        return {"id": token, "text": text, "logprob": logprob, "special": token in self.special}

    def _event(self, index: int, token: tuple[int, float, str]) -> dict[str, Any]:
        return {"index": index, "token": self._token(*token), "generated_text": None, "details": None}

    def _failure(self, status: int, body: dict[str, str]) -> web.Response:
        self.counts[f'tgi_request_failure{{err="{body["error_type"]}"}}'] += 1
        return web.json_response(body, status=status)

    async def _last_event(self, response: web.StreamResponse, status: int, body: dict[str, str]) -> web.StreamResponse:
        self._failure(status, body)
        await _send(response, body)
        await response.write_eof()
        return response

    def _count(self, job: Job, began: float) -> None:
        self.counts["tgi_request_success"] += 1
        values = (len(job.prompt), len(job.tokens), time.monotonic() - began, job.started_at - job.queued_at)
        for name, value in zip(SUMMARIES, values, strict=True):
            self.counts[f"{name}_sum"] += value  # type: ignore[assignment]
            self.counts[f"{name}_count"] += 1


SUMMARIES = (
    "tgi_request_input_length",
    "tgi_request_generated_tokens",
    "tgi_request_duration",
    "tgi_request_queue_duration",
)


def _settle(done: "asyncio.Future[Job]", job: Job) -> None:
    if not done.done():
        done.set_result(job)


async def _body(http: web.Request) -> Any:
    try:
        return json.loads(await http.read())
    except ValueError as error:
        raise Refusal(f"Failed to parse the request body as JSON: {error}") from None


def _validation(refusal: Refusal) -> dict[str, str]:
    return {"error": f"Input validation error: {refusal}", "error_type": "validation"}


async def _send(response: web.StreamResponse, event: dict[str, Any]) -> None:
    await response.write(f"data:{json.dumps(event)}\n\n".encode())


def _timings(job: Job, began: float, characters: int) -> dict[str, str]:
    """TGI's headers; times in milliseconds."""
    total, queued = time.monotonic() - began, job.started_at - job.queued_at
    inference = job.ended_at - job.started_at
    values = {
        "x-compute-characters": characters,
        "x-prompt-tokens": len(job.prompt),
        "x-generated-tokens": len(job.tokens),
        "x-compute-time": round(total * 1000),
        "x-total-time": round(total * 1000),
        "x-validation-time": round((job.queued_at - began) * 1000),
        "x-queue-time": round(queued * 1000),
        "x-inference-time": round(inference * 1000),
        "x-time-per-token": round(inference * 1000 / max(len(job.tokens), 1)),
    }
    return {"x-compute-type": "cpu", **{name: str(value) for name, value in values.items()}}


def register(path: Path, url: str) -> None:
    """Write {"url", "pid"} whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    draft.write_text(json.dumps({"url": url, "pid": os.getpid()}) + "\n")
    draft.replace(path)


async def serve(options: argparse.Namespace) -> None:
    """Load the model, serve until SIGTERM or SIGINT."""
    model, tokenizer, ends, length = load_model(options.model, options.model_id, options.revision)
    lanes, threads = plan_lanes(torch_threads(), options.batch_size)
    decoders = make_decoders(model, lanes, options.batch_size)
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    backend: Any = tokenizer.backend_tokenizer  # type: ignore[attr-defined]
    backend.no_truncation()
    backend.no_padding()
    batcher = Batcher(decoders, backend, ends, threads)
    server = Server(batcher, backend, length, options)
    runner = web.AppRunner(server.application(), access_log=None, handler_cancellation=True, shutdown_timeout=0.2)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", options.port)
    try:
        await site.start()
        port = runner.addresses[0][1]
        url = f"http://127.0.0.1:{port}"
        if options.registration:
            register(options.registration, url)
        print(
            f"cpu_server: {options.model_id} ({lanes} x {type(decoders[0]).__name__}) at {url}",
            file=sys.stderr,
            flush=True,
        )
        await stop.wait()
    finally:
        if options.registration:
            options.registration.unlink(missing_ok=True)
        batcher.stop()
        await runner.cleanup()


def main() -> None:
    """Parse the command line and serve."""
    parser = argparse.ArgumentParser(prog="stages.serving.cpu_server", description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--model", required=True, help="model folder, or a hub id")
    parser.add_argument("--model-id", required=True, help="the name that /info gives")
    parser.add_argument("--revision", default="main", help="the revision that /info gives and the hub is asked for")
    parser.add_argument("--port", type=int, default=0, help="0: any free one")
    parser.add_argument("--batch-size", type=int, default=32, help="sequences decoded together")
    parser.add_argument("--max-concurrent", type=int, default=128, help="requests at a time; more get 429")
    parser.add_argument("--registration", type=Path, help="file that names the server once it is ready")
    options = parser.parse_args()
    try:
        asyncio.run(serve(options))
        os._exit(0)  # taking torch down takes seconds
    except ConfigError as error:
        print(f"cpu_server: error: {error}", file=sys.stderr)
        sys.exit(error.status)
    except OSError as error:
        print(f"cpu_server: error: port {options.port}: {error.strerror or error}", file=sys.stderr)
        sys.exit(4)


if __name__ == "__main__":
    main()
