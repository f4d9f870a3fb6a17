"""Promises of decontamination about forms, edits and spellings."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cosmopedia.contamination.forms import forms_of
from cosmopedia.contamination.index import Index
from cosmopedia.core.params import read_yaml
from cosmopedia.tables.contracts import PARAPHRASE, REMOVED
from cosmopedia.tables.parquet import read_rows, write_table
from stages.decontaminate.__main__ import main
from tests.stages.decontaminate.test_decontaminate import ALL, FILLER, RULE
from tests.support.documents import PAIRS, document, repository, write_documents, write_items

PREFER = "A cow would prefer"
LONG = (
    "A farmer counts the eggs of forty hens in a wooden barn and sells two dozen of them at the market on Saturday"
    " morning. How many eggs does the farmer take home?"
)
GUT = "The gut has nerves of its own, more than the spine, and they go on working when the nerve to the brain is cut."


def row(number: int, question: str, choices: list[str], gold: int = 0, **other_forms: str) -> dict:
    return {
        "item_id": f"t/{number}",
        "task": "t",
        "question": question,
        "answer": choices[gold],
        "choices": [f" {choice}" for choice in choices],
        "other_forms": [{"form": form, "text": text} for form, text in other_forms.items()],
    }


ROWS = [
    row(0, PREFER, ["birds", "metals", "sushi", "green cucumbers and carrots"], 3),
    row(1, "is the enteric system independent", ["no", "yes"], 0, passage=GUT),
    row(2, LONG, ["12"], worked_answer="Forty hens lay thirty six eggs, of which he sells 24, so that 36 - 24 = 12."),
    row(3, "do whales sleep with one eye open", ["no", "yes"], 1),
    row(4, "Which of these statements about tides is true?", ["The moon pulls", "The wind pushes"]),
    row(5, "Which of these statements about tides is true?", ["They come once a year", "They come twice a day"], 1),
    row(7, "open a jar", ["twist"]),
    row(6, "hair pick", ["comb tangled floss with it", "replace the floss"]),
]


def index(rule=ALL, rows: list[dict] = ROWS) -> Index:
    return Index([form for one in rows for form in forms_of(one)], rule)


def found(text: str, rule=ALL, rows: list[dict] = ROWS) -> dict[str, tuple[str, list[str]]]:
    """By item the form and the detectors of the first match."""
    one = index(rule, rows)
    findings = [what for _, what in one.findings([f"{FILLER} {text} {FILLER}"])]
    matches = [match for what in findings for match in what.matches if match.detectors(rule)]
    return {match.item.item_id: (match.item.form, match.detectors(rule)) for match in reversed(matches)}


def ids(text: str, rule=ALL, rows: list[dict] = ROWS) -> list[str]:
    return sorted(found(text, rule, rows))


@pytest.mark.parametrize(
    ("text", "item", "form"),
    [
        ("Question: A cow would prefer\nAnswer: green cucumbers and carrots", "t/0", "question_answer"),
        (
            "A cow would prefer\nA) birds\nB) metals\nC) sushi\nD) green cucumbers and carrots\nAnswer: D",
            "t/0",
            "choices",
        ),
        (
            "**User:** hair pick?\n\n**Assistant:** The right answer: comb tangled floss with it.",
            "t/6",
            "question_answer",
        ),
        ("Q: do whales sleep with one eye open", "t/3", "question"),
        (GUT, "t/1", "passage"),
        ("Forty hens lay thirty six eggs, of which he sells 24, so that 36 - 24 = 12.", "t/2", "worked_answer"),
        (LONG, "t/2", "question_answer"),
        ("Which of these statements about tides is true?\n(a) The moon pulls", "t/4", "question_answer"),
    ],
)
def test_an_item_is_found_and_named_in_the_form_in_which_it_leaks(text: str, item: str, form: str):
    assert found(text)[item][0] == form and "forms" in found(text)[item][1]
    if item != "t/2" or form != "question_answer":
        assert ids(text, RULE) == []


def test_parts_too_far_apart_or_in_another_order_are_not_an_item():
    near, far = (f"{PREFER} {'really ' * words} green cucumbers and carrots" for words in (ALL.gap, ALL.gap + 1))
    assert (ids(near), ids(far)) == (["t/0"], [])
    assert ids(f"green cucumbers and carrots {PREFER}") == []
    assert ids("is the enteric system independent? Answer: no") == ["t/1"]
    assert ids("is the enteric system independent") == []  # a question of fewer than `shortest_form` words alone
    assert ids("open a jar. Answer: twist") == []  # four words


def test_a_question_that_several_items_share_is_not_looked_for_alone():
    question = ROWS[4]["question"]
    assert ids(question) == []
    assert ids(question, rows=[ROWS[4]]) == ["t/4"]


@settings(max_examples=100, deadline=None)
@given(
    st.lists(st.integers(0, 6), min_size=2, max_size=5),
    st.lists(st.sampled_from(["and", "or"]), max_size=5),
    st.integers(0, 4),
)
def test_a_short_item_is_found_part_by_part_with_up_to_gap_words_between(
    sizes: list[int], between: list[str], gap: int
):
    rule = ALL.model_copy(update={"gap": gap, "shortest_form": 50, "tolerant": None, "ngram": 50, "shortest_item": 2})
    question, *choices = [" ".join(f"w{part}x{n}" for n in range(size)) for part, size in enumerate(sizes)]
    rows = [row(0, question, choices), row(1, question, ["another", "thing"])]  # so that the question is not enough
    text = " ".join(["so", *(" ".join([part, *between]) for part in (question, *choices))])
    matches = [m for _, what in index(rule, rows).findings([text]) for m in what.matches if m.kind == "parts"]
    filled = [size for size in sizes if size]
    several = len(choices) > 1 and len(filled) > 1
    if all(sizes) or not between:
        expected = several and (len(between) <= gap)
        assert ("choices" in {match.item.form for match in matches if match.item.item_id == "t/0"}) == expected
    for match in matches:
        assert set(match.item.words) <= set(match.matched.split())


def every(step: int, first: int = 3) -> str:
    words = LONG.split()
    return " ".join("another" if n % step == first % step else word for n, word in enumerate(words))


@pytest.mark.parametrize("step", [5, 8, 13])
def test_an_edited_item_is_found_by_the_tolerant_detector(step: int):
    findings = [what for _, what in index().findings([f"{FILLER} {every(step)} {FILLER}"])]
    assert {m.item.item_id for what in findings for m in what.matches if "tolerant" in m.detectors(ALL)} == {"t/2"}
    assert ids(every(step), ALL.model_copy(update={"tolerant": None})) == (["t/2"] if step == 13 else [])


def test_moved_words_are_found_and_a_text_of_the_same_words_is_not():
    inserted = LONG.replace("wooden", "big wooden").replace("dozen", "full dozen")
    assert "t/2" in ids(inserted)
    assert ids(" ".join(sorted(LONG.split()))) == []
    assert ids(every(2)) == ids("in a wooden barn and then the farmer went home") == []


def test_a_template_of_many_items_is_no_edited_copy_of_one():
    names = [f"engine{number}" for number in range(150)]
    rows = [
        row(n, f"Which of the following best describes an {name}?", [f"It {name}s"]) for n, name in enumerate(names)
    ]
    text = "Which of the following best describes an aeroplane?"
    assert (ids(text, rows=rows), ids(text, rows=rows[:1])) == ([], ["t/0"])


@settings(max_examples=100, deadline=None)
@given(
    st.lists(st.integers(0, 60).map("w{}".format), min_size=7, max_size=30),
    st.lists(st.booleans(), min_size=30, max_size=30),
    st.integers(0, 9),
)
def test_the_share_is_that_of_the_words_in_their_places_by_rarity(words: list[str], kept: list[bool], before: int):
    rows = [row(0, " ".join(words), ["so"]), row(1, " ".join(f"w{n}" for n in range(60)), ["so"])]
    one = index(ALL, rows)
    text = ["x"] * before + [word if keep else "y" for word, keep in zip(words, kept, strict=False)] + ["x"]
    table = one._tolerant
    assert table
    form = next(number for number, f in enumerate(one.forms) if f.item_id == "t/0" and f.name == "question_answer")
    begin, end = table._forms.bounds[form : form + 2]
    weights = table._weights[begin:end]
    wanted = [*words, "so"]
    agree = [word in text[max(0, before + n - 1) : before + n + 2] for n, word in enumerate(wanted)]
    share = sum(weights[agree]) / sum(weights) - ALL.tolerant_chance / len(wanted)
    matches = [m for _, what in one.findings([" ".join(text)]) for m in what.matches if m.kind == "edited"]
    best = max((m.plain for m in matches if m.item.item_id == "t/0" and m.item.form == "question_answer"), default=0)
    runs = [text[before + n : before + n + 4] == wanted[n : n + 4] for n in range(len(wanted) - 3)]
    if any(runs) and share > ALL.tolerant_ratio + 1e-9:
        assert best >= share - 1e-9
    assert best == 0 or best > ALL.tolerant_ratio


SPELLINGS = {
    "emphasis": " ".join(f"_{word}_" for word in LONG.split()),
    "zero-width space": LONG.replace("e", "e\u200b"),
    "soft hyphen": LONG.replace("e", "e\u00ad"),
    "full-width letters": "".join(chr(ord(c) + 0xFEE0) if "!" <= c <= "~" else c for c in LONG),
    "ligature": LONG.replace("farmer", "\ufb01rst farmer").replace("wooden", "wooden \ufb02at"),
}


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_marks_that_a_reader_does_not_see_hide_nothing(spelling: str):
    text = SPELLINGS[spelling]
    assert "published" in found(text)["t/2"][1]
    if spelling != "ligature":
        assert ids(text, RULE) == []


# Per script a question, an answer, and words that a text has right before and after.
SCRIPTS = {
    "Latin": ("warum ist der Himmel über den Bergen am Abend so rot?", "Weil das Licht weit geht", "Wir fragen "),
    "Cyrillic": (
        "почему небо над горами вечером становится таким красным и ярким?",
        "Свет идёт далеко",
        "Мы спросили ",
    ),
    "Arabic": ("لماذا تصبح السماء فوق الجبال حمراء في المساء كل يوم تقريبا؟", "لأن الضوء بعيد", "سألنا "),
    "Devanagari": ("शाम को पहाड़ों के ऊपर आसमान इतना लाल क्यों हो जाता है?", "प्रकाश दूर से आता है", "हमने पूछा "),
    "Chinese": ("为什么傍晚山上的天空会变得这么红", "因为光走了很远的路", "我们昨天问过"),
    "Japanese": ("夕方になると山の上の空が赤くなるのはなぜですか", "光が遠くから来るからです", "昨日みんなで"),
    "Thai": ("ทำไมท้องฟ้าเหนือภูเขาจึงเป็นสีแดงในตอนเย็น", "เพราะแสงเดินทางไกล", "เราเคยถามกันว่า"),
}


@pytest.mark.parametrize("script", SCRIPTS)
def test_items_are_found_in_every_script_with_or_without_spaces(script: str):
    question, answer, around = SCRIPTS[script]
    rows = [row(0, question, [answer]), *ROWS]
    assert ids(f"{around}{question}{around}", rows=rows) == ["t/0"]
    assert ids(f"{around}{question}{answer}{around}", rows=rows) == ["t/0"]
    half = question[: len(question) // 3]
    assert ids(f"{around}{half}{around}", rows=rows) == []
    if script in ("Chinese", "Japanese", "Thai"):
        assert ids(f"{around}{question}{answer}{around}", RULE, rows) == []


def stage(folder: Path, texts: list[str], **changes: Any) -> dict:
    write_items(folder / "data/benchmarks", "arc_easy", [(LONG, "12")])
    write_documents(folder / "data/dedup/web-blogpost.parquet", [document(text=text) for text in texts])
    repository(folder, "decontaminate", **changes)
    main()
    return read_yaml(folder / "metrics/decontaminate.json")


def evidence() -> Iterator[dict]:
    for removed in read_rows(["data/decontaminate/removed/removed.parquet"], REMOVED):
        yield from json.loads(removed["evidence"])["items"]


def test_each_detector_is_counted_apart_and_removes_or_reports(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("COSMO_COMPUTE", raising=False)
    texts = [FILLER, f"{FILLER} {LONG} 12", f"{FILLER} {every(8)}"]
    metrics = stage(tmp_path, texts, tolerant="report")
    assert metrics["rows_removed"] == 1
    assert metrics["detectors"]["published"] == {"documents": 1, "items": 1}
    assert metrics["detectors"]["tolerant"] == {"documents": 2, "items": 1}
    assert metrics["detectors"]["tolerant_only"] == {"documents": 1, "items": 0}
    assert metrics["forms"] == {"question": 1, "question_answer": 1}
    assert [one["detectors"] for one in evidence()] == [["published", "forms", "tolerant"]]
    assert "| tolerant, edited copies | kept | 2 | 1 | 1 |" in Path("metrics/decontaminate.md").read_text()
    assert stage(tmp_path, texts)["rows_removed"] == 2
    assert {(one["form"], *one["detectors"]) for one in evidence()} >= {("question", "tolerant")}
    metrics = stage(tmp_path, texts, published="report", forms=None, tolerant=None)
    assert metrics["rows_removed"] == 0 and metrics["detectors"]["published"]["documents"] == 1


def judged(text: str, verdict: str | None) -> dict:
    """A pair that the stage paraphrases has judged."""
    completion_id = document(text=text)["completion_id"]
    row = dict.fromkeys(PARAPHRASE.schema.names) | {"pair_id": f"{completion_id} t/9", "completion_id": completion_id}
    row |= {"source": "web", "task": "t", "item_id": "t/9", "start": 0, "end": 4, "passage": text[:4], "cosine": 0.7}
    return row | {"verdict": verdict}


def test_paraphrases_are_reported_or_removed_apart_from_the_detectors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("COSMO_COMPUTE", raising=False)
    texts = [
        FILLER,
        f"{FILLER} {LONG} 12",
        "A text in other words.",
        "A text that was judged no.",
        "One without verdict.",
    ]
    pairs = [judged(text, verdict) for text, verdict in zip(texts[1:], ["yes", "yes", "no", None], strict=True)]
    write_table(tmp_path / PAIRS, pairs, PARAPHRASE)
    reported = stage(tmp_path, texts)
    counts = {"documents": 2, "items": 1, "documents_of_detectors_too": 1}
    assert reported["removed"] == {"contaminated": 1} and reported["paraphrases"] == counts
    report = Path("metrics/decontaminate.md").read_text()
    assert "paraphrases in 2 documents, of 1 items; 1 of these" in report and "The others are kept;" in report

    metrics = stage(tmp_path, texts, paraphrases="remove")
    assert metrics["removed"] == {"contaminated": 1, "paraphrase": 1} and metrics["rows_kept"] == 3
    assert metrics["paraphrases"] == counts and metrics["detectors"] == reported["detectors"]
    assert metrics["contamination"] == reported["contamination"]
    rows = read_rows(["data/decontaminate/removed/removed.parquet"], REMOVED)
    (removed,) = [row for row in rows if row["reason"] == "paraphrase"]
    assert removed["text"] == "A text in other words."
    assert json.loads(removed["evidence"])["items"] == [
        {"task": "t", "item_id": "t/9", "cosine": 0.7, "passage": "A te"}
    ]
    write_table(tmp_path / PAIRS, [], PARAPHRASE)
    stage(tmp_path, texts)
    assert "None: the stage `paraphrases` is off" in Path("metrics/decontaminate.md").read_text()
