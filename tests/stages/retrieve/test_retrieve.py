"""Promises of the stage retrieve: BM25 as bm25s has it, whatever the blocks and tasks; a cap; no benchmark's words."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import bm25s
import numpy as np
import pytest

from cosmopedia.core.errors import DataError
from cosmopedia.core.params import read_yaml
from cosmopedia.core.rng import draw_u64
from cosmopedia.tables.contracts import BENCHMARK, PASSAGE, REJECTED, RETRIEVED, SOURCE
from cosmopedia.tables.parquet import read_rows, write_table
from stages.retrieve import __main__ as retrieve
from stages.retrieve import passages as steps
from stages.retrieve.assignment import assign
from stages.retrieve.index import Block, Scale, Statistics, best, compiled_scorer, save_block, search
from stages.retrieve.passages import PAIR
from stages.retrieve.queries import query_of
from stages.retrieve.words import Vocabulary, terms_of, vocabulary_of
from tests.support.own_params import ROOT, own_params, write_params

LEAK = "the quick brown fox jumps over the lazy dog near nine old barns"
TOPICS = ("basalt", "comet", "sourdough", "aqueduct", "osmosis")


def text_about(number: int, words: int = 40) -> str:
    """Words of which some belong to one of five subjects."""
    subject = TOPICS[number % 5]
    filler = [f"w{draw_u64(3, number, n) % 400}" for n in range(words)]
    return " ".join([*filler, *(f"{subject}{n}" for n in range(number % 7, number % 7 + 4)), subject])


def index_of(
    texts: list[str], folder: Path, cuts: list[int], scorer: Any = None
) -> tuple[list[Block], Vocabulary, Scale]:
    """Blocks of texts that begin at `cuts`."""
    counted = [terms_of(texts[a:b]) for a, b in zip(cuts, [*cuts[1:], len(texts)], strict=True)]
    vocabulary = vocabulary_of(terms.words for terms, _ in counted)
    lengths = np.concatenate([sizes for _, sizes in counted])
    whole = Statistics(len(texts), float(lengths.mean()))
    for at, (terms, sizes) in zip(cuts, counted, strict=True):
        save_block(folder / f"{at:05d}", terms, sizes, vocabulary, whole)
    return [Block(folder / f"{at:05d}", at, scorer) for at in cuts], vocabulary, Scale(vocabulary, whole)


def test_scores_are_those_of_bm25s(tmp_path: Path) -> None:
    texts = [text_about(n) for n in range(60)]
    theirs = bm25s.BM25()
    theirs.index([text.split() for text in texts], show_progress=False)
    (block,), vocabulary, _ = index_of(texts, tmp_path, [0])
    for query in ("basalt basalt1 w7 unknown", "comet w3 w12 w99 osmosis"):
        (looked_up,) = vocabulary.queries([query])
        np.testing.assert_allclose(block.scores(looked_up.words), theirs.get_scores(query.split()), rtol=1e-5)


def test_neither_blocks_nor_the_compiled_scorer_change_a_score(tmp_path: Path) -> None:
    texts = [text_about(n) for n in range(60)]
    made = []
    for name, cuts, scorer in (("a", [0], None), ("b", [0, 7, 31], compiled_scorer())):
        blocks, vocabulary, scale = index_of(texts, tmp_path / name, cuts, scorer)
        queries = vocabulary.queries([*texts[:20], "", "no word of these"])
        made.append([(p.tolist(), s.tobytes()) for p, s in search(blocks, queries, scale, 5, 0.01)])
    assert made[0] == made[1] and all(len(p) == 5 for p, _ in made[0][:20]) and made[0][20][0] == []


def test_a_score_is_bm25_over_the_length_of_the_querys_weights_and_the_size_of_the_corpus() -> None:
    texts = [f"a{n} b{n % 2} everywhere" for n in range(8)]
    whole = Statistics(8, 3.0)
    vocabulary = vocabulary_of(terms_of([text])[0].words for text in texts).without_common(4)
    scale = Scale(vocabulary, whole)
    alone, asked, foreign = vocabulary.queries(["a3", "a3 b1 nowhere everywhere", "no word of these"])
    assert (asked.unknown, foreign.unknown) == (1, 4) and len(
        foreign.words
    ) == 0  # "everywhere" is too common to count
    once, half, never = (np.log1p((8 - n + 0.5) / (n + 0.5)) for n in (1, 4, 0))
    assert scale.divisor(asked) == pytest.approx(np.sqrt(once**2 + half**2 + 3 * never**2) * np.log(9) ** 0.75)
    assert scale.divisor(alone) == pytest.approx(np.sqrt(once**2 + 2 * never**2) * np.log(9) ** 0.75)


def test_equal_scores_go_to_the_first_passages() -> None:
    scores = np.array([1, 3, 3, 0, 3, 2], np.float32)
    assert best(scores, 2, 0.1).tolist() == [1, 2] and best(scores, 4, 0.1).tolist() == [1, 2, 4, 5]
    assert best(scores, 9, 2.5).tolist() == [1, 2, 4]


def pairs_of(folder: Path, *tasks: list[tuple[float, int, int]]) -> list[Path]:
    """Files of (score, row, passage)."""
    for number, task in enumerate(tasks):
        pairs = np.array([(-score, row, passage) for score, row, passage in task], PAIR)
        np.save(folder / f"{number}.npy", np.sort(pairs, order=PAIR.names))
    return sorted(folder.glob("*.npy"))


def test_a_passage_goes_to_the_rows_that_it_fits_best_and_no_further(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    files = pairs_of(tmp_path, [(3, 0, 0), (2, 0, 1), (3, 1, 0), (1, 1, 2)], [(5, 2, 0), (4, 2, 1)], [(3, 3, 0)])
    for sample, chunk in ((1 << 10, 1 << 22), (1, 1)):  # in one chunk of pairs, or in many
        monkeypatch.setattr("stages.retrieve.assignment.SAMPLE", sample)
        monkeypatch.setattr("stages.retrieve.assignment.CHUNK", chunk)
        given = assign(files, 4, np.array([50, 50, 50]), 2, 100, 2)
        assert given.passages.tolist() == [[0, 1], [2, -1], [0, 1], [-1, -1]]
        assert given.uses.tolist() == [2, 2, 1] and given.used_up.tolist() == [False, True, False, True]
    free = assign(files, 4, np.array([50, 50, 50]), 2, 80, None)
    assert free.passages.tolist() == [[0, -1], [0, -1], [0, -1], [0, -1]]  # a second one has no room
    assert assign(files, 4, np.array([500, 1, 1]), 2, 80, None).passages[2].tolist() == [0, -1]  # the first has


def test_a_row_is_looked_up_by_the_parts_that_are_wanted() -> None:
    context = '{"course": "Geology", "covered_units": ["Comets"], "trail": ["Rocks", 3], "number": 5}'
    row = {"title": "Basalt", "context": context, "text": "A dark rock"}
    assert query_of(row, ["title", "context", "text"], 6) == "Basalt\nGeology\nRocks\nA dark"
    assert query_of(row, ["text"], 100) == "A dark rock"


@pytest.fixture
def folder(empty_folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A repository with forty passages, two sources and a benchmark item that one passage has."""
    monkeypatch.setenv("COSMO_STORE", str(empty_folder / "store"))
    (empty_folder / "profiles").mkdir()
    (empty_folder / "compute").mkdir()
    compute = (ROOT / "compute/local.yaml").read_text(encoding="utf-8").replace("workers: 2", "workers: 1")
    Path("compute/local.yaml").write_text(compute, encoding="utf-8")
    write_settings()
    passages = [text_about(n) for n in range(39)] + [f"{text_about(39)} {LEAK} basalt"]
    write_passages(passages)
    for source, count in (("web", 20), ("wikihow", 5)):
        rows = [text_about(n + 5) for n in range(count)] + ["nothing of the kind"]
        write_source(source, rows)
    item = dict.fromkeys(("query", "question"), LEAK) | {"item_id": "arc_easy/000000", "task": "arc_easy"}
    item |= {"group": None, "choices": [" yes", " no"], "gold": 0, "answer": "yes", "other_forms": [], "revision": ""}
    write_table("data/benchmarks/arc_easy.parquet", [item], BENCHMARK)
    return empty_folder


