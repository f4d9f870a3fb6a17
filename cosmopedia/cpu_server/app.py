"""A server for one model on this machine's CPU, with TGI's HTTP contract, for the rehearsal, the laptop and the tests.

It serves `/generate`, `/info`, `/health` and `/metrics` as TGI does, on loopback unless COSMO_SERVING_KEY is set. On
loopback it answers to no other name, so that no web page in a browser on this machine can use it.
At most `--batch-size` requests are decoded together, and a new one joins as soon as a slot is free; more than
`--max-concurrent` at a time are answered 429 at once. When it is ready it writes {"url", "pid"} to `--registration`,
and removes that file when it ends. SIGTERM ends it at once; clients see a broken connection and go to other servers.

Run: python -m cosmopedia.cpu_server.app --model models/generator --model-id tiny --revision local --port 8080
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
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from aiohttp import ClientPayloadError, web
from aiohttp.http_exceptions import ContentEncodingError

from cosmopedia.core.errors import ConfigError
from cosmopedia.core.files import write_text
from cosmopedia.cpu_server.batching import Batcher, DecodeRequest
from cosmopedia.cpu_server.decoding import load_model, make_decoders, plan_workers, torch_threads
from cosmopedia.cpu_server.protocol import (
    GenerateRequest,
    Malformed,
    ValidationError,
    grammar_text,
    new_tokens,
    parse_request,
    sampling_params,
)
from cosmopedia.cpu_server.sampling import GrammarError, Grammars

VERSION = "0.1.0"
MAX_BODY = 8 << 20  # bytes
REQUEST_SECONDS = 30.0  # in which a request must be sent whole
LOOPBACK = ("127.0.0.1", "localhost", "::1")
LONG_TEXT = 20_000  # characters; about ten milliseconds of tokenization


class Overloaded(Exception):
    """As many requests as there may be are being served."""


class GenerationError(Exception):
    """The model has failed at a request."""


class Server:
    """The HTTP side: everything here runs in the event loop; `Batcher` has the model threads."""

    def __init__(
        self, batcher: Batcher, grammars: Grammars, tokenizer: Any, max_total_tokens: int, options: argparse.Namespace
    ):
        self.batcher, self.grammars, self.tokenizer, self.options = batcher, grammars, tokenizer, options
        self.max_total_tokens = max_total_tokens
        self.active = 0
        self.special = {i for i, t in tokenizer.get_added_tokens_decoder().items() if t.special}
        self.key = os.environ.get("COSMO_SERVING_KEY", "")
        self._busy: set[web.RequestHandler] = set()  # connections with a request whose head is complete
        self._waiting: dict[web.RequestHandler, float] = {}  # the others, and since when
        self._preparation = ThreadPoolExecutor(1)  # one, so that long requests leave a core to the model

    @web.middleware
    async def authorise(self, request: web.Request, handler: Any) -> web.StreamResponse:
        """With a key, only clients that show it are served; what GET answers is no secret."""
        shown, wanted = request.headers.get("Authorization", ""), f"Bearer {self.key}"
        right = hmac.compare_digest(shown.encode("utf-8", "surrogateescape"), wanted.encode())
        if self.key and request.method == "POST" and not right:
            return web.json_response({"error": "a key is wanted", "error_type": "authorisation"}, status=401)
        return await handler(request)

    @web.middleware
    async def refuse_foreign(self, request: web.Request, handler: Any) -> web.StreamResponse:
        """On loopback, only requests to this machine from this machine; a web page's name another Host or Origin."""
        for name, prefix in (("Host", "//"), ("Origin", "")):
            given = request.headers.get(name)
            if given is not None and self.options.host in LOOPBACK and _host(prefix + given) not in LOOPBACK:
                complaint = f"{name} is not {' or '.join(LOOPBACK)}; this server answers to this machine alone"
                return web.json_response({"error": complaint, "error_type": "authorisation"}, status=403)
        return await handler(request)

    @web.middleware
    async def mark_busy(self, request: web.Request, handler: Any) -> web.StreamResponse:
        """While a request is served, `close_half_sent` leaves its connection alone."""
        self._busy.add(request.protocol)
        self._waiting.pop(request.protocol, None)
        try:
            return await handler(request)
        finally:
            self._busy.discard(request.protocol)

    def close_half_sent(self, connections: Iterable[web.RequestHandler], now: float) -> None:
        """Close connections that have waited too long for the head of a request to be complete."""
        idle = [connection for connection in connections if connection not in self._busy]
        self._waiting = {connection: self._waiting.get(connection, now) for connection in idle}
        for connection, since in self._waiting.items():
            if now - since > REQUEST_SECONDS and connection.transport is not None:
                connection.transport.abort()

    def application(self) -> web.Application:
        """What aiohttp serves."""
        app = web.Application(
            client_max_size=MAX_BODY, middlewares=[self.mark_busy, self.refuse_foreign, self.authorise]
        )
        app.router.add_post("/generate", self.generate)
        app.router.add_get("/info", self.info)
        app.router.add_get("/health", self.health)
        app.router.add_get("/metrics", self.metrics)
        return app

    async def generate(self, http: web.Request) -> web.Response:
        """A completion."""
        try:
            request = parse_request(await _content(http))
            decoded = await self._decode(request)
        except (Malformed, ValidationError, Overloaded, GenerationError) as error:
            status, body = _failure(error)
            return web.json_response(body, status=status)
        answer: dict[str, Any] = {"generated_text": self.tokenizer.decode(decoded.tokens, skip_special_tokens=True)}
        if request.parameters.details:
            answer["details"] = self._details(decoded)
        return web.json_response(answer, headers={"x-prompt-tokens": str(len(decoded.prompt))})

    async def info(self, http: web.Request) -> web.Response:
        """What is served, and within which bounds."""
        return web.json_response(
            {
                "model_id": self.options.model_id,
                "model_sha": self.options.revision,
                "model_device_type": "cpu",
                "max_concurrent_requests": self.options.max_concurrent,
                "max_input_tokens": self.max_total_tokens - 1,
                "max_total_tokens": self.max_total_tokens,
                "max_batch_size": self.options.batch_size,
                "router": "cosmopedia-cpu-server",
                "version": VERSION,
            }
        )

    async def health(self, http: web.Request) -> web.Response:
        """200 while the model threads live."""
        if self.batcher.alive():
            return web.Response()
        return web.json_response({"error": "unhealthy", "error_type": "healthcheck"}, status=503)

    async def metrics(self, http: web.Request) -> web.Response:
        """The gauges of queue and batch, as Prometheus text."""
        waiting, taken = self.batcher.load()
        gauges = {"tgi_queue_size": waiting, "tgi_batch_current_size": taken}
        return web.Response(text="".join(f"# TYPE {name} gauge\n{name} {n}\n" for name, n in gauges.items()))

    async def _decode(self, request: GenerateRequest) -> DecodeRequest:
        """The request, completed by the model.

        A slot is free again only when the model is done with a request, which is soon after its client has left, so
        that there are never more requests than slots. Raises `Overloaded` without a free slot, `ValidationError` when
        the request breaks a bound, `GenerationError` when the model fails.
        """
        if self.active >= self.options.max_concurrent:
            raise Overloaded
        self.active += 1
        loop, ended = asyncio.get_running_loop(), asyncio.Event()

        def on_end() -> None:
            self.active -= 1
            ended.set()

        try:
            decoded = await self._prepared(request, lambda _: loop.call_soon_threadsafe(on_end))
        except BaseException:
            self.active -= 1
            raise
        self.batcher.submit(decoded)
        try:
            await ended.wait()
        finally:
            self.batcher.cancel(decoded)  # no effect unless the client has left
        if decoded.error:
            raise GenerationError(decoded.error)
        return decoded

    async def _prepared(self, request: GenerateRequest, on_end: Callable[[DecodeRequest], object]) -> DecodeRequest:
        """The request in the model's terms. What can take long does not run in the event loop."""
        loop = asyncio.get_running_loop()

        def encode() -> list[int]:
            return self.tokenizer.encode(request.inputs, add_special_tokens=request.add_special_tokens).ids

        sampling, text = sampling_params(request.parameters), grammar_text(request.parameters)
        short = len(request.inputs) <= LONG_TEXT
        prompt = encode() if short else await loop.run_in_executor(self._preparation, encode)
        new = new_tokens(request, len(prompt), self.max_total_tokens)
        grammar = None
        if text:
            try:
                grammar = await loop.run_in_executor(self._preparation, self.grammars.compile, *text)
            except GrammarError as error:
                raise ValidationError(f"grammar is not valid: {error}") from None
        return DecodeRequest(prompt, new, sampling, on_end, grammar)

    def _details(self, decoded: DecodeRequest) -> dict[str, Any]:
        return {
            "finish_reason": decoded.finish_reason,
            "generated_tokens": len(decoded.tokens),
            "seed": decoded.sampling.seed,
            "prefill": [],
            "tokens": [
                {
                    "id": token,
                    "text": self.tokenizer.decode([token], skip_special_tokens=False),
                    "logprob": logprob,
                    "special": token in self.special,
                }
                for token, logprob in zip(decoded.tokens, decoded.logprobs, strict=True)
            ],
        }


