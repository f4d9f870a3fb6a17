"""The repetition rules of Gopher (Rae et al. 2021, table A1), with datatrove's counting.

datatrove's own filter counts the most frequent n-gram also when it occurs once, so that a short text is always
"repetitive"; here it counts from its second occurrence.

Verse, exercises, dialogue and tables repeat lines and forms on purpose. A text of short lines is only judged when it
can be compressed more than those: a loop says nothing new, a refrain or a form has new words in between.
"""

import re
import zlib
from collections import Counter
from itertools import accumulate

from datatrove.pipeline.filters.gopher_repetition_filter import find_all_duplicate, find_duplicates, get_n_grams
from pydantic import Field

from cosmopedia.core.params import Params

TOKEN = re.compile(r"\w+|[^\w\s]")
LINES_OF_A_FORM, FORM_SHARE = 4, 0.75  # short lines that a form has at least, also as a share of its lines
FORM_LINE = 120  # characters of a short line, at most
PARAGRAPH, LINE = re.compile(r"\n{2,}"), re.compile(r"\n+")


class RepetitionLimits(Params):
    """The greatest shares that a text may have; null switches a rule off."""

    duplicate_lines: float | None = Field(ge=0, le=1)  # of lines
    duplicate_paragraphs: float | None = Field(ge=0, le=1)  # of paragraphs
    duplicate_line_characters: float | None = Field(ge=0, le=1)  # of the text's characters
    duplicate_paragraph_characters: float | None = Field(ge=0, le=1)
    top_ngram_characters: dict[int, float]  # n -> in all occurrences of the most frequent n-gram
    duplicate_ngram_characters: dict[int, float]  # n -> in n-grams that occurred before
    max_form_compression: float | None = Field(ge=1)  # bytes over zlib bytes of a text of short lines; null: as prose


def repetition(text: str, limits: RepetitionLimits) -> tuple[str, float] | None:
    """The first rule that a text breaks and its share, or None. Shares are of elements or of characters."""
    if not text or (
        limits.max_form_compression and is_form(text) and compression(text) <= limits.max_form_compression
    ):
        return None
    size = len(text)
    for name, splitter in (("paragraph", PARAGRAPH), ("line", LINE)):
        elements = splitter.split(text.strip())
        count, characters = find_duplicates(elements)
        for rule, share in (
            (f"duplicate_{name}s", count / len(elements)),
            (f"duplicate_{name}_characters", characters / size),
        ):
            limit = getattr(limits, rule)
            if limit is not None and share > limit:
                return rule, share
    words = TOKEN.findall(text)
    for n, limit in sorted(limits.top_ngram_characters.items()):
        if grams := get_n_grams(words, n):
            gram, count = Counter(grams).most_common(1)[0]
            if count > 1 and (share := len(gram) * count / size) > limit:
                return f"top_{n}gram", share
    at_most = most_duplicate_characters(words, [*limits.duplicate_ngram_characters])
    for n, limit in sorted(limits.duplicate_ngram_characters.items()):
        if at_most[n] / size > limit and (share := find_all_duplicate(words, n) / size) > limit:
            return f"duplicate_{n}grams", share
    return None


def most_duplicate_characters(words: list[str], ns: list[int]) -> dict[int, int]:
    """By n, the characters that duplicate n-grams can have at most: an n-gram that occurred before begins with shorter
    ones that did, so that one pass for the shortest n spares most texts the slow exact counts."""
    shortest = min(ns, default=1)
    seen: set[tuple[str, ...]] = set()
    repeated: list[int] = []
    for start, gram in enumerate(zip(*(words[offset:] for offset in range(shortest)), strict=False)):
        if gram in seen:
            repeated.append(start)
        seen.add(gram)
    ends = [0, *accumulate(map(len, words))]
    return {n: sum(ends[min(start + n, len(words))] - ends[start] for start in repeated) for n in ns}


def is_wanted_form(text: str, max_compression: float | None) -> bool:
    """Is a text of short lines that repeats no more than verse and exercises do?"""
    return max_compression is not None and is_form(text) and compression(text) <= max_compression


def is_form(text: str) -> bool:
    """Is a text verse, exercises, dialogue or the like: mostly short lines?"""
    lines = LINE.split(text.strip())
    short = sum(len(line) <= FORM_LINE for line in lines)
    return short >= LINES_OF_A_FORM and short >= FORM_SHARE * len(lines)


def compression(text: str) -> float:
    """Bytes over zlib bytes, of the whole text or of its second half, in which a loop has taken over: the greater."""
    return max(len(part) / len(zlib.compress(part, 9)) for part in (text.encode(), text[len(text) // 2 :].encode()))
