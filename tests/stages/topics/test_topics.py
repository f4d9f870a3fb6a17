"""topics: a decision for each cluster, a place for each row, and a curation file that cannot contradict itself."""

import json
from pathlib import Path

import pytest
import yaml

from cosmopedia.core.errors import ConfigError, DataError
from cosmopedia.core.lineage import hash_files
from cosmopedia.tables.contracts import ASSIGNMENT, LABEL, REJECTED, TOPIC, TOPIC_OF_ROW
from cosmopedia.tables.parquet import read_table, write_table
from stages.topics import __main__ as topics
from stages.topics.decisions import Entry, match, read_curation
from tests.support.prompt_rows import ROOT

ENTRIES = [
    {
        "topic": "Astronomy",
        "decision": "keep",
        "reason": "A science.",
        "labels": ["Space"],
        "keywords": ["moon", "planet", "orbit", "star"],
    },
    {
        "topic": "Gambling",
        "decision": "drop",
        "reason": "Invitations to bet.",
        "labels": [],
        "keywords": ["bet", "odds", "casino", "star"],
    },
]
PARAMS = {"min_agreement": 0.95, "min_keyword_matches": 2, "min_score": 4, "unscored": "keep"}
SIZES = {0: 5, 1: 4, 2: 3, 3: 2, 4: 1, -1: 2}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    for name in ("profiles", "curation"):
        Path(name).mkdir()
    Path("profiles/tiny.yaml").write_text("{}\n")
    Path("curation/topics.yaml").write_text(yaml.safe_dump({"topics": ENTRIES}))
    write_params()
    rows = [
        {"row_id": f"web/{n}-{c}", "cluster": c, "similarity": 0.5, "in_sample": False, "x": None, "y": None}
        for c, size in SIZES.items()
        for n in range(size)
    ]
    write_table("data/cluster/assignments.parquet", rows, ASSIGNMENT)
    labels = [
        label_row(0, "space", 9, ["rocket"]),
        label_row(1, "bet, odds, tables", None, ["bet", "odds", "tables"]),
        label_row(2, "Knitting", 6, ["wool"]),
        label_row(3, "Car Adverts", 2, ["price"]),
        label_row(4, "uns, kie, hum", None, ["uns"]),
    ]
    write_table("data/label/labels.parquet", labels, LABEL)
    return tmp_path


def write_params(**changes: object) -> None:
    Path("params.yaml").write_text(yaml.safe_dump({"profile": "tiny", "topics": {**PARAMS, **changes}}))


def label_row(cluster: int, name: str, score: int | None, keywords: list[str]) -> dict:
    return {
        "cluster": cluster,
        "size": SIZES[cluster],
        "label": name,
        "label_source": "keywords" if score is None else "model",
        "topic": None if score is None else name,
        "scores": [] if score is None else [score],
        "draws": 1,
        "educational_score": score,
        "keywords": keywords,
        "examples": [],
        "answer": "",
    }


def decisions() -> dict[int, tuple[str, str, str]]:
    rows = read_table("data/topics/topics.parquet", TOPIC).to_pylist()
    return {row["cluster"]: (row["topic"], row["decision"], row["decided_by"]) for row in rows}


def test_each_cluster_is_decided_and_each_row_is_accounted_for(folder: Path) -> None:
    assert topics.main() == (
        "3 topics kept, 2 dropped; 9 of 17 web rows kept; removed: 4 dropped_topic, 2 low_score, 2 noise"
    )
    assert decisions() == {
        0: ("Astronomy", "keep", "label"),
        1: ("Gambling", "drop", "keywords"),
        2: ("Knitting", "keep", "score"),
        3: ("Car Adverts", "drop", "score"),
        4: ("uns, kie, hum", "keep", "score"),
    }
    kept = read_table("data/topics/web.parquet", TOPIC_OF_ROW).to_pylist()
    removed = read_table("data/topics/removed.parquet", REJECTED).to_pylist()
    assert {row["topic"] for row in kept if row["cluster"] == 0} == {"Astronomy"}
    assert len(kept) + len(removed) == sum(SIZES.values())
    assert not {row["row_id"] for row in kept} & {row["row_id"] for row in removed}
    assert {(row["reason"], row["detail"]) for row in removed} == {
        ("dropped_topic", "Gambling: Invitations to bet."),
        ("low_score", "Car Adverts: not reviewed; educational score 2, below 4"),
        ("noise", "no cluster is similar enough"),
    }
    metrics = json.loads(Path("metrics/topics.json").read_text())
    assert metrics["rows_in"] == metrics["rows_kept"] + metrics["rows_removed"] == 17
    assert metrics["decided_by"] == {"cluster": 0, "label": 1, "keywords": 1, "score": 3}
    assert metrics["dropped"] == ["Car Adverts", "Gambling"]
    outputs = [*sorted(Path("data/topics").glob("*.parquet")), topics.MAP, topics.BARS]
    first = hash_files(outputs)
    topics.main()
    assert hash_files(outputs) == first


