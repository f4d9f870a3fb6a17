"""The words of a text, and hashes of its n-grams as datatrove has them: for near duplicates and copied extracts."""

import re
import unicodedata

import numpy as np
import regex
import xxhash
from datatrove.utils.text import NUMBERS_PATTERN, PUNCTUATION

WORD = re.compile(r"\w+")
DIACRITICS = regex.compile(r"\p{Mn}+")
PUNCTUATED = re.compile(f"[{re.escape(PUNCTUATION)}]+")


def without_diacritics(text: str) -> str:
    """Canonical decomposition without its non-spacing marks."""
    return text if text.isascii() else DIACRITICS.sub("", unicodedata.normalize("NFD", text))


def plain_words(text: str) -> list[str]:
    """The published decontamination's words: NFD, diacritics removed, lower case, runs of word characters."""
    return WORD.findall(without_diacritics(text).lower())


def simplified_words(text: str) -> list[str]:
    """The words that MinHash sees: those of datatrove's `simplify_text`, which takes three times as long.

    Lower case, numbers as 0, punctuation as space, no diacritics. datatrove's stock English tokenizer then runs spaCy
    on the same text, to nearly the same words, at 98% of MinHash's whole cost.
    """
    plain = PUNCTUATED.sub(" ", NUMBERS_PATTERN.sub("0", text.lower()))
    return without_diacritics(plain).split()


def shingles(text: str, n: int) -> np.ndarray:
    """xxHash (64 bits) of each n-gram of `simplified_words`, joined by spaces as in datatrove; uint64, in text order.

    Empty for a text of fewer than `n` words.
    """
    words = simplified_words(text)
    if len(words) < n:
        return np.empty(0, dtype=np.uint64)
    joined = " ".join(words).encode()
    spaces = np.flatnonzero(np.frombuffer(joined, dtype=np.uint8) == ord(" "))
    ends = [*spaces[n - 1 :].tolist(), len(joined)]
    starts = [0, *(spaces[: len(ends) - 1] + 1).tolist()]
    hashed = (xxhash.xxh64_intdigest(joined[start:end]) for start, end in zip(starts, ends, strict=True))
    return np.fromiter(hashed, dtype=np.uint64, count=len(ends))
