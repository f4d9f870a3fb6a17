"""The words that differ between two texts, and the evidence with which a text was removed."""

import json
import re
from difflib import SequenceMatcher
from typing import Any

WORD = re.compile(r"\S+|\s+")
LARGEST = 2_000_000  # words of one middle times words of the other; beyond it the middles are shown whole

Piece = tuple[str, str]  # "=" | "-" | "+", and the text


def word_diff(old: str, new: str) -> list[Piece]:
    """The pieces that are in both texts, only in the old, and only in the new one, in their order.

    What is cut at the ends of a text, as cleaning does, is found in linear time.
    """
    one, two = WORD.findall(old), WORD.findall(new)
    start = _common(one, two)
    end = _common(one[start:][::-1], two[start:][::-1])
    first, second = one[start : len(one) - end], two[start : len(two) - end]
    pieces: list[Piece] = [("=", "".join(one[:start]))]
    if len(first) * len(second) > LARGEST:
        pieces += [("-", "".join(first)), ("+", "".join(second))]
    else:
        for kind, i, j, k, m in SequenceMatcher(None, first, second, autojunk=False).get_opcodes():
            if kind == "equal":
                pieces.append(("=", "".join(first[i:j])))
            else:
                pieces += [("-", "".join(first[i:j])), ("+", "".join(second[k:m]))]
    pieces.append(("=", "".join(one[len(one) - end :])))
    return [piece for piece in pieces if piece[1]]


def evidence_of(text: str) -> Any:
    """A removal's evidence; as it is when it is no JSON."""
    try:
        return json.loads(text)
    except ValueError:
        return text


def _common(one: list[str], two: list[str]) -> int:
    return next((n for n, (a, b) in enumerate(zip(one, two, strict=False)) if a != b), min(len(one), len(two)))
