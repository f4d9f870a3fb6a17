"""The share of decisions that another clustering changes, as perf.topics measures it."""

import numpy as np
import pytest

from perf.topics import changed

TOPICS, SIZE = 12, 40


@pytest.fixture
def vectors() -> np.ndarray:
    draw = np.random.default_rng(3)
    centres = np.linalg.qr(draw.normal(size=(48, TOPICS)))[0].T
    found = np.repeat(centres, SIZE, axis=0) + draw.normal(size=(TOPICS * SIZE, 48)) * 0.05
    return (found / np.linalg.norm(found, axis=1, keepdims=True)).astype(np.float32)


def test_other_numbers_and_a_split_change_no_decision_and_a_lost_cluster_those_of_its_rows(
    vectors: np.ndarray,
) -> None:
    labels = np.repeat(np.arange(TOPICS), SIZE)
    assert changed(vectors, labels, labels, TOPICS - 1 - labels) == (0, 0)
    split = np.where(np.arange(len(labels)) < SIZE // 2, TOPICS, labels)
    assert changed(vectors, labels, labels, split) == (0, 0)
    noise = np.where(labels == 0, -1, labels)  # without a cluster: dropped, where they were kept before
    lost = np.mean(changed(vectors, labels, labels, np.where(noise > 0, noise - 1, -1)))
    assert 0.5 / TOPICS < lost < 1 / TOPICS


def test_a_cluster_that_follows_none_counts_as_changed(vectors: np.ndarray) -> None:
    labels = np.repeat(np.arange(TOPICS), SIZE)
    before = np.where(labels == TOPICS - 1, -1, labels)  # nobody has reviewed the last topic
    assert min(changed(vectors, labels, before, labels)) == pytest.approx(1 / TOPICS)
