"""Cleaning on labelled texts: data/samples/cleaning, which says how they were made."""

import json

import pytest

from perf.cleaning import TEXTS, measure, read_params, summary
from tests.support.documents import ROOT

ROWS = [json.loads(line) for line in (ROOT / TEXTS).read_text(encoding="utf-8").splitlines()]


def test_the_texts_are_enough_and_balanced():
    good = sum(row["kind"] == "good" for row in ROWS)
    assert len(ROWS) >= 300 and 0.35 <= good / len(ROWS) <= 0.65
    assert (
        len({row["id"] for row in ROWS})
        == len({row["before"] + row["keep"] + row["after"] for row in ROWS})
        == len(ROWS)
    )


@pytest.mark.slow
@pytest.mark.parametrize("profile", ["smoke", "laptop"])
@pytest.mark.parametrize("half", ["tuned", "held_out", "later", "fresh"])
def test_good_texts_stay_and_boilerplate_goes(half: str, profile: str):
    figures = measure([row for row in ROWS if row["half"] == half], read_params(profile, ROOT))
    shares = summary(figures)
    assert shares["good_touched"] <= 0.02, figures["good"]["wrong"]
    assert shares["recall"] >= 0.9 and shares["cut_right"] >= 0.9, figures
