"""Promises of the dedup stage."""

import json
import tempfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from datatrove.pipeline.dedup.minhash import MinhashConfig, MinhashDedupCluster
from datatrove.utils.text import simplify_text
from hypothesis import given, settings
from hypothesis import strategies as st

from cosmopedia.core.errors import ConfigError, DataError
from cosmopedia.core.params import read_yaml
from cosmopedia.core.rng import draw_u64
from cosmopedia.corpus.minhash import jaccard
from cosmopedia.corpus.word_hashes import word_hashes
from cosmopedia.corpus.words import Normalisation
from cosmopedia.hashing import GOLDEN, mix64
from cosmopedia.tables.contracts import DOCUMENT, REMOVED
from cosmopedia.tables.parquet import read_rows
from stages.dedup.__main__ import main
from stages.dedup.clusters import Clusters, pairs
from stages.dedup.index import KEY
from stages.dedup.verify import near_duplicates
from stages.dedup.words import ANY_NUMBER, WITH_SIGNS, Shingles, fingerprints, hashed_words, shares
from tests.support.documents import bytes_of, document, natural_document, repository, write_documents

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
    pages = [natural_document(text) for text in (essay("rivers"), essay("bread", "A page."), essay("clouds"))]
    write_documents(cleaned / "data/clean/web-natural.parquet", pages)
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


def test_natural_text_is_compared_with_all_that_stay_and_decides_about_none():
    sets = {name: np.arange(start, start + 20, dtype=np.uint64) for name, start in (("a", 0), ("z", 4), ("n", 2))}
    natural, others = [("n", sets["n"])], [("a", sets["a"]), ("z", sets["z"])]
    assert near_duplicates(natural, 0.8, others) == {"n": ("a", 0.8182)}
    assert near_duplicates(natural, 0.95, others) == {}


@pytest.mark.slow
def test_what_becomes_of_completions_is_the_same_with_natural_text(cleaned: Path):
    for path in Path("data/clean").glob("*.parquet"):
        path.unlink()
    first, second, third, last = chain()  # neighbours are near duplicates, the ends are none
    write_documents(Path("data/clean/web-blogpost.parquet"), [first])
    write_documents(Path("data/clean/wikihow-article.parquet"), [last])
    repository(cleaned, "dedup")
    line = main()
    before, metrics = bytes_of(Path("data/dedup")), read_yaml(cleaned / "metrics/dedup.json")
    assert kept_ids() == {first["completion_id"], last["completion_id"]}
    texts = [second["text"], third["text"], first["text"].upper(), essay("glass")]
    write_documents(Path("data/clean/web-natural.parquet"), [natural_document(text) for text in texts])
    assert main() == f"{line}; web-natural 1 of 4"
    after = bytes_of(Path("data/dedup"))
    assert {name: after[name] for name in before if "removed" not in name}.items() <= before.items()
    assert sorted(reason for reason, _ in removed().values()) == ["exact", "near", "near"]
    assert {evidence["kept"] for _, evidence in removed().values()} == {first["completion_id"]}
    counts = read_yaml(cleaned / "metrics/dedup.json")
    assert counts["cells"].pop("web-natural")["rate"] == 0.75
    assert counts == metrics  # the rate, its goal and the candidates are the completions'


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


def shingles(text: str, n: int = 5) -> Shingles:
    return Shingles.of(hashed_words(pa.chunked_array([[text]])), n)


def extract_share(text: str, extract: str, n: int = 5) -> float:
    own, quoted = shingles(text, n), shingles(extract, n)
    return float(shares(own.hashes, own.bounds, quoted.hashes, quoted.bounds)[0])


