"""What makes a completion a document: chat stripped, truncation cut, and the reasons to remove one."""

import json
import unicodedata
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, cast

from datatrove.data import Document
from datatrove.pipeline.filters.base_filter import BaseFilter
from datatrove.pipeline.writers.disk_base import DiskWriter
from pydantic import Field

from cosmopedia.core.params import Params
from cosmopedia.core.text import has_controls, without_controls
from cosmopedia.corpus.chat import Chat, ChatPatterns
from cosmopedia.corpus.components import NATURAL
from cosmopedia.corpus.personal_data import find, masked
from cosmopedia.corpus.pipeline import removal
from cosmopedia.corpus.sentences import to_last_sentence
from cosmopedia.tables.contracts import FAITHFUL
from cosmopedia.tables.parquet import read_batches
from stages.clean.language import LanguageRule, foreign
from stages.clean.repetition import RepetitionLimits, repetition

TEXT_CONTROLS = frozenset("\t\n\r")
EXAMPLES = 3  # of what a pattern matched, kept for the metrics
EXAMPLE_CHARS = 200


class NaturalRules(Params):
    """The rules for natural text that are not those for completions."""

    min_tokens: int = Field(ge=1)  # a text of exactly so many stays
    repetition: RepetitionLimits


class CleanParams(Params):
    """The rules of the clean stage."""

    patterns: ChatPatterns  # curation/chat.yaml
    max_refusal_words: int = Field(ge=0)  # of a whole text that is a refusal; a longer one has content
    control_characters: Literal["remove", "keep"]
    unfaithful: Literal["keep", "flag", "drop"]  # texts beyond faithful.limits; flag: only counted
    truncated: Literal["cut", "drop", "keep"]  # texts that ended at max_new_tokens; cut: to the last full sentence
    personal_data: Literal["flag", "mask", "drop"]  # what has the form of an e-mail or IP address; flag: only counted
    max_invalid_share: float = Field(ge=0, le=1)  # of characters that are U+FFFD, controls, private or unassigned
    min_tokens: int = Field(ge=0)  # a text of exactly so many stays
    language: LanguageRule | None  # null: any
    repetition: RepetitionLimits
    natural: NaturalRules

    @cached_property
    def chat(self) -> Chat:
        """The compiled patterns of chat."""
        return Chat(self.patterns, self.max_refusal_words)

    @property
    def language_code(self) -> str:
        """The language whose sentences are looked for."""
        return "en" if self.language is None else self.language.expected


@dataclass(frozen=True)
class Cleaned:
    """A text that stays, its tokens, and its changes: names of openings and closings, "cut", "control_characters"."""

    text: str
    tokens: int
    changes: tuple[str, ...]
    chat: tuple[tuple[str, str], ...] = field(default=(), compare=False)  # names of patterns with what they matched


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
    opened = params.chat.strip_openings(plain)
    refused = params.chat.refusal(opened.text if opened.text.strip() else plain)
    if refused is not None:
        return Removed("refusal", refused)
    text, changes = opened.text, opened.names
    if had_controls:
        changes = ("control_characters", *changes)
    if finish_reason == "length" and params.truncated != "keep":
        whole = to_last_sentence(text, params.language_code) if params.truncated == "cut" else ""
        if not whole:
            return Removed("truncated", {"tokens": tokens})
        if whole != text:
            text, changes = whole, (*changes, "cut")
    closed = params.chat.strip_closings(text)
    text, changes = closed.text, (*changes, *closed.names)
    if not text.strip():
        return Removed("empty", {"changes": list(changes)})
    if changes:
        tokens = count(text)
    unfit = _unfit(text, tokens, params, params)
    return unfit or Cleaned(text, tokens, changes, (*opened.cut, *closed.cut))


def clean_natural(text: str, params: CleanParams, count: Callable[[str], int]) -> Cleaned | Removed:
    """What becomes of natural text. Nobody was asked for it: nothing is cut off, and it is no refusal."""
    if not text.strip():
        return Removed("empty")
    if (share := invalid_share(text)) > params.max_invalid_share:
        return Removed("invalid", {"share": round(share, 4)})
    changes: tuple[str, ...] = ()
    if params.control_characters == "remove" and has_controls(text):
        text, changes = without_controls(text), ("control_characters",)
        if not text.strip():
            return Removed("empty", {"changes": list(changes)})
    tokens = count(text)
    return _unfit(text, tokens, params, params.natural) or Cleaned(text, tokens, changes)


def _unfit(text: str, tokens: int, params: CleanParams, limits: CleanParams | NaturalRules) -> Removed | None:
    """Why a text that is read to its end is removed, by the limits for its kind; None when it stays."""
    if tokens < limits.min_tokens:
        return Removed("short", {"tokens": tokens})
    if params.language is not None and (evidence := foreign(text, params.language)) is not None:
        return Removed("language", evidence)
    if (broken := repetition(text, limits.repetition)) is not None:
        return Removed("repetition", {"rule": broken[0], "share": round(broken[1], 4)})
    return None


def without_personal_data(
    fit: Cleaned, kinds: dict[str, list[str]], action: str, count: Callable[[str], int]
) -> Cleaned | Removed:
    """What becomes of a text that stays otherwise, by `clean.personal_data`; `kinds`: what was found in it."""
    if not kinds or action == "flag":
        return fit
    if action == "drop":
        return Removed("personal_data", {kind: len(some) for kind, some in kinds.items()})
    text = masked(fit.text)
    return replace(fit, text=text, tokens=count(text))


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


