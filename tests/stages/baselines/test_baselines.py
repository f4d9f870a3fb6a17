"""Baselines: other people's models are scored as our own are, on the same items."""

import json
from pathlib import Path

import pytest
import yaml

from cosmopedia.core.errors import ConfigError
from cosmopedia.evaluation.scoring import load_params, read_inputs
from stages.baselines.__main__ import main, next_to, settings, smaller
from stages.baselines.models import Baseline, Published, weights_of
from stages.evaluate.__main__ import main as evaluate
from tests.stages.evaluate.test_evaluate import repository, unrecorded  # noqa: F401  (fixtures)

PUBLISHED = {"source": "a table", "metric": "acc_norm", "scores": {"arc_easy and boolq": 0.5}}


def name_baselines(folder: Path, models: dict, max_items: int | None = None) -> None:
    path = folder / "profiles/tiny.yaml"
    section = {"max_items": max_items, "max_documents": None, "models": models}
    path.write_text(yaml.safe_dump(yaml.safe_load(path.read_text()) | {"baselines": section}))


def baseline(**changes: object) -> dict:
    return {"model": "./models/export/seed-0", "revision": None, "published": PUBLISHED} | changes


@pytest.mark.slow
def test_a_model_of_ours_named_as_a_baseline_has_evaluates_answers(unrecorded: Path):
    name_baselines(unrecorded, {"itself": baseline()})
    evaluate()
    main()
    for ours, theirs in (("seed-0", "itself"), ("heldout-seed-0", "heldout-itself")):
        wanted = (unrecorded / f"data/evaluate/{ours}.parquet").read_bytes()
        assert (unrecorded / f"data/baselines/{theirs}.parquet").read_bytes() == wanted
    scores = json.loads(Path("metrics/evaluate.json").read_text())
    found = json.loads(Path("metrics/baselines.json").read_text())["models"]["itself"]
    assert found["heldout"] == scores["heldout"]
    assert found["revision"].startswith("sha256:")
    mean = (scores["tasks"]["arc_easy"]["acc_norm"] + scores["tasks"]["boolq"]["acc_norm"]) / 2
    assert found["published"]["scores"]["arc_easy and boolq"]["ours"] == pytest.approx(mean, abs=1e-5)


def test_fewer_items_and_documents_are_some_of_evaluates(repository: Path):
    name_baselines(repository, {}, max_items=2)
    params = settings().model_copy(update={"max_documents": 1})
    whole, some = read_inputs(load_params()), read_inputs(smaller(load_params(), params))
    assert {task: len(items) for task, items in some.items.items()} == dict.fromkeys(whole.items, 2)
    assert all(item in whole.all_items for item in some.all_items)
    assert len(some.documents) == 2 and all(one in whole.documents for one in some.documents)


def test_without_models_the_tables_are_empty(repository: Path):
    name_baselines(repository, {})
    assert main() == "no models"
    assert json.loads(Path("metrics/baselines.json").read_text()) == {"models": {}}
    assert list(Path("data/baselines").iterdir()) == []


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        ("ours", {}, "ours: wanted a name"),
        ("a/b", {}, "wanted a name"),
        ("one", {"model": "org/name"}, r"baselines\.models\.one: org/name is taken for a hub id, which needs a revis"),
        ("one", {"model": "./nowhere"}, r"baselines\.models\.one: \./nowhere does not exist"),
        ("one", {"published": PUBLISHED | {"metric": "f1"}}, "one.published.metric: 'f1', wanted one of acc, acc_no"),
        ("one", {"published": PUBLISHED | {"scores": {"copa": 0.5}}}, "copa is in none of evaluate.panels"),
    ],
)
def test_what_cannot_be_scored_is_refused_by_its_key(repository: Path, name: str, changes: dict, message: str):
    name_baselines(repository, {name: baseline(**changes)})
    with pytest.raises(ConfigError, match=message):
        settings()


def test_a_hub_model_that_cannot_be_fetched_is_named(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    one = Baseline(model="org/no-such-model", revision="0" * 40, published=None)
    refused = pytest.raises(ConfigError, match=r"models\.one: org/no-such-model at 0{40} cannot be fetched")
    with refused, weights_of("baselines.models.one", one):
        pass


def test_a_published_mean_stands_next_to_our_mean_over_the_same_tasks():
    task = {"items": 4, **{f"acc_norm{end}": value for end, value in (("", 0.25), ("_stderr", 0.1))}}
    tasks = {"arc_easy": task, "boolq": task | {"acc_norm": 0.75}}
    found = next_to(Published(**PUBLISHED), tasks)["scores"]["arc_easy and boolq"]
    assert found == {"published": 0.5, "ours": 0.5, "stderr": pytest.approx(0.1 / 2**0.5), "items": 8}