@settings(max_examples=100, deadline=None)
@given(st.lists(st.tuples(*[st.lists(st.integers(0, 9), max_size=40)] * 2), max_size=5))
def test_the_share_of_an_extract_is_that_of_sets(texts: list[tuple[list[int], list[int]]]):
    sides = []
    for side in (0, 1):
        values = [np.array([draw_u64(1, value) for value in text[side]], np.uint64) for text in texts]
        sides += [np.concatenate([np.empty(0, np.uint64), *values]), np.cumsum([0, *map(len, values)])]
    wanted = [len({*own} & {*other}) / len({*own}) if own and other else np.nan for own, other in texts]
    np.testing.assert_array_equal(shares(*sides), wanted)


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
    share = extract_share(half, essay("glass"))
    assert 0.2 < share < 0.4
    repository(cleaned, "dedup", max_extract_copy=share)  # a document of exactly so much stays
    assert main().endswith(", 1 copies of their extracts")
    assert removed()["a0-0"] == ("copy", {"share": 1.0})
    assert "a1-0" in kept_ids()
    assert read_yaml(cleaned / "metrics/dedup.json")["cells"]["openstax-college"]["rate"] == 0.0


KEYS = st.lists(st.tuples(st.integers(0, 9), st.integers(0, 14)), max_size=40)


@pytest.mark.slow
@settings(max_examples=40, deadline=None)
@given(KEYS, st.integers(1, 4))
def test_clusters_are_those_of_datatrove(keys: list[tuple[int, int]], files: int):
    """Documents with an equal key are joined, however the keys are spread over files."""
    rows = np.array(keys, KEY)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "pairs").mkdir()
        (folder / "buckets").mkdir()
        for number in range(files):
            joined = pairs(rows[rows["key"] % files == number])
            np.save(folder / f"pairs/{number:05d}.npy", joined)
            theirs = np.stack([np.zeros_like(joined), joined], axis=2).astype("<u4")  # (task, document) twice
            (folder / f"buckets/{number:05d}_00.dups").write_bytes(theirs.tobytes())
        Clusters(folder / "pairs", folder / "clusters.npy", 1 << 40).run()
        config = MinhashConfig(num_buckets=files)
        MinhashDedupCluster(str(folder / "buckets"), str(folder / "out"), config, save_cluster_id=True).run()
        groups: dict[int, set] = {}
        for path in (folder / "out").glob("*.clusters"):
            for document, cluster in np.fromfile(path, np.dtype("<u4,<u4")).tolist():
                groups.setdefault(cluster, set()).add(document)
        found = np.load(folder / "clusters.npy").tolist()
    assert sorted(map(sorted, groups.values())) == [
        [document for document, first, _ in found if first == cluster] for cluster in sorted({c for _, c, _ in found})
    ]
    assert found == sorted(found) and all(first <= document for document, first, _ in found)
    assert all(chain == first for _, first, chain in found)  # there is no natural text


def hashed(word: str) -> int:
    value = 0
    for character in word:
        value = (value * int(GOLDEN) + ord(character)) % 2**64
    return int(mix64(np.array([value], np.uint64))[0])


TEXTS = st.text(max_size=80) | st.text("ab\u0301 12\u0663.,-+%\u00bd\u2460\u6708\u0e51", max_size=40)


@pytest.mark.parametrize("form", [WITH_SIGNS, ANY_NUMBER], ids=lambda form: form.name)
@settings(max_examples=200, deadline=None)
@given(text=TEXTS)
def test_compiled_words_are_those_of_python(form: Normalisation, text: str):
    found = word_hashes([text, "x"], form)
    assert found.words.tolist() == [hashed(word) for word in [*form.words(text), "x"]]


@settings(max_examples=60, deadline=None)
@given(st.text("abcXYZ 0189!?\n", max_size=80))
def test_in_plain_text_the_words_of_candidates_are_those_of_datatrove(text: str):
    assert ANY_NUMBER.words(text) == simplify_text(text).split()


def alike(first: str, second: str, n: int = 5) -> float:
    return jaccard(shingles(first, n).distinct()[0], shingles(second, n).distinct()[0])


