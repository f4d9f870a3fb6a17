"""What TGI accepts as a request, and the words in which it refuses one (router/src/validation.rs).

Also OpenAI's form of a request, /v1/completions, by vLLM's rules and in vLLM's words.
"""

import json
import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any, Literal, TypeVar

import numpy as np
import pydantic
from pydantic import BaseModel, ConfigDict, Field

from cosmopedia.cpu_server.sampling import SamplingParams

MAX_STOP_SEQUENCES = 4


T = TypeVar("T", bound=BaseModel)


class ValidationError(Exception):
    """Why a request is not served."""


class Malformed(Exception):
    """The body is no request at all; `status` is axum's answer to it."""

    def __init__(self, status: int, message: str):
        super().__init__(message)
        self.status = status


@dataclass(frozen=True)
class ParsedRequest:
    """A request of any form, its parameters checked."""

    text: str
    choice: SamplingParams
    stop: list[str]
    fit: Callable[[list[int]], tuple[list[int], int]]  # the text's tokens -> (the prompt, new tokens at most)
    inside: bool = False
    whole: bool = False
    grammar: tuple[str, str] | None = None  # kind and text, as `Grammars.compile` takes them
    special: bool = True  # the tokenizer's special tokens are put around the text


class JsonGrammar(BaseModel):
    """A text that a JSON schema describes."""

    type: Literal["json", "json_object"]
    value: Any


class RegexGrammar(BaseModel):
    """A text that a regular expression matches whole."""

    type: Literal["regex"]
    value: str


class JsonSchemaConfig(BaseModel):
    """A JSON schema with a name, which is of no effect."""

    name: str | None = None
    schema_: Any = Field(alias="schema")


class JsonSchemaGrammar(BaseModel):
    """OpenAI's way to say JsonGrammar."""

    type: Literal["json_schema"]
    value: JsonSchemaConfig


AnyGrammar = JsonGrammar | RegexGrammar | JsonSchemaGrammar
TYPED = ConfigDict(strict=True, extra="ignore", frozen=True, allow_inf_nan=False)


class GenerateParameters(BaseModel):
    """TGI's `parameters`. Unknown keys are ignored, as TGI does."""

    model_config = TYPED

    best_of: int | None = None
    temperature: float | None = None
    repetition_penalty: float | None = None
    frequency_penalty: float | None = None
    top_k: int | None = None
    top_p: float | None = None
    typical_p: float | None = None
    do_sample: bool = False
    max_new_tokens: int | None = None
    return_full_text: bool | None = None
    stop: list[str] = []
    truncate: int | None = None
    watermark: bool = False
    details: bool = False
    decoder_input_details: bool = False
    seed: int | None = None
    top_n_tokens: int | None = None
    grammar: Annotated[AnyGrammar, Field(discriminator="type")] | None = None


class GenerateRequest(BaseModel):
    """The body of /generate, /generate_stream and /."""

    model_config = TYPED

    inputs: str
    parameters: GenerateParameters = GenerateParameters()
    stream: bool = False
    add_special_tokens: bool = True


class StreamOptions(BaseModel):
    """What else a stream says."""

    model_config = TYPED

    include_usage: bool = False


class CompletionRequest(BaseModel):
    """The body of /v1/completions. Unknown keys are ignored, but not those in NEUTRAL."""

    model_config = TYPED

    prompt: str | list[str]
    max_tokens: int | None = 16
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    repetition_penalty: float = 1.0
    seed: int | None = None
    stop: str | list[str] = []
    n: int = 1
    echo: bool = False
    stream: bool = False
    stream_options: StreamOptions = StreamOptions()


# Keys of OpenAI and vLLM that would change the text and are not served, and their values that change nothing.
NEUTRAL: dict[str, tuple[Any, ...]] = {
    "n": (1,),
    "best_of": (1,),
    "echo": (False,),
    "logprobs": (),
    "suffix": ("",),
    "frequency_penalty": (0,),
    "presence_penalty": (0,),
    "logit_bias": ({},),
    "min_p": (0,),
    "min_tokens": (0,),
    "ignore_eos": (False,),
    "use_beam_search": (False,),
    "response_format": ({"type": "text"},),
    "guided_json": (),
    "guided_regex": (),
    "guided_choice": (),
    "guided_grammar": (),
    "structured_outputs": (),
    "prompt_embeds": (),
}


def parse_json(content: bytes) -> Any:
    """The JSON value of a body, as strict as TGI's parser: no NaN, no half characters. `Malformed` when it is none."""

    def refuse(name: str) -> Any:
        raise ValueError(f"{name} is not JSON")

    try:
        value = json.loads(content, parse_constant=refuse)
        if b"\\ud" in content or b"\\uD" in content:  # perhaps a surrogate without its other half
            json.dumps(value, ensure_ascii=False).encode()
        return value
    except (ValueError, RecursionError) as error:
        reason = "recursion limit exceeded" if isinstance(error, RecursionError) else error
        raise Malformed(400, f"Failed to parse the request body as JSON: {reason}") from None


