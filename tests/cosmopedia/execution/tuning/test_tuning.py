"""cosmo tune: what wins is kept, minutes are not exceeded, a killed search goes on, texts change only if allowed."""

import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from cosmopedia.core.errors import ConfigError
from cosmopedia.execution import servers
from cosmopedia.execution.compute import Compute, load_compute
from cosmopedia.execution.tuning.knobs import Knob, current, fillable, knobs, option, with_settings, write
from cosmopedia.execution.tuning.search import Journal, Search, Trial
from cosmopedia.store.store import CompletionStore
from tests.support.command_line import cosmo
from tests.support.prompt_rows import write_model, write_prompts, write_settings

ROOT = Path(__file__).parents[4]
BATCH, INSTANCES = Knob("batch_size", (8, 16, 32), 1), Knob("instances", (1, 2), 1)
CACHING = Knob("--enable-prefix-caching", (True, False), 2)


def serving_of(name: str) -> Any:
    return Compute.model_validate(yaml.safe_load((ROOT / f"compute/{name}.yaml").read_text())).serving


class Machine:
    """Speeds by a formula; counts what was tried."""

    def __init__(self, journal: Journal, minutes: float = 1.0):
        self.tried: list[dict[str, Any]] = []
        self.minutes, self.journal = minutes, journal

    def __call__(self, settings: Any, left: float) -> Trial:
        self.tried.append(dict(settings))
        speed = {8: 100.0, 16: 140.0, 32: 120.0}[settings["batch_size"]] * settings.get("instances", 1) ** 0.5
        speed *= 1.01 if settings.get("--enable-prefix-caching") else 1.0  # less than noise
        return Trial(dict(settings), speed, self.minutes)


def search(journal: Journal, minutes: float = 100.0, each: float = 1.0) -> tuple[Search, Machine]:
    machine = Machine(journal, each)
    return Search(journal, machine, minutes, lambda _: None), machine


def test_each_tier_begins_from_what_won_and_noise_wins_nothing(tmp_path: Path) -> None:
    one, machine = search(Journal(tmp_path / "j.json"))
    start = {"batch_size": 32, "instances": 1}
    assert one.best([CACHING, BATCH, INSTANCES], start) == {"batch_size": 16, "instances": 2}
    assert machine.tried[0] == start and machine.tried[-2] == start, "the settings in use are measured, and once more"
    assert [t["batch_size"] for t in machine.tried[1:3]] == [8, 16]
    assert machine.tried[4] == {"batch_size": 16, "instances": 2, "--enable-prefix-caching": True}, "second tier last"


def test_a_search_that_was_killed_repeats_no_trial_and_counts_its_minutes(tmp_path: Path) -> None:
    path = tmp_path / "j.json"
    journal = Journal(path)
    journal.note(0.5)  # killed in its first trial
    assert Journal.read(path).minutes == 0.5
    first, machine = search(Journal.read(path), minutes=2.0)
    first.best([BATCH], {"batch_size": 32})
    assert len(machine.tried) == 2, "0.5 and two trials of 1: none is begun beyond 2"
    second, machine = search(Journal.read(path))
    assert second.best([BATCH], {"batch_size": 32}) == {"batch_size": 16}
    assert machine.tried == [{"batch_size": 16}, {"batch_size": 32}, {"batch_size": 16}]


def test_what_wins_once_and_loses_the_second_time_is_not_kept(tmp_path: Path) -> None:
    speeds = iter([100.0, 110.0, 100.0, 88.0])  # in use, the other; both again

    def measure(settings: Any, left: float) -> Trial:
        return Trial(dict(settings), next(speeds), 1.0)

    one = Search(Journal(tmp_path / "j.json"), measure, 100.0, lambda _: None)
    assert one.best([Knob("batch_size", (16,), 1)], {"batch_size": 32}) == {"batch_size": 32}


def test_a_batch_that_the_requests_of_a_trial_cannot_fill_is_not_tried() -> None:
    kept, (sentence,) = fillable([BATCH, INSTANCES], 16)
    assert [knob.values for knob in kept] == [(8, 16), (1, 2)]
    assert sentence == "batch_size 32: not tried with 16 requests; --requests takes more"
    assert fillable([BATCH, CACHING], 32) == ([BATCH, CACHING], [])


def test_settings_get_into_the_compute_file_with_its_comments(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    text = (ROOT / "compute/slurm-h100-vllm.yaml").read_text()
    path.write_text(text)
    serving = serving_of("slurm-h100-vllm")
    settings = {"gpus": 4, "concurrency": 1024, "--max-num-batched-tokens": 8192, "--enable-prefix-caching": False}
    changed = write(path, serving, settings)
    assert set(changed) == {"serving.gpus", "serving.slurm.gpus", "serving.concurrency", "serving.arguments"}
    after = path.read_text()
    lines = {line for line in after.splitlines() if line not in text.splitlines()}
    assert lines == {
        "  gpus: 4 # of one instance: Mixtral in bf16 needs two H100s of 80 GB",
        "  concurrency: 1024 # requests in flight at one instance, in its batch or waiting",
        "    gpus: 4",
        '  arguments: ["--gpu-memory-utilization=0.92", --no-enable-prefix-caching, --max-num-batched-tokens=8192]',
    }
    written = Compute.model_validate(yaml.safe_load(after)).serving
    assert with_settings(serving, settings, one=False) == written
    assert write(path, written, settings) == {}, "nothing to change the second time"
    cpu = serving_of("slurm-cpu")
    assert with_settings(cpu, {"batch_size": 64}).concurrency >= 80, "more requests than slots, so that none waits"
    caching = next(knob for knob in knobs(written) if knob.name == "--enable-prefix-caching")
    assert current(written, caching) is False


@pytest.mark.parametrize(("name", "engine"), [("slurm-h100", "tgi-3.3.7"), ("slurm-h100-vllm", "vllm-0.32.0")])
def test_engines_know_the_options_that_are_tried(name: str, engine: str) -> None:
    known = (ROOT / f"tests/support/engines/{engine}.txt").read_text()
    for knob in knobs(serving_of(name)):
        for value in knob.values if knob.name.startswith("--") else ():
            assert f"\n{option(knob.name, value).partition('=')[0]} " in known
    assert {knob.tier for knob in knobs(serving_of(name)) if knob.changes_text} == {2}


def test_servers_of_others_are_not_tuned() -> None:
    with pytest.raises(ConfigError, match="started by others"):
        knobs(serving_of("endpoints"))


@pytest.mark.slow
def test_the_command_finds_the_fastest_flags_of_a_server_and_writes_them(
    empty_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from stages.pilot.cosmo_tune import app

    write_model(empty_folder)
    write_prompts(empty_folder, {"web-blogpost": 40})
    write_settings(empty_folder, [], **{"pilot.per_cell": 40})
    compute = empty_folder / "compute/local.yaml"
    compute.write_text(compute.read_text().replace("batch_size: 64", "batch_size: 32"))
    monkeypatch.setattr(servers, "CPU_SERVER", (sys.executable, "-m", "tests.support.flag_stub"))
    monkeypatch.setattr("os.cpu_count", lambda: 1)
    printed = cosmo(app, "--minutes", "3", "--requests", "64")
    assert "batch_size 16: " in printed and "written to compute/local.yaml: serving.batch_size" in printed
    assert "out of memory" in printed or "the server ended" in printed
    assert load_compute().serving.batch_size == 16
    with CompletionStore() as store:
        assert store.contents().completions == 40, "the pilot's own requests are paid for once"
