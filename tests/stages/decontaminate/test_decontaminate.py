"""Promises of the decontaminate stage."""

import difflib
import json
import os
import subprocess
import sys
from itertools import accumulate
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from cosmopedia.contamination.forms import Form
from cosmopedia.contamination.index import DecontaminateParams, Findings, Index
from cosmopedia.contamination.matching_blocks import Matcher
from cosmopedia.core.errors import DataError
from cosmopedia.core.params import read_yaml
from cosmopedia.corpus.word_hashes import _hashed, word_hashes
from cosmopedia.corpus.words import NORMAL, PUBLISHED, Normalisation, plain_words
from cosmopedia.tables.contracts import REMOVED
from cosmopedia.tables.parquet import read_rows
from stages.decontaminate.__main__ import main
from tests.support.documents import (
    ROOT,
    bytes_of,
    document,
    natural_document,
    repository,
    write_documents,
    write_items,
)

# The published rule alone.
RULE = DecontaminateParams(
    paraphrases="report",
    published="remove", forms=None, tolerant=None, normalisation="published",
    ngram=10, shortest_item=5, min_block=5, max_ratio=0.5, ratio="plain", window=0.5, common_ngram=None,
    shortest_form=7, gap=5, tolerant_ngram=4, tolerant_shortest=7, tolerant_ratio=0.6, tolerant_chance=2,
)  # fmt: skip
ALL = RULE.model_copy(update={"forms": "remove", "tolerant": "remove", "normalisation": "words"})
WINDOW = RULE.model_copy(update={"ratio": "window"})
ICE = "A student freezes a cup of orange juice overnight. How does the juice change as it freezes?"
SUN = "Which of the following statements best explains why the Sun rises in the east each morning?"
FILLER = " ".join(f"Sentence {i} speaks of wool, rope and the price of {i * 3} nails." for i in range(60))


def index_of(items: list[tuple[str, str, str]], rule: DecontaminateParams) -> Index:
    """Of (item_id, task, question and answer)."""
    return Index([Form(item_id, task, "question_answer", (text,)) for item_id, task, text in items], rule)


def findings(index: Index, text: str) -> Findings:
    return next((found for _, found in index.findings([text])), Findings(0, 0, []))


def guilty(index: Index, text: str) -> list[str]:
    return [match.item.item_id for match in findings(index, text).matches if match.detectors(index.rule)]


def contaminating(items: list[tuple[str, str, str]], text: str, rule: DecontaminateParams = RULE) -> list[str]:
    return guilty(index_of(items, rule), text)


@pytest.mark.slow
def test_a_document_that_holds_an_item_is_found_whatever_its_case_accents_and_punctuation():
    items = [("arc/0", "arc", f"{ICE} It becomes a solid.")]
    changed = ICE.upper().replace("JUICE", "jui\u0301ce").replace(".", " ;--")
    assert contaminating(items, f"{FILLER} {changed} it becomes   a solid {FILLER}") == ["arc/0"]


def test_all_candidates_of_a_document_are_tested_not_the_first():
    long = f"{' '.join(SUN.split()[:12])} {' '.join(f'clause{i} of another question altogether' for i in range(30))}"
    items = [("a/0", "a", long), ("b/0", "b", f"{ICE} It becomes a solid.")]
    text = f"{SUN} {FILLER} {ICE} It becomes a solid."
    assert findings(index_of(items, RULE), text).pairs == 2
    assert contaminating(items, text) == ["b/0"]


def test_an_ngram_leads_to_every_item_that_has_it():
    items = [("a/0", "a", f"{ICE} It becomes a solid."), ("a/1", "a", f"{ICE} It becomes a gas."), ("b/0", "b", SUN)]
    assert contaminating(items, f"{FILLER} {ICE} {FILLER}") == ["a/0", "a/1"]


def test_short_items_are_found_by_all_their_words_and_the_shortest_as_whole_documents():
    items = [
        ("q/0", "q", "What do bees make? Honey."),
        ("q/1", "q", "Two plus two? Four."),
        ("q/2", "q", f"{ICE} Ice."),
        ("q/3", "q", "?!"),
    ]
    index = index_of(items, RULE)
    assert (index.checked, index.short, index.shortest) == (1, 1, 2)
    assert guilty(index, f"{FILLER} What do bees make -- honey! Two plus two? Four.") == ["q/0"]
    assert guilty(index, f"{FILLER} What do the bees make? Honey.") == []
    assert guilty(index, "two, plus TWO: four") == ["q/1"]
    assert guilty(index, "") == guilty(index, "?!") == []


