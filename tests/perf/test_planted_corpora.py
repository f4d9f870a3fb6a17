"""Planted faults change what they say, in the share that they say; a campaign goes on where it was."""

from collections import Counter
from pathlib import Path

import pytest

from cosmopedia.evaluation.arms import find
from cosmopedia.evaluation.readings import read
from perf.planted_corpora import BOILERPLATE, FAULTS, Campaign, Document, Settings, draw, planted

CORPUS = [
    Document(f"Page {n} says this. Then {n * 7} follows at once. The end of page {n}. " * 5, f"topic {n % 4}", "web")
    for n in range(20)
]
SPARE = [Document(f"A spare page {n}. ", f"topic {n % 4}", "web") for n in range(20)]


@pytest.mark.parametrize("fault", FAULTS)
def test_a_larger_share_holds_the_smaller_one_and_no_share_is_the_corpus(fault: str) -> None:
    healthy = [document.text for document in CORPUS]
    changed = {
        share: {n for n, text in enumerate(planted(CORPUS, SPARE, fault, share)) if text != healthy[n]}
        for share in (0.0, 0.1, 0.5, 1.0)
    }
    assert changed[0.0] == set() and changed[0.1] <= changed[0.5] <= changed[1.0]
    assert len(changed[1.0]) >= (10 if fault == "topics" else 19)  # one document stays itself: the repeated one


def test_shuffling_keeps_the_words_and_the_other_faults_are_what_they_say() -> None:
    words = planted(CORPUS, SPARE, "words", 1.0)
    assert [Counter(text.split()) for text in words] == [Counter(document.text.split()) for document in CORPUS]
    assert len(set(planted(CORPUS, SPARE, "repeated", 1.0))) == 1
    half = planted(CORPUS, SPARE, "boilerplate", 1.0)
    assert all(
        text.startswith(BOILERPLATE[:40]) and abs(len(text) - len(CORPUS[n].text)) <= 1 for n, text in enumerate(half)
    )
    topics = {document.text: document.topic for document in [*CORPUS, *SPARE]}
    assert len({topics[text] for text in planted(CORPUS, SPARE, "topics", 1.0)}) == 2  # of four


def test_nothing_held_out_is_trained_on() -> None:
    texts = draw(Settings("samples", documents=30, held_out=5, continuations=8))
    trained = {document.text for document in [*texts.corpus, *texts.spare]}
    assert len(texts.held_out) == 5 and not trained & {document.text for document in texts.held_out}
    continuations = [item for item in texts.items if item["task"] == "continuation"]
    held_out = " ".join(" ".join(document.text.split()) for document in texts.held_out)
    assert len(continuations) == 8
    for item in continuations:
        assert item["query"] + item["choices"][item["gold"]] in held_out


@pytest.mark.slow
def test_a_campaign_trains_nothing_twice_and_leaves_what_compare_reads(tmp_path: Path) -> None:
    settings = Settings("samples", documents=30, steps=2, held_out=3, continuations=4)
    assert Campaign(tmp_path, settings).run("words-100", 1) > 0
    again = Campaign(tmp_path, settings)
    assert again.run("words-100", 1) == 0
    arm = find("words-100", tmp_path / "words-100")
    readings = read(arm.name, arm.answers, arm.held_out)
    assert readings.seeds == (1,) and {"continuation", "mmlu"} <= set(readings.tasks) and readings.sets
    with pytest.raises(SystemExit, match=r"settings.json is of other settings"):
        Campaign(tmp_path, Settings("samples", documents=31))
