"""The two HTTP APIs that completions are asked through: TGI's `/generate`, and OpenAI-style `/v1/completions`.

An adapter says where a request goes, what its body holds, what a good answer holds, in which words the server
complains, and under which names it tells its load. What a status means is the same for both and stands in `client`.
TGI's parameters, answer and errors are the types of the `text-generation` package.
"""

import re
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple, Protocol

import pydantic
from text_generation.types import Parameters, Response

from cosmopedia.generation.requests import Request, Sampling

_SAMPLE = re.compile(r"^([a-zA-Z_:][\w:]*)(?:\{.*\})? +([-+.\w]+)", re.MULTILINE)  # a line of Prometheus text


class Answer(NamedTuple):
    """What a server wrote; `prompt_tokens` is None when it does not say."""

    text: str
    finish_reason: str  # "eos_token" | "length" | "stop_sequence"
    tokens: int  # end-of-text token included
    prompt_tokens: int | None


class Load(NamedTuple):
    """A server's own gauges, requests of every client included."""

    running: float
    waiting: float


class Malformed(Exception):
    """An answer of status 200 with no completion in it."""


class Api(Protocol):
    """How one kind of server is spoken to."""

    name: str
    path: str

    def body(self, request: Request) -> dict[str, Any]:
        """The JSON body that asks for a completion."""
        ...

    def answer(self, payload: Any, headers: Mapping[str, str]) -> Answer:
        """The completion in an answer of status 200. `Malformed` when there is none."""
        ...

    def complaint(self, payload: Any) -> str | None:
        """The server's own words about a failure."""
        ...

    def load(self, metrics: str) -> Load | None:
        """The load in the text of `/metrics`; None when the gauges are not there."""
        ...


class TgiApi:
    """Text Generation Inference. `top_p` 1 is refused there, so it is left out then."""

    name, path = "tgi", "/generate"

    def __init__(self, sampling: Sampling):
        parameters = Parameters(
            do_sample=True,
            temperature=sampling.temperature,
            top_p=sampling.top_p if sampling.top_p < 1 else None,
            top_k=sampling.top_k,
            repetition_penalty=sampling.repetition_penalty,
            max_new_tokens=sampling.max_new_tokens,
            details=True,
        )
        self._parameters = parameters.model_dump(exclude_unset=True, exclude_none=True)

    def body(self, request: Request) -> dict[str, Any]:
        return {"inputs": request.prompt, "parameters": {**self._parameters, "seed": request.seed}}

    def answer(self, payload: Any, headers: Mapping[str, str]) -> Answer:
        """The per-token details, 70 bytes a token, are not looked at."""
        try:
            details = {**payload["details"], "prefill": [], "tokens": [], "best_of_sequences": None}
            details["top_tokens"] = None
            found = Response.model_validate({"generated_text": payload["generated_text"], "details": details})
        except (TypeError, KeyError, pydantic.ValidationError) as error:
            raise Malformed(f"{error!r:.200}") from None
        counted = headers.get("x-prompt-tokens", "")
        reason, tokens = found.details.finish_reason.value, found.details.generated_tokens
        return Answer(found.generated_text, reason, tokens, int(counted) if counted.isdecimal() else None)

    def complaint(self, payload: Any) -> str | None:
        if isinstance(payload, dict) and isinstance(payload.get("error"), str):
            return f"{payload.get('error_type', 'error')}: {payload['error']}"
        return None

    def load(self, metrics: str) -> Load | None:
        return _load(metrics, ["tgi_batch_current_size"], ["tgi_queue_size"])


class OpenAiApi:
    """`/v1/completions` of vLLM, SGLang, TGI and Hugging Face Inference Endpoints. `model` is the name served.

    `top_k` and `repetition_penalty` are extensions that vLLM and SGLang know. They are sent also where there is no
    limit and no penalty: what is left out, vLLM takes from the model's generation_config.json.
    """

    name, path = "openai", "/v1/completions"

    def __init__(self, sampling: Sampling, model: str):
        self._body: dict[str, Any] = {
            "model": model,
            "max_tokens": sampling.max_new_tokens,
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
            "top_k": sampling.top_k or -1,
            "repetition_penalty": sampling.repetition_penalty or 1.0,
        }
        self._most = sampling.max_new_tokens

    def body(self, request: Request) -> dict[str, Any]:
        return {**self._body, "prompt": request.prompt, "seed": request.seed}

    def answer(self, payload: Any, headers: Mapping[str, str]) -> Answer:
        try:
            (choice,), usage = payload["choices"], payload["usage"]
            reason, stop = choice["finish_reason"], choice.get("stop_reason")
            text, tokens, prompt_tokens = choice["text"], usage["completion_tokens"], usage["prompt_tokens"]
        except (TypeError, KeyError, ValueError, AttributeError) as error:
            raise Malformed(f"{error!r:.200}") from None
        names = {"length": "length", "stop": "stop_sequence" if isinstance(stop, str) else "eos_token"}
        if reason not in names or not isinstance(text, str) or type(tokens) is not int:
            raise Malformed(f"finish_reason {reason!r}, completion_tokens {tokens!r}")
        if reason == "length" and tokens < self._most:  # vLLM cuts at its --max-model-len and says nothing
            raise Malformed(f"cut after {tokens} of {self._most} tokens")
        return Answer(text, names[reason], tokens, prompt_tokens if type(prompt_tokens) is int else None)

    def complaint(self, payload: Any) -> str | None:
        if not isinstance(payload, dict):
            return None
        error = payload.get("error", payload)  # older vLLM has the fields at the top
        if isinstance(error, dict) and isinstance(error.get("message"), str):
            return f"{error.get('type', 'error')}: {error['message']}"
        return error if isinstance(error, str) else None

    def load(self, metrics: str) -> Load | None:
        return _load(
            metrics,
            ["vllm:num_requests_running", "sglang:num_running_reqs", "tgi_batch_current_size"],
            ["vllm:num_requests_waiting", "sglang:num_queue_reqs", "tgi_queue_size"],
        )


def _load(metrics: str, running: Iterable[str], waiting: Iterable[str]) -> Load | None:
    """Gauges summed over their labels (one a data-parallel engine)."""
    sums: dict[str, float] = {}
    for name, value in _SAMPLE.findall(metrics):
        if name in running or name in waiting:
            try:
                sums[name] = sums.get(name, 0.0) + float(value)
            except ValueError:
                return None
    found = [sum(sums[name] for name in names if name in sums) for names in (running, waiting)]
    known = any(name in sums for name in running) and any(name in sums for name in waiting)
    return Load(*found) if known else None
