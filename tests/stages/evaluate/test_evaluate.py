"""Evaluation: lighteval's scores are the ones a direct computation gives, for the weights that are there."""

import json
import os
import socket
import sqlite3
import subprocess
import tempfile
from pathlib import Path

import pytest
import yaml

from cosmopedia.errors import ConfigError, DataError
from cosmopedia.evaluation.item_scores import best, by_character
from cosmopedia.tables.contracts import BENCHMARK, DETAIL
from cosmopedia.tables.parquet import read_table, write_table
from stages.evaluate import lighteval_run
from stages.evaluate.items import read_items
from stages.evaluate.scores import average, over_seeds, summary
from tests.support.tiny_llama import write_model, write_tokenizer, write_training

ITEMS = {
    "arc_easy": [
        ("Question: What do plants take in?\nAnswer:", [" light", " soup", " iron filings", " sleep"], 0),
        ("Question: What is ice?\nAnswer:", [" a gas", " frozen water", " wood", " glass"], 1),
        ("Question: Which is a mammal?\nAnswer:", [" trout", " fern", " bat", " wasp"], 2),
        ("Question: What moves the tides?\nAnswer:", [" whales", " ships", " rain", " the moon"], 3),
    ],
    "boolq": [
        ("Venus is a planet.\nQuestion: is venus a planet?\nAnswer:", [" yes", " no"], 0),
        ("Salt is a mineral.\nQuestion: is salt a plant?\nAnswer:", [" yes", " no"], 1),
        ("Rome is in Italy.\nQuestion: is rome in spain?\nAnswer:", [" yes", " no"], 1),
    ],
    "hellaswag": [
        (
            "She fills the kettle and",
            [" waits for it to boil.", " eats it.", " paints the roof of a distant house."],
            0,
        ),
        ("He ties his shoes and then he", [" melts.", " goes for a run.", " is the number seven."], 1),
    ],
}


def rows(task: str) -> list[dict]:
    return [
        {
            "item_id": f"{task}/{i:06d}",
            "task": task,
            "group": None,
            "query": query,
            "choices": choices,
            "gold": gold,
            "question": query,
            "answer": choices[gold],
            "other_forms": [],
            "revision": "0",
        }
        for i, (query, choices, gold) in enumerate(ITEMS[task])
    ]


