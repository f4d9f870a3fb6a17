"""The scores of one item are those of their definitions, computed by hand."""

import math

import pytest

from cosmopedia.evaluation.item_scores import LOWER_IS_BETTER, METRICS, best, by_character, item_scores


def row(logprobs: list[float], choices: list[str], gold: int) -> dict:
    return {
        "logprobs": logprobs,
        "choices": choices,
        "gold": gold,
        "bytes": [len(choice.removeprefix(" ").encode()) for choice in choices],
    }


def test_an_items_scores_are_those_of_their_definitions():
    scores = item_scores(row([math.log(0.2), math.log(0.6), math.log(0.2)], [" ab", " abcdef", " abc"], gold=0))
    per_character = [math.log(0.2) / 2, math.log(0.6) / 6, math.log(0.2) / 3]
    assert scores["acc"] == 0 and scores["acc_norm"] == 0
    assert scores["bpb"] == pytest.approx(-math.log2(0.2) / 2)
    assert scores["prob"] == pytest.approx(0.2)
    assert scores["prob_norm"] == pytest.approx(math.exp(per_character[0]) / sum(map(math.exp, per_character)))
    assert scores["margin"] == pytest.approx(per_character[0] - per_character[1])
    assert tuple(scores) == METRICS and {"bpb"} == LOWER_IS_BETTER


def test_bits_are_counted_per_byte_and_margins_per_character():
    scores = item_scores(row([-8.0, -12.0], [" né", " no"], gold=0))
    assert scores["bpb"] == pytest.approx(8 / math.log(2) / 3)
    assert scores["margin"] == pytest.approx(-4 + 6)


def test_very_unlikely_choices_have_a_probability_all_the_same():
    scores = item_scores(row([-5000.0, -5001.0], [" a", " b"], gold=1))
    assert scores["prob"] == pytest.approx(1 / (1 + math.e))


def test_characters_are_counted_without_the_leading_space():
    assert by_character([-6.0, -6.0], [" ab", "abc"]) == [-3.0, -2.0]
    assert best([-1.0, -1.0, -2.0]) == 0