def _failure(error: Exception) -> tuple[int, dict[str, str]]:
    """(status, body) of TGI."""
    if isinstance(error, Malformed):
        return error.status, {"error": str(error), "error_type": "validation"}
    if isinstance(error, ValidationError):
        return 422, {"error": f"Input validation error: {error}", "error_type": "validation"}
    if isinstance(error, Overloaded):
        return 429, {"error": "Model is overloaded", "error_type": "overloaded"}
    return 424, {"error": f"Request failed during generation: {error}", "error_type": "generation"}


def _host(address: str) -> str | None:
    try:
        return urlsplit(address).hostname
    except ValueError:
        return None


async def _content(http: web.Request) -> bytes:
    """The body. `Malformed` when it is too long, too slow or broken off."""
    try:
        return await asyncio.wait_for(http.read(), REQUEST_SECONDS)
    except TimeoutError:
        raise Malformed(408, f"The request body was not complete within {REQUEST_SECONDS:g} s") from None
    except web.HTTPRequestEntityTooLarge:
        raise Malformed(413, f"Failed to buffer the request body: length limit of {MAX_BODY} bytes exceeded") from None
    except (web.RequestPayloadError, ClientPayloadError, ContentEncodingError) as error:
        raise Malformed(400, f"Failed to buffer the request body: {error}") from None


