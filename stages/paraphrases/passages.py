"""Passages of a document: runs of a few sentences, each compared with the benchmark items.

An item is one to four sentences, and a vector of a long text says little about one sentence in it: of forty
paraphrases in pages of seven sentences, whole pages found one at a cosine of 0.55, single sentences and pairs 39.
"""

import re
from collections.abc import Iterable

LONGEST = 1000  # characters of a sentence; a longer one is cut at a space. The encoder reads about as many
END = re.compile(r"[.!?…।][\"'”’)\]*_]{0,4}\s+|[。！？][”」』]?\s*|\n+")

Span = tuple[int, int]  # where a passage begins and ends, in characters


def sentences(text: str) -> list[Span]:
    """The sentences of a text, without the white space around them. Lines end sentences too."""
    spans: list[Span] = []
    start = 0
    for end in (*(match.end() for match in END.finditer(text)), len(text)):
        while end - start > LONGEST:
            space = text.rfind(" ", start + 1, start + LONGEST)
            cut = space if space > start else start + LONGEST
            spans.append((start, cut))
            start = cut
        spans.append((start, end))
        start = end
    return [stripped for span in spans if (stripped := _stripped(text, span))]


def _stripped(text: str, span: Span) -> Span | None:
    """The span without white space at its ends; None when nothing is left."""
    part = text[slice(*span)]
    start = span[0] + len(part) - len(part.lstrip())
    end = start + len(part.strip())
    return (start, end) if end > start else None


def passages(text: str, lengths: Iterable[int]) -> list[Span]:
    """All runs of so many sentences, in order; those of four or more sentences overlap by half.

    A text with fewer sentences than a length is one passage.
    """
    found = sentences(text)
    spans: set[Span] = set()
    for length in lengths:
        step = max(1, length // 2)
        for first in range(0, max(len(found) - length, 0) + step, step):
            run = found[first : first + length]
            if run:
                spans.add((run[0][0], run[-1][1]))
    return sorted(spans)