def write_settings(**changes: Any) -> None:
    recipe = own_params("params.yaml")
    section = recipe["retrieve"] | {"min_score": 0.04, "common_words": 0.5} | changes
    sources = {"reading": {}, "web": {}, "wikihow": {}}
    content = {"profile": "smoke", "sources": sources, "retrieve": section, "decontaminate": recipe["decontaminate"]}
    write_params(content, {})


def write_passages(texts: list[str]) -> None:
    same = {"title": "T", "article": "a", "revision": "r", "licence": "CC0-1.0"}
    rows = [{"passage_id": f"a/{n:04d}", "text": text, **same} for n, text in enumerate(texts)]
    write_table("data/knowledge/passages.parquet", rows, PASSAGE)


def write_source(source: str, texts: list[str]) -> None:
    same = {"source": source, "original_id": "", "title": "", "context": "{}", "url": None}
    same |= {"licence": "", "revision": ""}
    rows = [{"row_id": f"{source}/{n:03d}", "text": text, **same} for n, text in enumerate(texts)]
    write_table(f"data/sources/{source}.parquet", rows, SOURCE)


def tables() -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(Path("data/retrieve").rglob("*.parquet"))}


def test_rows_get_passages_of_their_subject_and_none_with_a_benchmarks_words(folder: Path) -> None:
    retrieve.main()
    rows = [*read_rows(["data/retrieve/web.parquet"], RETRIEVED)]
    assert [row["row_id"] for row in rows] == [f"web/{n:03d}" for n in range(20)]
    for row in rows:
        subject = TOPICS[int(row["row_id"][-3:]) % 5]
        assert row["scores"] == sorted(row["scores"], reverse=True) and min(row["scores"]) >= 0.04
        assert row["references"].startswith("[1] T: ") and subject in row["references"]
        assert row["references"].count("] T: ") == len(row["passages"]) <= 3
    (left_out,) = read_rows(["data/retrieve/rejected/passages.parquet"], REJECTED)
    assert left_out["row_id"] == "a/0039" and left_out["detail"].startswith("arc_easy/000000: the quick brown")
    metrics = read_yaml(Path("metrics/retrieve.json"))
    assert metrics["benchmark_overlap"] == {"passages": 1, "by_task": {"arc_easy": 1}}
    assert (metrics["rows_in"], metrics["rows_kept"], metrics["removed"]) == (27, 25, {"no_passage": 2, "used_up": 0})
    assert metrics["uses"] == sum(metrics["licences"].values())
    assert metrics["by_source"]["web"] == pytest.approx(20 / 21, rel=1e-5)
    assert not any("a/0039" in row["passages"] for row in rows)


