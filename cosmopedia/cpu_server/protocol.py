"""What TGI accepts at /generate, and its words for what it refuses (router/src/validation.rs).

Served are the parameters that a stage sends: sampling, seed, length, grammar, details. Another one is refused, where
TGI would ignore what it does not know: it might be one that changes the text.
"""

import json
import random
from typing import Annotated, Any, Literal

import numpy as np
import pydantic
from pydantic import BaseModel, ConfigDict, Field

from cosmopedia.cpu_server.sampling import SamplingParams


class ValidationError(Exception):
    """Why a request is not served."""


class Malformed(Exception):
    """The body is not a request at all; `status` is what axum answers."""

    def __init__(self, status: int, message: str):
        super().__init__(message)
        self.status = status


class JsonGrammar(BaseModel):
    """A text that a JSON schema describes."""

    type: Literal["json"]
    value: Any


class RegexGrammar(BaseModel):
    """A text that a regular expression matches whole."""

    type: Literal["regex"]
    value: str


class GenerateParameters(BaseModel):
    """TGI's `parameters`, as far as they are served."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True, allow_inf_nan=False)

    temperature: float | None = None
    repetition_penalty: float | None = None
    top_k: int | None = None
    top_p: float | None = None
    do_sample: bool = False
    max_new_tokens: int | None = None
    details: bool = False
    seed: int | None = None
    grammar: Annotated[JsonGrammar | RegexGrammar, Field(discriminator="type")] | None = None


class GenerateRequest(BaseModel):
    """The body of /generate. Unknown keys are ignored, as TGI does."""

    model_config = ConfigDict(strict=True, extra="ignore", frozen=True)

    inputs: str
    parameters: GenerateParameters = GenerateParameters()
    add_special_tokens: bool = True


def parse_request(content: bytes) -> GenerateRequest:
    """The request in a body; parameters that are null, false or empty count as left out.

    `Malformed` when the body is not JSON, by TGI's strict rules (no NaN, no half characters), or its types are wrong.
    """

    def refuse(name: str) -> Any:
        raise ValueError(f"{name} is not JSON")

    try:
        body = json.loads(content, parse_constant=refuse)
        if b"\\ud" in content or b"\\uD" in content:  # perhaps a surrogate without its other half
            json.dumps(body, ensure_ascii=False).encode()
    except (ValueError, RecursionError) as error:
        reason = "recursion limit exceeded" if isinstance(error, RecursionError) else error
        raise Malformed(400, f"Failed to parse the request body as JSON: {reason}") from None
    if isinstance(body, dict) and isinstance(body.get("parameters", {}), dict | None):
        given = body.get("parameters") or {}
        body = {**body, "parameters": {k: v for k, v in given.items() if not (v is None or v is False or v == [])}}
    try:
        return GenerateRequest.model_validate(body)
    except pydantic.ValidationError as error:
        first = error.errors(include_input=False, include_url=False)[0]
        place = ".".join(map(str, first["loc"])) or "body"
        message = f"Failed to deserialize the JSON body into the target type: {place}: {first['msg']}"
        raise Malformed(422, message) from None


def sampling_params(p: GenerateParameters) -> SamplingParams:
    """How the tokens are chosen. `ValidationError` in TGI's words."""
    # TGI's numbers are float32, in which the smallest of float64 are 0
    if p.temperature is not None and np.float32(p.temperature) <= 0:
        raise ValidationError("`temperature` must be strictly positive")
    if p.repetition_penalty is not None and np.float32(p.repetition_penalty) <= 0:
        raise ValidationError("`repetition_penalty` must be strictly positive")
    if p.top_p is not None and not 0 < p.top_p < 1:
        raise ValidationError("`top_p` must be > 0.0 and < 1.0")
    if p.top_k is not None and p.top_k <= 0:
        raise ValidationError("`top_k` must be strictly positive")
    if p.seed is not None and not 0 <= p.seed < 2**64:
        raise ValidationError(f"`seed` must be >= 0 and < 2^64. Given: {p.seed}")
    seed = random.getrandbits(64) if p.seed is None else p.seed
    sampled = p.do_sample or any(value is not None for value in (p.temperature, p.top_k, p.top_p))
    return SamplingParams(
        seed=seed if sampled else None,
        temperature=p.temperature or 1.0,
        top_k=p.top_k,
        top_p=p.top_p or 1.0,
        repetition_penalty=p.repetition_penalty or 1.0,
    )


def grammar_text(p: GenerateParameters) -> tuple[str, str] | None:
    """(kind, text) for `Grammars.compile`, which judges the grammar itself. `ValidationError` in TGI's words."""
    if p.grammar is None:
        return None
    if isinstance(p.grammar, RegexGrammar):
        return "regex", p.grammar.value
    schema = p.grammar.value
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


def new_tokens(request: GenerateRequest, prompt: int, max_total_tokens: int) -> int:
    """The most tokens to write after a prompt of so many. `ValidationError` when they do not fit together."""
    p = request.parameters
    if not request.inputs or prompt == 0:
        raise ValidationError("`inputs` cannot be empty")
    if p.max_new_tokens is not None and p.max_new_tokens <= 0:
        raise ValidationError("`max_new_tokens` must be strictly positive")
    if p.max_new_tokens is None and prompt >= max_total_tokens:
        raise ValidationError(f"`inputs` must have less than {max_total_tokens} tokens. Given: {prompt}")
    new = max_total_tokens - prompt if p.max_new_tokens is None else p.max_new_tokens
    if prompt + new > max_total_tokens:
        raise ValidationError(
            f"`inputs` tokens + `max_new_tokens` must be <= {max_total_tokens}."
            f" Given: {prompt} `inputs` tokens and {new} `max_new_tokens`"
        )
    return new
