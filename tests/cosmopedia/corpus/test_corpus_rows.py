"""Promises of clean, dedup and tokenize_corpus about any corpus: what decides, what is counted, what bad rows do."""

import json
import os
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cosmopedia.core.errors import DataError
from cosmopedia.core.params import read_yaml
from cosmopedia.core.rng import draw_u64
from cosmopedia.tables.contracts import DOCUMENT, REMOVED
from cosmopedia.tables.parquet import read_rows, read_table
from stages.clean import __main__ as clean
from stages.dedup import __main__ as dedup
from stages.tokenize_corpus import __main__ as tokenize_corpus
from tests.support.documents import ROOT, byte_tokenizer, bytes_of, document, repository, write_documents, write_mix

INPUTS = {"clean": "data/generate", "dedup": "data/clean", "tokenize_corpus": "data/decontaminate"}
MAINS = {"clean": clean.main, "dedup": dedup.main, "tokenize_corpus": tokenize_corpus.main}
VOCABULARY = [
    f"{a}{b}{c}" for a in "bdfgklmnprstvz" for b in "aeiou" for c in ("n", "r", "st", "l", "m", "ck", "d", "")
]


def prose(name: object, size: int, function_words: bool = True) -> str:
    """Sentences that no other name's text shares."""
    drawn = [VOCABULARY[draw_u64(1, name, i) % len(VOCABULARY)] for i in range(size)]
    if function_words:
        drawn[::4] = [("the", "of", "and", "is")[draw_u64(2, name, i) % 4] for i in range(len(drawn[::4]))]
    sentences = [" ".join(drawn[i : i + 12]).capitalize() for i in range(0, size, 12)]
    return ". ".join(sentences) + "."


def texts_of_a_corpus() -> list[dict]:
    """Twenty documents: good ones, exact and near duplicates, and one for each reason to remove."""
    rows = [document(text=prose(i, 120), completion_id=f"{i:02}") for i in range(10)]
    rows += [document(text=prose(i, 120).upper(), completion_id=f"{20 - i}") for i in range(3)]
    rows += [document(text=f"{prose(i, 120)} Last words.", completion_id=f"{30 - i}") for i in range(3, 6)]
    rows.append(document(text=prose("cut", 120) + " And then the", completion_id="40", finish_reason="length"))
    rows.append(document(text="I'm sorry, but I can't write that.", completion_id="41"))
    rows.append(document(text=f"{prose('copy', 60)}", seed_data=prose("copy", 80), completion_id="42"))
    return [*rows, document(text=prose("loop", 6) * 30, completion_id="43")]


def run(folder: Path, stage: str, cells: list[list[dict]], **changes: Any) -> None:
    """Run a stage over the cells, each a task of its own."""
    for path in (folder / INPUTS[stage]).glob("*.parquet"):
        path.unlink()
    for number, rows in enumerate(cells):
        write_documents(folder / INPUTS[stage] / f"web-style{number}.parquet", rows)
    repository(folder, stage, cluster_tasks=len(cells), **changes)
    MAINS[stage]()


def decisions(folder: Path, stage: str) -> dict[str, object]:
    """What became of each document."""
    out = folder / "data" / stage
    if stage == "tokenize_corpus":
        return {
            completion_id: (split, tokens)
            for split in ("train", "validation")
            for completion_id, tokens in pq.read_table(
                out / split / "documents.parquet", columns=["completion_id", "tokens"]
            )
            .to_pandas()
            .itertuples(index=False)
        }
    found: dict[str, object] = {
        row["completion_id"]: row["text"] for row in read_rows(sorted(out.glob("*.parquet")), DOCUMENT)
    }
    removed = [*read_rows([out / "removed/removed.parquet"], REMOVED)]
    assert not found.keys() & {row["completion_id"] for row in removed}
    metrics = read_yaml(folder / f"metrics/{stage}.json")
    assert metrics["rows_in"] == len(found) + len(removed) == metrics["rows_kept"] + metrics["rows_removed"]
    for cell in metrics["cells"].values():
        assert cell["rows_in"] == cell["rows_kept"] + sum(cell["removed"].values())
    return found | {row["completion_id"]: (row["reason"], row["evidence"]) for row in removed}


