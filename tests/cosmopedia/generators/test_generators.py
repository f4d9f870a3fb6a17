"""`cosmo generators`: the same prompts side by side, failures and thoughts counted, a profile written."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml

from cosmopedia.core.errors import ConfigError, DataError
from cosmopedia.execution.rates import write_rate
from cosmopedia.generators.choice import choose, known
from cosmopedia.tables.contracts import FAILED, THOUGHT
from cosmopedia.tables.parquet import write_table
from stages.pilot import cosmo_generators
from tests.support.command_line import cosmo
from tests.support.documents import document, write_documents
from tests.support.prompt_rows import write_settings

ROOT = Path(__file__).parents[3]
REFUSAL = "I'm sorry, but I cannot write this article for you."
KEYS = json.dumps(["large", "r2", None])
PROMPT = document()["prompt"]


def row(number: int, text: str, model: str, **more: object) -> dict[str, Any]:
    return document(
        text=text, completion_id=f"{number:032x}-0", model=model, model_revision="r2", text_token_length=10, **more
    )


@pytest.fixture
def two(empty_folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """a: 20 texts; b: 15 of the same prompts, of which 5 are refused, 3 failed, and 2 that a has not tried."""
    monkeypatch.setattr("cosmopedia.cli.checkout._started", empty_folder)
    write_settings(empty_folder, ["http://127.0.0.1:9"])
    texts = [f"Bees number {n} dance at {n + 7} flowers, and the hive learns of meadow {n}." for n in range(50)]
    mine = [row(n, texts[n], "small") for n in range(20)]
    write_documents(empty_folder / "a/data/generate/web-blogpost.parquet", mine)
    others = {n: REFUSAL if n < 5 else texts[n + 5] for n in (*range(15), 40, 41)}
    rows = [row(n, text, "large", prompt="Another." if n == 6 else PROMPT) for n, text in others.items()]
    write_documents(empty_folder / "b/data/generate/web-blogpost.parquet", rows)
    failures = [failed(15, "truncated_thought"), failed(16, "truncated_thought"), failed(17, "empty")]
    write_table(empty_folder / "b/data/generate/failed/failed.parquet", failures, FAILED)
    thoughts = [{"completion_id": f"{n:032x}-0", "thought": "Hm.", "thought_tokens": 4} for n in (1, 2, 40)]
    write_table(empty_folder / "b/data/generate/thoughts/web-blogpost.parquet", thoughts, THOUGHT)
    return empty_folder


def failed(number: int, reason: str) -> dict[str, Any]:
    ids = {"completion_id": f"{number:032x}-0", "prompt_id": f"{number:032x}", "key": "0"}
    return {**ids, "reason": reason, "detail": "", "attempts": 1}


def compared(*words: object) -> dict[str, Any]:
    return json.loads(cosmo(cosmo_generators.app, "compare", *words, "--json"))


def test_only_prompts_that_all_have_tried_are_compared_and_failures_count(two: Path) -> None:
    figures = {"unsupported_share": {"share": 0.25, "low": 0.1, "high": 0.4}, "documents": 15, "name": "x"}
    measured = {"cells": {"web-blogpost": figures}}
    (two / "b/metrics").mkdir()
    (two / "b/metrics/faithful.json").write_text(json.dumps(measured))
    report = compared("a", "b")
    assert report["prompts"] == 18 and report["reworded"] == 1
    cell = report["cells"]["web-blogpost"]
    assert (cell["a"]["refused_share"], cell["b"]["refused_share"]) == (0, pytest.approx(5 / 15))
    assert cell["b"]["failed_share"] == pytest.approx(3 / 18) and cell["a"]["failed_share"] == 0
    assert cell["b"]["failed_by_reason"] == {"empty": 1, "truncated_thought": 2}
    assert (cell["b"]["thoughts"], cell["b"]["thought_tokens"]) == (2, 8), "40 is none of the shared prompts"
    assert {k: v for k, v in cell["b"].items() if "." in k} == {
        "faithful.unsupported_share": 0.25,
        "faithful.documents": 15,
    }
    assert cell["a"]["median_words"] == 14
    assert any("thoughts that were cut, each a failure: b 2" in note for note in report["notes"])
    assert any("1 of 18 prompts are not worded alike" in note for note in report["notes"])
    assert any(note.startswith("trained scores are not compared: a holds no") for note in report["notes"])


def test_hours_and_money_of_a_billion_tokens_come_from_the_measured_rate(two: Path) -> None:
    rate = {"tokens_per_second": 500.0, "gpus": 2, "saturated": True}
    write_rate(two / ".store/rates.json", f"local {KEYS}", rate)
    compute = yaml.safe_load((two / "compute/local.yaml").read_text())
    (two / "compute/local.yaml").write_text(yaml.safe_dump({**compute, "price_per_gpu_hour": 3.0}))
    costs = compared("a", "b")["costs"]
    hours = 1e9 / 500 / 3600 * 2
    assert costs["b"]["hours_per_billion"] == pytest.approx(hours)
    assert costs["b"]["money_per_billion"] == pytest.approx(3 * hours)
    assert costs["a"]["hours_per_billion"] is None, "no rate of it is known"


def test_the_table_marks_what_is_beyond_the_pilots_thresholds_and_markdown_has_the_same(two: Path) -> None:
    table = cosmo(cosmo_generators.app, "compare", "a", "b")
    line = next(line for line in table.splitlines() if line.split()[:1] == ["b"] and "%" in line)
    assert "17%!" in line and "33%!" in line
    page = cosmo(cosmo_generators.app, "compare", "a", "b", "--markdown")
    assert "| web-blogpost | a | 18 |" in page and "|  | b | 18 |" in page


def test_sides_without_a_prompt_in_common_are_refused(two: Path) -> None:
    shutil.rmtree(two / "b/data/generate/failed")
    write_documents(two / "b/data/generate/web-blogpost.parquet", [row(99, REFUSAL, "large")])
    with pytest.raises(DataError, match="have no prompt in common"):
        compared("a", "b")
    with pytest.raises(ConfigError, match="two or more different sides"):
        compared("a", "a")


def test_a_generator_is_written_into_the_profile_and_a_pin_of_its_own_stays(tmp_path: Path) -> None:
    text = (ROOT / "profiles/cluster.yaml").read_text()
    profile = tmp_path / "cluster.yaml"
    profile.write_text(text)
    changes = choose("qwen3_8b", profile)
    assert changes["generator.model"] == ("mistralai/Mixtral-8x7B-Instruct-v0.1", "Qwen/Qwen3-8B")
    after = profile.read_text()
    assert len(after.splitlines()) == len(text.splitlines()) and after.count("null") == text.count("null")
    assert sum(one != two for one, two in zip(text.splitlines(), after.splitlines(), strict=True)) == len(changes)
    profile.write_text(after.replace("revision: main", f"revision: {'a' * 40}"))
    assert choose("qwen3_8b", profile) == {} and "a" * 40 in profile.read_text()
    with pytest.raises(ConfigError, match="'gpt' is no generator of profiles/generators/; there are: llama3"):
        choose("gpt", profile)


def test_no_generator_of_the_repository_has_an_invented_commit() -> None:
    values = [one.values for one in known().values()]
    assert len(values) >= 5 and {one["generator.revision"] for one in values} <= {"main", None}
