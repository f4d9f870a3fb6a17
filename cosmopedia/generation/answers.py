"""From a server's answer to a completion: counts within bounds, and a reasoning model's thought apart from its text.

A server's numbers are believed as far as they can be true; the model's own tokenizer counts where they cannot. The
store keeps a text as it was served, `<think>...</think>` included; the two are parted when it is read.
"""

from dataclasses import dataclass, replace
from typing import NamedTuple, Protocol

from cosmopedia.generation.forms import fault
from cosmopedia.generation.requests import Completion, Failure, PendingRequest

OPEN, CLOSE = "<think>", "</think>"  # DeepSeek-R1, QwQ, Qwen3 and what was distilled from them
CHARS_PER_TOKEN = 12  # more on average, and the server's count is checked; English has 4 to 5
MAX_CHARS_PER_TOKEN = 128  # more on average, and the text is no model's: the longest tokens are runs of spaces


class Answer(NamedTuple):
    """What a server wrote; counts are None where it gives none that could be one."""

    text: str
    finish_reason: str  # "eos_token" | "length" | "stop_sequence"
    tokens: int | None  # end-of-text token included
    prompt_tokens: int | None


class MalformedAnswer(Exception):
    """An answer with status 200 and no completion in it; another try may give one."""


class UnusableAnswer(Exception):
    """An answer with status 200 and no completion in it, and there will be none; `reason` is counted."""

    def __init__(self, reason: str, message: str):
        super().__init__(message)
        self.reason = reason


class Tokens(Protocol):
    """What is needed of the generation model."""

    @property
    def max_length(self) -> int: ...

    @property
    def opens_thought(self) -> bool: ...

    def count_tokens(self, rendered: list[str]) -> list[int]: ...

    def count_text(self, text: str) -> int: ...


@dataclass(frozen=True)
class AnswerReader:
    """Judges answers to requests for at most `max_new_tokens` tokens of one model."""

    model: Tokens
    max_new_tokens: int

    def completion(self, pending: PendingRequest, answer: Answer, engine: str) -> Completion:
        """The completion to store.

        `MalformedAnswer` when the text is longer than was allowed, `UnusableAnswer` when it is a thought and nothing
        else, or has not the form of its style.
        """
        text = answer.text
        if self.model.opens_thought and not text.lstrip().startswith(OPEN):
            text = OPEN + text  # the chat template has written the tag, at the end of the prompt
        tokens = self._new_tokens(text, answer)
        thought, rest, ended = split_thought(text)
        if not ended:
            raise UnusableAnswer("truncated_thought", _unended(tokens))
        if thought and not rest:
            raise UnusableAnswer("empty", f"it wrote a thought of {tokens} tokens and no text after it")
        if (own := pending.request.sampling) and (wrong := fault(rest if thought else text, own)):
            raise UnusableAnswer("invalid_form", f"its text has not the form of its style (generate.forms): {wrong}")
        prompt_tokens = pending.prompt_tokens or answer.prompt_tokens
        if prompt_tokens is None or not 1 <= prompt_tokens <= self.model.max_length:
            (prompt_tokens,) = self.model.count_tokens([pending.request.prompt])
        return Completion(pending.key, text, answer.finish_reason, tokens, prompt_tokens, engine)

    def _new_tokens(self, text: str, answer: Answer) -> int:
        """Tokens of the text: the server's count where that can be true."""
        allowed, count = self.max_new_tokens, answer.tokens
        if count is not None and 1 <= count <= allowed and len(text) <= CHARS_PER_TOKEN * (count + 8):
            return count
        if len(text) > MAX_CHARS_PER_TOKEN * (allowed + 8):
            raise MalformedAnswer(f"its text has {len(text):,} characters, where {allowed} tokens were allowed")
        count = self._count(text, answer.finish_reason)
        if count > 1.1 * allowed + 8:  # cut into tokens again, a text may have a few more than it was written in
            raise MalformedAnswer(f"its text has {count:,} tokens, where {allowed} were allowed")
        return min(count, allowed)

    def _count(self, text: str, finish_reason: str) -> int:
        return self.model.count_text(text) + (finish_reason == "eos_token")

    def result(self, stored: Completion) -> Completion | Failure:
        """What a stage gets of a completion in the store. Counts that an older version believed are corrected."""
        if not stored.text.lstrip().startswith(OPEN):
            if 1 <= stored.tokens <= self.max_new_tokens and 0 <= stored.prompt_tokens <= self.model.max_length:
                return stored
            tokens = min(self._count(stored.text, stored.finish_reason), self.max_new_tokens)
            prompt_tokens = min(max(stored.prompt_tokens, 0), self.model.max_length)
            return replace(stored, tokens=tokens, prompt_tokens=prompt_tokens)
        thought, text, ended = split_thought(stored.text)
        if not ended:
            return Failure(stored.key, "truncated_thought", _unended(stored.tokens), 1)
        if not text:
            return Failure(stored.key, "empty", "it is a thought with no text after it", 1)
        # Only the text is counted, and the rest of the server's count is the thought's: counting costs 1 ms per 1,000
        # characters.
        tokens = min(self._count(text, stored.finish_reason), self.max_new_tokens)
        thought_tokens = min(max(stored.tokens, 0), self.max_new_tokens) - tokens if thought else 0
        return replace(stored, text=text, tokens=tokens, thought=thought, thought_tokens=max(thought_tokens, 0))


def split_thought(text: str) -> tuple[str, str, bool]:
    """(thought, what follows it, whether the thought has an end) of a text; without a thought, the text as it is."""
    thoughts, rest = [], text
    while (head := rest.lstrip()).startswith(OPEN):
        thought, closed, rest = head.removeprefix(OPEN).partition(CLOSE)
        thoughts.append(thought.strip())
        if not closed:
            return "\n\n".join(filter(None, thoughts)), "", False
    return "\n\n".join(filter(None, thoughts)), rest.strip() if thoughts else text, True


def with_thought(thought: str, text: str) -> str:
    """The two in one text again, as the store keeps them."""
    return f"{OPEN}{thought}{CLOSE}{text}" if thought else text


def _unended(tokens: int) -> str:
    return f"the text ends inside its {OPEN}, after {tokens} tokens; raise max_new_tokens"
