"""c-TF-IDF: the words that set a cluster's documents apart from the other clusters'.

Grootendorst 2022 (BERTopic): weight = tf(word, cluster) * log(1 + A / f(word)), with A the mean number of words in a
cluster and f the word's count in all of them. A word counts once per document that has it, so that a name
repeated in one document does not represent its cluster.
"""

import math
import re
from collections import Counter
from collections.abc import Collection

WORD = re.compile(r"[^\W\d_]+(?:['’-][^\W\d_]+)*")
MIN_LETTERS = 3


def words(text: str, stop_words: Collection[str] = ()) -> set[str]:
    """The distinct words of a text in lower case, without possessive endings, contractions, short and stop words."""
    candidates = {word.replace("’", "'").removesuffix("'s") for word in WORD.findall(text.lower())}
    return {word for word in candidates if len(word) >= MIN_LETTERS and "'" not in word and word not in stop_words}


def english_stop_words() -> frozenset[str]:
    """scikit-learn's list."""
    from sklearn.feature_extraction.text import ENGLISH_STOP_WORDS

    return ENGLISH_STOP_WORDS


def keywords(counts: dict[int, Counter[str]], documents: dict[int, int], number: int) -> dict[int, list[str]]:
    """The `number` best words of each cluster, best first (equal weights: by alphabet).

    `counts` holds for each cluster in how many of its documents a word occurs; `documents` how many were read. Words
    of a single document are left out where a cluster has enough others.
    """
    total: Counter[str] = Counter()
    for counter in counts.values():
        total.update(counter)
    mean_words = sum(total.values()) / max(len(counts), 1)
    best = {}
    for cluster, counter in counts.items():
        weight = {
            word: count / documents[cluster] * math.log1p(mean_words / total[word]) for word, count in counter.items()
        }
        best[cluster] = sorted(counter, key=lambda w: (counter[w] < 2, -weight[w], w))[:number]
    return best
