"""Texts assigned to the topics of a taxonomy, by sentence vectors.

A topic's vector is the mean of the vectors of its name and of each "name: keyword". A text belongs to the topic with
the greatest cosine, if that stands out: by `outstanding` standard deviations of the text's cosines with all topics
above their mean. The cosine itself says little: in all-MiniLM-L6-v2 word salad had .15 to .28 with its nearest topic,
and a twentieth of good pages less than .19 (docs/topics.md).
"""

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np

from cosmopedia.corpus.encoder import Encoder
from cosmopedia.corpus.taxonomy import Topic

NONE = -1  # the topic of a text that is near to none


class Assigned(NamedTuple):
    """Of each text the number of its topic (NONE: near to none), and by how many deviations it stands out."""

    topics: np.ndarray
    deviations: np.ndarray


def encode(encoder: Encoder, texts: list[str]) -> np.ndarray:
    """The vectors of some texts, at least one."""
    return np.concatenate([block for block, _ in encoder.encode(texts)])


def topic_vectors(topics: Iterable[Topic], encoder: Encoder) -> np.ndarray:
    """One vector of length 1 per topic; of length 0 where the model knows none of its words."""
    texts = [topic.texts for topic in topics]
    vectors = np.split(
        encode(encoder, [text for own in texts for text in own]), np.cumsum([len(own) for own in texts])[:-1]
    )
    means = np.stack([own.mean(axis=0) for own in vectors])
    lengths = np.linalg.norm(means, axis=1, keepdims=True)
    return means / np.where(lengths == 0, 1, lengths)  # words without a static vector leave 0


def assign(vectors: np.ndarray, topics: np.ndarray, outstanding: float) -> Assigned:
    """The topic of each text, from vectors [texts, dimensions] and [topics, dimensions]."""
    cosines = vectors @ topics.T
    spread = cosines.std(axis=1)
    above = cosines.max(axis=1) - cosines.mean(axis=1)
    deviations = np.divide(above, spread, out=np.zeros_like(above), where=spread > 0)
    return Assigned(np.where(deviations >= outstanding, cosines.argmax(axis=1), NONE), deviations)


def fewest_topics(outstanding: float) -> int:
    """How many topics there must be for any text to stand out: of n numbers none is above sqrt(n - 1) deviations."""
    return int(np.ceil(outstanding**2)) + 1