def test_unreviewed_clusters_follow_the_params(folder: Path) -> None:
    write_params(min_score=7, unscored="drop")
    topics.main()
    assert [decisions()[cluster][1] for cluster in (0, 2, 3, 4)] == ["keep", "drop", "drop", "drop"]
    reasons = {row["reason"] for row in read_table("data/topics/removed.parquet", REJECTED).to_pylist()}
    assert reasons == {"dropped_topic", "low_score", "noise", "unscored"}


def test_a_cluster_without_a_label_is_an_error(folder: Path) -> None:
    write_table("data/label/labels.parquet", [label_row(0, "space", 9, [])], LABEL)
    with pytest.raises(DataError, match=r"labels.parquet lacks cluster 1 of"):
        topics.main()


def found(label: str | None, keywords: list[str], least: int = 2) -> tuple[str, str, bool] | None:
    result = match([Entry.model_validate(entry) for entry in ENTRIES], label, keywords, least)
    return result and (result.entry.topic, result.by, result.contradicts_label)


def test_a_label_matches_whole_and_without_case() -> None:
    assert found("  SPACE ", []) == ("Astronomy", "label", False)
    assert found("Space Travel", []) is None
    assert found(None, ["Astronomy"]) is None


def test_keywords_match_when_they_are_enough_and_tell_one_entry_from_the_rest() -> None:
    assert found(None, ["moon", "orbit", "x"]) == ("Astronomy", "keywords", False)
    assert found(None, ["moon", "x"]) is None
    assert found(None, ["moon", "orbit", "bet", "odds"]) is None  # a tie
    assert found(None, ["moon", "orbit", "star", "bet"]) == ("Astronomy", "keywords", False)
    assert found(None, [*(f"x{n}" for n in range(20)), "moon", "orbit"]) is None  # only the best 20 count


def test_keywords_overrule_a_label_that_names_another_entry() -> None:
    assert found("Astronomy", ["bet", "odds", "casino"]) == ("Gambling", "keywords", True)
    assert found("Astronomy", ["moon", "orbit"]) == ("Astronomy", "label", False)
    assert found("Astronomy", ["moon", "orbit", "bet", "odds"]) == ("Astronomy", "label", False)
    assert found("Knitting", ["bet", "odds"]) == ("Gambling", "keywords", False)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"topic": "astronomy", "decision": "keep"}, "topic 'astronomy' is listed twice"),
        ({"topic": "Astronomy"}, "topic 'Astronomy' is listed both as keep and as drop"),
        ({"labels": ["space"]}, "the name 'space' is under 'Astronomy' and under 'Gambling'"),
        ({"topic": "Space"}, "the name 'space' is under 'Astronomy' and under 'Space'"),
        ({"labels": ["Astronomy"]}, "the name 'astronomy' is under 'Astronomy' and under 'Gambling'"),
        ({"decision": "maybe"}, r"entry 2 \(Gambling\).decision: .*'maybe'"),
        ({"reason": None}, r"entry 2 \(Gambling\).reason"),
        ({"reason": " "}, r"entry 2 \(Gambling\): topic and reason must say something"),
        ({"keywords": ["Black hole"]}, r"entry 2 \(Gambling\): keyword 'Black hole' can never match"),
        ({"keyword": ["bet"]}, r"entry 2 \(Gambling\).keyword is not a parameter"),
    ],
)
def test_a_curation_file_that_contradicts_itself_is_refused(folder: Path, change: dict, message: str) -> None:
    Path("curation/topics.yaml").write_text(yaml.safe_dump({"topics": [ENTRIES[0], {**ENTRIES[1], **change}]}))
    with pytest.raises(ConfigError, match=r"^curation/topics.yaml: " + message):
        topics.main()


def test_a_missing_key_and_a_file_of_another_shape_are_refused(folder: Path) -> None:
    path = Path("curation/topics.yaml")
    path.write_text(yaml.safe_dump({"topics": [{"topic": "Astronomy", "decision": "keep"}]}))
    with pytest.raises(ConfigError, match=r"entry 1 \(Astronomy\).reason is missing"):
        read_curation()
    path.write_text(yaml.safe_dump({"keep": ENTRIES}))
    with pytest.raises(ConfigError, match="wanted one key, topics"):
        read_curation()


def test_the_shipped_decisions_keep_subjects_and_drop_what_teaches_nothing() -> None:
    entries = read_curation(ROOT / "curation/topics.yaml")
    assert [entry.topic for entry in entries if entry.decision == "drop"] == [
        "Promotions",
        "Celebrity Gossip",
        "Gambling",
    ]
    assert sum(entry.decision == "keep" for entry in entries) == 15
    for entry in entries:
        result = match(entries, None, entry.keywords[:5], 3)
        assert result is not None and result.entry is entry