async def serve(options: argparse.Namespace) -> None:
    """Load the model, serve until SIGTERM or SIGINT."""
    model, tokenizer, ends, max_total_tokens = load_model(options.model, options.model_id, options.revision)
    workers, threads = plan_workers(torch_threads(), options.batch_size)
    decoders = make_decoders(model, workers, options.batch_size)
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    backend: Any = tokenizer.backend_tokenizer
    backend.no_truncation()
    backend.no_padding()
    batcher = Batcher(decoders, ends, threads)
    grammars = Grammars(backend, decoders[0].vocabulary, ends)
    server = Server(batcher, grammars, backend, max_total_tokens, options)
    runner = web.AppRunner(server.application(), access_log=None, handler_cancellation=True, shutdown_timeout=0.2)
    await runner.setup()
    try:
        await web.TCPSite(runner, options.host, options.port).start()
        url = f"http://127.0.0.1:{runner.addresses[0][1]}"
        if options.registration:
            write_text(options.registration, json.dumps({"url": url, "pid": os.getpid()}) + "\n")
        kind = type(decoders[0]).__name__
        print(f"cpu_server: {options.model_id} ({workers} x {kind}) at {url}", file=sys.stderr, flush=True)
        while not stop.is_set():
            server.close_half_sent(runner.server.connections if runner.server else [], time.monotonic())
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(stop.wait(), 1.0)
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
    parser.add_argument("--revision", default="main", help="the revision that /info gives, and to fetch from the hub")
    parser.add_argument("--host", default="127.0.0.1", help="any other than loopback needs $COSMO_SERVING_KEY")
    parser.add_argument("--port", type=int, default=0, help="0: any free one")
    parser.add_argument("--batch-size", type=int, default=32, help="sequences decoded together")
    parser.add_argument("--max-concurrent", type=int, default=128, help="requests at a time; more get 429")
    parser.add_argument("--registration", type=Path, help="file that names the server once it is ready")
    options = parser.parse_args()
    try:
        if options.host not in LOOPBACK and not os.environ.get("COSMO_SERVING_KEY"):
            raise ConfigError(
                f"--host {options.host} is not a loopback address; export COSMO_SERVING_KEY, or leave --host out"
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
