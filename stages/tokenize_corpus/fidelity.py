"""What documents lose as tokens: unknown ones, and texts that do not come back; counted, and bounded by params."""

import json
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from cosmopedia.core.errors import DataError
from stages.tokenize_corpus.pieces import Piece
from stages.tokenize_corpus.plain_text import PlainText

AROUND = 20  # characters that an example shows on each side of the first difference


@dataclass
class Counts:
    """Tokens and documents of a cell or of several."""

    tokens: Counter[tuple[str, ...]] = field(default_factory=Counter)  # by source, style and audience
    documents: int = 0
    unknown: int = 0  # tokens
    changed: int = 0  # documents that their ids do not give back
    examples: dict[str, str] = field(default_factory=dict)  # the first document of each kind, "unknown" and "changed"

    def add(self, other: "Counts") -> None:
        """Add another cell's counts."""
        self.tokens.update(other.tokens)
        self.documents += other.documents
        self.unknown += other.unknown
        self.changed += other.changed
        self.examples = {**other.examples, **self.examples}

    def write(self, path: Path) -> None:
        """Write the counts to a JSON file."""
        rows = [[list(group), tokens] for group, tokens in sorted(self.tokens.items())]
        path.write_text(json.dumps(vars(self) | {"tokens": rows}), encoding="utf-8")

    def metrics(self) -> dict[str, int | float]:
        """Numbers of unknown tokens and of changed documents, and their shares of all tokens and documents."""
        return {
            "unknown_tokens": self.unknown,
            "unknown_share": self.unknown / max(self.tokens.total(), 1),
            "changed_documents": self.changed,
            "changed_share": self.changed / max(self.documents, 1),
        }

    def check(self, tokenizer: str, max_unknown: float, max_changed: float) -> None:
        """`DataError` when more tokens are unknown, or more documents changed, than the params allow."""
        measured = self.metrics()
        for kind, share, limit, what in (
            ("unknown", measured["unknown_share"], max_unknown, f"{self.unknown} of {self.tokens.total()} tokens are"),
            ("changed", measured["changed_share"], max_changed, f"{self.changed} of {self.documents} documents are"),
        ):
            if share > limit:
                raise DataError(
                    f"tokenizer {tokenizer}: {what} {MEANING[kind]}, a share of {share:.3g};"
                    f" tokenize_corpus.max_{kind} allows {limit:g}. The first: {self.examples[kind]}. Take another"
                    " tokenizer (a byte-level one keeps every text), or raise the param"
                )


MEANING = {"unknown": "unknown to it", "changed": "not what was written when read back"}


def read_counts(paths: Iterable[Path]) -> Counts:
    """The sum of files that `Counts.write` wrote; examples are the first file's that has one."""
    total = Counts()
    for path in paths:
        values = json.loads(path.read_text(encoding="utf-8"))
        tokens = Counter({tuple(group): tokens for group, tokens in values["tokens"]})
        total.add(Counts(**values | {"tokens": tokens}))
    return total


class DocumentNotes:
    """Counts documents as their pieces pass, in order. `DataError` for an id that plain text cannot have."""

    def __init__(self, plain: PlainText, counts: Counts):
        self.plain, self.counts = plain, counts
        self._control = frozenset(plain.control)
        self._changed = False

    def add(self, name: str, piece: Piece, ids: list[int], read: str) -> None:
        """Count a piece, its ids, and the text that they give back; `name` is the document's."""
        if control := self._control.intersection(ids):
            raise DataError(
                f"{name}: the tokenizer gives its text the control tokens {sorted(control)}; set"
                " tokenize_corpus.tokenizer to one whose end-of-text and control tokens are not in plain text"
            )
        unknown = 0 if self.plain.unknown is None else ids.count(self.plain.unknown)
        # A decoder that takes the first blank away does so with every piece, but only the first has it in vain.
        same = read == piece.text or (not piece.first and f" {read}" == piece.text)
        if unknown:
            self.counts.unknown += unknown
            self.counts.examples.setdefault("unknown", f"{name}, where {difference(piece.text, read)}")
        if not same:
            self.counts.examples.setdefault("changed", f"{name}, where {difference(piece.text, read)}")
        self._changed = self._changed or not same
        if piece.last:
            self.counts.documents += 1
            self.counts.changed += self._changed
            self._changed = False


def difference(written: str, read: str) -> str:
    """What stands where two texts first differ."""
    at = next((i for i, (one, other) in enumerate(zip(written, read, strict=False)) if one != other), -1)
    at = min(len(written), len(read)) if at < 0 else at
    near = slice(max(at - AROUND, 0), at + AROUND)
    return f"{written[near]!r} came back as {read[near]!r}"