WORDS = st.lists(st.sampled_from(["one", "two", "three", "four"]), min_size=0, max_size=40)


@settings(max_examples=60, deadline=None)
@given(WORDS, st.lists(WORDS, min_size=1, max_size=4))
def test_the_candidates_are_all_pairs_that_share_an_ngram(text: list[str], items: list[list[str]]):
    rule = RULE.model_copy(update={"ngram": 4, "shortest_item": 2})
    index = index_of([(f"t/{i}", "t", " ".join(words)) for i, words in enumerate(items)], rule)
    grams = {n: {tuple(text[i : i + n]) for i in range(len(text) - n + 1)} for n in (2, 3, 4)}
    expected = set()
    for i, words in enumerate(items):
        n = min(4, len(words))
        if n >= 2 and grams[n] & {tuple(words[j : j + n]) for j in range(len(words) - n + 1)}:
            expected.add(f"t/{i}")
        if n == 1 and text == words:
            expected.add(f"t/{i}")
    found = [*index.hits([" ".join(text)])]
    assert {index.item(item).item_id for _, _, hits in found for item in hits} == expected


TEXTS = st.one_of(
    st.text(alphabet="ab ", max_size=90),
    st.text(alphabet="abcd ef\u00e9\u6f22", max_size=60),
    st.lists(st.sampled_from(["the cat ", "sat on ", "the mat ", "a b a b ", "q"]), max_size=16).map("".join),
)


def difflib_blocks(document: str, item: str, longer_than: int) -> list[tuple[int, int, int]]:
    found = difflib.SequenceMatcher(None, document, item, autojunk=False).get_matching_blocks()
    return [tuple(block) for block in found if block.size > longer_than]


@pytest.mark.slow
@settings(max_examples=400, deadline=None)
@given(
    TEXTS,
    st.lists(TEXTS, min_size=1, max_size=3),
    st.integers(0, 8),
    st.tuples(st.integers(0, 90), st.integers(0, 90)),
)
def test_the_blocks_are_difflibs_of_the_document_and_of_every_part(
    document: str, items: list[str], min_block: int, part: tuple[int, int]
):
    low, high = sorted(min(end, len(document)) for end in part)
    matcher = Matcher(document, min_block)
    for item in items:
        runs = matcher.runs(item)
        whole = difflib_blocks(document, item, min_block)
        assert runs.blocks(0, len(document)) == whole
        assert runs.blocks(low, high) == [
            (at + low, place, size) for at, place, size in difflib_blocks(document[low:high], item, min_block)
        ]
        assert sum(size for _, _, size in whole) <= runs.covered <= len(item)


def test_a_document_that_repeats_itself_has_difflibs_blocks():
    document, item = "a rose is a rose is a rose " * 9, "is a rose a rose is a"
    assert Matcher(document, 5).runs(item).blocks(0, len(document)) == difflib_blocks(document, item, 5)


ODD = st.sampled_from(
    "abz _\u00c9\u00e9\u0301\u03a3\u03c3\u0130\u00df\u00c5\u6f22\uac00\u01c5\ufb01\u200d\u0345\u2167\u00b2\u0663"
    "\u3042\u30ab\u3099\u30fc\uff76\uff9e\u1112\u1161\u11ab\u0e17\u0e35\u0e48\u0915\u093f\u094d\u0647\u0654\u05d1\u05bc"
    "\u00ad\u200b\uff21\u00bd\u2026\u20dd\u0338"
)


@pytest.mark.slow
@pytest.mark.parametrize("form", [NORMAL, PUBLISHED], ids=lambda form: form.name)
@settings(max_examples=300, deadline=None)
@given(
    texts=st.lists(st.text(alphabet=st.one_of(st.characters(codec="utf-8"), ODD), max_size=30), min_size=1, max_size=5)
)
def test_hashed_words_are_the_words(form: Normalisation, texts: list[str]):
    hashes, words = word_hashes(texts, form), [form.words(text) for text in texts]
    assert hashes.bounds.tolist() == [0, *accumulate(map(len, words))]
    assert hashes.words.tolist() == [ready_hash(word) for several in words for word in several]


def ready_hash(word: str) -> int:
    return int(_hashed(pa.array([word]), None)[0].words[0])