def test_a_benchmark_that_no_passage_shares_words_with_changes_no_table(folder: Path) -> None:
    retrieve.main()
    before = tables()
    (item,) = read_rows(["data/benchmarks/arc_easy.parquet"], BENCHMARK)
    other = item | {"item_id": "arc_easy/000001", "question": " ".join(f"new{n}" for n in range(20))}
    write_table("data/benchmarks/arc_easy.parquet", [item, other], BENCHMARK)
    retrieve.main()
    assert tables() == before


def test_neither_tasks_nor_blocks_change_a_byte(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    retrieve.main()
    whole = tables()
    monkeypatch.setattr(retrieve, "TASK_ROWS", 4)
    monkeypatch.setattr(steps, "BLOCK", 7)
    monkeypatch.setattr(steps, "READ", 3)
    retrieve.main()
    assert tables() == whole


def test_the_cap_leaves_rows_out_and_says_so(folder: Path) -> None:
    write_settings(max_uses=1, passages=1)
    retrieve.main()
    metrics = read_yaml(Path("metrics/retrieve.json"))
    assert metrics["uses"] == metrics["distinct_passages"] == metrics["rows_kept"]
    assert set(metrics["most_used"].values()) == {1}


def test_without_passages_all_tables_are_empty_and_with_only_leaked_ones_the_stage_stops(folder: Path) -> None:
    write_passages([])
    assert retrieve.main().startswith("off")
    assert [*read_rows(["data/retrieve/web.parquet", "data/retrieve/wikihow.parquet"], RETRIEVED)] == []
    write_passages([LEAK])
    with pytest.raises(DataError, match=r"all 1 passages .* share an n-gram with a benchmark"):
        retrieve.main()
    Path("data/knowledge/passages.parquet").unlink()
    with pytest.raises(DataError, match=r"passages\.parquet is missing"):
        retrieve.main()


@pytest.mark.slow
def test_a_run_that_was_killed_goes_on_behind_its_last_whole_task(folder: Path) -> None:
    deps = "[data/sources/web.parquet, data/sources/wikihow.parquet, data/knowledge/passages.parquet]"
    Path("dvc.yaml").write_text(f"stages: {{retrieve: {{deps: {deps}}}}}\n")
    retrieve.main()
    whole = tables()
    script = (
        "import os, stages.retrieve.__main__ as retrieve\n"
        "from stages.retrieve.passages import SearchRows\n"
        "retrieve.TASK_ROWS = 9\n"
        "run = SearchRows.run\n"
        "def killed(self, data=None, rank=0, world_size=1):\n"
        "    os._exit(9) if rank == int(os.environ['AT']) else print('task', rank, flush=True)\n"
        "    return run(self, data, rank, world_size)\n"
        "SearchRows.run = killed\n"
        "print(retrieve.main())\n"
    )
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    for at, code, tasks in (("2", 9, ["task 0", "task 1"]), ("-1", 0, ["task 2"])):
        run = subprocess.run(
            [sys.executable, "-c", script], env=environment | {"AT": at}, capture_output=True, text=True, check=False
        )
        assert run.returncode == code, run.stderr
        assert [line for line in run.stdout.splitlines() if line.startswith("task")] == tasks
    assert tables() == whole


def test_a_table_with_a_repeated_passage_or_a_null_is_refused(folder: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    row = {name: "x" for name in PASSAGE.schema.names}
    for rows, message in (([row, row], "occurs twice"), ([row | {"text": None}], "passages.text is null")):
        pq.write_table(pa.Table.from_pylist(rows), "data/knowledge/passages.parquet")
        with pytest.raises(DataError, match=message):
            retrieve.main()