def direct_logprobs(folder: Path, item: dict) -> list[float]:
    """Log-probability of each choice as a continuation, one forward pass each, without lighteval."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder).eval(), AutoTokenizer.from_pretrained(folder)
    logprobs = []
    for choice in item["choices"]:
        query, answer = (tokenizer(text, add_special_tokens=False)["input_ids"] for text in (item["query"], choice))
        with torch.no_grad():
            scores = model(torch.tensor([query + answer])).logits[0].log_softmax(-1)
        logprobs.append(sum(scores[len(query) + i - 1, token].item() for i, token in enumerate(answer)))
    return logprobs


@pytest.fixture
def repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in ("DVC_ROOT", "DVC_EXP_NAME", "MLFLOW_TRACKING_URI"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "profiles").mkdir()
    (tmp_path / "params.yaml").write_text(
        yaml.safe_dump({"profile": "tiny", "evaluate": {"seed": 1, "tasks": [*ITEMS]}})
    )
    (tmp_path / "profiles/tiny.yaml").write_text(yaml.safe_dump({"evaluate": {"max_items": 3, "batch_size": 32}}))
    for task in ITEMS:
        write_table(tmp_path / f"data/benchmarks/{task}.parquet", rows(task), BENCHMARK)
    write_export(tmp_path / "models/export/seed-0", seed=0)
    return tmp_path


def write_export(folder: Path, seed: int) -> None:
    vocabulary = write_tokenizer(folder)
    write_model(folder, vocabulary, seed)
    write_training(folder, vocabulary)


@pytest.mark.slow
def test_scores_are_those_of_a_direct_computation_on_the_weights_that_are_there(repository: Path):
    import torch

    from stages.evaluate.__main__ import main

    by_seed = {}
    for seed in (0, 1):  # new weights at the same path: a cached answer would be the old model's
        write_export(repository / "models/export/seed-0", seed)
        main()
        details = read_table("data/evaluate/seed-0.parquet", DETAIL).to_pylist()
        metrics = json.loads(Path("metrics/evaluate.json").read_text())
        items = {row["item_id"]: row for task in ITEMS for row in rows(task)}
        assert [(t, sum(d["task"] == t for d in details)) for t in ITEMS] == [
            ("arc_easy", 3),
            ("boolq", 3),
            ("hellaswag", 2),
        ]
        for row in details:
            item = items[row["item_id"]]
            expected = direct_logprobs(repository / "models/export/seed-0", item)
            assert row["logprobs"] == pytest.approx(expected, abs=1e-3)
            assert row["correct"] == (best(expected) == item["gold"])
            assert row["correct_norm"] == (best(by_character(expected, item["choices"])) == item["gold"])
        for task in ITEMS:
            mine = [row for row in details if row["task"] == task]
            assert metrics["tasks"][task]["acc"] == pytest.approx(
                sum(r["correct"] for r in mine) / len(mine), rel=1e-5
            )
        by_seed[seed] = [row["logprobs"] for row in details]
    assert by_seed[0] != by_seed[1]
    assert torch.is_grad_enabled()

    with sqlite3.connect(repository / "mlflow.db") as database:
        assert database.execute("select status from runs").fetchall() == [("FINISHED",), ("FINISHED",)]
        recorded = dict(database.execute("select key, value from metrics"))
        assert recorded["average/acc_norm"] == pytest.approx(metrics["average"]["acc_norm"], rel=1e-5)
        assert ("evaluate.max_items", "3") in database.execute("select key, value from params").fetchall()
        tags = dict(database.execute("select key, value from tags"))
        assert tags["dataset_hash"] == "d" * 64 and "git_revision" in tags


def test_the_drawn_items_do_not_depend_on_the_order_of_the_table(repository: Path):
    ids = [row["item_id"] for row in read_items("arc_easy", seed=1, max_items=2)]
    fewer = [row for row in rows("arc_easy") if row["item_id"] in ids]
    write_table("data/benchmarks/arc_easy.parquet", fewer, BENCHMARK)
    assert len(ids) == 2 and [row["item_id"] for row in read_items("arc_easy", 1, 2)] == ids


def test_a_benchmark_without_wrong_answers_cannot_be_scored(repository: Path):
    alone = [row | {"choices": row["choices"][:1], "gold": 0} for row in rows("arc_easy")]
    write_table("data/benchmarks/gsm8k.parquet", alone, BENCHMARK)
    with pytest.raises(ConfigError, match=r"evaluate\.tasks: gsm8k cannot be scored"):
        read_items("gsm8k", seed=1, max_items=2)


def test_a_choice_without_text_is_named_before_anything_is_scored(repository: Path):
    bare = [row | {"choices": [*row["choices"], "  "]} for row in rows("arc_easy")]
    write_table("data/benchmarks/arc_easy.parquet", bare, BENCHMARK)
    with pytest.raises(DataError, match=r"arc_easy\.parquet: arc_easy/000000 has a choice without text"):
        read_items("arc_easy", seed=1, max_items=2)


def test_the_average_counts_every_task_the_same():
    answers = [{"correct": c, "correct_norm": True, "choices": ["a", "b"]} for c in (True, False, False, False)]
    large, small = summary(answers * 5), summary(answers[:2])
    assert (large["acc"], large["items"], large["chance"]) == (0.25, 20, 0.5)
    assert large["acc_stderr"] == pytest.approx((0.25 * 0.75 / 19) ** 0.5)
    both = average({"large": large, "small": small})
    assert both["acc"] == pytest.approx((0.25 + 0.5) / 2)
    assert both["acc_stderr"] == pytest.approx((large["acc_stderr"] ** 2 + small["acc_stderr"] ** 2) ** 0.5 / 2)
    assert both["acc_norm_stderr"] == 0


def test_scores_of_several_seeds_are_means_with_their_spread():
    def one(acc: float) -> dict:
        scores = {"acc": acc, "acc_stderr": 0.1, "acc_norm": acc + 0.1, "acc_norm_stderr": None, "chance": 0.25}
        return {"average": scores | {"items": 8}, "tasks": {"boolq": scores | {"items": 8}}}

    metrics = over_seeds({"1": one(0.2), "2": one(0.4)})
    mean = metrics["average"]
    assert mean["acc"] == pytest.approx(0.3) and mean["acc_sd"] == pytest.approx(0.02**0.5)
    assert mean["acc_stderr"] == pytest.approx(0.1) and mean["acc_norm_stderr"] is None
    assert metrics["tasks"]["boolq"]["items"] == 8 and metrics["seeds"]["2"]["acc_norm"] == pytest.approx(0.5)
    assert "acc_sd" not in over_seeds({"1": one(0.2)})["average"]


@pytest.mark.slow
def test_every_exported_seed_is_scored(repository: Path):
    from stages.evaluate.__main__ import main

    write_export(repository / "models/export/seed-1", seed=1)
    assert main().startswith("2 model(s)")
    assert sorted(path.name for path in Path("data/evaluate").iterdir()) == ["seed-0.parquet", "seed-1.parquet"]
    assert set(json.loads(Path("metrics/evaluate.json").read_text())["seeds"]) == {"0", "1"}


def test_the_folder_of_a_killed_process_is_removed_and_that_of_a_running_one_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    gone = subprocess.Popen(["true"])
    gone.wait()
    prefix = f"cosmopedia-lighteval-{socket.gethostname()}-"
    left, live, elsewhere = (
        tmp_path / name for name in (f"{prefix}{gone.pid}-x", f"{prefix}{os.getpid()}-y", "cosmopedia-lighteval-z")
    )
    for folder in (left, live, elsewhere):
        (folder / "datasets").mkdir(parents=True)
    with lighteval_run._scratch() as folder:
        assert not left.exists() and live.exists() and elsewhere.exists() and Path(folder).is_dir()
    assert not Path(folder).exists() and live.exists()


@pytest.mark.slow
def test_items_are_scored_in_an_order_that_no_process_changes(repository: Path, monkeypatch: pytest.MonkeyPatch):
    from lighteval.pipeline import Pipeline

    orders = []
    monkeypatch.setattr(Pipeline, "evaluate", lambda self: orders.extend(self.sampling_docs.values()))
    for tasks in (list(ITEMS), list(reversed(ITEMS))):
        with pytest.raises(Exception):  # noqa: B017  (nothing was scored)
            lighteval_run.run_lighteval(repository / "models/export/seed-0", {t: rows(t) for t in tasks}, 8)
    first, second = ([doc.specific["item_id"] for doc in docs] for docs in orders)
    assert first == second == sorted(first) and len(first) == sum(map(len, ITEMS.values()))
