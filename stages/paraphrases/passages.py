"""Passages of a document: runs of a few sentences, each compared with the benchmark items.

An item is one to four sentences, and a vector of a long text says little about one sentence in it: of forty
paraphrases in pages of seven sentences, whole pages found one at a cosine of 0.55, single sentences and pairs 39.
"""

from collections.abc import Iterable

from cosmopedia.corpus.sentence_spans import Span, sentences


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
