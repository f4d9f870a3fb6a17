"""topics: decisions follow their clusters through new clusterings, and what a clustering changed is named."""

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import yaml

from cosmopedia.core.errors import ConfigError
from cosmopedia.corpus.vectors import table_of_vectors
from cosmopedia.tables.contracts import ASSIGNMENT, CENTROID, EMBEDDING, LABEL, REJECTED, SOURCE, TOPIC, TOPIC_OF_ROW
from cosmopedia.tables.parquet import read_table, write_table
from stages.topics import __main__ as topics
from stages.topics import proposals
from stages.topics.cosmo_topics import app
from tests.support.command_line import cosmo

PARAMS = {"min_agreement": 0.95, "min_keyword_matches": 3, "min_score": 4, "unscored": "keep"}
HEAD = "# What a person wrote.\n"
HAND = {"topic": "Cooking", "decision": "keep", "reason": "How-to.", "labels": ["Food"], "keywords": ["salt"]}
SIZE = 40


def blobs(groups: int, spread: float = 0.12, dimensions: int = 48, related: int = 1) -> np.ndarray:
    """Unit vectors around as many directions, in the order of the groups; `related` ones are near to each other."""
    draw = np.random.default_rng(5)
    directions = np.linalg.qr(draw.normal(size=(dimensions, groups)))[0].T
    if related > 1:
        directions = 0.5 * directions + np.repeat(directions[::related], related, axis=0)
    centres = np.repeat(directions, SIZE, axis=0)
    vectors = centres + draw.normal(size=centres.shape) * spread
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


def write_clustering(vectors: np.ndarray, clusters: np.ndarray, labels: dict[int, tuple[str, int]]) -> None:
    """What the stages before topics would have written."""
    ids = [f"web/{n:05d}" for n in range(len(vectors))]
    write_table(
        "data/embed/vectors.parquet", table_of_vectors(pa.chunked_array([ids]), vectors).to_pylist(), EMBEDDING
    )
    numbers = range(int(clusters.max()) + 1)
    centroids = np.stack([vectors[clusters == n].mean(axis=0) for n in numbers])
    centroids /= np.linalg.norm(centroids, axis=1, keepdims=True)
    rows = [
        {"row_id": row_id, "cluster": int(c), "in_sample": True, "x": 0.0, "y": 0.0}
        | {"similarity": float(vector @ centroids[c]) if c >= 0 else 0.0}
        for row_id, c, vector in zip(ids, clusters, vectors, strict=True)
    ]
    write_table("data/cluster/assignments.parquet", rows, ASSIGNMENT)
    sizes = [int((clusters == n).sum()) for n in numbers]
    listed = [{"cluster": n, "size": sizes[n], "centroid": centroids[n].tolist()} for n in numbers]
    write_table("data/cluster/centroids.parquet", listed, CENTROID)
    named = []
    for n in numbers:
        label, score = labels.get(n, (f"Topic {n}", 7))
        members = [row_id for row_id, c in zip(ids, clusters, strict=True) if c == n]
        row = {"cluster": n, "size": sizes[n], "label": label, "label_source": "model", "topic": label, "answer": ""}
        more = {
            "educational_score": score,
            "scores": [score],
            "draws": 1,
            "keywords": ["pan"],
            "examples": members[:4],
        }
        named.append(row | more)
    write_table("data/label/labels.parquet", named, LABEL)
    fixed = {"source": "web", "title": "", "context": "{}", "url": None, "licence": "CC0-1.0", "revision": "r"}
    texts = [{"row_id": i, "original_id": i, "text": f"The text\nof {i} " + "on and on " * 50, **fixed} for i in ids]
    write_table("data/sources/web.parquet", texts, SOURCE)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    for name in ("profiles", "curation"):
        Path(name).mkdir()
    Path("dvc.yaml").write_text("")
    Path("profiles/tiny.yaml").write_text("{}\n")
    Path("params.yaml").write_text(yaml.safe_dump({"profile": "tiny", "topics": PARAMS}))
    Path("curation/topics.yaml").write_text(HEAD + yaml.safe_dump({"topics": [HAND]}, sort_keys=False))
    return tmp_path


def decisions() -> dict[str, tuple[str, str, str]]:
    rows = read_table("data/topics/topics.parquet", TOPIC).to_pylist()
    return {row["label"]: (row["topic"], row["decision"], row["decided_by"]) for row in rows}


def kept_rows() -> set[str]:
    return set(read_table("data/topics/web.parquet", TOPIC_OF_ROW)["row_id"].to_pylist())


def metrics() -> dict:
    return json.loads(Path("metrics/topics.json").read_text())


def edit(name: str, /, **changes: object) -> None:
    path = Path("curation/topics.yaml")
    content = yaml.safe_load(path.read_text())
    next(entry for entry in content["topics"] if entry["topic"] == name).update(changes)
    path.write_text(yaml.safe_dump(content))


