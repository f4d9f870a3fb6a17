"""A server for one model on this machine's CPU, with TGI's HTTP contract, for the rehearsal, the laptop and the tests.

`/generate`, `/generate_stream`, `/` (the one of the two that `stream` says), `/info`, `/health`, `/metrics`, and
OpenAI's `/v1/completions` and `/v1/models` as vLLM has them; on loopback only. At most `--batch-size` requests are
decoded together, and a new one joins as soon as a slot is free; more than `--max-concurrent` at a time are answered
429 at once. When it is ready it writes {"url", "pid"} to `--registration`, and removes that file when it ends. SIGTERM
ends it at once; clients see a broken connection and ask elsewhere.

Alone: python -m cosmopedia.cpu_server.app --model models/generator --model-id tiny --revision local --port 8080
"""

import argparse
import asyncio
import contextlib
import hmac
import json
import os
import signal
import sys
import time
import uuid
from collections import Counter
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from aiohttp import ClientPayloadError, web
from aiohttp.http_exceptions import ContentEncodingError

from cosmopedia.cpu_server.batching import Batcher, DecodeRequest, TokenText
from cosmopedia.cpu_server.decoding import load_model, make_decoders, plan_lanes, torch_threads
from cosmopedia.cpu_server.protocol import (
    MAX_STOP_SEQUENCES,
    GenerateRequest,
    Malformed,
    ParsedRequest,
    ValidationError,
    completion_ask,
    generate_ask,
    parse_body,
    parse_completion,
    parse_json,
)
from cosmopedia.cpu_server.sampling import GrammarError, Grammars
from cosmopedia.errors import ConfigError

VERSION = "0.1.0"
MAX_BODY = 8 << 20  # bytes
LONG_TEXT = 20_000  # characters; about ten milliseconds of tokenization


class Overloaded(Exception):
    """As many requests as there may be are here."""


class GenerationError(Exception):
    """The model has failed at a request."""


FAILURES = (Malformed, ValidationError, Overloaded, GenerationError)


