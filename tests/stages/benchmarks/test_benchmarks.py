"""Promises of the benchmarks stage."""

import json
from pathlib import Path

import pytest

from cosmopedia.core.errors import ConfigError, DataError
from cosmopedia.core.params import read_yaml
from cosmopedia.records.reading import Record, read_records
from cosmopedia.tables.contracts import BENCHMARK
from cosmopedia.tables.parquet import read_rows
from stages.benchmarks.__main__ import items_of, main
from stages.benchmarks.cloze import FORMS, Cloze, Fields
from tests.support.documents import ROOT, repository

LETTERED = {"choices": {"text": ["ice", "steam"], "label": ["A", "B"]}, "answerKey": "B"}
RECORDS: dict[str, dict] = {
    "arc_easy": {"id": "1", "question": "What is hot water vapour?", **LETTERED},
    "arc_challenge": {
        "id": "1",
        "question": "What?",
        "choices": {"text": ["a", "b"], "label": ["1", "2"]},
        "answerKey": "1",
    },
    "boolq": {"question": "is water wet", "passage": "Water wets things.", "answer": True},
    "hellaswag": {
        "activity_label": "Baking",
        "ctx_a": "[header] How to bake [title] Mix [step] Take flour.",
        "ctx_b": "then she",
        "ctx": "",
        "endings": ["kneads [substeps] it.", "sleeps."],
        "label": "0",
    },
    "piqa": {"goal": "open a jar", "sol1": "turn the lid", "sol2": "eat the lid", "label": 0},
    "siqa": {
        "context": "Ann fell.",
        "question": "How does she feel?",
        "answerA": "x",
        "answerB": "y",
        "answerC": "hurt",
        "label": "3",
    },
    "winogrande": {
        "sentence": "The cup fell off the shelf as _ was full.",
        "option1": "the cup",
        "option2": "the shelf",
        "answer": "2",
    },
    "openbookqa": {"id": "7", "question_stem": "Vapour is", **LETTERED},
    "mmlu": {"question": "2+2?", "subject": "abstract_algebra", "choices": ["3", "4", "5", "6"], "answer": 1},
    "gsm8k": {"question": "Ann has 2 x 3 eggs. How many?", "answer": "She has 2*3 = <<2*3=6>>6 eggs.\n#### 6"},
    "commonsense_qa": {"id": "9", "question": "Where is vapour?", "question_concept": "vapour", **LETTERED},
    "triviaqa": {
        "question": "Who wrote Emma?",
        "question_id": "tc_1",
        "answer": {"value": "Jane Austen", "aliases": ["Austen"], "normalized_value": "jane austen"},
    },
    "mmlu_pro": {
        "question_id": 3,
        "question": "2+2?",
        "options": ["3", "4", "5"],
        "answer": "B",
        "answer_index": 1,
        "cot_content": "",
        "category": "math",
        "src": "x",
    },
}
UNREAD = {"id", "ctx", "question_id", "question_concept", "cot_content", "src"}  # columns that no form looks at
FORMS_EXPECTED = {
    "arc_easy": Cloze(
        "Question: What is hot water vapour?\nAnswer:", [" ice", " steam"], 1, "What is hot water vapour?", "steam"
    ),
    "arc_challenge": Cloze("Question: What?\nAnswer:", [" a", " b"], 0, "What?", "a"),
    "boolq": Cloze(
        "Water wets things.\nQuestion: is water wet?\nAnswer:",
        [" no", " yes"],
        1,
        "is water wet",
        "yes",
        {"passage": "Water wets things."},
    ),
    "hellaswag": Cloze(
        "Baking: How to bake. Mix Take flour. Then she",
        [" kneads it.", " sleeps."],
        0,
        "How to bake. Mix Take flour. Then she",
        "kneads it.",
    ),
    "piqa": Cloze("Question: open a jar\nAnswer:", [" turn the lid", " eat the lid"], 0, "open a jar", "turn the lid"),
    "siqa": Cloze("Ann fell. How does she feel?", [" x", " y", " hurt"], 2, "Ann fell. How does she feel?", "hurt"),
    "winogrande": Cloze(
        "The cup fell off the shelf as",
        [" the cup was full.", " the shelf was full."],
        1,
        "The cup fell off the shelf as",
        "the shelf was full.",
        {"sentence": "The cup fell off the shelf as _ was full."},
    ),
    "openbookqa": Cloze("Vapour is", [" ice", " steam"], 1, "Vapour is", "steam"),
    "mmlu": Cloze(
        "The following are questions about abstract algebra.\nQuestion: 2+2?\nAnswer:",
        [" 3", " 4", " 5", " 6"],
        1,
        "2+2?",
        "4",
        group="abstract_algebra",
    ),
    "gsm8k": Cloze(
        "Question: Ann has 2 x 3 eggs. How many?\nAnswer:",
        [" 6"],
        0,
        "Ann has 2 x 3 eggs. How many?",
        "6",
        {"worked_answer": "She has 2*3 = 6 eggs."},
    ),
    "commonsense_qa": Cloze("Where is vapour?", [" ice", " steam"], 1, "Where is vapour?", "steam"),
    "triviaqa": Cloze("Question: Who wrote Emma?\nAnswer:", [" Jane Austen"], 0, "Who wrote Emma?", "Jane Austen"),
    "mmlu_pro": Cloze(
        "The following are questions about math.\nQuestion: 2+2?\nAnswer:", [" 3", " 4", " 5"], 1, "2+2?", "4"
    ),
}


