"""One request to one endpoint: what an answer means, and whose fault it is when there is none.

The connections are one pooled aiohttp session: the `text-generation` package opens a new one for each request
(1,250 requests/s per core against 6,200-7,400, measured). Bearer tokens go into headers here and nowhere else. No
redirect is followed: it would lead to an address that is in no compute file.
"""

import contextlib
import ipaddress
import json
import sys
from collections.abc import Iterator
from functools import cache
from typing import Any
from urllib.parse import urlsplit

import aiohttp

from cosmopedia.core.errors import ClusterError
from cosmopedia.execution.client.server_words import server_words, token_in
from cosmopedia.execution.compute import EndpointSpec
from cosmopedia.generation.answers import Answer, MalformedAnswer, UnusableAnswer
from cosmopedia.generation.apis import Api, ChatApi, Load, OpenAiApi, TgiApi
from cosmopedia.generation.requests import Request, Sampling

PROBE_SECONDS = 5.0  # deadline of /health, /info and /metrics
PAUSE_SECONDS = 30.0  # a Retry-After is heeded up to here
RETRY_AFTER_SECONDS = 600.0  # one beyond this is no pause but a refusal
MAX_BYTES = 4 << 20  # of an answer, and as many again as TOKEN_BYTES allow
TOKEN_BYTES = 2048  # per token: TGI's details take 70 to 200
ENGINE_CHARS = 60  # of a server's name and version


class RequestError(Exception):
    """Base of everything that can go wrong with a request; `reason` is counted, `detail` is for people."""

    billed = False  # whether the provider may have counted the request's tokens

    def __init__(self, reason: str, detail: str, pause: float = 0.0):
        super().__init__(detail)
        self.reason, self.detail, self.pause = reason, detail, pause

    def after_work(self) -> "RequestError":
        """Itself, as an error after which the provider may have counted tokens."""
        self.billed = True
        return self


class Requeue(RequestError):
    """The server could not take the request (502, 503) or the connection broke: try again, no attempt is spent."""


class Overloaded(Requeue):
    """429: the server has more requests than it takes; `pause` is its Retry-After in seconds, or 0."""


class Retryable(RequestError):
    """The server failed on the request (500, 504, 424, a timeout, a malformed answer): one attempt is spent."""


class PromptRejected(Retryable):
    """An endpoint refuses this prompt and takes others (a firewall, a Retry-After for a day): one attempt is spent."""


class Permanent(RequestError):
    """The request itself is at fault (422 and other 4xx), or there is no usable text: trying again is no use."""


class EndpointRejected(RequestError):
    """401 and 403 (token), 404, 405 and redirects (wrong address or model): the endpoint may refuse all alike."""


class WrongServer(ClusterError):
    """The endpoint does not suit this run: another model, an unknown API, no valid token."""


def session() -> aiohttp.ClientSession:
    """One pool of connections for all endpoints; proxies from the environment are not used."""
    return aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0), trust_env=False)


def headers_of(spec: EndpointSpec) -> dict[str, str]:
    """The authorisation header, from the environment."""
    token = spec.token()
    if token and spec.token_env:
        _warn_of_plain_http(spec.url)
    return {"Authorization": f"Bearer {token}"} if token else {}


@cache
def _warn_of_plain_http(url: str) -> None:
    """Once per address, when the token crosses a network unencrypted."""
    parts = urlsplit(url)
    host = parts.hostname or ""
    with contextlib.suppress(ValueError):
        host = "localhost" if ipaddress.ip_address(host).is_loopback else host
    if parts.scheme == "http" and host != "localhost":
        print(
            f"warning: {url}: the token goes over plain http to another machine, where others can read it; use https,"
            " or a tunnel to this machine",
            file=sys.stderr,
            flush=True,
        )


@contextlib.contextmanager
def judging(url: str, headers: dict[str, str]) -> Iterator[None]:
    """Turns an answer with status 200 that is no completion into a `RequestError`."""
    try:
        yield
    except MalformedAnswer as error:
        sentence = server_words(f"{url} answered 200 without a completion: {error}", headers)
        raise Retryable("server_error", sentence).after_work() from None
    except UnusableAnswer as error:
        raise Permanent(error.reason, server_words(f"{url}: {error}", headers)).after_work() from None


