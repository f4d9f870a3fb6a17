"""What makes a completion a document: openings and closings stripped, truncation cut, and the reasons to remove one.

The openings are Cosmopedia's (generation/boilerplate_cleanup.py), but anchored: the published patterns are multi-line,
so that `^` also deletes a line such as "Warning: do not mix acids with bleach." from the middle of a text.
"""

import re
import unicodedata
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

from datatrove.data import Document
from datatrove.pipeline.filters.base_filter import BaseFilter
from datatrove.pipeline.writers.disk_base import DiskWriter
from pydantic import Field, ValidationInfo, field_validator

from cosmopedia.corpus.pipeline import removal
from cosmopedia.params import Params
from cosmopedia.text import has_controls, without_controls
from stages.clean.language import LanguageRule, foreign
from stages.clean.repetition import RepetitionLimits, repetition

# A sentence ends in its mark, closing quotes and brackets, then space; "2." at the start of a line is a list's number.
SENTENCE_END = re.compile(r"""(?<!\n\d)(?<!\n\d\d)[.!?…]["'”’»)\]*_]*(?=\s|\Z)""")
TEXT_CONTROLS = frozenset("\t\n\r")
CLOSING_CHARS = 600  # of a text's end in which a closing is looked for


def _anchored(pattern: str, begins: bool) -> str:
    try:
        compiled = re.compile(pattern, re.IGNORECASE)
    except re.error as error:
        raise ValueError(f"{pattern!r} is no regular expression: {error}") from None
    anchored = pattern.startswith(r"\A") if begins else pattern.endswith(r"\Z")
    if not anchored or compiled.flags & re.MULTILINE or compiled.search(""):
        where = r"begin with \A" if begins else r"end with \Z"
        raise ValueError(f"{pattern!r} must {where}, not be multi-line, and not match an empty text")
    return pattern


class Opening(Params):
    """A phrase with which models begin; `pattern` is tried at the very start of a text, case ignored."""

    pattern: str
    action: Literal["strip", "remove"]  # strip: the match is cut off; remove: the document is a refusal or a chat

    @field_validator("pattern")
    @classmethod
    def _at_the_start(cls, pattern: str) -> str:
        return _anchored(pattern, begins=True)


class Closing(Params):
    """A phrase with which models end; `pattern` is tried at the very end of a text, case ignored."""

    pattern: str
    action: Literal["strip"]  # the match is cut off

    @field_validator("pattern")
    @classmethod
    def _at_the_end(cls, pattern: str) -> str:
        return _anchored(pattern, begins=False)


class CleanParams(Params):
    """The rules of the clean stage."""

    openings: dict[str, Opening]
    closings: dict[str, Closing]
    control_characters: Literal["remove", "keep"]
    truncated: Literal["cut", "drop", "keep"]  # texts that ended at max_new_tokens; cut: to the last full sentence
    max_invalid_share: float = Field(ge=0, le=1)  # of characters that are U+FFFD, controls, private or unassigned
    min_tokens: int = Field(ge=0)  # a text of exactly so many stays
    language: LanguageRule | None  # null: any
    repetition: RepetitionLimits

    @field_validator("closings")
    @classmethod
    def _named_once(cls, closings: dict[str, Closing], info: ValidationInfo) -> dict[str, Closing]:
        if shared := sorted(closings.keys() & info.data.get("openings", {})):
            raise ValueError(f"{', '.join(shared)} is an opening's name too; both are counted by name")
        return closings


@dataclass(frozen=True)
class Cleaned:
    """A text that stays, its tokens, and its changes: names of openings and closings, "cut", "control_characters"."""

    text: str
    tokens: int
    changes: tuple[str, ...]


@dataclass(frozen=True)
class Removed:
    """Why a text is removed."""

    reason: str
    evidence: dict[str, object] = field(default_factory=dict)