@pytest.mark.parametrize("task", FORMS)
def test_a_record_becomes_the_cloze_form(task: str):
    assert FORMS[task](Fields(RECORDS[task], "file:1")) == FORMS_EXPECTED[task]


def test_the_samples_are_in_the_public_schemas():
    for task in FORMS:
        records, _ = read_records(str(ROOT / f"data/samples/benchmarks/{task}.jsonl"), None, None, None)
        rows = items_of(task, records, "sha256:0")
        assert len({(row["question"], row["answer"]) for row in rows}) == len(rows) >= 20


def test_boolq_is_read_in_both_public_schemas():
    record = {"question": "is water wet?", "passage": "Water wets things.", "idx": 0, "label": 1}
    item = FORMS["boolq"](Fields(record, "file:1"))
    assert (item.query, item.gold) == (FORMS_EXPECTED["boolq"].query, 1)


@pytest.mark.parametrize(
    ("task", "change", "named"),
    [
        ("arc_easy", {"question": None}, "'question' must be a text"),
        ("arc_easy", {"answerKey": "E"}, "'answerKey' must be one of the labels"),
        ("openbookqa", {"choices": None}, "'choices' must be an object"),
        ("boolq", {"answer": "yes"}, "'answer' must be true or false"),
        ("hellaswag", {"label": ""}, "'label' must be a label from 0 to 1"),
        ("hellaswag", {"endings": ["one", None]}, "'endings' must be a list"),
        ("piqa", {"label": -1}, "'label' must be a label from 0 to 1"),
        ("siqa", {"label": "0"}, "'label' must be a label from 1 to 3"),
        ("winogrande", {"sentence": "no gap"}, "'sentence' must be a sentence with a gap"),
        ("mmlu", {"answer": 4}, "'answer' must be a label from 0 to 3"),
        ("gsm8k", {"answer": "Six eggs."}, "'answer' must be a worked answer that ends with ####"),
        ("commonsense_qa", {"answerKey": ""}, "'answerKey' must be one of the labels"),
        ("triviaqa", {"answer": {"value": "<unk>"}}, "'answer' must be an object with the text value"),
        ("mmlu_pro", {"answer_index": 10}, "'answer_index' must be a label from 0 to 2"),
    ],
)
def test_a_row_that_does_not_fit_is_named(task: str, change: dict, named: str):
    with pytest.raises(DataError, match=f"^file:3: column {named}"):
        items_of(task, [Record("file:3", RECORDS[task] | change)], "sha256:0")


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"endings": ["sleeps.", "[header]"]}, "choice 1"),
        ({"endings": ["[title] [step]", "sleeps."]}, "answer"),
        ({"ctx_a": "[header]", "ctx_b": ""}, "question"),
    ],
)
def test_an_item_that_its_form_leaves_without_text_is_named(change: dict, named: str):
    with pytest.raises(DataError, match=f"^file:3: {named} has no text left in the form of its task; fix or remove"):
        items_of("hellaswag", [Record("file:3", RECORDS["hellaswag"] | change)], "sha256:0")


