"""What the pilot measures of a cell's completions: openings, truncation, refusals, diversity, lengths."""

import re
from collections import Counter
from itertools import pairwise
from typing import Any

import zstandard

from cosmopedia.generation.requests import Completion, Failure
from cosmopedia.patterns import Pattern

OPENINGS_SHOWN = 3
QUANTILES = {"min": 0.0, "p10": 0.1, "p50": 0.5, "p90": 0.9, "max": 1.0}
BIGRAMS = 10_000  # of a cell, for distinct-2: from this size on the figure does not fall with the pilot's size
WINDOW_LOG = 15  # zstd looks back 32 kB, so that the compression ratio does not grow with it either


def opening(text: str, words: int) -> str:
    """The first words, lower case, without punctuation: "have you ever"."""
    return " ".join(re.findall(r"[^\W_]+(?:['’][^\W_]+)*", text.lower())[:words])


def distinct_2(texts: list[str]) -> float:
    """Different word bigrams over bigrams (Li et al. 2016, arXiv:1510.03055), of the beginnings of the texts."""
    per_text = max(BIGRAMS // max(len(texts), 1), 1)
    bigrams = [pair for text in texts for pair in list(pairwise(text.lower().split()))[:per_text]]
    return len(set(bigrams)) / len(bigrams) if bigrams else 1.0


def compression_ratio(texts: list[str]) -> float:
    """Bytes over compressed bytes of the texts together: redundancy across texts (Shaib et al., arXiv:2403.00553)."""
    content = "\n".join(texts).encode()
    settings = zstandard.ZstdCompressionParameters.from_level(3, window_log=WINDOW_LOG)
    return len(content) / len(zstandard.ZstdCompressor(compression_params=settings).compress(content))


def quantiles(lengths: list[int]) -> dict[str, int]:
    """The distribution of lengths, in tokens: nearest-rank quantiles."""
    ranked = sorted(lengths)
    return {name: ranked[round(q * (len(ranked) - 1))] for name, q in QUANTILES.items()} if ranked else {}


def measure(results: list[Completion | Failure], opening_words: int, refusals: list[str]) -> dict[str, Any]:
    """A cell's figures; shares are of its completions, `failed_share` of its requests.

    `refusals` are regular expressions that are searched for anywhere in a text, case ignored.
    """
    completions = [result for result in results if isinstance(result, Completion)]
    texts = [completion.text for completion in completions]
    count = max(len(completions), 1)
    openings = Counter(opening(text, opening_words) for text in texts)
    frequent = sorted(openings.items(), key=lambda item: (-item[1], item[0]))[:OPENINGS_SHOWN]
    patterns = [Pattern("pilot.refusals", pattern) for pattern in refusals]
    refused = sum(any(pattern.search(text) is not None for pattern in patterns) for text in texts)
    return {
        "requests": len(results),
        "completions": len(completions),
        "failed_share": (len(results) - len(completions)) / max(len(results), 1),
        "opening_share": frequent[0][1] / count if frequent else 0.0,
        "opening": frequent[0][0] if frequent else "",
        "openings": [{"opening": words, "share": number / count} for words, number in frequent],
        "truncated_share": sum(completion.finish_reason == "length" for completion in completions) / count,
        "refused_share": refused / count,
        "distinct_2": distinct_2(texts),
        "compression_ratio": compression_ratio(texts) if texts else 1.0,
        "mean_tokens": sum(completion.tokens for completion in completions) / count,
        "tokens": quantiles([completion.tokens for completion in completions]),
    }
