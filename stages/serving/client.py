"""TGI's HTTP API for one request: what is sent, what an answer means, and who is to blame when there is none.

The types and errors are those of the `text-generation` package; the connections are one pooled aiohttp session, since
that package opens a new one for each request (1,250 requests/s on a core against 6,200-7,400, measured).
"""

import asyncio
import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import aiohttp
import pydantic
from text_generation.errors import parse_error
from text_generation.types import Parameters, Response

from stages.errors import ClusterError
from stages.serving.requests import Request, Sampling


class GiveBack(Exception):
    """The server could not take the request (429, 502, 503) or the connection broke: ask again, no attempt spent."""

    def __init__(self, reason: str, detail: str, overloaded: bool = False):
        super().__init__(detail)
        self.reason, self.detail, self.overloaded = reason, detail, overloaded


class Attempt(Exception):
    """The server failed at the request (500, 504, 424, a timeout, an answer that is none): one attempt is spent."""

    def __init__(self, reason: str, detail: str):
        super().__init__(detail)
        self.reason, self.detail = reason, detail


class Refused(Exception):
    """The request itself is at fault (422 and other 4xx), or the text is empty: asking again is no use."""

    def __init__(self, reason: str, detail: str):
        super().__init__(detail)
        self.reason, self.detail = reason, detail


@dataclass(frozen=True)
class Info:
    """What a server says about itself (`GET /info`)."""

    model_id: str
    revision: str | None
    engine: str  # "<router>/<version>"


def parameters_of(sampling: Sampling) -> dict[str, Any]:
    """TGI's `parameters`, without the seed. TGI refuses `top_p` 1, so it is left out then."""
    parameters = Parameters(
        do_sample=True,
        temperature=sampling.temperature,
        top_p=sampling.top_p if sampling.top_p < 1 else None,
        top_k=sampling.top_k,
        repetition_penalty=sampling.repetition_penalty,
        max_new_tokens=sampling.max_new_tokens,
        details=True,
    )
    return parameters.model_dump(exclude_unset=True, exclude_none=True)


def session(connections: int) -> aiohttp.ClientSession:
    """One pool of connections for all endpoints; proxies from the environment are not used."""
    return aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=connections), trust_env=False)


async def generate(
    http: aiohttp.ClientSession, url: str, request: Request, parameters: dict[str, Any], timeout_s: float
) -> Response:
    """One completion. Raises `GiveBack`, `Attempt` or `Refused`; never returns an empty text."""
    body = {"inputs": request.prompt, "parameters": {**parameters, "seed": request.seed}}
    deadline = aiohttp.ClientTimeout(total=timeout_s)
    try:
        async with http.post(f"{url}/generate", json=body, timeout=deadline) as answer:
            content = await answer.read()
            status = answer.status
            payload = _json(content)
    except TimeoutError:  # also aiohttp's: its timeout errors derive from this one
        raise Attempt("timeout", f"{url} did not answer within {timeout_s:g} s") from None
    except (aiohttp.ClientError, OSError) as error:
        raise GiveBack("connection", f"{url}: {type(error).__name__}: {error}") from None
    if status != 200:
        raise _problem(url, status, payload, content)
    return _response(url, payload)


def _json(content: bytes) -> Any:
    try:
        return json.loads(content)
    except ValueError:
        return None


def _problem(url: str, status: int, payload: Any, content: bytes) -> Exception:
    if isinstance(payload, dict) and isinstance(payload.get("error"), str):
        error = parse_error(status, payload)
        detail = f"{url}: {status} {type(error).__name__}: {error}"
    else:
        detail = f"{url}: {status} {content[:200].decode('utf-8', 'replace')}"
    if status in (429, 502, 503):
        return GiveBack(f"http_{status}", detail, overloaded=status == 429)
    if status == 424 or status >= 500:
        return Attempt("server_error", detail)
    return Refused("validation" if status == 422 else f"http_{status}", detail)


def _response(url: str, payload: Any) -> Response:
    """A whole and non-empty answer. The per-token details, 70 bytes a token, are not looked at."""
    try:
        details = {**payload["details"], "prefill": [], "tokens": [], "best_of_sequences": None, "top_tokens": None}
        response = Response.model_validate({"generated_text": payload["generated_text"], "details": details})
    except (TypeError, KeyError, pydantic.ValidationError) as error:
        raise Attempt("server_error", f"{url} answered 200 with no completion in it: {error!r:.200}") from None
    response.generated_text = response.generated_text.encode("utf-8", "replace").decode("utf-8")
    if not response.generated_text.strip():
        raise Refused("empty", f"{url} answered with an empty text after {response.details.generated_tokens} token(s)")
    return response


async def wait_healthy(urls: list[str], timeout_s: float, lost: Callable[[], str | None] | None = None) -> None:
    """Wait until every server answers /health. `ClusterError` names the first that does not within `timeout_s`.

    `lost()` may return a sentence, which ends the waiting (a server that we started has died).
    """
    loop = asyncio.get_running_loop()
    end, step = loop.time() + timeout_s, aiohttp.ClientTimeout(total=5)
    async with session(len(urls)) as http:
        for url in urls:
            said = "no answer"
            while True:
                if lost is not None and (sentence := lost()):
                    raise ClusterError(sentence)
                try:
                    async with http.get(f"{url}/health", timeout=step) as answer:
                        if answer.status == 200:
                            break
                        said = f"status {answer.status}"
                except (TimeoutError, aiohttp.ClientError, OSError) as error:
                    said = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
                if loop.time() >= end:
                    raise ClusterError(
                        f"{url}/health did not become healthy within {timeout_s:g} s ({said}); start the server, or"
                        " mend serving.endpoints in the cluster file"
                    )
                await asyncio.sleep(min(0.2, max(end - loop.time(), 0.01)))


async def read_info(urls: list[str]) -> list[Info]:
    """What each server says about itself. `ClusterError` when one does not answer as TGI does."""
    found, step = [], aiohttp.ClientTimeout(total=10)
    async with session(len(urls)) as http:
        for url in urls:
            try:
                async with http.get(f"{url}/info", timeout=step) as answer:
                    payload = _json(await answer.read()) if answer.status == 200 else None
            except (TimeoutError, aiohttp.ClientError, OSError):
                payload = None
            if not isinstance(payload, dict) or not isinstance(payload.get("model_id"), str):
                raise ClusterError(
                    f"{url}/info does not name a model_id as TGI does; is another server listening there?"
                )
            engine = f"{payload.get('router') or 'text-generation'}/{payload.get('version') or 'unknown'}"
            found.append(Info(payload["model_id"], payload.get("model_sha"), engine))
    return found
