"""One request to one endpoint: what an answer means, and whose fault it is when there is none.

The connections are one pooled aiohttp session: the `text-generation` package opens a new one for each request
(1,250 requests/s per core against 6,200-7,400, measured). Bearer tokens go into headers here and nowhere else.
"""

import json
from typing import Any

import aiohttp

from cosmopedia.errors import ClusterError
from cosmopedia.execution.compute import EndpointSpec
from cosmopedia.generation.apis import Answer, Api, Load, Malformed, OpenAiApi, TgiApi
from cosmopedia.generation.requests import Request, Sampling

PROBE_SECONDS = 5.0  # deadline of /health, /info and /metrics


class RequestError(Exception):
    """Base of everything that can go wrong with a request; `reason` is counted, `detail` is for people."""

    def __init__(self, reason: str, detail: str, pause: float = 0.0):
        super().__init__(detail)
        self.reason, self.detail, self.pause = reason, detail, pause


class Requeue(RequestError):
    """The server could not take the request (502, 503) or the connection broke: try again, no attempt is spent."""


class Overloaded(Requeue):
    """429: the server has more requests than it takes; `pause` is its Retry-After in seconds, or 0."""


class Retryable(RequestError):
    """The server failed on the request (500, 504, 424, a timeout, a malformed answer): one attempt is spent."""


class Permanent(RequestError):
    """The request itself is at fault (422 and other 4xx), or the text is empty: trying again is no use."""


class EndpointRejected(RequestError):
    """The endpoint refuses every request alike: 401 and 403 (token), 404 and 405 (wrong address or model)."""


class WrongServer(ClusterError):
    """The endpoint does not suit this run: another model, an unknown API, no valid token."""


def session() -> aiohttp.ClientSession:
    """One pool of connections for all endpoints; proxies from the environment are not used."""
    return aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0), trust_env=False)


def headers_of(spec: EndpointSpec) -> dict[str, str]:
    """The authorisation header, from the environment."""
    token = spec.token()
    return {"Authorization": f"Bearer {token}"} if token else {}


async def generate(
    http: aiohttp.ClientSession, url: str, headers: dict[str, str], api: Api, request: Request, timeout_s: float
) -> Answer:
    """One completion. Raises a `RequestError`; never returns an empty text."""
    deadline = aiohttp.ClientTimeout(total=timeout_s)
    try:
        async with http.post(f"{url}{api.path}", json=api.body(request), headers=headers, timeout=deadline) as answer:
            content = await answer.read()
    except TimeoutError:  # also aiohttp's: its timeout errors derive from this one
        raise Retryable("timeout", f"{url} did not answer within {timeout_s:g} s") from None
    except (aiohttp.ClientError, OSError) as error:
        raise Requeue("connection", f"{url}: {type(error).__name__}: {error}") from None
    payload = _json(content)
    if answer.status != 200:
        complaint = api.complaint(payload) or content[:200].decode("utf-8", "replace")
        raise _error_of(answer.status, f"{url}: {answer.status} {complaint}", answer.headers.get("Retry-After", ""))
    try:
        completion = api.answer(payload, answer.headers)
    except Malformed as error:
        raise Retryable("server_error", f"{url} answered 200 without a completion: {error}") from None
    text = completion.text.encode("utf-8", "replace").decode("utf-8")
    if not text.strip():
        raise Permanent("empty", f"{url} answered with an empty text after {completion.tokens} token(s)")
    return completion if text == completion.text else completion._replace(text=text)


def _json(content: bytes) -> Any:
    try:
        return json.loads(content)
    except ValueError:
        return None


def _error_of(status: int, detail: str, retry_after: str) -> RequestError:
    if status == 429:
        return Overloaded("http_429", detail, float(retry_after) if retry_after.isdecimal() else 0.0)
    if status in (502, 503):
        return Requeue(f"http_{status}", detail)
    if status in (408, 424) or status >= 500:
        return Retryable("server_error", detail)
    if status in (401, 403, 404, 405):
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
    if status not in (200, 404):
        raise Requeue(f"http_{status}", f"{spec.url}/health: status {status}")