class Server:
    """The HTTP side: everything here runs in the event loop; `Batcher` holds the model threads."""

    def __init__(
        self, batcher: Batcher, grammars: Grammars, tokenizer: Any, max_total_tokens: int, options: argparse.Namespace
    ):
        self.batcher, self.grammars, self.tokenizer, self.options = batcher, grammars, tokenizer, options
        self.beside = ThreadPoolExecutor(1, "beside")  # one, so that long requests leave a core to the model
        self.created = int(time.time())
        self.max_total_tokens, self.active = max_total_tokens, 0
        self.special = {i for i, t in tokenizer.get_added_tokens_decoder().items() if t.special}
        self.counts: Counter[str] = Counter()
        self.key = os.environ.get("COSMO_SERVING_KEY", "")

    @web.middleware
    async def authorise(self, request: web.Request, handler: Any) -> web.StreamResponse:
        """With a key, only those who show it are served; /health and /metrics tell nothing that needs one."""
        shown, wanted = request.headers.get("Authorization", ""), f"Bearer {self.key}"
        if self.key and request.method == "POST" and not hmac.compare_digest(shown.encode(), wanted.encode()):
            return self._failure(401, {"error": "a key is wanted", "error_type": "authorisation"})
        return await handler(request)

    def application(self) -> web.Application:
        app = web.Application(client_max_size=MAX_BODY, middlewares=[self.authorise])
        app.router.add_post("/generate", self.generate)
        app.router.add_post("/generate_stream", self.generate_stream)
        app.router.add_post("/", self.compatible)
        app.router.add_post("/v1/completions", self.completions)
        app.router.add_get("/v1/models", self.models)
        app.router.add_get("/info", self.info)
        app.router.add_get("/health", self.health)
        app.router.add_get("/metrics", self.metrics)
        return app

    async def generate(self, http: web.Request) -> web.Response:
        """One whole answer."""
        return await self._whole(http, lambda answer: answer)

    async def compatible(self, http: web.Request) -> web.StreamResponse:
        """The root of TGI: the full text is the default here, and an answer stands in a list."""
        try:
            body = parse_json(await _content(http))
        except Malformed as failure:
            self._begin()
            return self._failure(*tgi_failure(failure))
        if isinstance(body, dict) and body.get("stream") is True:
            return await self.generate_stream(http)
        return await self._whole(http, lambda answer: [answer], full_text=True)

    async def _whole(
        self, http: web.Request, shape: Callable[[dict[str, Any]], Any], full_text: bool = False
    ) -> web.Response:
        began = self._begin()
        try:
            request = parse_body(parse_json(await _content(http)))
            async with self._decoded(lambda: generate_ask(request, False, self.max_total_tokens), False) as (job, end):
                await end.get()
        except FAILURES as failure:
            return self._failure(*tgi_failure(failure))
        if job.error:
            return self._failure(*tgi_failure(GenerationError(job.error)))
        self._count(job, began)
        answer = shape(self._answer(job, request, full_text))
        return web.json_response(answer, headers=_timings(job, began, len(request.inputs)))

    async def generate_stream(self, http: web.Request) -> web.StreamResponse:
        """Server-sent events, one a token; once the body is read the status is 200 and an error is an event."""
        began = self._begin()
        try:
            request = parse_body(parse_json(await _content(http)))
        except Malformed as failure:
            return self._failure(*tgi_failure(failure))
        response = await _event_stream(http)
        try:
            async with self._decoded(lambda: generate_ask(request, True, self.max_total_tokens), True) as (
                job,
                events,
            ):
                index, held = 0, None
                while (event := await events.get()) is not None:
                    if held:
                        await _send(response, self._event(index, held))
                        index += 1
                    held = event
            if job.error or held is None:
                raise GenerationError(job.error)
        except FAILURES as failure:
            status, error = tgi_failure(failure)
            self._failure(status, error)
            await _send(response, error)
            await response.write_eof()
            return response
        self._count(job, began)
        answer = self._answer(job, request)
        details = {"finish_reason": job.finish_reason, "generated_tokens": len(job.tokens), "seed": job.choice.seed}
        details["input_length"] = len(job.prompt)
        final = {"generated_text": answer["generated_text"], "details": details}
        await _send(response, {**self._event(index, held), **final})
        await response.write_eof()
        return response

    async def completions(self, http: web.Request) -> web.StreamResponse:
        """OpenAI's /v1/completions as vLLM serves it: one prompt, one answer, whole or as a stream."""
        began = self._begin()
        response: web.StreamResponse | None = None
        head = {"id": f"cmpl-{uuid.uuid4().hex}", "object": "text_completion", "created": int(time.time())}
        head["model"] = self.options.model_id
        try:
            request = parse_completion(parse_json(await _content(http)))
            ask = completion_ask(request, self.max_total_tokens)
            async with self._decoded(lambda: ask, request.stream) as (job, events):
                sent = written = ""
                keep = max(map(len, ask.stop), default=1) - 1  # the start of a stop sequence is not sent
                if request.stream:
                    response = await _event_stream(http)
                while (event := await events.get()) is not None:
                    written += "" if event[0] in self.special else event[2]
                    piece = written[len(sent) : max(len(written) - keep, len(sent))]
                    if piece and response:
                        await _send(response, head | {"choices": [_openai_choice(piece, None)]}, "data: ")
                        sent += piece
            if job.error:
                raise GenerationError(job.error)
        except FAILURES as failure:
            status, error = openai_failure(failure)
            answer = self._failure(status, error, tgi_failure(failure)[1]["error_type"])
            if response is None:
                return answer
            await _send(response, error, "data: ")
            return await _done(response)
        self._count(job, began)
        text = self.tokenizer.decode(job.tokens, skip_special_tokens=True)
        if job.finish_reason == "stop_sequence":
            text = text[: min((at for stop in ask.stop if (at := text.find(stop)) >= 0), default=len(text))]
        reason = "length" if job.finish_reason == "length" else "stop"
        used = {"prompt_tokens": len(job.prompt), "completion_tokens": len(job.tokens)}
        usage = {"usage": used | {"total_tokens": len(job.prompt) + len(job.tokens)}}
        if response is None:
            whole = head | {"choices": [_openai_choice(text, reason)]} | usage
            return web.json_response(whole, headers=_timings(job, began, len(ask.text)))
        await _send(response, head | {"choices": [_openai_choice(text.removeprefix(sent), reason)]}, "data: ")
        if request.stream_options.include_usage:
            await _send(response, head | {"choices": []} | usage, "data: ")
        return await _done(response)

    async def models(self, http: web.Request) -> web.Response:
        """OpenAI's /v1/models: the one that is served."""
        name = self.options.model_id
        facts = {"root": name, "max_model_len": self.max_total_tokens}
        model = {"id": name, "object": "model", "created": self.created, "owned_by": "cosmopedia-cpu-server"}
        return web.json_response({"object": "list", "data": [model | facts]})

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
        waiting, taken = self.batcher.load()
        gauges = {"tgi_queue_size": waiting, "tgi_batch_current_size": taken}
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

    def _begin(self) -> float:
        self.counts["tgi_request_count"] += 1
        return time.monotonic()

    @contextlib.asynccontextmanager
    async def _decoded(
        self, ask: Callable[[], ParsedRequest], stream: bool
    ) -> AsyncIterator[tuple[DecodeRequest, "asyncio.Queue[tuple[int, float, str] | None]"]]:
        """(job, its tokens as they come when `stream`, then None), in one of the places there are.

        The place is free again when the model has let go of the job, which is soon after a client has left, so that
        there are never more jobs than places. Raises `Overloaded`, and `ValidationError` when the request breaks a
        bound.
        """
        if self.active >= self.options.max_concurrent:
            raise Overloaded
        self.active += 1
        loop, job = asyncio.get_running_loop(), None
        events: asyncio.Queue[tuple[int, float, str] | None] = asyncio.Queue()

        def on_token(*token: Any) -> None:
            loop.call_soon_threadsafe(events.put_nowait, token)

        def ended() -> None:
            self.active -= 1
            events.put_nowait(None)

        try:
            job = await self._job(ask(), on_token if stream else None, lambda _: loop.call_soon_threadsafe(ended))
            self.batcher.submit(job)
            yield job, events
        finally:
            if job:
                self.batcher.cancel(job)
            else:
                self.active -= 1

    async def _job(
        self,
        ask: ParsedRequest,
        on_token: Callable[[int, float, str], object] | None,
        on_end: Callable[[DecodeRequest], object],
    ) -> DecodeRequest:
        """The request as a job for the model. What can take long is done beside the event loop."""
        loop = asyncio.get_running_loop()

        def encode() -> list[int]:
            return self.tokenizer.encode(ask.text, add_special_tokens=ask.special).ids

        short = len(ask.text) <= LONG_TEXT
        prompt, new = ask.fit(encode() if short else await loop.run_in_executor(self.beside, encode))
        grammar = None
        if ask.grammar:
            try:
                grammar = await loop.run_in_executor(self.beside, self.grammars.compile, *ask.grammar)
            except GrammarError as error:
                raise ValidationError(f"grammar is not valid: {error}") from None
        return DecodeRequest(prompt, new, ask.choice, ask.stop, ask.whole, on_token, on_end, grammar, ask.inside)

    def _answer(self, job: DecodeRequest, request: GenerateRequest, full_text: bool = False) -> dict[str, Any]:
        text = self.tokenizer.decode(job.tokens, skip_special_tokens=True)
        wanted = request.parameters.return_full_text
        if full_text if wanted is None else wanted:
            text = request.inputs + text
        if not request.parameters.details:
            return {"generated_text": text}
        return {"generated_text": text, "details": self._details(job)}

    def _details(self, job: DecodeRequest) -> dict[str, Any]:
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

    def _failure(self, status: int, body: dict[str, Any], kind: str | None = None) -> web.Response:
        self.counts[f'tgi_request_failure{{err="{kind or body["error_type"]}"}}'] += 1
        return web.json_response(body, status=status)

    def _count(self, job: DecodeRequest, began: float) -> None:
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


