"""The metrics of generate, counted row by row."""

from collections import Counter, defaultdict
from typing import Any

from cosmopedia.generation.requests import Completion, Failure


class CompletionCounts:
    """Completions and tokens: in all, by source and by style; failures by reason."""

    def __init__(self) -> None:
        self.completed = self.tokens = self.prompt_tokens = 0
        self.thoughts = self.thought_tokens = 0
        self.failed: Counter[str] = Counter()
        self.finish_reasons: Counter[str] = Counter()
        self.groups = {name: defaultdict[str, Counter[str]](Counter) for name in ("source", "style")}

    def add(self, document: dict[str, Any], completion: Completion) -> None:
        """Count a DOCUMENT row, and the thought before it."""
        self.thoughts += completion.thought != ""
        self.thought_tokens += completion.thought_tokens
        self.completed += 1
        self.tokens += document["text_token_length"]
        self.prompt_tokens += document["prompt_tokens"]
        self.finish_reasons[document["finish_reason"]] += 1
        for column, group in self.groups.items():
            group[document[column]].update(completions=1, tokens=document["text_token_length"])

    def add_failure(self, failure: Failure) -> None:
        """Count a request without a completion."""
        self.failed[failure.reason] += 1

    def metrics(self) -> dict[str, Any]:
        """metrics/generate.json; requests = completed + failed."""
        failed = sum(self.failed.values())
        thoughts = {"thoughts": self.thoughts, "thought_tokens": self.thought_tokens} if self.thoughts else {}
        return {
            "requests": self.completed + failed,
            "completed": self.completed,
            "failed": failed,
            "failed_by_reason": dict(sorted(self.failed.items())),
            "tokens": self.tokens,
            "prompt_tokens": self.prompt_tokens,
            **thoughts,
            "mean_tokens": self.tokens / self.completed if self.completed else 0.0,
            "finish_reasons": dict(sorted(self.finish_reasons.items())),
            **{
                f"by_{name}": {key: dict(counts) for key, counts in sorted(group.items())}
                for name, group in self.groups.items()
            },
        }