@settings(max_examples=60, deadline=None)
@given(
    st.text(min_size=1, max_size=120),
    st.text(max_size=60),
    st.text(max_size=60),
    st.sampled_from(["plain", "window"]),
    st.booleans(),
)
def test_a_document_that_contains_an_item_is_contaminated_by_both_ratios_and_with_every_ngram_common(
    item: str, before: str, after: str, ratio: str, common: bool
):
    index = index_of([("t/0", "t", item)], RULE.model_copy(update={"ratio": ratio}))
    index.common[:] = common
    if size := len(plain_words(item)):
        assert guilty(index, item) == ["t/0"]
        if size >= RULE.shortest_item:
            (match,) = findings(index, f"{before} {item} {after}").matches
            assert (match.plain, match.window) == (1.0, 1.0)


def test_the_ratio_is_the_published_one():
    item = "it is the quick brown fox that then jumps over the old fence and then over the lazy dog"
    text = "aaa the quick brown fox that then jumps over the old zzz over the lazy dog"
    expected = " ".join("".join(text[at : at + size] for at, _, size in difflib_blocks(text, item, 5)).split())
    (match,) = findings(index_of([("t/0", "t", item)], RULE), text).matches
    assert (match.matched, match.plain) == (expected, len(expected) / len(item))
    assert match.ngram == "the quick brown fox that then jumps over the old"


# An item of which a document has the first ten words, and nothing else that is longer than a common word.
PARTLY = (
    "When she had gone half of the way back home the engineer measured a bridge, a tunnel and two"
    " stations of the northern railway and wrote every length into a small brown notebook for the council"
)
HEAD = " ".join(PARTLY.split()[:12])


def test_the_plain_ratio_grows_with_an_unrelated_document_and_the_windows_does_not():
    scraps = [f"{' '.join(PARTLY.split()[i : i + 2])} {FILLER[i * 40 : i * 40 + 60]}" for i in range(12, 33)]
    index = index_of([("t/0", "t", PARTLY)], WINDOW.model_copy(update={"max_ratio": 0.3}))
    short, long = (findings(index, text).matches[0] for text in (HEAD, f"{HEAD} {FILLER} {' '.join(scraps)}"))
    assert long.plain > 0.5 > short.plain == short.window
    assert long.window < 0.5
    assert contaminating([("t/0", "t", PARTLY)], f"{HEAD} {FILLER} {' '.join(scraps)}") == ["t/0"]
    assert contaminating([("t/0", "t", PARTLY)], f"{HEAD} {FILLER} {' '.join(scraps)}", WINDOW) == []


def test_the_best_window_of_several_places_counts():
    edited = f"{' '.join(PARTLY.split()[:24])} then everything else changed"
    index = index_of([("t/0", "t", PARTLY)], WINDOW)
    (match,) = findings(index, f"{HEAD}. {FILLER} {edited}. {FILLER} {HEAD}.").matches
    (alone,) = findings(index, f"{FILLER} {edited}. {FILLER}").matches
    assert match.window == alone.window > 0.5


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 999), st.integers(0, 2))
def test_unrelated_long_documents_stay(start: int, place: int):
    items = [("arc/0", "arc", f"{ICE} It becomes a solid."), ("t/0", "t", PARTLY)]
    numbers = range(start, start + 900)
    text = " ".join(f"Sentence {i} speaks of wool, rope and the price of {i * 3} nails." for i in numbers)
    assert contaminating(items, text) == contaminating(items, text, WINDOW) == []
    shared = " ".join(PARTLY.split()[place : place + 10])
    assert contaminating(items, f"{text} {shared}. {text}", WINDOW) == []


def test_common_ngrams_make_no_candidate_but_the_whole_item_does():
    items = [("t/0", "t", PARTLY), ("t/1", "t", f"{HEAD} {SUN}")]
    index = index_of(items, RULE)
    texts = [f"{HEAD} {FILLER}", f"{FILLER} {HEAD}", f"{' '.join(PARTLY.split()[:28])}", PARTLY]
    documents = np.zeros(index.ngrams, dtype=np.int64)
    index.count(texts, documents)
    index.common = documents > 2
    assert index.commonest(documents, 2) == [
        {"ngram": "had gone half of the way back home the engineer", "documents": 4, "items": 2},
        {"ngram": "she had gone half of the way back home the", "documents": 4, "items": 2},
    ]
    found = [findings(index, text) for text in texts]
    assert [(f.pairs, f.common_only) for f in found] == [(0, 2), (0, 2), (1, 1), (1, 1)]
    assert guilty(index, PARTLY) == ["t/0"]
    index.common[:] = True
    assert guilty(index, texts[2]) == [] and guilty(index, f"{FILLER} {PARTLY} {FILLER}") == ["t/0"]


