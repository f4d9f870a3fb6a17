"""Promises of the dedup stage."""

import json
import tempfile
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
from datatrove.pipeline.dedup.minhash import MinhashConfig, MinhashDedupCluster, MinhashDedupSignature
from datatrove.utils.text import TextNormConfig, simplify_text
from hypothesis import given, settings
from hypothesis import strategies as st

from cosmopedia.corpus.minhash import jaccard
from cosmopedia.corpus.words import separated, shingles, simplified_words, without_diacritics
from cosmopedia.errors import DataError
from cosmopedia.params import read_yaml
from cosmopedia.rng import draw_u64
from cosmopedia.tables.contracts import DOCUMENT, REMOVED
from cosmopedia.tables.parquet import read_rows
from stages.dedup.__main__ import main
from stages.dedup.exact import extract_share, fingerprint
from stages.dedup.minhash import CLUSTER, Clusters, Signatures, near_duplicates
from tests.support.documents import bytes_of, document, repository, write_documents

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
    monkeypatch.delenv("COSMO_COMPUTE", raising=False)
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


@pytest.mark.slow
def test_of_a_group_the_smallest_id_stays_and_the_evidence_names_it(cleaned: Path):
    repository(cleaned, "dedup")
    main()
    found = removed()
    assert {i: (reason, e["kept"], e["kind"]) for i, (reason, e) in found.items()} == {
        "99-0": ("exact", "00-0", "exact"),
        "10-0": ("exact", "05-0", "exact"),
        "96-0": ("exact", "95-0", "exact"),
        "98-0": ("exact", "20-0", "exact"),  # its exact duplicate 97-0 is removed as a near one of 20-0
        "97-0": ("near", "20-0", "minhash"),
    }
    assert found["99-0"][1]["jaccard"] == 1.0
    assert 0.9 < found["97-0"][1]["jaccard"] < 1.0
    assert kept_ids() == {"00-0", "05-0", "20-0", "30-0", "40-0", "50-0", "60-0", "70-0", "95-0"}


@pytest.mark.slow
def test_the_goal_is_checked_and_rates_are_given_by_cell(cleaned: Path, capsys: pytest.CaptureFixture[str]):
    repository(cleaned, "dedup")
    assert main() == "9 of 14 documents kept; 4 exact and 1 near duplicates removed (35.71%)"
    assert "warning: 35.7% duplicates, the goal is at most 1.0%; most in stanford-textbook" in capsys.readouterr().err
    metrics = read_yaml(cleaned / "metrics/dedup.json")
    assert metrics["within_goal"] is False
    assert metrics["cells"]["stanford-textbook"]["rate"] == 0.75
    assert metrics["cells"]["openstax-college"]["rate"] == 0.0


@pytest.mark.slow
def test_the_bytes_do_not_depend_on_tasks(cleaned: Path, monkeypatch: pytest.MonkeyPatch):
    repository(cleaned, "dedup")
    main()
    alone = bytes_of(cleaned / "data/dedup")
    monkeypatch.setattr("cosmopedia.corpus.pipeline.WORTH_SECONDS", 0)
    for tasks in (2, 4):
        repository(cleaned, "dedup", cluster_tasks=tasks)
        main()
        assert bytes_of(cleaned / "data/dedup") == alone


@pytest.mark.slow
def test_the_bytes_do_not_depend_on_workers(cleaned: Path, monkeypatch: pytest.MonkeyPatch):
    repository(cleaned, "dedup")
    main()
    alone = bytes_of(cleaned / "data/dedup")
    monkeypatch.setattr("cosmopedia.corpus.pipeline.WORTH_SECONDS", 0)
    repository(cleaned, "dedup", cluster_tasks=3, cluster_workers=2)
    main()
    assert bytes_of(cleaned / "data/dedup") == alone


@pytest.mark.slow
def test_nothing_stays_behind_but_the_tables(cleaned: Path):
    repository(cleaned, "dedup")
    main()
    names = sorted(str(p.relative_to(cleaned / "data/dedup")) for p in (cleaned / "data/dedup").rglob("*"))
    cells = ["openstax-college", "stanford-textbook", "web-blogpost", "web-wikihow"]
    assert names == sorted([*(f"{cell}.parquet" for cell in cells), "removed", "removed/removed.parquet"])


