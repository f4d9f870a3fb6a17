"""How far further samples support a sentence: two variants of SelfCheckGPT (Manakul et al. 2023, arXiv:2303.08896).

What a model knows it says in each sample, what it makes up differs between them. Scores are higher for sentences that
fewer samples support.
"""

import math
from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

from cosmopedia.corpus.words import words


class Unigram(NamedTuple):
    """Negative log-probabilities of a sentence's words, in nats: their mean, and that of the least likely word."""

    mean: float
    max: float


class UnigramModel:
    """Word counts of the samples and the text itself (section 5.3 of the paper, without smoothing).

    -log p(word), where p is the word's share of all words. A sentence without words has scores of 0. The text is
    among what is counted, so that no word has a probability of 0.
    """

    def __init__(self, text: str, samples: Sequence[str]):
        self.counts = Counter(word for one in (text, *samples) for word in words(one))
        self.total = self.counts.total()

    def score(self, sentence: str) -> Unigram:
        """Of a sentence of the text."""
        surprise = [math.log(self.total / self.counts[word]) for word in words(sentence)]
        return Unigram(sum(surprise) / len(surprise), max(surprise)) if surprise else Unigram(0.0, 0.0)


def asked_score(answers: Sequence[str]) -> float | None:
    """The mean over samples of yes: 0, no: 1, another answer: 0.5 (section 5.5 of the paper); None without samples."""
    values = [{"yes": 0.0, "no": 1.0}.get(answer, 0.5) for answer in answers]
    return sum(values) / len(values) if values else None
