"""What TGI accepts as a request, and the words in which it refuses one (router/src/validation.rs)."""

import random
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from stages.serving.choosing import Choice

MAX_STOP_SEQUENCES = 4


class Refusal(Exception):
    """Why a request is not served."""


class GenerateParameters(BaseModel):
    """TGI's `parameters`. Unknown keys are ignored, as TGI does."""

    model_config = ConfigDict(strict=True, extra="ignore", frozen=True)

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
    grammar: Any = None


class GenerateRequest(BaseModel):
    """The body of /generate, /generate_stream and /."""

    model_config = ConfigDict(strict=True, extra="ignore", frozen=True)

    inputs: str
    parameters: GenerateParameters = GenerateParameters()
    stream: bool = False


def parse_body(body: Any) -> GenerateRequest:
    """The request in a JSON value. `Refusal` when its types are wrong."""
    if isinstance(body, dict) and body.get("parameters", ...) is None:
        body = {**body, "parameters": {}}
    if isinstance(body, dict) and isinstance(body.get("parameters"), dict):
        body = {**body, "parameters": {k: v for k, v in body["parameters"].items() if v is not None}}
    try:
        return GenerateRequest.model_validate(body)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "body"
        raise Refusal(f"Failed to deserialize the JSON body into the target type: {where}: {first['msg']}") from None


def check_parameters(p: GenerateParameters, stream: bool, max_total_tokens: int) -> Choice:
    """The sampling rules of a request. `Refusal` in TGI's words."""
    if p.best_of is not None and p.best_of != 1:
        raise Refusal("`best_of` != 1 is not allowed for this endpoint")
    if p.top_n_tokens:
        raise Refusal("`top_n_tokens` != 0 is not allowed for this endpoint")
    if p.decoder_input_details and stream:
        raise Refusal("`decoder_input_details` == true is not supported when streaming tokens")
    if p.temperature is not None and p.temperature <= 0:
        raise Refusal("`temperature` must be strictly positive")
    if p.repetition_penalty is not None and p.repetition_penalty <= 0:
        raise Refusal("`repetition_penalty` must be strictly positive")
    if p.frequency_penalty:
        raise Refusal("`frequency_penalty` != 0 is not supported by this server")
    if p.top_p is not None and not 0 < p.top_p < 1:
        raise Refusal("`top_p` must be > 0.0 and < 1.0")
    if p.typical_p is not None and not 0 < p.typical_p < 1:
        raise Refusal("`typical_p` must be > 0.0 and < 1.0")
    if p.top_k is not None and p.top_k <= 0:
        raise Refusal("`top_k` must be strictly positive")
    if p.truncate is not None and not 0 < p.truncate < max_total_tokens:
        raise Refusal(f"`truncate` must be strictly positive and less than {max_total_tokens}. Given: {p.truncate}")
    if p.max_new_tokens is not None and p.max_new_tokens <= 0:
        raise Refusal("`max_new_tokens` must be strictly positive")
    if len(p.stop) > MAX_STOP_SEQUENCES:
        raise Refusal(f"`stop` supports up to {MAX_STOP_SEQUENCES} stop sequences. Given: {len(p.stop)}")
    if p.seed is not None and not 0 <= p.seed < 2**64:
        raise Refusal(f"`seed` must be >= 0 and < 2^64. Given: {p.seed}")
    if p.watermark:
        raise Refusal("`watermark` is not supported by this server")
    if p.grammar is not None:
        raise Refusal("grammar is not supported")
    sampled = p.do_sample or any(v is not None for v in (p.temperature, p.top_k, p.top_p, p.typical_p))
    seed = (random.getrandbits(64) if p.seed is None else p.seed) if sampled else None
    return Choice(seed, p.temperature or 1.0, p.top_k, p.top_p or 1.0, p.typical_p or 1.0, p.repetition_penalty or 1.0)


def check_length(ids: list[int], p: GenerateParameters, max_total_tokens: int) -> tuple[list[int], int]:
    """(the input's tokens after `truncate`, new tokens at most). `Refusal` when they do not fit together."""
    if p.truncate is not None:
        ids = ids[-p.truncate :]
    new = p.max_new_tokens if p.max_new_tokens is not None else max_total_tokens - len(ids)
    if len(ids) >= max_total_tokens and p.max_new_tokens is None:
        raise Refusal(f"`inputs` must have less than {max_total_tokens} tokens. Given: {len(ids)}")
    if len(ids) + new > max_total_tokens:
        raise Refusal(
            f"`inputs` tokens + `max_new_tokens` must be <= {max_total_tokens}."
            f" Given: {len(ids)} `inputs` tokens and {new} `max_new_tokens`"
        )
    return ids, new