@pytest.mark.slow
def test_a_document_of_10_mb_takes_seconds_and_little_memory():
    text = f"{FILLER * 3000} {ICE} It becomes a solid. {' '.join(PARTLY.split()[:28])} {FILLER}"
    assert len(text) > 10_000_000
    program = (
        "import re, sys; from pathlib import Path;"
        "from tests.stages.decontaminate.test_decontaminate import RULE, guilty, index_of;"
        "items = [tuple(line.split('|')) for line in sys.argv[1:]];"
        "print(guilty(index_of(items, RULE), sys.stdin.read()));"
        "print(re.search(r'VmHWM:\\s+(\\d+)', Path('/proc/self/status').read_text())[1])"  # ru_maxrss has the parent's
    )
    items = [f"t/0|t|{ICE} It becomes a solid.", f"t/1|t|{PARTLY}", f"t/2|t|{SUN}"]
    done = subprocess.run(
        [sys.executable, "-c", program, *items],
        input=text,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
    ).stdout.splitlines()
    assert done[0] == "['t/0', 't/1']" and int(done[1]) < 1_200_000  # kB


@pytest.fixture
def deduplicated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("COSMO_COMPUTE", raising=False)
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
    assert main() == ("2 of 5 documents kept; 3 contaminated of 3 that share an n-gram with one of 4 benchmark items")
    assert (deduplicated / "metrics/plots/contamination.csv").read_text() == (
        "source,task,documents,items\nweb,arc_easy,2,2\nwikihow,piqa,1,1\n"
    )
    metrics = read_yaml(deduplicated / "metrics/decontaminate.json")
    assert metrics["contamination"]["web"]["arc_easy"] == {"documents": 2, "items": 2}
    assert metrics["benchmark_items"] == {"checked": 3, "short": 0, "shortest": 1}
    assert metrics["cells"]["web-blogpost"]["removed"] == {"contaminated": 2}
    assert metrics["rules"] == {
        "plain": {"documents": 3, "items": 3},
        "window": {"documents": 3, "items": 3},
        "plain_only": {"documents": 0, "items": 0},
        "window_only": {"documents": 0, "items": 0},
    }
    report = (deduplicated / "metrics/decontaminate.md").read_text()
    assert "| benchmark | web | wikihow |" in report
    assert "| arc_easy | 2 (2) | – |" in report and "| piqa | – | 1 (1) |" in report


def test_natural_text_is_searched_and_counted_apart(deduplicated: Path):
    repository(deduplicated, "decontaminate", common_ngram=1)
    line = main()
    before = bytes_of(deduplicated / "metrics")
    texts = [f"{FILLER} {ICE} It becomes a solid.", f"A page. {FILLER}", f"{SUN} The Earth turns."]
    write_documents(deduplicated / "data/dedup/web-natural.parquet", [natural_document(text) for text in texts])
    assert main() == f"{line}; web-natural 1 of 3"
    metrics = read_yaml(deduplicated / "metrics/decontaminate.json")
    assert metrics["cells"].pop("web-natural")["removed"] == {"contaminated": 2}
    after = bytes_of(deduplicated / "metrics")
    assert json.loads(before.pop("decontaminate.json")) == metrics and before.items() <= after.items()
    rows = [*read_rows(["data/decontaminate/removed/removed.parquet"], REMOVED)]
    assert sum(row["style"] == "natural" for row in rows) == 2


def test_the_evidence_names_item_ngram_matched_text_and_both_ratios(deduplicated: Path):
    repository(deduplicated, "decontaminate")
    main()
    rows = [*read_rows(["data/decontaminate/removed/removed.parquet"], REMOVED)]
    found = {item["item_id"]: item for row in rows for item in json.loads(row["evidence"])["items"]}
    assert set(found) == {"arc_easy/000000", "arc_easy/000001", "piqa/000000"}
    assert found["piqa/000000"] == {
        "task": "piqa",
        "item_id": "piqa/000000",
        "form": "question_answer",
        "detectors": ["published", "forms", "tolerant"],
        "ngram": "how do you keep a door open put a wedge",
        "matched": "how do you keep a door open put a wedge under it",
        "ratio": 1.0,
        "window_ratio": 1.0,
    }