@pytest.fixture
def folder(empty_folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr("cosmopedia.corpus.pipeline.WORTH_SECONDS", 0)
    byte_tokenizer(empty_folder / "models/generator")
    return empty_folder


@pytest.mark.slow
@pytest.mark.parametrize("stage", MAINS)
@settings(max_examples=6, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.integers(1, 5), st.randoms(use_true_random=False))
def test_decisions_do_not_depend_on_cells_tasks_or_order(folder: Path, stage: str, count: int, dice: random.Random):
    rows = [row for row in texts_of_a_corpus() if stage != "tokenize_corpus" or row["text"].strip()]
    changes = {
        "clean": {"repetition": read_yaml(ROOT / "profiles/laptop.yaml")["clean"]["repetition"]},
        "dedup": {"min_jaccard": 0.7, "max_extract_copy": 0.8},
        "tokenize_corpus": {"validation_fraction": 0.3},
    }[stage]
    if not Path("wanted.json").exists():
        run(folder, stage, [rows], **changes)
        Path("wanted.json").write_text(json.dumps(decisions(folder, stage)))
    wanted = json.loads(Path("wanted.json").read_text())
    cells: list[list[dict]] = [[] for _ in range(count)]
    for row in dice.sample(rows, len(rows)):
        dice.choice(cells).append(row)
    run(folder, stage, cells, **changes)
    assert json.loads(json.dumps(decisions(folder, stage))) == wanted
    gone = {value[0] for value in wanted.values() if isinstance(value, list)}
    expected = {"clean": {"refusal", "repetition"}, "dedup": {"exact", "near", "copy"}}
    assert gone == expected.get(stage, {"train", "validation"})


@pytest.mark.slow
@pytest.mark.parametrize("stage", MAINS)
def test_the_bytes_do_not_depend_on_the_hash_seed(folder: Path, stage: str):
    rows = texts_of_a_corpus()
    run(folder, stage, [rows[:8], rows[8:]])
    wanted = bytes_of(folder / "data" / stage) | {"metrics": (folder / f"metrics/{stage}.json").read_bytes()}
    seed = "1" if os.environ.get("PYTHONHASHSEED") != "1" else "2"  # another one than this process has
    environment = {**os.environ, "PYTHONHASHSEED": seed, "PYTHONPATH": str(ROOT)}
    subprocess.run([sys.executable, "-m", f"stages.{stage}"], env=environment, check=True, capture_output=True)
    found = bytes_of(folder / "data" / stage) | {"metrics": (folder / f"metrics/{stage}.json").read_bytes()}
    assert found == wanted


@pytest.mark.slow
def test_unrelated_long_documents_stay(folder: Path):
    rows = [document(text=prose(f"long {i}", 12_000)) for i in range(8)]
    run(folder, "clean", [rows], repetition=read_yaml(ROOT / "profiles/laptop.yaml")["clean"]["repetition"])
    assert read_yaml(Path("metrics/clean.json"))["removed"] == {}
    run(folder, "dedup", [rows[:4], rows[4:]])
    assert read_yaml(Path("metrics/dedup.json"))["removed"] == {}


def damaged(rows: list[dict], column: str, row: int, value: bytes | None) -> pa.Table:
    """DOCUMENT rows of which one holds these bytes (None: null) in a text column, as no writer of ours would."""
    names = DOCUMENT.schema.names
    rows = sorted(rows, key=lambda each: each["completion_id"])
    table = pa.table({n: pa.array([r[n] for r in rows], DOCUMENT.schema.field(n).type) for n in names})
    values = [each[column].encode() for each in rows]
    values[row] = value  # type: ignore[call-overload]
    raw = pa.array(values, pa.binary())
    text = pa.StringArray.from_buffers(len(raw), raw.buffers()[1], raw.buffers()[2], raw.buffers()[0])
    return table.set_column(names.index(column), column, text)


@pytest.mark.slow
@pytest.mark.parametrize("stage", MAINS)
@pytest.mark.parametrize(
    ("column", "value", "said"),
    [
        ("text", b"caf\xe9", r"documents\.text is not UTF-8 in row 2503 \('12503'\)"),
        ("text", None, r"documents\.text is null in 1 row\(s\), first in row 2503 \('12503'\)"),
        ("completion_id", None, r"documents\.completion_id is null in 1 row\(s\), first in row 2503;"),
        ("completion_id", b"\xff\xfe", r"documents\.completion_id is not UTF-8 in row 2503;"),
        ("completion_id", b"12502", r"documents\.completion_id '12502' occurs twice"),
        ("seed_data", b"\xc3\x28", r"documents\.seed_data is not UTF-8 in row 2503 \('12503'\)"),
    ],
)
def test_a_bad_row_is_refused_and_named(folder: Path, stage: str, column: str, value: bytes | None, said: str):
    rows = [document(text=prose(i, 40), completion_id=str(10_000 + i)) for i in range(2_600)]
    (folder / INPUTS[stage]).mkdir(parents=True)
    pq.write_table(damaged(rows, column, 2_503, value), folder / INPUTS[stage] / "web-blogpost.parquet")
    write_mix(folder / "data/mix/web-blogpost.parquet", {row["completion_id"]: 1 for row in rows})
    repository(folder, stage)
    with pytest.raises(DataError, match=rf"web-blogpost\.parquet: {said}"):
        MAINS[stage]()


@pytest.mark.parametrize("stage", MAINS)
def test_an_id_in_two_cells_is_named_with_its_files(folder: Path, stage: str):
    with pytest.raises(DataError, match=r"'07' is in more than one file \(web-style0\.parquet, web-style1\.parquet"):
        run(folder, stage, [texts_of_a_corpus(), [document(text="Another.", completion_id="07")]])


def test_an_empty_text_is_set_aside_by_clean_and_refused_by_tokenize_corpus(folder: Path):
    rows = [document(text=prose(1, 60)), document(text="", completion_id="empty")]
    run(folder, "clean", [rows])
    assert read_table("data/clean/removed/removed.parquet", REMOVED)["completion_id"].to_pylist() == ["empty"]
    with pytest.raises(DataError, match=r"web-style0: 'empty' has no text"):
        run(folder, "tokenize_corpus", [rows])


@pytest.mark.slow
@pytest.mark.parametrize("stage", MAINS)
def test_a_document_of_ten_megabytes_passes(folder: Path, stage: str):
    dice = np.random.default_rng(1)
    text = " ".join(np.array(VOCABULARY)[dice.integers(0, len(VOCABULARY), 2_600_000)])
    text = f"The end of {text} is that.\n\nIt was for you and the rest of us."
    assert len(text) > 10_000_000
    changes = {"language": None} if stage == "clean" else {}
    run(folder, stage, [[document(text=text, completion_id="big"), document(text=prose(1, 60))]], **changes)
    assert len(decisions(folder, stage)) == 2