async def generate(
    http: aiohttp.ClientSession, url: str, headers: dict[str, str], api: Api, request: Request, timeout_s: float
) -> Answer:
    """One completion. Raises a `RequestError`; never returns an empty text."""
    body = api.body(request)
    limit = MAX_BYTES + TOKEN_BYTES * api.max_new_tokens
    deadline = aiohttp.ClientTimeout(total=timeout_s)
    try:
        async with http.post(
            f"{url}{api.path}", json=body, headers=headers, timeout=deadline, allow_redirects=False
        ) as answer:
            content = await _read(answer, limit)
    except TimeoutError:  # also aiohttp's: its timeout errors derive from this one
        raise Retryable("timeout", f"{url} did not answer within {timeout_s:g} s").after_work() from None
    except aiohttp.ClientConnectorError as error:  # nothing was sent
        raise Requeue("connection", f"{url}: {_connection_problem(error)}") from None
    except (aiohttp.ClientError, OSError) as error:
        raise Requeue("connection", f"{url}: {_connection_problem(error)}").after_work() from None
    if content is None:
        sentence = f"{url} answered with more than {limit >> 20} MB; the rest was not read"
        raise Retryable("server_error", sentence).after_work()
    payload = _json(content)
    if answer.status != 200:
        complaint = api.error_message(payload) or content[:1000].decode("utf-8", "replace")
        complaint = _redirect(answer.status, answer.headers.get("Location", "")) or complaint
        detail = server_words(f"{url}: {answer.status} {complaint}", headers)
        raise _error_of(answer.status, detail, answer.headers.get("Retry-After", ""))
    with judging(url, headers):
        completion = api.answer(payload, answer.headers)
        if (token := token_in(headers)) and token in completion.text:
            raise MalformedAnswer("its text repeats the token that this client sent")
    text = completion.text.encode("utf-8", "replace").decode("utf-8")
    if not text.strip():
        after = "" if completion.tokens is None else f" after {completion.tokens} token(s)"
        raise Permanent("empty", f"{url} answered with an empty text{after}").after_work()
    return completion if text == completion.text else completion._replace(text=text)


async def _read(answer: aiohttp.ClientResponse, limit: int) -> bytes | None:
    """The body; None when it is longer than `limit` bytes."""
    content = bytearray()
    async for part in answer.content.iter_any():
        content += part
        if len(content) > limit:
            answer.close()
            return None
    return bytes(content)


def _connection_problem(error: Exception) -> str:
    """What went wrong with a connection, in words; aiohttp's own hold Python's forms and the server's bytes."""
    if isinstance(error, aiohttp.ServerDisconnectedError):
        return "the server closed the connection before it answered"
    if isinstance(error, aiohttp.ClientPayloadError):
        return "the answer broke off"
    if isinstance(error, aiohttp.ClientConnectorDNSError):
        return "there is no such host"
    if isinstance(error, aiohttp.ClientResponseError):
        return "the answer is not HTTP"
    if isinstance(error, aiohttp.ClientSSLError):
        return "the certificate or the encryption is not accepted"
    reason = getattr(error, "strerror", None)
    return f"the connection failed ({reason or type(error).__name__})"


def _redirect(status: int, location: str) -> str | None:
    """What a redirect says, its path and query left out."""
    if not 300 <= status < 400:
        return None
    try:
        parts = urlsplit(location)
        target = f"{parts.scheme}://{parts.hostname}" if parts.scheme and parts.hostname else "another path"
    except ValueError:
        target = "an address that is none"
    return f"it redirects to {target}; no redirect is followed: if that is the server, name it in serving.endpoints"


def _json(content: bytes) -> Any:
    try:
        return json.loads(content)
    except (ValueError, RecursionError):
        return None


