"""The HTTP APIs that completions come through: TGI's `/generate`, OpenAI-style `/v1/completions`, and its chat form.

An adapter knows where a request goes, what its body holds, how to read an answer and an error, and the names of the
server's gauges. What a status means is the same for both and is in cosmopedia/execution/client/http.py. TGI's
parameters, answer and errors are the types of the `text-generation` package.
"""

import json
import math
import re
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple, Protocol

import pydantic
from text_generation.types import Grammar, GrammarType, Parameters, Response

from cosmopedia.core.text import half_pair
from cosmopedia.generation.answers import OPEN, Answer, MalformedAnswer, UnusableAnswer, with_thought
from cosmopedia.generation.requests import Request, Sampling

_SAMPLE = re.compile(r"^([a-zA-Z_:][\w:]*)(?:\{.*\})? +([-+.\w]+)", re.MULTILINE)  # a line of Prometheus text


MAX_COUNT = 2**31 - 1  # a larger count, or a negative one, is none
MAX_LOAD = 1e6  # requests; a gauge beyond it is none


class Load(NamedTuple):
    """A server's own gauges, requests of every client included."""

    running: float
    waiting: float


class Api(Protocol):
    """How to talk to one kind of server."""

    name: str
    path: str
    max_new_tokens: int

    def body(self, request: Request) -> dict[str, Any]:
        """The JSON body of a request."""
        ...

    def answer(self, payload: Any, headers: Mapping[str, str]) -> Answer:
        """The completion in an answer with status 200. `MalformedAnswer` or `UnusableAnswer` when there is none."""
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
        self.max_new_tokens = sampling.max_new_tokens
        parameters = Parameters(
            do_sample=True,
            temperature=sampling.temperature,
            top_p=sampling.top_p if sampling.top_p < 1 else None,
            top_k=sampling.top_k,
            repetition_penalty=sampling.repetition_penalty,
            max_new_tokens=sampling.max_new_tokens,
            grammar=_tgi_grammar(sampling),
            details=True,
        )
        self._parameters = parameters.model_dump(mode="json", exclude_unset=True, exclude_none=True)

    def body(self, request: Request) -> dict[str, Any]:
        parameters = {**self._parameters, "seed": request.seed}
        if request.sampling and (grammar := _tgi_grammar(request.sampling)):
            parameters["grammar"] = grammar.model_dump(mode="json")
        return {"inputs": request.prompt, "parameters": parameters}

    def answer(self, payload: Any, headers: Mapping[str, str]) -> Answer:
        """The per-token details, 70 bytes per token, are not read."""
        details = _object(_object(payload, "the answer").get("details"), "`details`")
        _check_filter(details.get("finish_reason"))
        known = {"prefill": [], "tokens": [], "best_of_sequences": None, "top_tokens": None, "generated_tokens": 0}
        try:
            response = Response.model_validate({**payload, "details": {**details, **known}})
        except pydantic.ValidationError as error:
            first = error.errors(include_input=False, include_url=False)[0]
            place = ".".join(map(str, first["loc"]))
            raise MalformedAnswer(f"`{place}` is wrong: {first['msg'][0].lower()}{first['msg'][1:]}") from None
        header = headers.get("x-prompt-tokens", "")
        prompt_tokens = _count(int(header)) if re.fullmatch(r"[0-9]{1,10}", header) else None
        reason, tokens = response.details.finish_reason.value, _count(details.get("generated_tokens"))
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
    penalty: vLLM takes what is left out from the model's generation_config.json. A grammar goes as
    `structured_outputs` (vLLM from 0.11 on) and as `regex` or `json_schema` (SGLang); a server that knows neither
    writes any text.
    """

    name, path, text_path = "openai", "/v1/completions", "text"

    def __init__(self, sampling: Sampling, model: str):
        self._body: dict[str, Any] = {
            "model": model,
            "max_tokens": sampling.max_new_tokens,
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
            "top_k": sampling.top_k or -1,
            "repetition_penalty": sampling.repetition_penalty or 1.0,
        }
        self._body |= self.form(sampling)
        self.max_new_tokens = sampling.max_new_tokens

    @staticmethod
    def form(sampling: Sampling) -> dict[str, Any]:
        """The fields by which engines are made to write a form."""
        if sampling.json_schema:
            schema = json.loads(sampling.json_schema)
            return {"structured_outputs": {"json": schema}, "json_schema": sampling.json_schema}
        if sampling.grammar:
            return {"structured_outputs": {"regex": sampling.grammar}, "regex": sampling.grammar}
        return {}

    def body(self, request: Request) -> dict[str, Any]:
        own = self.form(request.sampling) if request.sampling else {}
        return {**self._body, **own, **self.prompt(request), "seed": request.seed}

    def prompt(self, request: Request) -> dict[str, Any]:
        """The fields that hold the prompt."""
        return {"prompt": request.prompt}

    def text(self, choice: dict[str, Any]) -> Any:
        """The text of a choice, whatever it is."""
        return choice.get("text")

    def answer(self, payload: Any, headers: Mapping[str, str]) -> Answer:
        choices = _object(payload, "the answer").get("choices")
        if not isinstance(choices, list) or len(choices) != 1:
            raise MalformedAnswer("`choices` is not a list of one completion")
        choice, usage = _object(choices[0], "`choices[0]`"), payload.get("usage")
        usage = usage if isinstance(usage, dict) else {}
        text, reason, stop = self.text(choice), choice.get("finish_reason"), choice.get("stop_reason")
        _check_filter(reason)
        names = {"length": "length", "stop": "stop_sequence" if isinstance(stop, str) else "eos_token"}
        if not isinstance(text, str) or half_pair(text) is not None:
            raise MalformedAnswer(f"`choices[0].{self.text_path}` is not a text")
        if not isinstance(reason, str) or reason not in names:
            raise MalformedAnswer(f"`finish_reason` is {_shown(reason)}, wanted `stop` or `length`")
        tokens = _count(usage.get("completion_tokens"))
        if reason == "length" and tokens and tokens < self.max_new_tokens:  # vLLM cuts silently at its --max-model-len
            raise MalformedAnswer(f"cut after {tokens} of {self.max_new_tokens} tokens")
        return Answer(text, names[reason], tokens, _count(usage.get("prompt_tokens")))

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


class ChatApi(OpenAiApi):
    """`/v1/chat/completions`: the server applies the chat template itself, as hosted APIs want it.

    The same request has the same key as through the other APIs: our rendering of the prompt names what is sent.
    `top_k` and `repetition_penalty` are sent only where they are on: many hosted APIs refuse fields that they do not
    know. A JSON schema goes as `response_format`. A thought that the server has parted from the text is joined to it
    again, as the store keeps it.
    """

    name, path, text_path = "chat", "/v1/chat/completions", "message.content"

    def __init__(self, sampling: Sampling, model: str, system_prompt: str | None = None):
        super().__init__(sampling, model)
        for name in ("top_k", "repetition_penalty"):
            if getattr(sampling, name) is None:
                del self._body[name]
        self._system = [{"role": "system", "content": system_prompt}] if system_prompt else []

    @staticmethod
    def form(sampling: Sampling) -> dict[str, Any]:
        if not sampling.json_schema:
            return OpenAiApi.form(sampling)
        schema = {"name": "form", "schema": json.loads(sampling.json_schema), "strict": True}
        return {"response_format": {"type": "json_schema", "json_schema": schema}}

    def prompt(self, request: Request) -> dict[str, Any]:
        return {"messages": [*self._system, {"role": "user", "content": request.text}]}

    def text(self, choice: dict[str, Any]) -> Any:
        message = _object(choice.get("message"), "`choices[0].message`")
        content, refusal = message.get("content"), message.get("refusal")
        thought = message.get("reasoning_content") or message.get("reasoning")  # vLLM and SGLang; newer vLLM
        if content is None and isinstance(refusal, str):
            return refusal
        if isinstance(thought, str) and thought:  # without a text the thought was cut, and has no end
            return with_thought(thought, content) if isinstance(content, str) and content else f"{OPEN}{thought}"
        return content


def _tgi_grammar(sampling: Sampling) -> Grammar | None:
    """TGI's grammar of a regular expression or a JSON schema."""
    if sampling.json_schema:
        return Grammar(type=GrammarType.Json, value=json.loads(sampling.json_schema))
    return Grammar(type=GrammarType.Regex, value=sampling.grammar) if sampling.grammar else None


def _object(value: Any, name: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise MalformedAnswer(f"{name} is not a JSON object")
    return value


def _count(value: Any) -> int | None:
    """A number of tokens as a server gives it, or None."""
    return value if type(value) is int and 0 <= value <= MAX_COUNT else None


def _shown(value: Any) -> str:
    """A JSON value in words, for a message."""
    return "missing" if value is None else f"`{value}`" if isinstance(value, str) else "not a text"


def _check_filter(reason: Any) -> None:
    if reason == "content_filter":
        raise UnusableAnswer("content_filter", "the server's content filter took the text back")


def _load(metrics: str, running: Iterable[str], waiting: Iterable[str]) -> Load | None:
    """Gauges summed over their labels (one per data-parallel engine)."""
    sums: dict[str, float] = {}
    for name, value in _SAMPLE.findall(metrics):
        if name in running or name in waiting:
            try:
                gauge = float(value)
            except ValueError:
                return None
            if not math.isfinite(gauge) or not 0 <= gauge <= MAX_LOAD:
                return None
            sums[name] = sums.get(name, 0.0) + gauge
    parts = [[sums[name] for name in names if name in sums] for names in (running, waiting)]
    return Load(*map(sum, parts)) if all(parts) else None
