"""Texts as the token ids that a model is scored on.

A query and a choice are encoded as one text, so that the ids are those of the whole text: encoded apart, a tokenizer
that puts a space before every text (Llama 2, Mistral) would give "▁ ▁light" for " light". A token belongs to the
choice when it ends behind the query. Texts are read as in training: a special token's name in one is text.

A model that this pipeline trained (training.json) never saw a token before a text except the end of the document
before it. So queries begin with nothing, and held-out documents follow an end-of-text token. Of other models both
begin with what their tokenizer puts first (Llama: `<s>`), or follow an end-of-text token where that is nothing.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from cosmopedia.core.errors import DataError


@dataclass(frozen=True)
class Sequence:
    """Token ids, the last `scored` of which are scored."""

    ids: tuple[int, ...]
    scored: int


class Encoder:
    """The tokenizer of a model's folder. `DataError` when there is none, or one with more tokens than the model."""

    def __init__(self, folder: Path, positions: int, vocabulary: int):
        self.folder, self.positions, self.vocabulary = folder, positions, vocabulary
        self._tokenizer = _read(folder, vocabulary)
        named = self._tokenizer.encode("a", add_special_tokens=True)
        template = [i for i, special in zip(named.ids, named.special_tokens_mask, strict=True) if special]
        first = template[:1] if named.special_tokens_mask[0] else []
        trained_here = (folder / "training.json").is_file()
        self.before_query: list[int] = [] if trained_here else first
        self._end = _end_of_text(folder, self._tokenizer)
        self._before_document = self.before_query or self._end

    def choices(self, query: str, choices: list[str]) -> list[Sequence]:
        """A query with each of its choices, of which only the choice is scored."""
        return [self._split(len(query), one) for one in self._encode([query + choice for choice in choices])]

    def _split(self, length: int, encoded: Any) -> Sequence:
        first = next((i for i, (_, end) in enumerate(encoded.offsets) if end > length), len(encoded.ids))
        before = self.before_query or ([] if first else self._end)
        return Sequence((*before, *encoded.ids), len(encoded.ids) - first)

    def document(self, name: str, text: str) -> list[int]:
        """A document's ids, behind one token that stands before documents and is not scored."""
        if not self._before_document:
            raise DataError(
                f"{self.folder}: the tokenizer has no token that begins or ends a text, so {name} has no beginning to"
                " be predicted from; name its eos_token in tokenizer_config.json"
            )
        return [*self._before_document, *self._encode([text])[0].ids]

    def plain(self, texts: list[str]) -> list[list[int]]:
        """The ids of texts by themselves."""
        return [one.ids for one in self._encode(texts)]

    def fitting(self, sequence: Sequence) -> Sequence:
        """The sequence without its first tokens where it has more than the model takes: its last token is only
        predicted."""
        return Sequence(sequence.ids[-self.positions - 1 :], sequence.scored)

    def is_cut(self, sequence: Sequence) -> bool:
        """Whether `fitting` leaves tokens out."""
        return len(sequence.ids) > self.positions + 1

    def _encode(self, texts: list[str]) -> list[Any]:
        return self._tokenizer.encode_batch(texts, add_special_tokens=False)


def _read(folder: Path, vocabulary: int) -> Tokenizer:
    path = folder / "tokenizer.json"
    if not path.is_file():
        raise DataError(f"{folder} holds no tokenizer.json; run `dvc repro export`, or put a fast tokenizer there")
    try:
        tokenizer = Tokenizer.from_file(str(path))
    except Exception as error:  # tokenizers raises nothing narrower
        raise DataError(f"{path} is not readable ({error}); run `dvc repro export`") from None
    greatest = max(tokenizer.get_vocab(with_added_tokens=True).values())
    if greatest >= vocabulary:
        raise DataError(
            f"{path} has the token id {greatest}, but the model in {folder} has {vocabulary} tokens: they do not"
            " belong together; run `dvc repro export`"
        )
    tokenizer.no_padding()
    tokenizer.no_truncation()
    tokenizer.encode_special_tokens = True
    return tokenizer


def _end_of_text(folder: Path, tokenizer: Tokenizer) -> list[int]:
    """The id of the end-of-text token that tokenizer_config.json names; nothing where it names none."""
    path = folder / "tokenizer_config.json"
    entry = json.loads(path.read_text(encoding="utf-8-sig")).get("eos_token") if path.is_file() else None
    name = entry.get("content") if isinstance(entry, dict) else entry
    found = tokenizer.token_to_id(name) if isinstance(name, str) else None
    return [] if found is None else [found]
