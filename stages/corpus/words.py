"""Words of a text: for n-grams (contamination, near duplicates) and for the repetition rules."""

import re
import unicodedata

import regex
from datatrove.utils.text import TextNormConfig, simplify_text
from datatrove.utils.word_tokenizers import WordTokenizer

WORD = re.compile(r"\w+")
DIACRITICS = regex.compile(r"\p{Mn}+")
NORMALISED = TextNormConfig(norm_unicode_diacritics=False)  # left to `without_diacritics`, which costs a tenth


def without_diacritics(text: str) -> str:
    """Canonical decomposition without its non-spacing marks."""
    return text if text.isascii() else DIACRITICS.sub("", unicodedata.normalize("NFD", text))


def plain_words(text: str) -> list[str]:
    """The published decontamination's words: NFD, diacritics removed, lower case, runs of word characters."""
    return WORD.findall(without_diacritics(text).lower())


class SimplifiedWords(WordTokenizer):
    """Splits what datatrove's `simplify_text` leaves (lower case, no punctuation, numbers as 0) at its spaces.

    Its stock English tokenizer runs spaCy on the same text, to nearly the same words, at 98% of MinHash's whole cost.
    """

    def word_tokenize(self, text: str) -> list[str]:
        return without_diacritics(text).split()

    def sent_tokenize(self, text: str) -> list[str]:
        return [text]

    def span_tokenize(self, text: str) -> list[tuple[int, int]]:
        return [(0, len(text))]


def simplified_words(text: str) -> list[str]:
    """The words that MinHash sees."""
    return without_diacritics(simplify_text(text, NORMALISED)).split()


def ngrams(words: list[str], n: int) -> set[tuple[str, ...]]:
    """The distinct n-grams of consecutive words."""
    return set(zip(*(words[i:] for i in range(n)), strict=False))
