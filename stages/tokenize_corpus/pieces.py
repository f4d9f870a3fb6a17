"""Long documents in pieces whose ids, joined, are those of the whole text.

`tokenizers` takes about 160 bytes of memory per byte of a text. So a text is cut every `PIECE` characters at the next
safe point: next to a blank or a line break, where the text around it gives the same words (what the model sees one at
a time) whole and in two. A BPE model that sees all of a text as one word (Llama 2's sentencepiece) merges nothing
across a point whose two characters stand together in no token. A Unigram model looks for the best path through all of
its word, so one without words has no safe point. A normaliser must not look further than `REACH` characters.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from itertools import islice, pairwise

from tokenizers import Tokenizer
from tokenizers.models import BPE

from cosmopedia.core.errors import DataError
from stages.tokenize_corpus.plain_text import PlainText

PIECE = 200_000  # characters after which a text is cut
LONGEST = 4_000_000  # characters encoded at once; they take about 0.5 GB
REACH = 256  # characters on each side of a point at which it is judged
TRIES = 20  # points that are judged before the search goes on a piece further

POINT = re.compile(r"(?<=\S)(?=\s)|(?<=\n)(?=\S)")


@dataclass(frozen=True)
class Piece:
    """Consecutive characters of a text."""

    text: str
    first: bool  # begins the text
    last: bool  # ends it


class PieceTokenizer:
    """Encodes texts piece by piece, without any token that stands for more than text."""

    def __init__(self, plain: PlainText):
        self.plain = plain
        self._tokenizer = Tokenizer.from_file(str(plain.path))

    def pieces(self, name: str, text: str) -> Iterator[Piece]:
        """A text's pieces. `DataError`, with `name`, when too many characters have no point where it may be cut."""
        start = 0
        while len(text) - start > PIECE:
            point = self._safe_point(text, start)
            if point is None:
                break
            yield Piece(text[start : point[0]], start == 0, False)
            start = point[1]
        if len(text) - start > LONGEST:
            raise DataError(
                f"{name}: {LONGEST} of its {len(text)} characters, from {start} on, have no point at which this"
                " tokenizer lets a text be cut, and more are not encoded at once; split the document, or set"
                " tokenize_corpus.tokenizer to one that separates words"
            )
        yield Piece(text[start:], start == 0, True)

    def encode(self, texts: list[str]) -> list[list[int]]:
        """The ids of each text."""
        return [encoded.ids for encoded in self._tokenizer.encode_batch_fast(texts, add_special_tokens=False)]

    def decode(self, ids: list[list[int]]) -> list[str]:
        """The text of each list of ids."""
        return self._tokenizer.decode_batch(ids, skip_special_tokens=False)

    def _safe_point(self, text: str, start: int) -> tuple[int, int] | None:
        """Where the piece from `start` ends and the next begins: there, or after a blank that is prepended anyway."""
        for after in range(start + PIECE, start + LONGEST, PIECE):
            for match in islice(POINT.finditer(text, after, start + LONGEST), TRIES):
                end = match.start()
                for following in (end, end + 1) if text[end] == " " else (end,):
                    if self.is_safe(text, end, following):
                        return end, following
        return None

    def is_safe(self, text: str, end: int, following: int) -> bool:
        """Whether the ids of `text` are those of `text[:end]` and of `text[following:]`.

        Judged on two contexts, one character apart, so that words of a fixed length do not fit by chance.
        """
        for reach in (REACH, REACH - 1):
            left, right = text[max(end - reach, 0) : end], text[following : following + reach]
            whole = text[max(end - reach, 0) : following + reach]
            ids, ids_left, ids_right = self.encode([whole, left, right])
            if ids != ids_left + ids_right or not self._apart(whole, left, right):
                return False
        return True

    def _apart(self, whole: str, left: str, right: str) -> bool:
        """Whether the model cannot see across the point between `left` and `right`."""
        words, before, behind = map(self._words, (whole, left, right))
        if words == before + behind:
            return True
        if not before or not behind or words != [*before[:-1], before[-1] + behind[0], *behind[1:]]:
            return False
        last, first = before[-1][-1], behind[0][0]
        return {last, first} <= self._alphabet and last + first not in self._joined

    def _words(self, text: str) -> list[str]:
        """What the model sees, word by word."""
        if self._tokenizer.normalizer:
            text = self._tokenizer.normalizer.normalize_str(text)
        if self._tokenizer.pre_tokenizer is None:
            return [text]
        return [word for word, _ in self._tokenizer.pre_tokenizer.pre_tokenize_str(text)]

    @cached_property
    def _vocabulary(self) -> list[str]:
        """The tokens of a BPE model that marks neither beginnings nor ends of words; else none."""
        model = self._tokenizer.model
        marked = not isinstance(model, BPE) or model.continuing_subword_prefix or model.end_of_word_suffix
        return [] if marked else list(self._tokenizer.get_vocab())

    @cached_property
    def _alphabet(self) -> set[str]:
        return {token for token in self._vocabulary if len(token) == 1}

    @cached_property
    def _joined(self) -> set[str]:
        """Neighbouring characters in a token."""
        return {first + second for token in self._vocabulary for first, second in pairwise(token)}
