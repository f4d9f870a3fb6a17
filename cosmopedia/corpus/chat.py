"""Chat around a document: what a model says to the one who asked, before and after the text that was asked for.

A pattern must carry evidence that it is chat, since documents too begin with "Sure, I can remember the day we left" or
"My name is Amina". The patterns are in curation/chat.yaml; data/samples/cleaning has texts to try them on.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, Self

import regex
from pydantic import ValidationInfo, field_validator, model_validator

from cosmopedia.core.params import Params, check, read_yaml
from cosmopedia.patterns import Pattern, compiled

PATTERNS = Path("curation/chat.yaml")
DECORATION = re.compile(r"(?:#{1,6} +|> *)?(?:\*{1,3}|_{1,3})?(?=\S)")  # a heading's, a quotation's, emphasis
RULE_BEFORE = re.compile(r"(?:[-*_=]{3,}[ \t]*(?:\n\s*|\Z))*")  # a line that set the chat apart
RULE_AFTER = re.compile(r"(?:\A|\n)[-*_=]{2,}\Z")
SPOKEN = 60  # characters behind a refusal in which it may turn out to be somebody's
SEPARATED = 80  # characters at a text's end in which such a line is looked for
CLOSING_CHARS = 600  # of a text's end in which a closing is looked for
Match = regex.Match
NAMED_LIST = re.compile(r"\\L<\w+>")
ENDS = {
    "line": r"[*_]{0,3}(?:[ \t]*(?:\n|\Z)|(?P<more>[ \t]+))",
    "chat": r"(?P<more>[ \t]+)",
    "space": r"[*_]{0,3}(?:\s|\Z)",
    "anywhere": "",
}
BEGINS = {
    "line": r"(?:\A|\n)[ \t]*(?:#{1,6} +|> *)?[*_]{0,3}",
    "sentence": r"(?:\A|\n[ \t]*|(?<=[.!?…:)][*_\"”’)]{0,3})[ \t]+)(?<!P\.? ?S\.[ \t]+)(?:> *)?[*_]{0,3}",
    "anywhere": r"\s*",
}


def _checked(pattern: str, anchored: bool, where: str) -> str:
    expression = compiled(NAMED_LIST.sub("(?:word)", pattern))
    if not anchored or expression.flags & re.MULTILINE or expression.search(""):
        raise ValueError(f"{pattern!r} must {where}, not be multi-line, and not match an empty text")
    return pattern


class Opening(Params):
    """What models say first; `pattern` is tried at the very start of a text."""

    pattern: str
    # Where the match may end. line: at its line's end, or where another opening follows; chat: only the latter.
    ends: Literal["line", "chat", "space", "anywhere"]
    first: bool  # may it be the first thing said? false: only behind another opening

    @field_validator("pattern")
    @classmethod
    def _at_the_start(cls, pattern: str) -> str:
        return _checked(pattern, pattern.startswith(r"\A"), r"begin with \A")


class Closing(Params):
    """What models say last; `pattern` is tried at the very end of a text."""

    pattern: str
    begins: Literal["line", "sentence", "anywhere"]  # where the match may begin

    @field_validator("pattern")
    @classmethod
    def _at_the_end(cls, pattern: str) -> str:
        return _checked(pattern, pattern.endswith(r"\Z"), r"end with \Z")


class ChatPatterns(Params):
    """The patterns, the lists of words that they name, and what shows that a match is speech in a story."""

    lists: dict[str, list[str]]
    speech: str
    openings: dict[str, Opening]
    closings: dict[str, Closing]
    refusals: dict[str, str]

    @classmethod
    def read(cls, root: Path = Path()) -> Self:
        """From curation/chat.yaml. `ConfigError` for a pattern that is none, or could match anywhere."""
        return check(read_yaml(root / PATTERNS), cls, str(PATTERNS))

    @field_validator("refusals")
    @classmethod
    def _near_the_start(cls, refusals: dict[str, str]) -> dict[str, str]:
        for name, pattern in refusals.items():
            try:
                _checked(pattern, pattern.startswith(r"\A"), r"begin with \A")
            except ValueError as error:
                raise ValueError(f"{name}: {error}") from None
        return refusals

    @field_validator("openings", "closings", "refusals")
    @classmethod
    def _lists_exist(cls, patterns: dict, info: ValidationInfo) -> dict:
        for name, entry in patterns.items():
            try:
                compiled(entry if isinstance(entry, str) else entry.pattern, info.data.get("lists", {}))
            except ValueError as error:
                raise ValueError(f"{name}: {error}") from None
        return patterns

    @model_validator(mode="after")
    def _named_once(self) -> Self:
        if shared := sorted(self.closings.keys() & self.openings.keys()):
            raise ValueError(f"{', '.join(shared)} is an opening's name too; both are counted by name")
        return self


@dataclass(frozen=True)
class Stripped:
    """A text without chat, and what was cut off: the names of the patterns with what each matched, in that order."""

    text: str
    cut: list[tuple[str, str]] = field(default_factory=list)

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(name for name, _ in self.cut)


class Chat:
    """The patterns, compiled.

    A whole text of more than `max_refusal_words` is no refusal: it has content.
    """

    def __init__(self, patterns: ChatPatterns, max_refusal_words: int):
        def compile_all(kind: str, expressions: dict[str, str]) -> dict[str, Pattern]:
            return {
                name: Pattern(f"{PATTERNS}: {kind}.{name}", expression, patterns.lists)
                for name, expression in expressions.items()
            }

        openings = {name: f"(?:{o.pattern}){ENDS[o.ends]}" for name, o in patterns.openings.items()}
        closings = {name: f"{BEGINS[c.begins]}(?:{c.pattern})" for name, c in patterns.closings.items()}
        self.openings = compile_all("openings", openings)
        self.first = {name: o.first for name, o in patterns.openings.items()}
        self.closings = compile_all("closings", closings)
        self.refusals = compile_all("refusals", patterns.refusals)
        self.speech = Pattern(f"{PATTERNS}: speech", patterns.speech)
        self.max_refusal_words = max_refusal_words

    def strip_openings(self, text: str) -> Stripped:
        """`text` without the openings at its very start."""
        cut: list[tuple[str, str]] = []
        while True:
            start = text.lstrip()
            decoration = DECORATION.match(start)
            view = _plain(start[decoration.end() :] if decoration else start)
            name, match = self._opening(view, behind=bool(cut))
            if match is None:
                return Stripped(text, cut)
            cut.append((name, match.group().strip()))
            rest = start[len(start) - len(view) + match.end() :].lstrip()
            rule = RULE_BEFORE.match(rest)
            text = rest[rule.end() :] if rule else rest

    def strip_closings(self, text: str) -> Stripped:
        """`text` without the closings at its very end."""
        cut: list[tuple[str, str]] = []
        while True:
            whole = text.rstrip()
            tail = whole[-CLOSING_CHARS:]
            view = _plain(tail.rstrip("*_ "))
            name, match = self._first((n, p.search(view)) for n, p in self.closings.items())
            if match is None:
                return Stripped(text, cut)
            cut.append((name, match.group().strip()))
            text = whole[: len(whole) - len(tail) + match.start()].rstrip()
            rule = RULE_AFTER.search(text[-SEPARATED:])
            if rule:
                text = text[: len(text) - len(rule.group())].rstrip()

    def refusal(self, text: str) -> dict[str, object] | None:
        """Why a text is a refusal and nothing else, as evidence; None when it is not."""
        if len(text.split(maxsplit=self.max_refusal_words)) > self.max_refusal_words:
            return None
        start = _plain(text.lstrip("*_#> \n"))
        for name, pattern in self.refusals.items():
            match = pattern.match(start)
            if match is not None and self.speech.search(start[: match.end() + SPOKEN]) is None:
                return {"refusal": name, "match": match.group()}
        return None

    def _opening(self, view: str, behind: bool) -> tuple[str, Match | None]:
        """The first opening that fits the start of `view`; `behind`: other chat came before it."""
        tried = ((n, p.match(view)) for n, p in self.openings.items() if behind or self.first[n])
        for name, match in tried:
            if match is None or self.speech.search(match.group()) is not None:
                continue
            if match.groupdict().get("more") is None or self._opening(view[match.end() :], True)[1] is not None:
                return name, match
        return "", None

    def _first(
        self, matches: Iterable[tuple[str, "regex.Match[str] | None"]]
    ) -> tuple[str, "regex.Match[str] | None"]:
        """The first match that is nobody's speech, with its pattern's name; or ("", None)."""
        for name, match in matches:
            if match is not None and self.speech.search(match.group()) is None:
                return name, match
        return "", None


def _plain(text: str) -> str:
    """`text` with the apostrophe that the patterns have; of the same length."""
    return text.replace("’", "'")
