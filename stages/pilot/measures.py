"""What the pilot measures of a cell's completions: shares of texts (stages/pilot/shares.py), diversity, lengths."""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from types import MappingProxyType
from typing import Any

import zstandard

from cosmopedia.generation.requests import Completion, Failure
from stages.pilot.shares import Finding, Refusals, TextRules, Written, first_words, shares

OPENINGS_SHOWN = 3
QUANTILES = {"min": 0.0, "p10": 0.1, "p50": 0.5, "p90": 0.9, "max": 1.0}
BIGRAMS = 10_000  # of a cell, for distinct-2: from this size on the figure does not fall with the pilot's size
WINDOW_LOG = 15  # zstd looks back 32 kB, so that the compression ratio does not grow with it either


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


def measure(
    tried: Sequence[tuple[str, Completion | Failure]],
    rules: TextRules,
    refusals: Refusals,
    others: Mapping[str, Callable[[Sequence[Written]], Finding]] = MappingProxyType({}),
) -> dict[str, Any]:
    """The figures of a cell's (prompt, result); shares are of its completions, `failed_share` of its requests.

    `others` are measures that are not taken of every pilot, by their names.
    """
    answered = [(prompt, result) for prompt, result in tried if isinstance(result, Completion)]
    texts = [Written(result.text, prompt, result.finish_reason != "length") for prompt, result in answered]
    tokens = [result.tokens for _, result in answered]
    count = max(len(texts), 1)
    counted = Counter(first_words(text.text, rules.opening_words) for text in texts)
    frequent = sorted(counted.items(), key=lambda item: (-item[1], item[0]))[:OPENINGS_SHOWN]
    found = shares(texts, rules, refusals) | {name: look(texts) for name, look in others.items()}
    return {
        "requests": len(tried),
        "completions": len(texts),
        "failed_share": (len(tried) - len(texts)) / max(len(tried), 1),
        "opening_share": frequent[0][1] / count if frequent else 0.0,
        "opening": frequent[0][0] if frequent else "",
        "openings": [{"opening": opening, "share": number / count} for opening, number in frequent],
        **{f"{name}_share": finding.share for name, finding in found.items()},
        "examples": {name: finding.example for name, finding in found.items() if finding.example},
        "distinct_2": distinct_2([text.text for text in texts]),
        "compression_ratio": compression_ratio([text.text for text in texts]) if texts else 1.0,
        "mean_tokens": sum(tokens) / count,
        "tokens": quantiles(tokens),
    }
