"""Promises of the decontaminate stage."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rows import ROOT, bytes_of, document, repository, write_documents, write_items

from stages.corpus.contamination import DecontaminateParams, Index, matched
from stages.corpus.words import plain_words
from stages.decontaminate import main
from stages.settings import read_yaml
from stages.tables.contracts import REMOVED
from stages.tables.parquet import read_rows

RULE = DecontaminateParams(ngram=10, shortest_item=5, min_block=5, max_ratio=0.5)
ICE = "A student freezes a cup of orange juice overnight. How does the juice change as it freezes?"
SUN = "Which of the following statements best explains why the Sun rises in the east each morning?"
FILLER = " ".join(f"Sentence {i} speaks of wool, rope and the price of {i * 3} nails." for i in range(60))


def contaminating(items: list[tuple[str, str, str]], text: str) -> list[str]:
    index = Index(items, RULE)
    return [match.item.item_id for match in index.contaminating(index.matches(text))]


def test_a_document_that_holds_an_item_is_found_whatever_its_case_accents_and_punctuation():
    items = [("arc/0", "arc", f"{ICE} It becomes a solid.")]
    changed = ICE.upper().replace("JUICE", "jui\u0301ce").replace(".", " ;--")
    assert contaminating(items, f"{FILLER} {changed} it becomes   a solid {FILLER}") == ["arc/0"]


def test_an_unrelated_long_document_stays():
    items = [("arc/0", "arc", f"{ICE} It becomes a solid."), ("arc/1", "arc", f"{SUN} The Earth turns.")]
    assert contaminating(items, FILLER * 20) == []


def test_all_candidates_of_a_document_are_tested_not_the_first():
    long = f"{' '.join(SUN.split()[:12])} {' '.join(f'clause{i} of another question altogether' for i in range(30))}"
    items = [("a/0", "a", long), ("b/0", "b", f"{ICE} It becomes a solid.")]
    text = f"{SUN} {FILLER} {ICE} It becomes a solid."
    assert [match.item.item_id for match in Index(items, RULE).matches(text)] == ["a/0", "b/0"]
    assert contaminating(items, text) == ["b/0"]


def test_short_items_are_found_by_all_their_words_and_the_shortest_are_counted():
    items = [
        ("q/0", "q", "What do bees make? Honey."),
        ("q/1", "q", "Two plus two? Four."),
        ("q/2", "q", f"{ICE} Ice."),
    ]
    index = Index(items, RULE)
    assert (len(index.items), index.short, [item.item_id for item in index.unchecked]) == (2, 1, ["q/1"])
    assert contaminating(items, f"{FILLER} What do bees make -- honey! Two plus two? Four.") == ["q/0"]
    assert contaminating(items, f"{FILLER} What do the bees make? Honey.") == []


WORDS = st.lists(st.sampled_from(["one", "two", "three", "four"]), min_size=0, max_size=40)


@settings(max_examples=60, deadline=None)
@given(WORDS, st.lists(WORDS, min_size=1, max_size=4))
def test_the_candidates_are_all_pairs_that_share_an_ngram(text: list[str], items: list[list[str]]):
    rule = RULE.model_copy(update={"ngram": 4, "shortest_item": 2})
    index = Index([(f"t/{i}", "t", " ".join(words)) for i, words in enumerate(items)], rule)
    grams = {n: {tuple(text[i : i + n]) for i in range(len(text) - n + 1)} for n in (2, 3, 4)}
    expected = set()
    for i, words in enumerate(items):
        n = min(4, len(words))
        if n >= 2 and grams[n] & {tuple(words[j : j + n]) for j in range(len(words) - n + 1)}:
            expected.add(f"t/{i}")
    assert {index.items[item].item_id for item in index.candidates(text)} == expected


@settings(max_examples=30, deadline=None)
@given(st.text(min_size=1, max_size=120), st.text(max_size=60), st.text(max_size=60))
def test_a_document_that_contains_an_item_has_ratio_one(item: str, before: str, after: str):
    words = plain_words(item)
    if len(words) >= RULE.shortest_item and len(" ".join(words)) > RULE.min_block:
        assert contaminating([("t/0", "t", item)], f"{before} {item} {after}") == ["t/0"]


def test_the_ratio_is_the_published_one():
    text, ratio = matched(
        "aaa the quick brown fox zzz over the lazy dog", "the quick brown fox jumps over the lazy dog", RULE
    )
    assert text == "the quick brown fox over the lazy dog"
    assert ratio == len(text) / 43


def test_the_decision_does_not_depend_on_the_hash_seed():
    program = (
        "from stages.corpus.contamination import DecontaminateParams as P, Index;"
        "w = [f'w{i % 37}' for i in range(400)];"
        "items = [(f't/{i:03}', 't', ' '.join(w[i : i + 14 + i % 9])) for i in range(0, 300, 3)];"
        "print(Index(items, P(ngram=10, shortest_item=5, min_block=5, max_ratio=0.5)).matches(' '.join(w[5:60])))"
    )
    outputs = {
        subprocess.run(
            [sys.executable, "-c", program],
            env={**os.environ, "PYTHONHASHSEED": seed},
            cwd=ROOT,
            capture_output=True,
            check=True,
        ).stdout
        for seed in ("0", "1")
    }
    assert len(outputs) == 1 and len(outputs.pop()) > 1000


@pytest.fixture
def deduplicated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("COSMO_CLUSTER", raising=False)
    write_items(tmp_path / "data/benchmarks", "arc_easy", [(ICE, "It becomes a solid."), (SUN, "The Earth turns.")])
    write_items(
        tmp_path / "data/benchmarks",
        "piqa",
        [("How do you keep a door open?", "Put a wedge under it."), ("Why?", "So.")],
    )
    texts = [FILLER, f"{FILLER} {ICE} It becomes a solid.", f"{ICE} It becomes a solid. {SUN} The Earth turns."]
    write_documents(tmp_path / "data/dedup/web-blogpost.parquet", [document(text=text) for text in texts])
    wedge = document(text="How do you keep a door open? Put a wedge under it.")
    write_documents(tmp_path / "data/dedup/wikihow-article.parquet", [wedge, document(text="A clean text.")])
    write_documents(tmp_path / "data/dedup/openstax-college.parquet", [])
    return tmp_path


def test_the_report_counts_documents_and_distinct_items_by_source_and_task(deduplicated: Path):
    repository(deduplicated, "decontaminate")
    assert main() == ("2 of 5 documents kept; 3 contaminated of 3 that share an n-gram with one of 3 benchmark items")
    assert (deduplicated / "metrics/plots/contamination.csv").read_text() == (
        "source,task,documents,items\nweb,arc_easy,2,2\nwikihow,piqa,1,1\n"
    )
    metrics = read_yaml(deduplicated / "metrics/decontaminate.json")
    assert metrics["contamination"]["web"]["arc_easy"] == {"documents": 2, "items": 2}
    assert metrics["benchmark_items"] == {"checked": 3, "short": 0, "unchecked": 1}
    assert metrics["cells"]["web-blogpost"]["removed"] == {"contaminated": 2}


def test_the_evidence_names_item_ngram_matched_text_and_ratio(deduplicated: Path):
    repository(deduplicated, "decontaminate")
    main()
    rows = [*read_rows(["data/decontaminate/removed/removed.parquet"], REMOVED)]
    found = {item["item_id"]: item for row in rows for item in json.loads(row["evidence"])["items"]}
    assert set(found) == {"arc_easy/000000", "arc_easy/000001", "piqa/000000"}
    assert found["piqa/000000"] == {
        "task": "piqa",
        "item_id": "piqa/000000",
        "ngram": "how do you keep a door open put a wedge",
        "matched": "how do you keep a door open put a wedge under it",
        "ratio": 1.0,
    }


def test_the_bytes_do_not_depend_on_tasks(deduplicated: Path, monkeypatch: pytest.MonkeyPatch):
    repository(deduplicated, "decontaminate")
    main()
    alone = bytes_of(deduplicated / "data/decontaminate")
    monkeypatch.setattr("stages.corpus.cells.ROWS_PER_TASK", 1)
    repository(deduplicated, "decontaminate", cluster_tasks=3)
    main()
    assert bytes_of(deduplicated / "data/decontaminate") == alone
