"""The words of a text, by which texts are compared.

Decontamination compares `words`, deduplication those with signs, or with 0 for numbers (stages/dedup/words.py);
cleaning's language test keeps diacritics, by which it tells languages apart, and has words of its own. Two spellings
of a text that a reader does not tell apart have the same words: compatibility forms are unified (NFKC: full-width
letters, ligatures), format characters (zero-width spaces, soft hyphens) and diacritics dropped, letters in lower case;
all that is not a letter, a number or a mark of one separates, `_` too. Chinese, Japanese, Thai, Lao, Khmer and Burmese
have no spaces between words: each of their characters, with its marks, counts as a word, so that n-grams of words are
n-grams of characters. The marks of Indic and South-East Asian scripts are vowels, no diacritics, and stay.
`plain_words` is the published decontamination's definition.
"""

import re
import unicodedata
from collections.abc import Callable
from dataclasses import dataclass

import regex

UNSPACED = r"[\p{Han}\p{Hiragana}\p{Katakana}\p{Bopomofo}\p{Thai}\p{Lao}\p{Khmer}\p{Myanmar}\u30fc]"  # with ー
# Voiced marks of kana are part of their letters, as Indic vowels are.
DROPPED = regex.compile(r"\p{Cf}|[\p{M}&&[\p{Inherited}\p{Arabic}\p{Hebrew}]--[\u3099\u309a]]", regex.V1)
WORDS = regex.compile(
    rf"[[\p{{L}}\p{{N}}]&&{UNSPACED}]\p{{M}}*|[[\p{{L}}\p{{N}}]--{UNSPACED}][[\p{{L}}\p{{N}}\p{{M}}]--[[\p{{L}}\p{{N}}]&&{UNSPACED}]]*",
    regex.V1,
)
# Blocks without characters that are words by themselves and without marks that are vowels: `re` is four times as fast.
INVOLVED = re.compile(r"[^\x00-\u0482\u048a-\u06ff\u1e00-\u2bff\u3000-\u3003\uac00-\ud7a3]")
SIMPLE_WORDS = re.compile(r"[^\W_]+")
WORD = re.compile(r"\w+")
DIACRITICS = regex.compile(r"\p{Mn}+")


def words(text: str) -> list[str]:
    """The words by which texts are compared: see above."""
    simple = folded(text)
    return (WORDS if INVOLVED.search(simple) else SIMPLE_WORDS).findall(simple)


def folded(text: str) -> str:
    """Compatibility forms unified, format characters and diacritics dropped, lower case; no final sigma."""
    if text.isascii():
        return text.lower()
    bare = DROPPED.sub("", unicodedata.normalize("NFKD", text))
    return unicodedata.normalize("NFC", bare).lower().replace("\u03c2", "\u03c3")


def without_diacritics(text: str) -> str:
    """Canonical decomposition without its non-spacing marks."""
    return text if text.isascii() else DIACRITICS.sub("", unicodedata.normalize("NFD", text))


def plain_words(text: str) -> list[str]:
    """The published decontamination's words: NFD, diacritics removed, lower case, runs of word characters."""
    return WORD.findall(plainly_folded(text))


def plainly_folded(text: str) -> str:
    """Canonical decomposition without its non-spacing marks, in lower case."""
    return without_diacritics(text).lower()


@dataclass(frozen=True)
class Normalisation:
    """How texts become words."""

    name: str
    words: Callable[[str], list[str]]
    fold: Callable[[str], str]  # what is done to a text before it is split


NORMAL = Normalisation("words", words, folded)
PUBLISHED = Normalisation("published", plain_words, plainly_folded)
