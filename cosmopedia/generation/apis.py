"""The two HTTP APIs that completions come through: TGI's `/generate`, and OpenAI-style `/v1/completions`.

An adapter knows where a request goes, what its body holds, how to read an answer and an error, and the names of the
server's gauges. What a status means is the same for both and is in cosmopedia/execution/client/http.py. TGI's
parameters, answer and errors are the types of the `text-generation` package.
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
    """An answer with status 200 and no completion in it."""


class Api(Protocol):
    """How to talk to one kind of server."""

    name: str
    path: str

    def body(self, request: Request) -> dict[str, Any]:
        """The JSON body of a request."""
        ...

    def answer(self, payload: Any, headers: Mapping[str, str]) -> Answer:
        """The completion in an answer with status 200. `Malformed` when there is none."""
        ...

    def error_message(self, payload: Any) -> str | None:
        """The server's own words about a failure, if it says any."""
        ...

    def load(self, metrics: str) -> Load | None:
        """The load in the text of `/metrics`; None without these gauges."""
        ...


class TgiApi:
    """Text Generation Inference. It refuses `top_p` 1, which is therefore left out."""

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
        """The per-token details, 70 bytes per token, are not read."""
        try:
            details = {**payload["details"], "prefill": [], "tokens": [], "best_of_sequences": None}
            details["top_tokens"] = None
            response = Response.model_validate({"generated_text": payload["generated_text"], "details": details})
        except (TypeError, KeyError, pydantic.ValidationError) as error:
            raise Malformed(f"{error!r:.200}") from None
        header = headers.get("x-prompt-tokens", "")
        prompt_tokens = int(header) if header.isdecimal() else None
        reason, tokens = response.details.finish_reason.value, response.details.generated_tokens
        return Answer(response.generated_text, reason, tokens, prompt_tokens)

    def error_message(self, payload: Any) -> str | None:
        if isinstance(payload, dict) and isinstance(payload.get("error"), str):
            return f"{payload.get('error_type', 'error')}: {payload['error']}"
        return None

    def load(self, metrics: str) -> Load | None:
        return _load(metrics, ["tgi_batch_current_size"], ["tgi_queue_size"])


class OpenAiApi:
    """`/v1/completions` of vLLM, SGLang, TGI and Hugging Face Inference Endpoints. `model` is the name served.

    `top_k` and `repetition_penalty` are extensions that vLLM and SGLang know. They are sent even without a limit or a
    penalty: vLLM takes what is left out from the model's generation_config.json.
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
        self._max_tokens = sampling.max_new_tokens

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
        if reason == "length" and tokens < self._max_tokens:  # vLLM cuts silently at its --max-model-len
            raise Malformed(f"cut after {tokens} of {self._max_tokens} tokens")
        return Answer(text, names[reason], tokens, prompt_tokens if type(prompt_tokens) is int else None)

    def error_message(self, payload: Any) -> str | None:
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
    """Gauges summed over their labels (one per data-parallel engine)."""
    sums: dict[str, float] = {}
    for name, value in _SAMPLE.findall(metrics):
        if name in running or name in waiting:
            try:
                sums[name] = sums.get(name, 0.0) + float(value)
            except ValueError:
                return None
    parts = [[sums[name] for name in names if name in sums] for names in (running, waiting)]
    return Load(*map(sum, parts)) if all(parts) else None