@pytest.mark.parametrize("change", [{"goal": "open a jar \ud83d"}, {"sol2": "\udc00"}])
def test_half_of_a_surrogate_pair_is_named_with_its_line(change: dict):
    with pytest.raises(DataError, match=r"^file:3: .*half of a surrogate pair \(U\+D[8C][30][D0]\), no text; fix or"):
        items_of("piqa", [Record("file:3", RECORDS["piqa"] | change)], "sha256:0")


@pytest.mark.parametrize("task", FORMS)
def test_a_missing_column_is_named(task: str):
    for column in RECORDS[task].keys() - UNREAD - ({"answer"} if task == "mmlu_pro" else set()):
        record = {name: value for name, value in RECORDS[task].items() if name != column}
        with pytest.raises(DataError, match=f"^file:1: column '{column}' must be .* found columns"):
            items_of(task, [Record("file:1", record)], "sha256:0")


def run(
    folder: Path, monkeypatch: pytest.MonkeyPatch, lines: list[bytes], limit: int | None = None, **tasks: dict
) -> None:
    monkeypatch.chdir(folder)
    (folder / "piqa.jsonl").write_bytes(b"\n".join(lines))
    local = {"dataset": str(folder / "piqa.jsonl"), "subset": None, "split": None, "revision": None}
    repository(folder, "benchmarks", limit=limit, tasks=tasks or {"piqa": local})
    main()


def goals(count: int) -> list[bytes]:
    return [json.dumps(RECORDS["piqa"] | {"goal": f"goal {i}"}).encode() for i in range(count)]


def test_the_table_keeps_positions_and_the_metrics_name_the_revision(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    run(tmp_path, monkeypatch, goals(3))
    rows = [*read_rows(["data/benchmarks/piqa.parquet"], BENCHMARK)]
    assert [(row["item_id"], row["question"]) for row in rows] == [(f"piqa/{i:06d}", f"goal {i}") for i in range(3)]
    task = read_yaml(tmp_path / "metrics/benchmarks.json")["tasks"]["piqa"]
    assert task["revision"].startswith("sha256:") and task["revision"] == rows[0]["revision"]
    assert (task["items"], task["available"]) == (3, 3)


def test_a_limit_draws_by_seed_and_a_larger_one_contains_a_smaller(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    taken = []
    for limit in (5, 8):
        run(tmp_path, monkeypatch, goals(30), limit)
        taken.append({row["item_id"] for row in read_rows(["data/benchmarks/piqa.parquet"], BENCHMARK)})
    assert [len(t) for t in taken] == [5, 8] and taken[0] < taken[1]
    assert taken[0] != {f"piqa/{i:06d}" for i in range(5)}


def test_invalid_utf8_is_named_with_its_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    with pytest.raises(DataError, match=r"piqa\.jsonl:2: invalid UTF-8"):
        run(tmp_path, monkeypatch, [goals(1)[0], b'{"goal": "\xff"}'])


def test_an_unknown_task_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    local = {"dataset": "x.jsonl", "subset": None, "split": None, "revision": None}
    with pytest.raises(ConfigError, match=r"unknown task\(s\) trivia; known: arc_easy"):
        run(tmp_path, monkeypatch, goals(1), trivia=local)