def _error_of(status: int, detail: str, retry_after: str) -> RequestError:
    if status == 429:
        pause = float(retry_after[:9]) if retry_after.isascii() and retry_after.isdecimal() else 0.0
        if pause > RETRY_AFTER_SECONDS:
            return PromptRejected("http_429", f"{detail} (Retry-After: {pause:.0f} s)")
        return Overloaded("http_429", detail, min(pause, PAUSE_SECONDS))
    if status in (502, 503):
        return Requeue(f"http_{status}", detail)
    if status in (408, 424) or status >= 500:
        return Retryable("server_error", detail)
    if status in (401, 403, 404, 405) or 300 <= status < 400:
        return EndpointRejected(f"http_{status}", detail)
    return Permanent("validation" if status in (400, 422) else f"http_{status}", detail)


async def read_load(http: aiohttp.ClientSession, url: str, headers: dict[str, str], api: Api) -> Load | None:
    """The endpoint's gauges; None when it has none. `RequestError` when it does not answer."""
    status, content = await _get(http, f"{url}/metrics", headers)
    return api.load(content.decode("utf-8", "replace")) if status == 200 else None


async def check_health(http: aiohttp.ClientSession, spec: EndpointSpec, headers: dict[str, str]) -> None:
    """`RequestError` unless /health answers 200, or 404 (a gateway that has none)."""
    status, _ = await _get(http, f"{spec.url}/health", headers)
    _authorised(spec, status)
    if 300 <= status < 400:
        raise WrongServer(
            f"{spec.url}/health redirects elsewhere (status {status}); no redirect is followed: name"
            " the server itself in serving.endpoints"
        )
    if status not in (200, 404):
        raise Requeue(f"http_{status}", f"{spec.url}/health: status {status}")


async def _get(http: aiohttp.ClientSession, url: str, headers: dict[str, str]) -> tuple[int, bytes]:
    deadline = aiohttp.ClientTimeout(total=PROBE_SECONDS)
    try:
        async with http.get(url, headers=headers, timeout=deadline, allow_redirects=False) as answer:
            return answer.status, await _read(answer, MAX_BYTES) or b""
    except TimeoutError:
        raise Requeue("connection", f"{url} did not answer within {PROBE_SECONDS:g} s") from None
    except (aiohttp.ClientError, OSError) as error:
        raise Requeue("connection", f"{url}: {_connection_problem(error)}") from None


class Identity:
    """The model that an endpoint must serve, and the context in tokens (prompt and completion) that it must take.

    TGI calls a model by the path that it was loaded from.
    """

    def __init__(
        self,
        model: str,
        revision: str,
        max_length: int,
        loaded_from: str | None = None,
        system_prompt: str | None = None,  # what the chat form sends, and the chat template has in the others
    ):
        self.model, self.revision, self.max_length, self.loaded_from = model, revision, max_length, loaded_from
        self.system_prompt = system_prompt

    def check_length(self, url: str, length: object) -> None:
        """`WrongServer` when the server's context is shorter: it would refuse prompts or cut completions."""
        if type(length) is int and 0 < length < self.max_length:
            raise WrongServer(
                f"{url} takes {length} tokens, but generator.max_length is {self.max_length}; start the server with a"
                " longer context (vLLM: --max-model-len, TGI: --max-total-tokens), or lower generator.max_length"
            )

    def check(
        self, url: str, names: set[str], revision: str | None, served_as: str | None, headers: dict[str, str]
    ) -> None:
        """`WrongServer` when the server names another model. Revisions shorter than a commit hash are branches."""
        expected = {name for name in (self.model, self.loaded_from, served_as) if name}
        differs = revision and min(len(revision), len(self.revision)) >= 40 and revision != self.revision
        if not names & expected or differs:
            served = server_words(" / ".join(sorted(names)) + (f" at {revision}" if revision else ""), headers)
            raise WrongServer(
                f"{url} serves {served}, but models/generator is {self.model} at {self.revision}; its completions"
                " would be stored under the wrong name: start the right server, or set the endpoint's served_as"
            )


