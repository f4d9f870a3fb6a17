"""What a score is worth: the same items scored by what has learnt nothing of them.

Guessing at random is not the floor: choices differ in length and in the frequency of their words, and a score follows
those too. So each task is also scored by an untrained model of the same architecture, by how often each token occurs
in the training corpus, and by taking the longest choice.
"""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np

from cosmopedia.core.errors import DataError
from cosmopedia.evaluation.encoding import Sequence
from cosmopedia.evaluation.item_scores import without_space

CORPUS = Path("data/tokenize_corpus")
COUNTED = 100_000_000  # tokens of the training split that are counted; its documents are shuffled
AT_ONCE = 1 << 22


def unigram_logprobs(folder: Path, vocabulary: int) -> np.ndarray:
    """Log-probability of each token by its count in the training split, each counted once more than it occurs.

    `DataError` when the corpus is missing or has other tokens than the model.
    """
    try:
        corpus = json.loads((folder / "corpus.json").read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise DataError(f"{folder}/corpus.json is missing; run `dvc repro tokenize_corpus`, or dvc pull") from None
    counts, left = np.zeros(vocabulary, dtype=np.int64), COUNTED
    for path in sorted((folder / "train").glob("*.ds")):
        tokens = np.memmap(path, dtype=f"<u{corpus['token_bytes']}", mode="r")[:left]
        for start in range(0, len(tokens), AT_ONCE):
            some = np.bincount(tokens[start : start + AT_ONCE], minlength=vocabulary)
            if len(some) > vocabulary:
                raise DataError(
                    f"{path} has the token {len(some) - 1}, but the exported model has {vocabulary} tokens; run"
                    " `dvc repro export`"
                )
            counts += some
        left -= len(tokens)
    return np.log((counts + 1) / (counts.sum() + vocabulary))


def by_unigrams(logprobs: np.ndarray, sequences: list[Sequence]) -> list[float]:
    """The summed log-probability of each sequence's scored tokens, each by itself."""
    return [float(logprobs[list(one.ids[-one.scored :])].sum()) for one in sequences]


def longest_choice(items: list[dict[str, Any]]) -> dict[str, Any]:
    """acc and acc_norm of taking the choice with the most characters; of equals, each a part of the time."""
    right = 0.0
    for item in items:
        lengths = [len(without_space(choice)) for choice in item["choices"]]
        longest = max(lengths)
        right += (lengths[item["gold"]] == longest) / lengths.count(longest)
    share = right / len(items)
    error = math.sqrt(share * (1 - share) / (len(items) - 1)) if len(items) > 1 else None
    one = {"acc": share, "acc_stderr": error}
    return {"items": len(items), **one, **{name.replace("acc", "acc_norm"): value for name, value in one.items()}}
