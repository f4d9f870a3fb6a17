"""`cosmo plan`: from prompts to GPU hours, days and disk."""

import json
from pathlib import Path

import pytest

from cosmopedia.cli.plan import H100, MIXTRAL, PUBLISHED, app, estimate, roofline
from tests.support.command_line import cosmo


def test_the_planner_turns_prompts_into_gpu_hours() -> None:
    costs = estimate(30_000_000, 833, 64, PUBLISHED)
    assert costs["tokens"] == 24_990_000_000
    article = costs["rates"][0]
    assert round(article["gpu_hours"]) == 10_002 and round(article["days"], 1) == 6.5
    speed, batch = roofline(MIXTRAL, H100, 2, 816.5)
    assert batch == 472 and speed == pytest.approx(10_987, rel=1e-3)
    assert roofline(MIXTRAL, H100, 1, 800) == (0.0, 0)  # the weights alone do not fit


def test_it_prints_a_table_for_people_and_json_for_scripts(empty_folder: Path) -> None:
    printed = cosmo(app, "--gpus", 64)
    assert "25.0 billion tokens" in printed and "10,002" in printed and "6.5" in printed
    (empty_folder / ".store").mkdir()
    rate = {"tokens_per_second": 3000.0, "gpus": 2, "measured": "2026-01-02T00:00:00Z"}
    (empty_folder / ".store/rates.json").write_text(json.dumps({"local model": rate}))
    costs = json.loads(cosmo(app, "--rate", 1000, "--json"))
    speeds = {rate["name"]: rate["tokens_per_second_gpu"] for rate in costs["rates"]}
    assert speeds["yours"] == 1000 and speeds["local model"] == 1500
    assert sum(costs["disk_bytes"].values()) == pytest.approx(342e9, rel=1e-2)