class Connection:
    """An endpoint that is healthy and serves the right model: its API, its engine, its own limit of requests."""

    def __init__(self, api: Api, headers: dict[str, str], engine: str, max_concurrent: int | None):
        self.api, self.headers, self.engine, self.max_concurrent = api, headers, engine, max_concurrent


async def connect(
    http: aiohttp.ClientSession, spec: EndpointSpec, sampling: Sampling, identity: Identity
) -> Connection:
    """Detect an endpoint's API and check that it serves the model.

    `RequestError` when it does not answer (yet), `WrongServer` when it never will.
    """
    headers = headers_of(spec)
    await check_health(http, spec, headers)
    if spec.api not in ("openai", "chat"):
        status, content = await _get(http, f"{spec.url}/info", headers)
        _authorised(spec, status)
        info = _json(content) if status == 200 else None
        if isinstance(info, dict) and isinstance(info.get("model_id"), str):
            sha = info.get("model_sha")
            limit = info.get("max_concurrent_requests")
            sha = sha if isinstance(sha, str) else None
            identity.check(spec.url, {info["model_id"]}, sha, spec.served_as, headers)
            identity.check_length(spec.url, info.get("max_total_tokens"))
            engine = _engine(info.get("router") or "text-generation", info.get("version"), headers)
            return Connection(TgiApi(sampling), headers, engine, limit if type(limit) is int and limit > 0 else None)
        if spec.api == "tgi":
            raise WrongServer(
                f"{spec.url}/info does not name a model_id as TGI does; is another server listening there?"
            )
    status, content = await _get(http, f"{spec.url}/v1/models", headers)
    _authorised(spec, status)
    cards = _cards(_json(content)) if status == 200 else {}
    if not cards:
        raise WrongServer(
            f"{spec.url} answers neither /info as TGI nor /v1/models as an OpenAI-style server (status {status});"
            " is another server listening there?"
        )
    expected = {name for name in (identity.model, spec.served_as) if name}
    served = next((n for n, card in cards.items() if {n, str(card.get("root"))} & expected), None)
    names = {served} if served and served in expected else _roots(cards)
    identity.check(spec.url, names, None, spec.served_as, headers)
    assert served is not None
    identity.check_length(spec.url, cards[served].get("max_model_len"))
    version = await _version(http, spec.url, headers)
    engine = _engine(cards[served].get("owned_by") or "openai", version, headers)
    chat = spec.api == "chat"
    api = ChatApi(sampling, served, identity.system_prompt) if chat else OpenAiApi(sampling, served)
    return Connection(api, headers, engine, None)


def _cards(answer: Any) -> dict[str, dict[str, Any]]:
    """Name -> description of each model in an answer to /v1/models."""
    listed = answer.get("data") if isinstance(answer, dict) else None
    cards = [card for card in listed if isinstance(card, dict)] if isinstance(listed, list) else []
    return {card["id"]: card for card in cards if isinstance(card.get("id"), str)}


def _roots(cards: dict[str, Any]) -> set[str]:
    return set(cards) | {card["root"] for card in cards.values() if isinstance(card.get("root"), str)}


def _authorised(spec: EndpointSpec, status: int) -> None:
    if status in (401, 403):
        problem = f"the one in ${spec.token_env} is refused" if spec.token_env else "token_env is not set"
        raise WrongServer(f"{spec.url} answers {status}: it needs a token, and {problem}; fix serving.endpoints")


async def _version(http: aiohttp.ClientSession, url: str, headers: dict[str, str]) -> object:
    """vLLM's version; part of a completion's history, not of its key."""
    with contextlib.suppress(RequestError):
        status, content = await _get(http, f"{url}/version", headers)
        answer = _json(content) if status == 200 else None
        return answer.get("version") if isinstance(answer, dict) else None
    return None


def _engine(name: object, version: object, headers: dict[str, str]) -> str:
    """A server's name and version, as completions keep them."""
    return f"{server_words(name, headers, ENGINE_CHARS)}/{server_words(version or 'unknown', headers, ENGINE_CHARS)}"