def tgi_failure(failure: Exception) -> tuple[int, dict[str, Any]]:
    """(status, body) in TGI's form."""
    if isinstance(failure, Malformed):
        return failure.status, {"error": str(failure), "error_type": "validation"}
    if isinstance(failure, ValidationError):
        return 422, {"error": f"Input validation error: {failure}", "error_type": "validation"}
    if isinstance(failure, Overloaded):
        return 429, {"error": "Model is overloaded", "error_type": "overloaded"}
    return 424, {"error": f"Request failed during generation: {failure}", "error_type": "generation"}


def openai_failure(failure: Exception) -> tuple[int, dict[str, Any]]:
    """(status, body) in OpenAI's form, with vLLM's types."""
    status, body = tgi_failure(failure)
    if isinstance(failure, ValidationError) or status == 422:
        status = 400
    kind = {400: "BadRequestError", 413: "BadRequestError", 429: "TooManyRequestsError"}.get(status, "GenerationError")
    message = str(failure) if isinstance(failure, ValidationError) else body["error"]
    return status, {"error": {"message": message, "type": kind, "param": None, "code": status}}


async def _content(http: web.Request) -> bytes:
    """The body. `Malformed` when it is too long or broken off."""
    try:
        return await http.read()
    except web.HTTPRequestEntityTooLarge:
        raise Malformed(413, f"Failed to buffer the request body: length limit of {MAX_BODY} bytes exceeded") from None
    except (web.RequestPayloadError, ClientPayloadError, ContentEncodingError) as error:
        raise Malformed(400, f"Failed to buffer the request body: {error}") from None


