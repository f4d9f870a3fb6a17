"""What is sent to a model and what comes back: sampling, request, completion, failure, and the key of a request."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

from pydantic import Field

from cosmopedia.core.params import Params
from cosmopedia.core.rng import content_hash, draw_u64

# Reasons of failures that every run would see again.
LASTING = frozenset(
    {"too_long", "empty", "validation", "content_filter", "truncated_thought", "invalid_form", "http_403"}
)


class Sampling(Params):
    """Sampling parameters, in TGI's words; part of a completion's key. Sampling is always on."""

    temperature: float = Field(gt=0)
    top_p: float = Field(gt=0, le=1)  # 1: no nucleus; TGI refuses the value 1, so it is not sent then
    top_k: int | None = Field(ge=1)  # None: no limit
    repetition_penalty: float | None = Field(gt=0)  # None: no penalty
    max_new_tokens: int = Field(ge=1)
    grammar: str | None = None  # a regular expression that the whole text matches; None: any text
    json_schema: str | None = None  # a JSON schema that the whole text has, as JSON; at most one of the two is set

    @cached_property
    def canonical(self) -> str:
        """Parameters as JSON, the same text for equal ones: keys sorted, `1` written as `1.0`. Without a grammar or a
        schema there is no key for one, as in stores that are older than they are."""
        values = self.model_dump(exclude={name for name in ("grammar", "json_schema") if not getattr(self, name)})
        return json.dumps(values, sort_keys=True, separators=(",", ":"))


def _unchanged(text: str) -> str:
    return text


@dataclass(frozen=True, slots=True)
class Request:
    """One completion that is wanted. `id` is the caller's name for it; `render` puts `text` into the chat template.

    `sampling` is the request's own, where its style has a form (forms.py); None: that of the run.
    """

    id: str
    text: str
    seed: int
    sample_index: int
    render: Callable[[str], str] = _unchanged
    sampling: Sampling | None = None

    @property
    def prompt(self) -> str:
        """The text as it is sent. Rendered at each access: most loops need only the other fields."""
        return self.render(self.text)


@dataclass(frozen=True, slots=True)
class Completion:
    """What a model wrote. Token counts include the end-of-text token, as TGI counts them.

    In the store, `text` is what was served; as a result of `complete`, a reasoning model's thought is apart.
    """

    key: str
    text: str
    finish_reason: str  # "eos_token" | "length" | "stop_sequence"
    tokens: int
    prompt_tokens: int
    engine: str
    thought: str = ""  # what was inside <think>...</think>
    thought_tokens: int = 0


@dataclass(frozen=True, slots=True)
class Failure:
    """Why there is no completion. It is not stored, so the next run tries again."""

    key: str
    # "too_long", "empty", "truncated_thought", "invalid_form", "content_filter", "validation", "http_<status>",
    # "server_error", "timeout", "connection"
    reason: str
    detail: str
    attempts: int  # tries that were spent; 0 when the request was never sent

    @property
    def lasting(self) -> bool:
        """Whether every run would see it again."""
        return self.reason in LASTING


def completion_key(request: Request, identity: str, sampling: Sampling, prompt: str | None = None) -> str:
    """The store's key: 32 hex characters over everything that decides the text.

    `identity` names model, revision and quantisation; `prompt` is the rendered one, if the caller has it. Engine and
    endpoint are left out: they do not define the text.
    """
    rendered = request.prompt if prompt is None else prompt
    canonical = (request.sampling or sampling).canonical
    return content_hash(rendered, identity, canonical, request.seed, request.sample_index)


def sampling_seed(seed: int, prompt_id: str, sample_index: int) -> int:
    """A seed in [0, 2**63) for one sample of one prompt; it stays the same when other prompts change."""
    return draw_u64(seed, "sampling", prompt_id, sample_index) >> 1


@dataclass(frozen=True, slots=True)
class PendingRequest:
    """A request to send, with its key. `prompt_tokens` is None when only the server knows."""

    request: Request
    key: str
    prompt_tokens: int | None = None
