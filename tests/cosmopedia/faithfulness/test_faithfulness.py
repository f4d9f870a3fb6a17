"""What counts as said by a source, on planted cases and literal ones; time is linear; intervals mean something."""

import math
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from cosmopedia.core.errors import DataError
from cosmopedia.faithfulness.judge import Source, judge
from cosmopedia.faithfulness.prompt_source import PromptTemplate
from cosmopedia.faithfulness.ratios import Ratio
from perf import faithful
from tests.support.documents import ROOT

CASES = list(faithful.read_cases(ROOT / faithful.CASES))
HALL = Source(
    "The hall was opened on 7 November 1867 by Marie Quint. It is 5.2 km from Sarn, seats 2,460 people on 48 rows and"
    " cost $1.2 million; a third was paid by the World Health Organization. It is kept at 20 °C."
)


@pytest.mark.parametrize(("part", "precision", "recall"), [("tuned", 0.98, 0.97), ("held", 0.87, 0.97)])
def test_planted_words_are_found_and_true_sentences_are_left_alone(part: str, precision: float, recall: float):
    cases = [case for case in CASES if case.part == part]
    assert len(cases) > 100 and len({case.kind for case in cases}) == 14
    found = faithful.totals([faithful.outcome(case, faithful.ours) for case in cases])
    plain = faithful.totals([faithful.outcome(case, faithful.exact_strings) for case in cases])
    assert found[0] >= precision and found[1] >= recall
    assert found[0] > plain[0] + 0.3 and found[1] > plain[1] + 0.1
    kinds = {case.kind for case in cases if case.planted}
    for kind in kinds:
        outcomes = [faithful.outcome(case, faithful.ours) for case in cases if case.kind == kind]
        assert sum(one.found for one in outcomes) >= 0.9 * sum(one.planted for one in outcomes), kind


def unsupported(text: str, source: Source = HALL) -> list[tuple[str, str]]:
    return [(span.kind, text[span.start : span.end]) for span in judge(text, source).spans]


@pytest.mark.parametrize(
    "text",
    [
        "In November 1867, in the 1860s, in the nineteenth century.",
        "On 11/7/1867 or 7/11/1867 or 1867-11-07 the hall was opened.",
        "It lies 5,200 metres, about 3.2 miles, from Sarn.",
        "It has forty-eight rows and 2460 seats, roughly 2,500; over 2,400.",
        "It cost 1,200,000 dollars, one third (33%) of them from the WHO.",
        "Quint's hall is kept at 68 °F.",
        "1. Warm the hall.\n2. Open it.\n\nStep 3: Quint speaks. Question 4. There are three reasons.",
        "## The Great Hall Of Wonders\n\n**Opening Day**\n\nI'm glad. Visitors came. Nobody left.",
    ],
)
def test_the_same_in_other_words_is_supported(text: str):
    assert unsupported(text) == []


@pytest.mark.parametrize(
    ("text", "spans"),
    [
        ("It was opened on 17 November 1867.", [("date", "17 November 1867")]),
        ("It is 5.2 miles from Sarn and has 84 rows.", [("unit", "5.2 miles"), ("number", "84")]),
        (
            "The hall in Brenn was opened by Marie Quint and John F. Holt.",
            [("name", "Brenn"), ("name", "John F. Holt")],
        ),
        ("It was opened in 1876, in the 1870s.", [("date", "1876"), ("date", "1870s")]),
        ("Half a million came, and it cost €1.2 million.", [("number", "Half a million"), ("unit", "€1.2 million")]),
    ],
)
def test_what_is_added_or_changed_is_named_with_its_place(text: str, spans: list[tuple[str, str]]):
    assert unsupported(text) == spans


def test_support_of_words_tells_a_rephrasing_from_another_subject():
    near = judge("The hall, which seats many people, was opened by Marie Quint.", HALL)
    far = judge("Bees dance to tell their sisters where the clover grows.", HALL)
    assert near.word_support > 0.7 and near.ngram_support > 0.1
    assert far.word_support == 0 and far.ngram_support == 0
    assert judge("", HALL).word_support == 1


@pytest.mark.slow
@pytest.mark.parametrize("part", ["1/", "one ", "5 km ", "A of ", "May 5 "])
def test_time_grows_with_the_length_of_hostile_text(part: str):
    def seconds(length: int) -> float:
        text = part * (length // len(part))
        start = time.process_time()
        judge(text, Source(text))
        return time.process_time() - start

    assert min(seconds(8_000), seconds(8_000)) < 9 * max(min(seconds(2_000), seconds(2_000)), 1e-3)


@pytest.fixture
def template(tmp_path: Path) -> PromptTemplate:
    (tmp_path / "t.txt").write_text(
        '# a comment\nHere is an extract:\n\n"$extract"\n\nWrite 500 words on ${unit} for $$5.\n'
    )
    return PromptTemplate(tmp_path / "t.txt")


def test_the_source_of_a_prompt_is_what_its_slots_were_filled_with(template: PromptTemplate):
    prompt = 'Here is an extract:\n\n"Rain fell for 40 days."\n\nWrite 500 words on floods for $5.'
    assert template.source_of(prompt) == "Rain fell for 40 days.\nfloods"
    assert template.quotes
    quoted = prompt.replace("40 days.", '40 days."\n\nWrite 500 words on more.')
    assert set(template.source_of(quoted).split()) >= {"40", "days.", "floods"}
    for other in (prompt + " Now.", "Here is an extract:", prompt.replace("500", "600")):
        with pytest.raises(DataError, match=r"t\.txt: .* run prompts and generate again"):
            template.source_of(other)


def interval(counts: list[tuple[int, int]], of: Callable[[Ratio], object] = Ratio.share_interval) -> object:
    ratio = Ratio()
    for top, bottom in counts:
        ratio.add(top, bottom)
    return of(ratio)


def test_intervals_are_wider_where_documents_differ_and_never_empty():
    even, uneven = interval([(1, 2)] * 40), interval([(2, 2), (0, 2)] * 20)
    assert isinstance(even, list) and isinstance(uneven, list)
    assert even[0] > uneven[0] and even[1] < uneven[1] and uneven[0] < 0.5 < uneven[1]
    none = interval([(0, 2)] * 40)
    assert isinstance(none, list) and none[0] == 0 and 0.01 < none[1] < 0.1
    assert interval([(1, 2)]) is None and interval([(0, 0)] * 5) is None
    mean = interval([(10, 5), (14, 5)], Ratio.mean_interval)
    assert isinstance(mean, list) and math.isclose(sum(mean) / 2, 2.4)