async def _get(http: aiohttp.ClientSession, url: str, headers: dict[str, str]) -> tuple[int, bytes]:
    try:
        async with http.get(url, headers=headers, timeout=aiohttp.ClientTimeout(total=PROBE_SECONDS)) as answer:
            return answer.status, await answer.read()
    except (TimeoutError, aiohttp.ClientError, OSError) as error:
        message = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
        raise Requeue("connection", f"{url}: {message}") from None


class Identity:
    """The model that an endpoint must serve, and the context in tokens (prompt and completion) that it must take."""

    def __init__(self, model: str, revision: str, max_length: int):
        self.model, self.revision, self.max_length = model, revision, max_length

    def check_length(self, url: str, length: object) -> None:
        """`WrongServer` when the server's context is shorter: it would refuse prompts or cut completions."""
        if type(length) is int and length < self.max_length:
            raise WrongServer(
                f"{url} takes {length} tokens, but generator.max_length is {self.max_length}; start the server with a"
                " longer context (vLLM: --max-model-len, TGI: --max-total-tokens), or lower generator.max_length"
            )

    def check(self, url: str, names: set[str], revision: str | None, served_as: str | None) -> None:
        """`WrongServer` when the server names another model. Revisions shorter than a commit hash are branches."""
        expected = {name for name in (self.model, served_as) if name}
        differs = revision and min(len(revision), len(self.revision)) >= 40 and revision != self.revision
        if not names & expected or differs:
            served = " / ".join(sorted(names)) + (f" at {revision}" if revision else "")
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
    if spec.api != "openai":
        status, content = await _get(http, f"{spec.url}/info", headers)
        _authorised(spec, status)
        info = _json(content) if status == 200 else None
        if isinstance(info, dict) and isinstance(info.get("model_id"), str):
            sha = info.get("model_sha")
            limit = info.get("max_concurrent_requests")
            identity.check(spec.url, {info["model_id"]}, sha if isinstance(sha, str) else None, spec.served_as)
            identity.check_length(spec.url, info.get("max_total_tokens"))
            engine = f"{info.get('router') or 'text-generation'}/{info.get('version') or 'unknown'}"
            return Connection(TgiApi(sampling), headers, engine, limit if type(limit) is int and limit > 0 else None)
        if spec.api == "tgi":
            raise WrongServer(
                f"{spec.url}/info does not name a model_id as TGI does; is another server listening there?"
            )
    status, content = await _get(http, f"{spec.url}/v1/models", headers)
    _authorised(spec, status)
    try:
        cards = {card["id"]: card for card in json.loads(content)["data"]} if status == 200 else {}
    except (ValueError, TypeError, KeyError):
        cards = {}
    if not cards:
        raise WrongServer(
            f"{spec.url} answers neither /info as TGI nor /v1/models as an OpenAI-style server (status {status});"
            " is another server listening there?"
        )
    expected = {identity.model, spec.served_as}
    served = next((n for n, card in cards.items() if n in expected or card.get("root") in expected), None)
    identity.check(spec.url, {served} if served and served in expected else _roots(cards), None, spec.served_as)
    assert served is not None
    identity.check_length(spec.url, cards[served].get("max_model_len"))
    engine = f"{cards[served].get('owned_by') or 'openai'}/{await _version(http, spec.url, headers)}"
    return Connection(OpenAiApi(sampling, served), headers, engine, None)


def _roots(cards: dict[str, Any]) -> set[str]:
    return set(cards) | {card["root"] for card in cards.values() if isinstance(card.get("root"), str)}


def _authorised(spec: EndpointSpec, status: int) -> None:
    if status in (401, 403):
        problem = f"the one in ${spec.token_env} is refused" if spec.token_env else "token_env is not set"
        raise WrongServer(f"{spec.url} answers {status}: it needs a token, and {problem}; fix serving.endpoints")


async def _version(http: aiohttp.ClientSession, url: str, headers: dict[str, str]) -> str:
    """vLLM's version; part of a completion's history, not of its key."""
    try:
        status, content = await _get(http, f"{url}/version", headers)
        return str(json.loads(content)["version"]) if status == 200 else "unknown"
    except (RequestError, ValueError, KeyError, TypeError):
        return "unknown"