async def _event_stream(http: web.Request) -> web.StreamResponse:
    response = web.StreamResponse(headers={"Content-Type": "text/event-stream", "Cache-Control": "no-cache"})
    await response.prepare(http)
    return response


async def _send(response: web.StreamResponse, event: dict[str, Any], mark: str = "data:") -> None:
    await response.write(f"{mark}{json.dumps(event)}\n\n".encode())


async def _done(response: web.StreamResponse) -> web.StreamResponse:
    await response.write(b"data: [DONE]\n\n")
    await response.write_eof()
    return response


def _openai_choice(text: str, finish_reason: str | None) -> dict[str, Any]:
    return {"index": 0, "text": text, "logprobs": None, "finish_reason": finish_reason}


def _timings(job: DecodeRequest, began: float, characters: int) -> dict[str, str]:
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
    grammars = Grammars(backend, decoders[0].vocabulary, ends)
    server = Server(batcher, grammars, backend, length, options)
    runner = web.AppRunner(server.application(), access_log=None, handler_cancellation=True, shutdown_timeout=0.2)
    await runner.setup()
    site = web.TCPSite(runner, options.host, options.port)
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
    parser = argparse.ArgumentParser(prog="cosmopedia.cpu_server.app", description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--model", required=True, help="model folder, or a hub id")
    parser.add_argument("--model-id", required=True, help="the name that /info gives")
    parser.add_argument("--revision", default="main", help="the revision that /info gives and the hub is asked for")
    parser.add_argument("--host", default="127.0.0.1", help="another one than loopback wants $COSMO_SERVING_KEY")
    parser.add_argument("--port", type=int, default=0, help="0: any free one")
    parser.add_argument("--batch-size", type=int, default=32, help="sequences decoded together")
    parser.add_argument("--max-concurrent", type=int, default=128, help="requests at a time; more get 429")
    parser.add_argument("--registration", type=Path, help="file that names the server once it is ready")
    options = parser.parse_args()
    try:
        if options.host not in ("127.0.0.1", "localhost", "::1") and not os.environ.get("COSMO_SERVING_KEY"):
            raise ConfigError(
                f"--host {options.host} is no loopback address; export COSMO_SERVING_KEY, or leave it out"
            )
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