def test_an_id_in_two_cells_is_named(cleaned: Path):
    write_documents(cleaned / "data/clean/openstax-college.parquet", [document(text="other", completion_id="40-0")])
    repository(cleaned, "dedup")
    with pytest.raises(DataError, match="'40-0' is in more than one file"):
        main()


WORDS = [f"{a}{b}" for a in "bdfgklmnprst" for b in ("ar", "en", "il", "os", "ut", "ind", "elt", "ong", "ack", "ift")]


def chain() -> list[dict]:
    """Texts of 120 words, 20 of them changed from one to the next: each is like its neighbours alone."""
    drawn = [WORDS[i % len(WORDS)] for i in range(120)]
    rows = []
    for step in range(4):
        for i in range(20 * step, 20 * step + 3):
            drawn[i] = f"{drawn[i]}{'abc'[step - 1]}" if step else drawn[i]
        rows.append(document(text=" ".join(drawn), completion_id=f"{step}-0"))
    return rows


def test_a_candidate_goes_only_for_a_document_that_it_is_like():
    a, b = np.arange(100, dtype=np.uint64), np.arange(10, 110, dtype=np.uint64)
    c, d = np.arange(40, 140, dtype=np.uint64), np.arange(45, 145, dtype=np.uint64)
    members = [("a", a), ("b", b), ("c", c), ("d", d)]
    assert near_duplicates(members, None) == {"b": ("a", 0.8182), "c": ("a", 0.4286), "d": ("a", 0.3793)}
    assert near_duplicates(members, 0.7) == {"b": ("a", 0.8182), "d": ("c", 0.9048)}
    assert near_duplicates(members, 0.95) == {}


SETS = st.lists(st.sets(st.integers(0, 12), min_size=1), min_size=1, max_size=8)


@settings(max_examples=100, deadline=None)
@given(SETS, st.sampled_from([None, 0.2, 0.5, 0.8, 1.0]))
def test_of_a_cluster_the_first_stays_and_who_goes_is_like_one_that_stays(sets: list[set[int]], least: float | None):
    members = [(f"{n}", np.array(sorted(values), np.uint64)) for n, values in enumerate(sets)]
    gone, shingles_of = near_duplicates(members, least), dict(members)
    stays = [name for name, _ in members if name not in gone]
    assert stays[0] == "0" and (least is not None or len(stays) == 1)
    for name, (kept, similarity) in gone.items():
        assert kept in stays and kept < name
        assert similarity == round(jaccard(shingles_of[name], shingles_of[kept]), 4) >= round(least or 0.0, 4)
    if least is not None:
        for n, name in enumerate(stays):
            assert all(jaccard(shingles_of[name], shingles_of[other]) < least for other in stays[:n])


@pytest.mark.slow
def test_verification_spares_the_far_end_of_a_chain_and_counts_it(cleaned: Path):
    for path in Path("data/clean").glob("*.parquet"):
        path.unlink()
    rows = chain()
    write_documents(Path("data/clean/web-blogpost.parquet"), rows[::2])
    write_documents(Path("data/clean/web-wikihow.parquet"), rows[1::2])
    repository(cleaned, "dedup")
    main()
    assert kept_ids() == {"0-0"}
    assert read_yaml(cleaned / "metrics/dedup.json")["near"] == {"candidates": 3, "spared": 0}
    assert [evidence["jaccard"] for _, evidence in removed().values()] == sorted(
        (evidence["jaccard"] for _, evidence in removed().values()), reverse=True
    )
    least = removed()["1-0"][1]["jaccard"] - 0.001
    repository(cleaned, "dedup", min_jaccard=least)
    main()
    metrics = read_yaml(cleaned / "metrics/dedup.json")
    assert metrics["near"] == {"candidates": 3, "spared": 3 - metrics["removed"]["near"]} and metrics["near"]["spared"]
    assert all(evidence["jaccard"] >= least for _, evidence in removed().values())
    assert "0-0" in kept_ids() and "1-0" not in kept_ids()


