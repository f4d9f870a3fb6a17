"""What is read from the tables of answers is what item_scores says of each row, summed over clusters."""

from pathlib import Path

import numpy as np
import pytest

from cosmopedia.core.errors import DataError
from cosmopedia.evaluation import readings
from cosmopedia.evaluation.arms import find
from cosmopedia.evaluation.comparison import check_arms
from cosmopedia.evaluation.effects import seed_scores
from cosmopedia.evaluation.item_scores import METRICS, item_scores
from cosmopedia.evaluation.readings import HELD_OUT, Scope
from cosmopedia.tables.contracts import DETAIL, HELDOUT
from cosmopedia.tables.parquet import read_table
from tests.support.answers import write_arm


def read(folder: Path, seeds: int) -> readings.Readings:
    files = folder / "data/evaluate"
    numbers = range(1, seeds + 1)
    return readings.read(
        folder.name,
        {seed: [files / f"seed-{seed}.parquet"] for seed in numbers},
        {seed: [path] for seed in numbers if (path := files / f"heldout-seed-{seed}.parquet").is_file()},
    )


def test_the_columns_agree_with_the_scores_of_each_item(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    table = read_table(write_arm(tmp_path, 1) / "data/evaluate/seed-1.parquet", DETAIL)
    rows = table.to_pylist()
    for row in rows[::2]:  # another number of choices, another right one, no leading space
        row["choices"], row["bytes"] = ["a", " bé", "c d", " e"], [1, 3, 3, 1]
        row["logprobs"], row["gold"] = [*map(float, rng.normal(-9, 3, 4))], int(rng.integers(4))
    table = table.from_pylist(rows, schema=table.schema)
    columns = readings.measures_of(table)
    for at, row in enumerate(rows):
        wanted = item_scores(row)
        assert [columns[name][at] for name in METRICS] == pytest.approx([wanted[name] for name in METRICS])


def test_scores_are_means_over_items_and_bits_over_bytes(tmp_path: Path) -> None:
    folder = write_arm(tmp_path, 2)
    scopes = readings.scopes(read(folder, 2), {"two": ["arc_easy", "piqa"], "three": ["arc_easy", "boolq", "piqa"]})
    rows = read_table(folder / "data/evaluate/seed-2.parquet", DETAIL).to_pylist()
    by_task = {
        task: np.mean([item_scores(row)["bpb"] for row in rows if row["task"] == task])
        for task in ("arc_easy", "mmlu", "piqa")
    }

    def score(kind: str, name: str, measure: str) -> float:
        return seed_scores(readings.parts(scopes[Scope(kind, name, measure)], measure))[1]

    assert [score("task", task, "bpb") for task in by_task] == pytest.approx(list(by_task.values()))
    wanted = (by_task["arc_easy"] + by_task["piqa"]) / 2
    assert score("panel", "two", "bpb") == pytest.approx(wanted)
    assert score("panel", "three (2 of 3)", "bpb") == pytest.approx(wanted)  # a panel that lacks a task says so
    documents = read_table(folder / "data/evaluate/heldout-seed-2.parquet", HELDOUT).to_pylist()
    stories = [row for row in documents if row["set"] == "stories"]
    bits = sum(row["nats"] for row in stories) / np.log(2) / sum(row["bytes"] for row in stories)
    assert score("held-out", "stories", HELD_OUT) == pytest.approx(bits)


def test_mmlu_is_clustered_by_subject_and_other_tasks_are_not(tmp_path: Path) -> None:
    tasks = read(write_arm(tmp_path, 1), 1).tasks
    assert tasks["mmlu"].sizes.tolist() == [4.0] * 5
    assert tasks["piqa"].sizes.tolist() == [1.0] * 20


def test_seeds_that_answered_other_items_are_refused(tmp_path: Path) -> None:
    folder = write_arm(tmp_path / "arm", 1)
    other = write_arm(tmp_path / "other", 2, items=57) / "data/evaluate/seed-2.parquet"
    other.rename(folder / "data/evaluate/seed-2.parquet")
    (tmp_path / "other/data/evaluate/heldout-seed-2.parquet").rename(folder / "data/evaluate/heldout-seed-2.parquet")
    with pytest.raises(DataError, match=r"arm seed 1 has 60 items and arm seed 2 57.*arc_easy/000057 is only in"):
        read(folder, 2)


def test_a_seeds_score_is_the_mean_over_its_checkpoints(tmp_path: Path) -> None:
    files = write_arm(tmp_path / "two", 1) / "data/evaluate"
    other = write_arm(tmp_path / "one", 1, draw=5) / "data/evaluate"
    for name in ("", "heldout-"):
        (files / f"{name}seed-1.parquet").rename(files / f"{name}seed-1-step-90.parquet")
        (files / f"{name}seed-1.parquet").write_bytes((other / f"{name}seed-1.parquet").read_bytes())
    arms = {name: find(name, tmp_path / name) for name in ("two", "one")}
    assert [path.name for path in arms["two"].answers[1]] == ["seed-1-step-90.parquet", "seed-1.parquet"]
    both = {name: readings.read(name, arm.answers, arm.held_out) for name, arm in arms.items()}
    single = read(write_arm(tmp_path / "first", 1), 1)  # what has become the earlier checkpoint
    for kind, task, measure in (("tasks", "piqa", "bpb"), ("sets", "stories", HELD_OUT)):
        sums = [getattr(one, kind)[task].sums[measure] for one in (single, both["one"], both["two"])]
        assert sums[2] == pytest.approx((sums[0] + sums[1]) / 2) and not np.allclose(sums[0], sums[1])
    with pytest.raises(DataError, match=r"two has 2 checkpoints per seed and one 1.*same train\.keep_last"):
        check_arms(both)