def test_both_ratios_are_reported_and_one_decides(deduplicated: Path):
    scraps = [f"{' '.join(PARTLY.split()[i : i + 2])} {FILLER[i * 40 : i * 40 + 60]}" for i in range(12, 33)]
    write_items(deduplicated / "data/benchmarks", "siqa", [(PARTLY, "")])
    write_documents(deduplicated / "data/dedup/web-blogpost.parquet", [document(text=f"{HEAD} {' '.join(scraps)}")])
    for ratio, kept in (("plain", 0), ("window", 1)):
        repository(deduplicated, "decontaminate", ratio=ratio)
        main()
        metrics = read_yaml(deduplicated / "metrics/decontaminate.json")
        assert metrics["cells"]["web-blogpost"]["rows_kept"] == kept
        assert metrics["rules"]["plain_only"] == {"documents": 1, "items": 1}
        report = (deduplicated / "metrics/decontaminate.md").read_text()
        assert "Pairs that they judge differently (1," in report and "| siqa/000000 |" in report


def outputs(folder: Path) -> dict[str, bytes]:
    return bytes_of(folder / "data/decontaminate") | bytes_of(folder / "metrics")


@pytest.mark.slow
def test_the_bytes_do_not_depend_on_tasks(deduplicated: Path, monkeypatch: pytest.MonkeyPatch):
    for common in (None, 1):
        monkeypatch.setattr("cosmopedia.corpus.pipeline.WORTH_SECONDS", 1 << 30)
        repository(deduplicated, "decontaminate", common_ngram=common)
        main()
        alone = outputs(deduplicated)
        monkeypatch.setattr("cosmopedia.corpus.pipeline.WORTH_SECONDS", 0)
        repository(deduplicated, "decontaminate", cluster_tasks=3, common_ngram=common)
        main()
        assert outputs(deduplicated) == alone


@pytest.mark.slow
def test_the_bytes_do_not_depend_on_the_hash_seed(deduplicated: Path):
    repository(deduplicated, "decontaminate", common_ngram=0.3)
    found = []
    for seed in ("0", "1"):
        environment = {**os.environ, "PYTHONHASHSEED": seed, "PYTHONPATH": str(ROOT)}
        subprocess.run(
            [sys.executable, "-m", "stages.decontaminate"], env=environment, check=True, capture_output=True
        )
        found.append(outputs(deduplicated))
    assert found[0] == found[1]


WORDS_OF_TEXTS = st.lists(st.sampled_from([*ICE.split(), *SUN.split()[:4], "wool", "rope"]), max_size=30).map(" ".join)


@settings(max_examples=40, deadline=None)
@given(st.lists(st.one_of(WORDS_OF_TEXTS, st.just(ICE), st.just(FILLER)), max_size=8), st.randoms(), st.integers(1, 5))
def test_decisions_depend_on_neither_order_nor_batches(texts: list[str], random, size: int):
    index = index_of([("a/0", "a", ICE), ("a/1", "a", SUN), ("a/2", "a", " ".join(ICE.split()[:6]))], RULE)
    expected = {text: findings(index, text) for text in texts}
    mixed = random.sample(texts, len(texts))
    found = dict.fromkeys(texts, Findings(0, 0, []))
    for first in range(0, len(mixed), size):
        found |= {mixed[first + n]: what for n, what in index.findings(mixed[first : first + size])}
    assert found == expected


def test_common_ngrams_are_counted_over_all_cells_and_reported(deduplicated: Path):
    texts = [f"{' '.join(ICE.split()[:12])} {word} {FILLER}" for word in ("one", "two", "three")]
    write_documents(deduplicated / "data/dedup/openstax-college.parquet", [document(text=text) for text in texts])
    repository(deduplicated, "decontaminate", common_ngram=3)
    main()
    metrics = read_yaml(deduplicated / "metrics/decontaminate.json")
    assert metrics["common_ngrams"] == {"allowed_documents": 3, "left_out": 3}
    assert metrics["candidates"] == {"documents": 3, "pairs": 4, "common_only": 3}
    assert metrics["rows_removed"] == 3
    assert (
        "| a student freezes a cup of orange juice overnight how | 5 | 1 |"
        in (deduplicated / "metrics/decontaminate.md").read_text()
    )


def test_rows_in_are_rows_kept_and_removed(deduplicated: Path):
    before = {
        row["completion_id"]: row for cell in Path("data/dedup").glob("*") for row in pq.read_table(cell).to_pylist()
    }
    repository(deduplicated, "decontaminate")
    main()
    kept = [row for cell in Path("data/decontaminate").glob("*.parquet") for row in pq.read_table(cell).to_pylist()]
    removed = [*read_rows(["data/decontaminate/removed/removed.parquet"], REMOVED)]
    assert sorted(before) == sorted(row["completion_id"] for row in [*kept, *removed])
    assert all(row == before[row["completion_id"]] for row in kept)
    assert all(row["text"] == before[row["completion_id"]]["text"] for row in removed)


