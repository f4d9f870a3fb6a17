"""Promises of the stage knowledge: whole paragraphs, one id per passage, nothing lost without a reason."""

import json
from pathlib import Path
from typing import Any

import pytest

from cosmopedia.contamination.forms import Form
from cosmopedia.contamination.index import DecontaminateParams, Index
from cosmopedia.core.errors import ConfigError, DataError
from cosmopedia.core.params import read_yaml
from cosmopedia.tables.contracts import PASSAGE, REJECTED
from cosmopedia.tables.parquet import read_rows
from stages.knowledge import __main__ as knowledge
from stages.knowledge.cutting import passages
from tests.support.own_params import ROOT, own_params, write_params

SENTENCE = "Basalt is a dark rock that cools from lava near the surface. "


def made(records: list[Any], **changes: Any) -> tuple[list[dict], list[tuple[str, str]]]:
    """The passages of some records, and what was left out."""
    lines = [record if isinstance(record, str) else json.dumps(record) for record in records]
    Path("articles.jsonl").write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    recipe, profile = own_params("params.yaml")["knowledge"], own_params("profiles/smoke.yaml")["knowledge"]
    Path("profiles").mkdir(exist_ok=True)
    section = profile | {"dataset": "articles.jsonl"} | changes
    write_params({"profile": "smoke", "knowledge": recipe}, {"knowledge": section})
    knowledge.main()
    rejected = read_rows(["data/knowledge/rejected/rejected.parquet"], REJECTED)
    return [*read_rows(["data/knowledge/passages.parquet"], PASSAGE)], [(r["reason"], r["detail"]) for r in rejected]


def test_a_passage_ends_where_a_paragraph_ends_and_nothing_is_lost() -> None:
    paragraphs = [SENTENCE * n for n in (3, 4, 9, 1, 6, 2)]  # of 36, 48, 108, 12, 72 and 24 words
    text = "\n\n".join(paragraphs)
    for words in (20, 60, 100):
        found = passages(text, words, 10)
        assert " ".join(found).split() == text.split()
        assert all(passage.endswith(".") for passage in found)
    assert [len(passage.split()) for passage in passages(text, 60, 10)] == [84, 108, 84, 24]


def test_a_heading_stays_with_what_follows_it_and_a_short_end_joins_the_passage_before() -> None:
    text = f"{SENTENCE * 5}\n\nHistory of the rock\n\n{SENTENCE * 5}\n\nThe end."
    first, second = passages(text, 60, 10)
    assert first == (SENTENCE * 5).strip() and second.startswith("History of the rock\n\n")
    assert second.endswith("\n\nThe end.")


def test_a_paragraph_without_ends_is_cut_all_the_same() -> None:
    found = passages("word " * 1000, 60, 10)
    assert max(len(passage.split()) for passage in found) <= 120 and " ".join(found).split() == ["word"] * 1000
    assert passages('He said "no." She left. ' * 40, 60, 10)[0].count('"') % 2 == 0


def test_an_article_keeps_its_address_and_its_passages_their_order(empty_folder: Path) -> None:
    text = f"{SENTENCE * 9}\n\n{SENTENCE * 9}"
    rows, rejected = made(
        [{"id": "b", "title": "Basalt\n rock", "text": text, "url": "https://b"}, {"title": "", "text": "x " * 40}]
    )
    assert [(row["passage_id"], row["article"]) for row in rows if row["title"]] == [
        ("b/0000", "https://b"),
        ("b/0001", "https://b"),
    ]
    assert {row["title"] for row in rows} == {"Basalt rock", ""} and rejected == []
    assert {row["licence"] for row in rows} == {"CC0-1.0"} and rows[0]["revision"].startswith("sha256:")


def test_what_is_no_article_is_kept_with_its_reason(empty_folder: Path) -> None:
    bad = [
        {"id": "a", "title": "A", "text": SENTENCE},
        {"id": "a", "title": "again", "text": SENTENCE},
        {"id": "n", "title": None, "text": None},
        {"id": "l", "title": "T", "text": ["no text"]},
        {"id": "m", "title": "T"},
        {"id": "s", "title": "T", "text": "half \ud83d"},
        "{not json",
    ]
    rows, rejected = made(bad)
    assert [row["passage_id"] for row in rows] == ["a/0000"]
    reasons = ["duplicate_id", "empty", "malformed", "malformed", "unreadable", "unreadable"]
    assert [reason for reason, _ in rejected] == reasons and "articles.jsonl:2" in rejected[0][1]
    metrics = read_yaml(Path("metrics/knowledge.json"))
    assert metrics["rows_in"] == 7 == metrics["rows_kept"] + metrics["rows_removed"]


def test_without_an_article_the_stage_stops_and_without_a_dataset_it_writes_nothing(empty_folder: Path) -> None:
    with pytest.raises(DataError, match=r"articles\.jsonl: no passage in 1 articles .*knowledge\.text"):
        made([{"id": "a", "title": "A", "text": " "}])
    assert made([{}], dataset=None) == ([], [])
    with pytest.raises(ConfigError, match="does not watch data/samples/web"):
        made([{}], dataset="data/samples/web")


def test_the_order_of_the_articles_changes_no_passage(empty_folder: Path) -> None:
    records = [{"id": str(n), "title": f"T{n}", "text": f"{n}. {SENTENCE * (n + 2)}"} for n in range(5)]
    forth, _ = made(records)
    back, _ = made(records[::-1])
    assert [row | {"revision": ""} for row in forth] == [row | {"revision": ""} for row in back]


def test_the_samples_share_no_ten_words_with_benchmarks_or_held_out_documents() -> None:
    texts = [json.loads(line) for line in (ROOT / "data/samples/knowledge/articles.jsonl").open(encoding="utf-8")]
    forms = []
    for path in sorted((ROOT / "data/samples").glob("benchmarks/*.jsonl")) + sorted(
        (ROOT / "data/samples").glob("heldout/*.jsonl")
    ):
        for number, line in enumerate(path.open(encoding="utf-8")):
            strings = [value for value in json.loads(line).values() if isinstance(value, str)]
            forms += [Form(f"{path}/{number}.{n}", "", "question_answer", (s,)) for n, s in enumerate(strings)]
    rule = DecontaminateParams(**own_params("params.yaml")["decontaminate"]).model_copy(
        update={"forms": None, "tolerant": None, "shortest_item": 10}
    )
    index = Index(forms, rule)
    assert len(texts) >= 25 and index.checked > 300
    assert [*index.hits([row["text"] for row in texts])] == []