def parse_body(body: Any) -> GenerateRequest:
    """The request in a JSON value. `Malformed` when its types are wrong."""
    if isinstance(body, dict) and body.get("parameters", ...) is None:
        body = {**body, "parameters": {}}
    if isinstance(body, dict) and isinstance(body.get("parameters"), dict):
        body = {**body, "parameters": {k: v for k, v in body["parameters"].items() if v is not None}}
    return _typed(GenerateRequest, body)


def _typed(kind: type[T], body: Any) -> T:
    try:
        return kind.model_validate(body)
    except pydantic.ValidationError as error:
        first = error.errors(include_input=False, include_url=False)[0]
        where = ".".join(map(str, first["loc"])) or "body"
        message = f"Failed to deserialize the JSON body into the target type: {where}: {first['msg']}"
        raise Malformed(422, message) from None


def generate_ask(request: GenerateRequest, stream: bool, max_total_tokens: int) -> ParsedRequest:
    """A request of TGI. `ValidationError` in TGI's words."""
    p = request.parameters
    choice = check_parameters(p, stream, max_total_tokens)
    if not request.inputs:
        raise ValidationError("`inputs` cannot be empty")

    def fit(ids: list[int]) -> tuple[list[int], int]:
        if not ids:
            raise ValidationError("`inputs` cannot be empty")
        return check_length(ids, p, max_total_tokens)

    return ParsedRequest(
        text=request.inputs,
        choice=choice,
        stop=list(p.stop),
        fit=fit,
        whole=p.decoder_input_details,
        grammar=check_grammar(p.grammar),
        special=request.add_special_tokens,
    )


def check_parameters(p: GenerateParameters, stream: bool, max_total_tokens: int) -> SamplingParams:
    """The sampling rules of a request. `ValidationError` in TGI's words."""
    if p.best_of is not None and p.best_of != 1:
        if stream:
            raise ValidationError("`best_of` != 1 is not supported when streaming tokens")
        raise ValidationError("`best_of` != 1 is not allowed for this endpoint")
    if p.top_n_tokens:
        raise ValidationError("`top_n_tokens` != 0 is not allowed for this endpoint")
    if p.decoder_input_details and stream:
        raise ValidationError("`decoder_input_details` == true is not supported when streaming tokens")
    # TGI's numbers are float32, in which the smallest of float64 are 0
    if p.temperature is not None and np.float32(p.temperature) <= 0:
        raise ValidationError("`temperature` must be strictly positive")
    if p.repetition_penalty is not None and np.float32(p.repetition_penalty) <= 0:
        raise ValidationError("`repetition_penalty` must be strictly positive")
    if p.frequency_penalty is not None and not -2 <= p.frequency_penalty <= 2:
        raise ValidationError("`frequency_penalty` must be >= -2.0 and <= 2.0")
    if p.top_p is not None and not 0 < p.top_p < 1:
        raise ValidationError("`top_p` must be > 0.0 and < 1.0")
    if p.typical_p is not None and not 0 < p.typical_p < 1:
        raise ValidationError("`typical_p` must be > 0.0 and < 1.0")
    if p.top_k is not None and p.top_k <= 0:
        raise ValidationError("`top_k` must be strictly positive")
    if p.truncate is not None and not 0 < p.truncate < max_total_tokens:
        raise ValidationError(
            f"`truncate` must be strictly positive and less than {max_total_tokens}. Given: {p.truncate}"
        )
    if p.max_new_tokens is not None and p.max_new_tokens <= 0:
        raise ValidationError("`max_new_tokens` must be strictly positive")
    if len(p.stop) > MAX_STOP_SEQUENCES:
        raise ValidationError(f"`stop` supports up to {MAX_STOP_SEQUENCES} stop sequences. Given: {len(p.stop)}")
    if p.seed is not None and not 0 <= p.seed < 2**64:
        raise ValidationError(f"`seed` must be >= 0 and < 2^64. Given: {p.seed}")
    if p.watermark:
        raise ValidationError("`watermark` is not supported by this server")
    sampled = p.do_sample or any(v is not None for v in (p.temperature, p.top_k, p.top_p, p.typical_p))
    seed = (random.getrandbits(64) if p.seed is None else p.seed) if sampled else None
    return SamplingParams(
        seed=seed,
        temperature=p.temperature or 1.0,
        top_k=p.top_k,
        top_p=p.top_p or 1.0,
        typical_p=p.typical_p or 1.0,
        repetition_penalty=p.repetition_penalty or 1.0,
        frequency_penalty=p.frequency_penalty or 0.0,
    )