@pytest.mark.slow
def test_the_share_of_the_extract_is_measured_and_a_copy_is_removed_when_asked(cleaned: Path):
    half = f"{essay('glass')[:600]} {essay('own words')}"
    rows = [
        document(text=essay("bees"), seed_data=f"{essay('bees')} and more", completion_id="a0-0"),
        document(text=half, seed_data=essay("glass"), completion_id="a1-0"),
        document(text=essay("sea"), seed_data=essay("moon"), completion_id="a2-0"),
        document(text=essay("no extract"), seed_data="bees", completion_id="a3-0"),
    ]
    write_documents(cleaned / "data/clean/openstax-college.parquet", rows)
    repository(cleaned, "dedup")
    main()
    found = read_yaml(cleaned / "metrics/dedup.json")["copies"]["openstax-college"]
    assert found["documents"] == 3 and 0.4 < found["mean"] < 0.5
    assert (found["above_0.5"], found["above_0.9"]) == (pytest.approx(1 / 3, rel=1e-5), pytest.approx(1 / 3, rel=1e-5))
    assert "a1-0" in kept_ids() and "copy" not in {reason for reason, _ in removed().values()}
    share = extract_share(half, essay("glass"), 5)
    assert share is not None and 0.2 < share < 0.4
    repository(cleaned, "dedup", max_extract_copy=share)  # a document of exactly so much stays
    assert main().endswith(", 1 copies of their extracts")
    assert removed()["a0-0"] == ("copy", {"share": 1.0})
    assert "a1-0" in kept_ids()
    assert read_yaml(cleaned / "metrics/dedup.json")["cells"]["openstax-college"]["rate"] == 0.0


PAIRS = st.lists(st.tuples(*[st.integers(0, 2), st.integers(0, 9)] * 2), max_size=12)


@pytest.mark.slow
@settings(max_examples=40, deadline=None)
@given(st.lists(PAIRS, min_size=2, max_size=2))
def test_clusters_are_those_of_datatrove(buckets: list[list[tuple[int, ...]]]):
    config, found = MinhashConfig(num_buckets=2), []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "buckets").mkdir()
        for number, pairs in enumerate(buckets):
            rows = np.array([pair for pair in pairs if pair[:2] != pair[2:]], dtype="<u4")
            (folder / f"buckets/{number:05d}_00.dups").write_bytes(rows.tobytes())
        for kind in (Clusters, MinhashDedupCluster):
            out = folder / kind.__name__
            kind(str(folder / "buckets"), str(out), config, save_cluster_id=True).run()
            groups: dict[int, set] = {}
            for path in sorted(out.glob("*.clusters")):
                rows = np.fromfile(path, CLUSTER)
                assert (np.diff(rows["position"].astype(int)) > 0).all()
                for position, cluster in rows.tolist():
                    groups.setdefault(cluster, set()).add((path.stem, position))
            found.append(sorted(map(sorted, groups.values())))
    assert found[0] == found[1]


class Spaces:
    def word_tokenize(self, text: str) -> list[str]:
        return separated(without_diacritics(text)).split()


@settings(max_examples=60, deadline=None)
@given(st.text(max_size=400))
def test_words_and_signatures_are_those_of_datatrove(text: str):
    config = MinhashConfig(n_grams=2)
    ours, theirs = Signatures(Path("nowhere"), config), MinhashDedupSignature("nowhere", config)
    normal = simplify_text(text, TextNormConfig(norm_unicode_diacritics=False))
    assert simplified_words(text) == separated(without_diacritics(normal)).split()
    theirs.word_tokenizer = cast(Any, Spaces())
    theirs.config.norm_config = TextNormConfig(norm_unicode_diacritics=False)
    wanted = theirs.get_shingles(text)
    assert ours.get_shingles(text).tolist() == wanted.tolist()
    if wanted.size:
        assert ours.get_signature(wanted) == theirs.get_signature(wanted)


def alike(first: str, second: str, n: int = 5) -> float:
    return jaccard(np.unique(shingles(first, n)), np.unique(shingles(second, n)))


def test_likeness():
    assert fingerprint("Caf\u00e9  au lait\n") == fingerprint("cafe\u0301 AU lait")
    assert fingerprint("a b c") != fingerprint("a b d")
    assert alike("one two three four five", "one two three four five six") == 0.5
    assert alike("a b", "c d") == 1.0