def spoiled(path: Path, change) -> None:
    table = pq.read_table(path)
    columns = {name: change(name, table.column(name)) for name in table.column_names}
    pq.write_table(pa.table({name: column for name, column in columns.items() if column is not None}), path)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (
            lambda column, ids: pa.array([None, *ids[1:]]) if column == "completion_id" else None,
            "completion_id is null",
        ),
        (lambda column, ids: pa.array([ids[0]] * len(ids)) if column == "completion_id" else None, "occurs twice"),
        (
            lambda column, ids: (
                pa.array([b"fine", b"no \xff", b"fine"]).cast(pa.string(), safe=False) if column == "text" else None
            ),
            "documents.text is not UTF-8 in row 1",
        ),
    ],
)
def test_a_bad_document_is_named(deduplicated: Path, change, named: str):
    def changed(name: str, column: pa.ChunkedArray):
        made = change(name, column.to_pylist())
        return column if made is None else made

    spoiled(deduplicated / "data/dedup/web-blogpost.parquet", changed)
    repository(deduplicated, "decontaminate")
    with pytest.raises(DataError, match=f"web-blogpost.parquet.*{named}"):
        main()


def test_a_benchmark_without_a_column_and_an_item_in_two_files_are_refused(deduplicated: Path):
    repository(deduplicated, "decontaminate")
    table = deduplicated / "data/benchmarks/piqa.parquet"
    copy = deduplicated / "data/benchmarks/copy.parquet"
    copy.write_bytes(table.read_bytes())
    with pytest.raises(
        DataError, match=r"copy\.parquet: benchmark items\.task is 'piqa', but 'copy' in the file's name"
    ):
        main()
    spoiled(copy, lambda name, column: pa.array(["copy"] * len(column)) if name == "task" else column)
    with pytest.raises(DataError, match=r"piqa\.parquet: item 'piqa/000000' is in data/benchmarks/copy\.parquet too"):
        main()
    spoiled(table, lambda name, column: None if name == "answer" else column)
    with pytest.raises(DataError, match=r"piqa.parquet: benchmark items lacks the column\(s\) answer"):
        main()


def test_a_document_in_two_cells_is_named(deduplicated: Path):
    write_documents(deduplicated / "data/dedup/web-blogpost.parquet", [document(text=ICE)])
    write_documents(deduplicated / "data/dedup/web-wikihow.parquet", [document(text=ICE)])
    repository(deduplicated, "decontaminate")
    with pytest.raises(
        DataError,
        match=r"completion_id '.*' is in more than one file \(web-blogpost.parquet, web-wikihow.parquet\)",
    ):
        main()


def test_empty_texts_stay(deduplicated: Path):
    write_documents(deduplicated / "data/dedup/web-blogpost.parquet", [document(text=""), document(text=" \n\0")])
    repository(deduplicated, "decontaminate")
    main()
    assert read_yaml(deduplicated / "metrics/decontaminate.json")["cells"]["web-blogpost"]["rows_kept"] == 2


def test_a_new_benchmark_reruns_nothing_that_generates():
    stages = yaml.safe_load((ROOT / "dvc.yaml").read_text(encoding="utf-8"))["stages"]
    outs = {
        name: {
            out if isinstance(out, str) else next(iter(out))
            for kind in ("outs", "metrics", "plots")
            for out in s.get(kind, [])
        }
        for name, s in stages.items()
    }
    reached = {name for name, s in stages.items() if "data/samples/benchmarks" in s["deps"]}
    assert reached == {"benchmarks"}
    reached |= {name for name, s in stages.items() if any("benchmarks" in str(entry) for entry in s.get("params", []))}
    # retrieve reads them too, but its tables change only where a passage shares an n-gram with a new item
    # (tests/stages/retrieve): what comes after it reruns only then.
    while more := {
        name
        for name, s in stages.items()
        if name not in reached and set(s["deps"]) & {out for one in reached - {"retrieve"} for out in outs[one]}
    }:
        reached |= more
    checks = {"benchmarks", "retrieve", "paraphrases", "decontaminate"}
    assert reached == checks | {
        "coverage",
        "mix",
        "tokenize_corpus",
        "train",
        "export",
        "evaluate",
        "baselines",
        "report",
    }