def test_what_is_proposed_is_edited_by_a_person_and_then_followed(folder: Path) -> None:
    vectors, groups = blobs(3), np.repeat([0, 1, 2], SIZE)
    write_clustering(vectors, groups, {0: ("Stars", 8), 1: ("Sales", 2), 2: ("Food", 5)})
    before = Path("curation/topics.yaml").read_text()
    shown = json.loads(cosmo(app, "propose", "--dry-run", "--json"))
    assert Path("curation/topics.yaml").read_text() == before and not Path("curation/clusters.jsonl").exists()
    assert cosmo(app, "propose").splitlines()[-1].startswith("2 entries written")
    assert Path("curation/topics.yaml").read_text().startswith(HEAD)
    hand, stars, sales = yaml.safe_load(Path("curation/topics.yaml").read_text())["topics"]
    assert [stars, sales] == shown["entries"] and len(hand.pop("clusters")) == 1 and hand == HAND
    assert (stars["topic"], stars["decision"], stars["score"], stars["keywords"]) == ("Stars", "keep", 8, ["pan"])
    assert sales["decision"] == "drop" and "educational score 2, below 4" in sales["reason"]
    assert len(stars["examples"]) == 3 and stars["examples"][0].startswith("The text of web/00000 on and on")
    assert json.loads(cosmo(app, "propose", "--json"))["entries"] == []

    edit("Sales", topic="Shopping", decision="keep")
    edit("Stars", decision="drop")
    write_clustering(vectors, (groups + 1) % 3, {0: ("Gemüse", 1), 1: ("Shops", 1), 2: ("Food", 9)})
    topics.main()
    assert decisions() == {
        "Gemüse": ("Cooking", "keep", "cluster"),
        "Shops": ("Stars", "drop", "cluster"),
        "Food": ("Shopping", "keep", "cluster"),
    }
    assert metrics()["labels_contradicted"] == 1


def test_splits_merges_losses_and_new_clusters_are_named_and_no_row_changes_sides(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    vectors, groups = blobs(5), np.repeat([0, 1, 2, 3, 4], SIZE)
    known = groups < 4
    labels = {0: ("Stars", 8), 1: ("Sales", 2), 2: ("Soups", 5), 3: ("Songs", 6)}
    write_clustering(vectors[known], groups[known], labels)
    proposals.propose(write=True)
    topics.main()
    first = kept_rows()
    assert len(first) == 3 * SIZE

    # the first is split, the second and third are one, the fourth is noise, the fifth new
    halves = np.arange(SIZE) % 2
    again = np.concatenate([halves, np.repeat([2, 2, -1, 3], SIZE)])
    write_clustering(vectors, again, {0: ("Suns", 8), 1: ("Moons", 8), 2: ("Soup Sales", 3), 3: ("Sand", 6)})
    topics.main()
    changed = metrics()
    assert [(row["topic"], row["clusters"]) for row in changed["splits"]] == [("Stars", ["0 (Suns)", "1 (Moons)"])]
    merge = {"cluster": "2 (Soup Sales)", "topics": ["Sales", "Soups"], "mixed": True}
    assert changed["merges"] == [merge] and changed["new"] == ["3 (Sand)"]
    assert {row["topic"]: row["now_in"] for row in changed["lost"]}["Songs"] is None
    assert {"Cooking", "Songs"} <= set(changed["without_cluster"])
    output = capsys.readouterr().out
    assert "Stars is split: 0 (Suns), 1 (Moons)" in output and "Songs lost its cluster" in output
    ids = np.array([f"web/{n:05d}" for n in range(len(vectors))])
    stay = set(ids[groups < 3])
    assert kept_rows() & stay == first & stay  # also in the merged cluster
    removed = read_table("data/topics/removed.parquet", REJECTED).to_pylist()
    assert {row["detail"].partition(":")[0] for row in removed if row["reason"] == "dropped_topic"} == {"Sales"}


@pytest.mark.slow
def test_decisions_of_at_most_two_rows_in_a_hundred_change_with_the_clustering(folder: Path) -> None:
    from sklearn.cluster import KMeans

    vectors = blobs(30, related=3)  # k-means merges and splits some of them, others with another seed
    drop = {n: (f"Topic {n}", 2 if n % 4 == 0 else 8) for n in range(40)}
    runs = []
    for seed, count in ((1, 28), (2, 31)):
        clusters = KMeans(count, random_state=seed, n_init=1).fit(vectors).labels_
        write_clustering(vectors, np.asarray(clusters), drop if not runs else {})
        if not runs:
            proposals.propose(write=True)
        topics.main()
        runs.append(kept_rows())
    assert metrics()["splits"] and metrics()["lost"]
    assert 0.1 < len(runs[0]) / len(vectors) < 0.9
    assert len(runs[0] ^ runs[1]) <= 0.02 * len(vectors)


def test_contradictions_about_clusters_are_errors(folder: Path) -> None:
    write_clustering(blobs(2), np.repeat([0, 1], SIZE), {0: ("Stars", 8), 1: ("Sales", 2)})
    proposals.propose(write=True)
    reviewed = Path("curation/clusters.jsonl").read_text()
    taken = yaml.safe_load(Path("curation/topics.yaml").read_text())["topics"][1]["clusters"]
    edit("Sales", clusters=taken)
    with pytest.raises(ConfigError, match=r"the cluster \w+ is under 'Stars' \(keep\) and under 'Sales' \(drop\)"):
        topics.main()
    edit("Sales", clusters=["0badc0de"])
    with pytest.raises(ConfigError, match=r"'Sales' names the cluster 0badc0de, which curation/clusters.jsonl lacks"):
        topics.main()
    edit("Sales", clusters=[])
    Path("curation/clusters.jsonl").write_text(reviewed.replace('"centroid": "', '"centroid": "AAAA'))
    with pytest.raises(ConfigError, match=r"clusters.jsonl:1: .* restore the file with git"):
        topics.main()
    Path("curation/clusters.jsonl").write_text(reviewed)
    write_clustering(blobs(2, dimensions=16), np.repeat([0, 1], SIZE), {})
    with pytest.raises(ConfigError, match=r"centroids of 48 numbers, and embed.model gives 16"):
        topics.main()