class Unfaithful:
    """The documents of data/faithful that are beyond its limits, cell by cell as they are asked for."""

    def __init__(self, folder: Path):
        self.folder, self.cell = folder, ""
        self.limits: dict[str, list[str]] = {}  # of the cell in hand

    def exceeded(self, cell: str, completion_id: str) -> list[str]:
        """The limits that a document is beyond; none where its cell is not judged."""
        if cell != self.cell:
            path = self.folder / f"{cell}.parquet"
            tables = read_batches([path], FAITHFUL, ["completion_id", "unfaithful"]) if path.is_file() else ()
            rows = (row for table in tables for row in table.to_pylist())
            self.cell, self.limits = (
                cell,
                {row["completion_id"]: row["unfaithful"] for row in rows if row["unfaithful"]},
            )
        return self.limits.get(completion_id, [])


class CleanFilter(BaseFilter):
    """`clean` as a datatrove filter. Changed texts are counted again with the generator's tokenizer.

    Each task writes examples of what every pattern matched to `<examples>/<rank>.json` (see `read_examples`).
    """

    name = "clean"

    def __init__(
        self, params: CleanParams, tokenizer: str, exclusion_writer: DiskWriter, examples: Path, verdicts: Path
    ):
        super().__init__(exclusion_writer)
        self.verdicts = Unfaithful(verdicts)
        self.params, self.tokenizer, self.folder = params, tokenizer, examples
        self.examples: dict[str, list[tuple[str, str]]] = {}
        self._counter: Callable[[str], int] | None = None

    def run(self, data: Any, rank: int = 0, world_size: int = 1) -> Iterator[Document]:
        """Filters; then writes the examples."""
        yield from cast(Iterator[Document], super().run(data, rank, world_size))
        self.folder.mkdir(parents=True, exist_ok=True)
        (self.folder / f"{rank}.json").write_text(json.dumps(self.examples), encoding="utf-8")

    def _count(self, text: str) -> int:
        if self._counter is None:
            self._counter = token_counter(self.tokenizer)
        return self._counter(text)

    def _faithful(self, doc: Document, fit: Cleaned) -> Cleaned | Removed:
        """What becomes of a text that stays otherwise, by its verdict in data/faithful."""
        limits = self.verdicts.exceeded(doc.metadata["cell"], str(doc.id))
        if not limits:
            return fit
        self.stat_update(f"unfaithful.{doc.metadata['source']}-{doc.metadata['style']}")
        return Removed("unfaithful", {"limits": limits}) if self.params.unfaithful == "drop" else fit

    def filter(self, doc: Document) -> bool:
        row = doc.metadata
        natural = row["style"] == NATURAL
        if natural:
            result = clean_natural(doc.text, self.params, self._count)
        else:
            if has_controls(doc.text):
                self.stat_update("control_characters")
            result = clean(doc.text, row["finish_reason"], row["text_token_length"], self.params, self._count)
            if isinstance(result, Cleaned) and self.params.unfaithful != "keep":
                result = self._faithful(doc, result)
        if isinstance(result, Cleaned) and (kinds := find(result.text)):
            for kind in kinds:
                self.stat_update(f"personal.{kind}.{component_name(row)}")
            result = without_personal_data(result, kinds, self.params.personal_data, self._count)
        if isinstance(result, Removed):
            row.update(removal(result.reason, **result.evidence))
            return False
        doc.text, row["text_token_length"] = result.text, result.tokens
        for change in () if natural else result.changes:
            self.stat_update(f"changed.{change}")
        for name, matched in result.chat:
            some = self.examples.get(name, [])
            self.examples[name] = sorted([*some, (str(doc.id), matched[:EXAMPLE_CHARS])])[:EXAMPLES]
        return True


def component_name(row: dict[str, Any]) -> str:
    """Whose personal data is counted: a source's, or a component's of natural text, which has its cell's name."""
    return f"{row['source']}-{NATURAL}" if row["style"] == NATURAL else row["source"]


def personal_data(action: str, counts: dict[str, int]) -> dict[str, Any]:
    """For the metrics, from counts by "<kind>.<source>": the documents that had some, before anything was done."""
    documents: dict[str, dict[str, int]] = {}
    for name, count in counts.items():
        kind, _, source = name.partition(".")
        documents.setdefault(kind, {})[source] = count
    return {"action": action, "documents": documents}


def read_examples(folder: Path) -> dict[str, list[dict[str, str]]]:
    """By pattern, what it matched in the documents with the smallest ids: the same however many tasks there were."""
    merged: dict[str, list[list[str]]] = {}
    for path in folder.glob("*.json"):
        for name, some in json.loads(path.read_text(encoding="utf-8")).items():
            merged[name] = sorted([*merged.get(name, []), *some])[:EXAMPLES]
    return {name: [{"completion_id": i, "matched": m} for i, m in some] for name, some in sorted(merged.items())}


def token_counter(path: str) -> Callable[[str], int]:
    """Counts the tokens of a text alone (no special tokens) with a tokenizer.json."""
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(path)
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return lambda text: len(tokenizer.encode(text, add_special_tokens=False).ids)