def same(*texts: str) -> bool:
    column = pa.chunked_array([[*texts]])
    return len(np.unique(fingerprints(column, hashed_words(column)), axis=0)) == 1


def test_likeness():
    assert same("Caf\u00e9  au lait\n", "cafe\u0301 AU lait", "Cafe au lait.")
    assert not same("a b c", "a b d") and not same("a b c", "a bc") and not same("a b", "b a")
    assert same("?! ?", " ?!  ?") and not same("?!", "?") and not same("", "?")
    assert not same("What is 12 + 7?", "What is 12 - 7?") and not same("Add 3", "Add 4")
    assert alike("one two three four five", "one two three four five six") == 0.5
    assert alike("a b", "c d") == 1.0
    assert alike("Take 3 of the 5 apples", "Take 4 of the 5 apples") == 0.0


def test_a_clause_of_a_script_without_spaces_is_compared_by_the_character():
    text = "月亮绕着地球转。"
    assert extract_share(text, f"以下{text}以下") == 1.0 and len(shingles(text).hashes) == 3


def write_cell(cell: str, texts: list[str]) -> None:
    rows = [document(text=text, completion_id=f"{cell}-{n:03d}") for n, text in enumerate(texts)]
    write_documents(Path(f"data/clean/{cell}.parquet"), rows)


def worksheet(number: int) -> str:
    lines = [
        f"{line}. Tom has {draw_u64(number, line) % 90} apples and buys {draw_u64(line, number) % 90} more; how many?"
        for line in range(1, 21)
    ]
    return "Answer every question.\n" + "\n".join(lines)


@pytest.mark.slow
def test_numbers_distinguish_the_worksheets_of_cells_where_they_count(empty_folder: Path):
    write_cell("automathtext-college", [worksheet(number) for number in range(50)])
    repository(empty_folder, "dedup")
    main()
    assert read_yaml(Path("metrics/dedup.json"))["removed"] == {}
    write_cell("web-blogpost", [worksheet(number) for number in range(100, 150)])
    for counting, kept in ((["web-blogpost"], 51), (["automathtext", "web"], 100), ([], 1)):
        repository(empty_folder, "dedup", numbers_count=counting)
        main()
        assert read_yaml(Path("metrics/dedup.json"))["rows_kept"] == kept
    assert all(evidence["jaccard"] < 0.7 for _, evidence in removed().values())  # of the texts, numbers included
    repository(empty_folder, "dedup", numbers_count=[], min_jaccard=0.8)
    main()
    assert read_yaml(Path("metrics/dedup.json"))["near"]["spared"] == 99


@pytest.mark.slow
def test_short_documents_are_duplicates_when_their_words_are_the_same(empty_folder: Path):
    texts = ["Water boils.", "water boils", "Water boils!", "Water boils 5.", "Water boils 6.", "Boils water."]
    write_cell("web-blogpost", [*texts, "...", "...", "?!", "12 + 7 = ?", "12 - 7 = ?"])
    repository(empty_folder, "dedup")
    main()
    names = {"web-blogpost-001", "web-blogpost-002", "web-blogpost-007"}
    assert {name: reason for name, (reason, _) in removed().items()} == dict.fromkeys(names, "exact")


def test_a_sketch_that_is_too_long_is_refused(empty_folder: Path):
    repository(empty_folder, "dedup", buckets=5000)
    with pytest.raises(ConfigError, match="buckets times hashes is at most 32768, found 40000"):
        main()


def test_a_misspelt_source_in_numbers_count_is_named(empty_folder: Path):
    repository(empty_folder, "dedup", numbers_count=["automathtext", "kahnacademy-textbook"])
    with Path("params.yaml").open("a", encoding="utf-8") as stream:
        stream.write("sources: {reading: {}, automathtext: {}, khanacademy: {}}\n")
    with pytest.raises(
        ConfigError, match=r"'kahnacademy-textbook' is neither .* the sources: automathtext, khanacademy"
    ):
        main()