def check_grammar(grammar: AnyGrammar | None) -> tuple[str, str] | None:
    """(kind, text) for `Grammars.compile`, which judges the grammar itself. `ValidationError` in TGI's words."""
    if grammar is None:
        return None
    if isinstance(grammar, RegexGrammar):
        return "regex", grammar.value
    schema = grammar.value.schema_ if isinstance(grammar, JsonSchemaGrammar) else grammar.value
    try:
        if isinstance(schema, str):
            schema = json.loads(schema)
        elif not isinstance(schema, dict):
            raise ValidationError("grammar is not supported")
        text = json.dumps(schema)
    except (ValueError, RecursionError) as error:
        raise ValidationError(f"grammar is not valid: {error}") from None
    if not isinstance(schema, dict):
        raise ValidationError("grammar is not valid: a schema must be an object")
    if "properties" not in schema:
        raise ValidationError("grammar is not valid: Grammar must have a 'properties' field")
    return "json", text


def check_length(ids: list[int], p: GenerateParameters, max_total_tokens: int) -> tuple[list[int], int]:
    """(the input's tokens after `truncate`, new tokens at most). `ValidationError` when they do not fit together."""
    if p.truncate is not None:
        ids = ids[-p.truncate :]
    new = p.max_new_tokens if p.max_new_tokens is not None else max_total_tokens - len(ids)
    if len(ids) >= max_total_tokens and p.max_new_tokens is None:
        raise ValidationError(f"`inputs` must have less than {max_total_tokens} tokens. Given: {len(ids)}")
    if len(ids) + new > max_total_tokens:
        raise ValidationError(
            f"`inputs` tokens + `max_new_tokens` must be <= {max_total_tokens}."
            f" Given: {len(ids)} `inputs` tokens and {new} `max_new_tokens`"
        )
    return ids, new


def parse_completion(body: Any) -> CompletionRequest:
    """OpenAI's request in a JSON value. `Malformed` when its types are wrong, `ValidationError` for the
    rest."""
    if isinstance(body, dict):
        body = {k: v for k, v in body.items() if v is not None or k == "max_tokens"}
        for name, neutral in NEUTRAL.items():
            if name in body and not any(body[name] == value for value in neutral):
                raise ValidationError(f"`{name}` is not supported by this server")
    return _typed(CompletionRequest, body)


def completion_ask(request: CompletionRequest, max_total_tokens: int) -> ParsedRequest:
    """A request of OpenAI's form. `ValidationError` in vLLM's words."""
    prompts = [request.prompt] if isinstance(request.prompt, str) else request.prompt
    if len(prompts) != 1:
        raise ValidationError(f"`prompt` must be one string, or a list of one. Given: {len(prompts)}")
    if np.float32(request.repetition_penalty) <= 0:
        raise ValidationError(f"repetition_penalty must be greater than zero, got {request.repetition_penalty}.")
    if request.temperature < 0:
        raise ValidationError(f"temperature must be non-negative, got {request.temperature}.")
    if not 0 < request.top_p <= 1:
        raise ValidationError(f"top_p must be in (0, 1], got {request.top_p}.")
    if request.top_k < -1:
        raise ValidationError(f"top_k must be 0 (disable), or at least 1, got {request.top_k}.")
    if request.max_tokens is not None and request.max_tokens < 1:
        raise ValidationError(f"max_tokens must be at least 1, got {request.max_tokens}.")
    stop = [request.stop] if isinstance(request.stop, str) else request.stop
    if "" in stop:
        raise ValidationError("stop cannot contain an empty string.")
    if len(stop) > MAX_STOP_SEQUENCES:
        raise ValidationError(f"`stop` supports up to {MAX_STOP_SEQUENCES} stop sequences. Given: {len(stop)}")

    def fit(ids: list[int]) -> tuple[list[int], int]:
        if not ids:
            raise ValidationError("prompt cannot be empty")
        new = max_total_tokens - len(ids) if request.max_tokens is None else request.max_tokens
        if new < 1 or len(ids) + new > max_total_tokens:
            raise ValidationError(
                f"This model's maximum context length is {max_total_tokens} tokens. However, you requested"
                f" {len(ids) + max(new, 1)} tokens ({len(ids)} in the prompt, {max(new, 1)} in the completion)."
                " Please reduce the length of the prompt or completion."
            )
        return ids, new

    if not np.float32(request.temperature):
        choice = SamplingParams(repetition_penalty=request.repetition_penalty)
    else:
        choice = SamplingParams(
            seed=random.getrandbits(64) if request.seed is None else request.seed % 2**64,
            temperature=request.temperature,
            top_k=request.top_k if request.top_k > 0 else None,
            top_p=request.top_p,
            repetition_penalty=request.repetition_penalty,
        )
    return ParsedRequest(prompts[0], choice, stop, fit, inside=True)