def clean(
    text: str, finish_reason: str, tokens: int, params: CleanParams, count: Callable[[str], int]
) -> Cleaned | Removed:
    """What becomes of one completion. `tokens` is the server's count; `count` counts a text that was changed."""
    if not text.strip():
        return Removed("empty")
    if (share := invalid_share(text)) > params.max_invalid_share:
        return Removed("invalid", {"share": round(share, 4)})
    had_controls = params.control_characters == "remove" and has_controls(text)
    plain = without_controls(text) if had_controls else text
    text, changes, removed = strip_openings(plain, params.openings)
    if removed is not None:
        return removed
    if had_controls:
        changes = ("control_characters", *changes)
    if finish_reason == "length" and params.truncated != "keep":
        whole = to_last_sentence(text) if params.truncated == "cut" else ""
        if not whole:
            return Removed("truncated", {"tokens": tokens})
        if whole != text:
            text, changes = whole, (*changes, "cut")
    text, closed = strip_closings(text, params.closings)
    changes = (*changes, *closed)
    if not text.strip():
        return Removed("empty", {"changes": list(changes)})
    if changes:
        tokens = count(text)
    if tokens < params.min_tokens:
        return Removed("short", {"tokens": tokens})
    if params.language is not None and (evidence := foreign(text, params.language)) is not None:
        return Removed("language", evidence)
    if (broken := repetition(text, params.repetition)) is not None:
        return Removed("repetition", {"rule": broken[0], "share": round(broken[1], 4)})
    return Cleaned(text, tokens, changes)


def strip_openings(text: str, openings: dict[str, Opening]) -> tuple[str, tuple[str, ...], Removed | None]:
    """(text, names of what was stripped, None or why the text is removed). Repeats until no opening is left."""
    stripped: list[str] = []
    while True:
        start = text.lstrip()
        for name, opening in openings.items():
            match = re.match(opening.pattern, start, re.IGNORECASE)
            if match is None:
                continue
            if opening.action == "remove":
                return text, tuple(stripped), Removed("refusal", {"opening": name, "match": match.group()})
            text = start[match.end() :].lstrip()
            stripped.append(name)
            break
        else:
            return text, tuple(stripped), None


def strip_closings(text: str, closings: dict[str, Closing]) -> tuple[str, tuple[str, ...]]:
    """`text` without the closings at its very end, and their names in the order in which they were stripped."""
    stripped: list[str] = []
    while True:
        whole = text.rstrip()
        tail = whole[-CLOSING_CHARS:]
        for name, closing in closings.items():
            match = re.search(closing.pattern, tail, re.IGNORECASE)
            if match is not None:
                text = whole[: len(whole) - len(tail) + match.start()].rstrip()
                stripped.append(name)
                break
        else:
            return text, tuple(stripped)


def to_last_sentence(text: str) -> str:
    """`text` up to the end of its last full sentence; "" when it has none."""
    ends = [match.end() for match in SENTENCE_END.finditer(text)]
    return text[: ends[-1]] if ends else ""


def invalid_share(text: str) -> float:
    """The share of characters that no text should have: U+FFFD, private, unassigned, most controls."""
    if text.isascii() and text.isprintable():
        return 0.0
    wrong = sum(
        character == "\ufffd" or (unicodedata.category(character) in ("Cc", "Co", "Cn", "Cs"))
        for character in text
        if character not in TEXT_CONTROLS and not " " <= character <= "~"
    )
    return wrong / len(text)


class CleanFilter(BaseFilter):
    """`clean` as a datatrove filter. Changed texts are counted again with the generator's tokenizer."""

    name = "clean"

    def __init__(self, params: CleanParams, tokenizer: str, exclusion_writer: DiskWriter):
        super().__init__(exclusion_writer)
        self.params, self.tokenizer = params, tokenizer
        self._counter: Callable[[str], int] | None = None

    def _count(self, text: str) -> int:
        if self._counter is None:
            self._counter = token_counter(self.tokenizer)
        return self._counter(text)

    def filter(self, doc: Document) -> bool:
        row = doc.metadata
        if has_controls(doc.text):
            self.stat_update("control_characters")
        result = clean(doc.text, row["finish_reason"], row["text_token_length"], self.params, self._count)
        if isinstance(result, Removed):
            row.update(removal(result.reason, **result.evidence))
            return False
        doc.text, row["text_token_length"] = result.text, result.tokens
        for change in result.changes:
            self.stat_update(f"changed.{change}")
        return True


def token_counter(path: str) -> Callable[[str], int]:
    """Counts the tokens of a text alone (no special tokens) with a tokenizer.json."""
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(path)
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return lambda text: len(tokenizer.encode(text, add_special_tokens=False).ids)
