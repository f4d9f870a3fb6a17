"""Promises of the dedup stage."""

import json
from pathlib import Path

import numpy as np
import pytest
from rows import bytes_of, document, repository, write_documents

from stages.corpus.exact import fingerprint
from stages.corpus.words import jaccard, shingles
from stages.dedup import main
from stages.draws import draw_u64
from stages.errors import DataError
from stages.settings import read_yaml
from stages.tables.contracts import DOCUMENT, REMOVED
from stages.tables.parquet import read_rows

TOPICS = ["rivers", "bread", "volcanoes", "algebra", "sailing", "glass", "bees", "bridges"]


def essay(topic: str, ending: str = "That is all there is to it.") -> str:
    """About 300 words that no other topic's essay shares in the same order."""
    words = [
        f"{topic[:3]}{chr(97 + draw_u64(1, topic, i) % 26)}{chr(97 + draw_u64(2, topic, i) % 26)}" for i in range(300)
    ]
    return f"{' '.join(words)}. {ending}"


@pytest.fixture
def cleaned(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Eight distinct essays; copies of three of them in other cells: exact, shouted, with another last sentence."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("COSMO_CLUSTER", raising=False)
    rows = [document(text=essay(topic), completion_id=f"{i}0-0") for i, topic in enumerate(TOPICS)]
    copies = [
        document(text=essay("rivers"), completion_id="99-0"),
        document(text=essay("bread").upper().replace(" ", "  "), completion_id="05-0"),
        document(text=essay("volcanoes", "And so the ground cools."), completion_id="98-0"),
        document(text=essay("volcanoes", "And so the ground cools.").lower(), completion_id="97-0"),
        document(text="Short one.", completion_id="96-0"),
        document(text="short  one.", completion_id="95-0"),
    ]
    for cell, taken in (
        ("web-blogpost", rows[:4]),
        ("web-wikihow", [*rows[4:], *copies[:2]]),
        ("stanford-textbook", copies[2:]),
        ("openstax-college", []),
    ):
        write_documents(tmp_path / f"data/clean/{cell}.parquet", taken)
    return tmp_path


def kept_ids() -> set[str]:
    return {row["completion_id"] for row in read_rows(sorted(Path("data/dedup").glob("*.parquet")), DOCUMENT)}


def removed() -> dict[str, tuple[str, dict]]:
    rows = read_rows(["data/dedup/removed/removed.parquet"], REMOVED)
    return {row["completion_id"]: (row["reason"], json.loads(row["evidence"])) for row in rows}


def test_of_a_group_the_smallest_id_stays_and_the_evidence_names_it(cleaned: Path):
    repository(cleaned, "dedup")
    main()
    found = removed()
    assert {i: (reason, e["kept"], e["kind"]) for i, (reason, e) in found.items()} == {
        "99-0": ("exact", "00-0", "exact"),
        "10-0": ("exact", "05-0", "exact"),
        "96-0": ("exact", "95-0", "exact"),
        "98-0": ("exact", "20-0", "exact"),  # its twin 97-0 goes as a near duplicate of 20-0
        "97-0": ("near", "20-0", "minhash"),
    }
    assert found["99-0"][1]["jaccard"] == 1.0
    assert 0.9 < found["97-0"][1]["jaccard"] < 1.0
    assert kept_ids() == {"00-0", "05-0", "20-0", "30-0", "40-0", "50-0", "60-0", "70-0", "95-0"}


def test_the_goal_is_checked_and_rates_are_given_by_cell(cleaned: Path, capsys: pytest.CaptureFixture[str]):
    repository(cleaned, "dedup")
    assert main() == "9 of 14 documents kept; 4 exact and 1 near duplicates removed (35.71%)"
    assert "warning: 35.7% duplicates, the goal is at most 1.0%; most in stanford-textbook" in capsys.readouterr().err
    metrics = read_yaml(cleaned / "metrics/dedup.json")
    assert metrics["within_goal"] is False
    assert metrics["cells"]["stanford-textbook"]["rate"] == 0.75
    assert metrics["cells"]["openstax-college"]["rate"] == 0.0


def test_the_bytes_do_not_depend_on_tasks(cleaned: Path, monkeypatch: pytest.MonkeyPatch):
    repository(cleaned, "dedup")
    main()
    alone = bytes_of(cleaned / "data/dedup")
    monkeypatch.setattr("stages.corpus.cells.ROWS_PER_TASK", 1)
    for tasks in (2, 4):
        repository(cleaned, "dedup", cluster_tasks=tasks)
        main()
        assert bytes_of(cleaned / "data/dedup") == alone


@pytest.mark.slow
def test_the_bytes_do_not_depend_on_workers(cleaned: Path, monkeypatch: pytest.MonkeyPatch):
    repository(cleaned, "dedup")
    main()
    alone = bytes_of(cleaned / "data/dedup")
    monkeypatch.setattr("stages.corpus.cells.ROWS_PER_TASK", 1)
    repository(cleaned, "dedup", cluster_tasks=3, cluster_workers=2)
    main()
    assert bytes_of(cleaned / "data/dedup") == alone


def test_nothing_stays_behind_but_the_tables(cleaned: Path):
    repository(cleaned, "dedup")
    main()
    names = sorted(str(p.relative_to(cleaned / "data/dedup")) for p in (cleaned / "data/dedup").rglob("*"))
    cells = ["openstax-college", "stanford-textbook", "web-blogpost", "web-wikihow"]
    assert names == sorted([*(f"{cell}.parquet" for cell in cells), "removed", "removed/removed.parquet"])


def test_an_id_in_two_cells_is_named(cleaned: Path):
    write_documents(cleaned / "data/clean/openstax-college.parquet", [document(text="other", completion_id="40-0")])
    repository(cleaned, "dedup")
    with pytest.raises(DataError, match="'40-0' stands in more than one file"):
        main()


def alike(first: str, second: str, n: int = 5) -> float:
    return jaccard(np.unique(shingles(first, n)), np.unique(shingles(second, n)))


def test_likeness():
    assert fingerprint("Caf\u00e9  au lait\n") == fingerprint("cafe\u0301 AU lait")
    assert fingerprint("a b c") != fingerprint("a b d")
    assert alike("one two three four five", "one two three four five six") == 0.5
    assert alike("a b", "c d") == 1.0
