"""A fleet of servers on a real Slurm: whatever dies, every prompt is completed once and no job is left."""

import contextlib
import json
import os
import re
import signal
import socket
import stat
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import yaml

from cosmopedia.core.errors import ClusterError, ConfigError
from cosmopedia.execution.compute import GpuJobs
from cosmopedia.execution.slurm import commands
from cosmopedia.execution.slurm.fleet import COMES_BACK, SlurmFleet, end_fleet, known_fleets
from cosmopedia.execution.slurm.server_job import claim
from cosmopedia.generation.complete import GenerationModel
from cosmopedia.tables.contracts import DOCUMENT
from cosmopedia.tables.parquet import read_table
from tests.support.prompt_rows import ROOT, write_model, write_prompts, write_settings
from tests.support.slurm_cluster import SlurmCluster, slurm  # noqa: F401  (the fixture)

pytestmark = pytest.mark.slow
SOON = 240.0  # seconds; a limit for what takes a few on a free machine
LAST = r"fact 0\."  # a prompt that waits, so that the run does not end before the test has seen what it waits for

DRIVER = """
import sys
from contextlib import nullcontext
from cosmopedia.execution.stage_process import run_stage
from cosmopedia.execution.slurm import fleet
from cosmopedia.execution.client import endpoints
from cosmopedia.execution import sending
fleet.LOOK_SECONDS = 0.3
endpoints.MEMBER_SECONDS = 0.2
sending._mlflow = lambda *_: nullcontext()
from importlib import import_module
run_stage(sys.argv[1], import_module(f"stages.{sys.argv[1]}.__main__").main)
"""


@pytest.fixture
def folder(empty_folder: Path, slurm: SlurmCluster, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A small repository whose servers are jobs that run the fake server instead of the CPU server."""
    write_model(empty_folder)
    write_prompts(empty_folder, {"web-blogpost": 150, "wikihow-wikihow": 50})
    template = (ROOT / "compute/templates/server.sh.j2").read_text()
    assert "-m cosmopedia.cpu_server.app" in template
    (empty_folder / "compute/templates").mkdir(parents=True)
    changed = template.replace("-m cosmopedia.cpu_server.app", str(ROOT / "tests/support/fake_tgi.py"))
    (empty_folder / "compute/templates/server.sh.j2").write_text(changed)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("COSMO_NODE_ADDRESS", "127.0.0.1")
    monkeypatch.setenv("FAKE_TGI_LOG", str(empty_folder / "asked.jsonl"))
    monkeypatch.setenv("FAKE_TGI_DELAY", "0.2")
    monkeypatch.setenv("FAKE_TGI_HOLDS", str(empty_folder / "holds"))
    settings(empty_folder)
    yield empty_folder
    for job in slurm.jobs():
        with contextlib.suppress(RuntimeError):
            slurm.run("scancel", job.id.partition("_")[0])
    slurm.wait_empty(SOON)


def settings(folder: Path, **changes: object) -> None:
    write_settings(
        folder,
        [],
        **{
            "serving.launcher": "slurm",
            "serving.slurm": {"time": "10", "cpus": 2},  # one node each
            "serving.instances": {"min": 2, "max": 2},
            "serving.idle_minutes": 5.0,
            "serving.startup_timeout_s": SOON,
            "serving.request_timeout_s": SOON,
            "serving.restarts": 2,
            **{f"serving.{name}": value for name, value in changes.items()},
        },
    )


def start(stage: str = "generate") -> "subprocess.Popen[str]":
    pipe = subprocess.PIPE
    return subprocess.Popen([sys.executable, "-c", DRIVER, stage], stdout=pipe, stderr=pipe, text=True)


def wait_until(condition: Callable[[], object]) -> None:
    end = time.monotonic() + SOON
    while not condition():
        assert time.monotonic() < end, "waited too long"
        time.sleep(0.05)


def hold(folder: Path, pattern: str) -> None:
    """Servers do not answer, from now on, prompts for which "<job> <prompt>" has a match."""
    (folder / "holds.draft").write_text(pattern)
    (folder / "holds.draft").replace(folder / "holds")


def release(folder: Path) -> None:
    (folder / "holds").unlink()


def asked(folder: Path) -> Counter[str]:
    path = folder / "asked.jsonl"
    return Counter(path.read_text().splitlines()) if path.exists() else Counter()


def running(cluster: SlurmCluster) -> list[str]:
    return [job.id for job in cluster.jobs() if job.state == "RUNNING"]


def assert_whole(process: "subprocess.Popen[str]", rows: int = 200) -> str:
    """The driver ended well and every prompt has its one text."""
    out, err = process.communicate(timeout=SOON)
    assert process.returncode == 0, err
    found = [r for p in sorted(Path("data/generate").glob("*.parquet")) for r in read_table(p, DOCUMENT).to_pylist()]
    assert len(found) == rows and all(row["text"].startswith("Text ") for row in found)
    return out + err


def test_servers_are_jobs_and_none_is_left(folder: Path, slurm: SlurmCluster) -> None:
    hold(folder, LAST)
    process = start()
    wait_until(lambda: len(running(slurm)) == 2)
    release(folder)
    said = assert_whole(process)
    assert said.count("joined") >= 1 and "200 sent" in said
    assert slurm.jobs() == [] and max(asked(folder).values()) == 1
    (name,) = known_fleets()
    fleet = folder / ".store/fleets" / name
    key = (fleet / "key").read_text()
    assert stat.S_IMODE((fleet / "key").stat().st_mode) == 0o600 and stat.S_IMODE(fleet.stat().st_mode) == 0o700
    assert key not in (fleet / "server.sh").read_text()
    assert all(key not in log.read_text() for log in (fleet / "logs").glob("*.log"))
    assert list((fleet / "servers").glob("*.json")) == []


def test_one_fleet_serves_pilot_and_generate(folder: Path, slurm: SlurmCluster) -> None:
    pilot = start("pilot")
    assert pilot.wait(SOON) == 0
    jobs = sorted(running(slurm))
    assert len(jobs) == 2
    process = start()
    said = assert_whole(process)
    assert "2 job(s) of cosmo-" in said and "adopted" in said
    assert slurm.jobs() == []
    numbers = [int(path.stem) for path in Path(".store/fleets").glob("*/logs/*.log")]
    assert sorted(map(str, numbers)) == jobs  # no other job was ever started


def test_a_node_that_dies_costs_nothing_but_time(folder: Path, slurm: SlurmCluster) -> None:
    write_prompts(folder, {"web-blogpost": 550})
    hold(folder, LAST)
    process = start()
    wait_until(lambda: len(asked(folder)) > 40 and len(running(slurm)) == 2)
    victim = next(job.node for job in slurm.jobs() if job.state == "RUNNING")
    slurm.kill_node(int(victim[1:]))
    release(folder)
    try:
        assert_whole(process, 600)
    finally:
        slurm.restart_node(int(victim[1:]))
    slurm.wait_empty(SOON)
    slurm.wait_idle()


@pytest.mark.parametrize("requeued", [True, False])
def test_a_preempted_server_comes_back_and_costs_no_restart(requeued: bool, folder: Path, slurm: SlurmCluster) -> None:
    write_prompts(folder, {"web-blogpost": 250, "wikihow-wikihow": 0})
    extra = [] if requeued else ["--no-requeue"]
    settings(folder, restarts=0, slurm={"time": "10", "cpus": 2, "extra": extra})
    hold(folder, LAST)
    process = start()
    wait_until(lambda: len(asked(folder)) > 40 and len(running(slurm)) == 2)
    victim = next(job for job in slurm.jobs() if job.state == "RUNNING")
    hold(folder, f"^{victim.id} |{LAST}")
    wait_until((folder / f"holds.{victim.id}").exists)  # its next prompts are in flight
    (servers,) = Path(".store/fleets").glob("*/servers")
    stale = (servers / f"{victim.id}.0.json").read_text()
    options = ("--partition=urgent", f"--nodelist={victim.node}", "--cpus-per-task=2", "--output=/dev/null")
    urgent = slurm.run("sbatch", "--parsable", *options, stdin="#!/bin/bash\nsleep 1000\n").strip()
    wait_until(lambda: urgent in running(slurm))
    hold(folder, LAST)
    (servers / f"{victim.id}.0.json").write_text(stale)  # as a node leaves it behind when it loses power

    def back() -> bool:
        """Whether the job's next server, or the next job's, is in use, and the one that is gone is not."""
        assert process.poll() is None
        found = [json.loads(path.read_text()) for path in servers.glob("*.json")]
        new = {server["url"] for server in found if server["restart"] == 1 or int(server["job"]) > int(urgent)}
        told = json.loads(Path(".store/runs/generate.status.json").read_text())
        used = {endpoint["url"] for endpoint in told["endpoints"]}
        return len(new) == 1 and new < used and json.loads(stale)["url"] not in used | set(told["waiting_for"])

    wait_until(back)
    release(folder)
    said = assert_whole(process, 250)
    assert ("it is submitted again" in said) is not requeued
    again = sum(asked(folder).values()) - 250
    assert again <= 8, again  # serving.concurrency: what was in flight at the victim
    slurm.run("scancel", urgent)
    slurm.wait_empty(SOON)


def test_a_killed_driver_comes_back_to_its_servers(folder: Path, slurm: SlurmCluster) -> None:
    hold(folder, LAST)
    process = start()
    wait_until(lambda: len(asked(folder)) > 40 and len(running(slurm)) == 2)
    jobs = running(slurm)
    process.kill()
    process.communicate()
    assert running(slurm) == jobs
    release(folder)
    said = assert_whole(start())
    assert "2 job(s) of cosmo-" in said and slurm.jobs() == []


def test_servers_end_when_no_driver_comes_back(folder: Path, slurm: SlurmCluster) -> None:
    settings(folder, idle_minutes=0.1)
    hold(folder, LAST)
    process = start()
    wait_until(lambda: len(asked(folder)) > 10)
    process.kill()
    process.communicate()
    slurm.wait_empty(SOON)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_every_job(number: signal.Signals, folder: Path, slurm: SlurmCluster) -> None:
    hold(folder, LAST)
    process = start()
    wait_until(lambda: len(asked(folder)) > 10)
    release(folder)
    process.send_signal(number)
    assert process.wait(SOON) == 130
    assert slurm.jobs() == []


def test_a_driver_that_comes_back_finds_its_servers(
    folder: Path,
    slurm: SlurmCluster,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv(COMES_BACK, str(folder / "back"))
    (folder / "back").touch()
    hold(folder, LAST)
    process = start()
    wait_until(lambda: len(asked(folder)) > 10 and len(running(slurm)) == 2)
    jobs = running(slurm)
    process.send_signal(signal.SIGINT)
    assert process.wait(SOON) == 130
    assert running(slurm) == jobs
    release(folder)
    assert "2 job(s) of cosmo-" in assert_whole(start()) and slurm.jobs() == []


def free_ports(count: int) -> int:
    """The first of so many consecutive free ports."""
    for first in range(20_000, 30_000, count):
        with contextlib.ExitStack() as stack, contextlib.suppress(OSError):
            for port in range(first, first + count):
                stack.enter_context(socket.socket()).bind(("", port))
            return first
    raise OSError("no free ports")


def test_two_servers_on_a_node_share_a_range_of_ports(folder: Path, slurm: SlurmCluster) -> None:
    write_prompts(folder, {"web-blogpost": 30, "wikihow-wikihow": 0})
    first = free_ports(2)
    one_node = {"time": "10", "cpus": 1, "extra": ["--nodelist=n1"]}
    settings(folder, slurm=one_node, ports={"first": first, "last": first + 1})
    hold(folder, LAST)
    process = start()

    def urls() -> list[str]:
        found = Path(".store/fleets").glob("*/servers/*.json")
        return sorted(json.loads(path.read_text())["url"] for path in found)

    wait_until(lambda: len(urls()) == 2)
    assert urls() == [f"http://127.0.0.1:{first}", f"http://127.0.0.1:{first + 1}"]
    assert {job.node for job in slurm.jobs()} == {"n1"}
    release(folder)
    assert_whole(process, 30)


def test_a_port_is_claimed_once_on_a_node() -> None:
    first = free_ports(2)
    one, two = claim(range(first, first + 2)), claim(range(first, first + 2))
    assert one and two and {one[0], two[0]} == {first, first + 1}
    assert claim(range(first, first + 2)) is None
    one[1].close()
    assert claim(range(first, first + 2)) is not None


def test_a_range_without_a_free_port_is_said_clearly(folder: Path, slurm: SlurmCluster) -> None:
    first = free_ports(1)
    settings(folder, instances=1, restarts=0, ports={"first": first, "last": first})
    with socket.socket() as taken:
        taken.bind(("", first))
        taken.listen()
        process = start()
        _, err = process.communicate(timeout=SOON)
    assert process.returncode == ClusterError.status and slurm.jobs() == []
    assert f"none of the ports {first} to {first} is free on" in err and "widen serving.ports" in err


@pytest.mark.parametrize(
    ("variable", "said"),
    [
        ("FAKE_TGI_DIES", "cannot load the weights: the fake was told to die"),
        ("FAKE_TGI_SLEEPS", "not healthy within"),
    ],
)
def test_a_server_that_never_comes_up_is_told_with_its_log(
    variable: str,
    said: str,
    folder: Path,
    slurm: SlurmCluster,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv(variable, "1")
    settings(folder, instances=1, restarts=1, startup_timeout_s=3)
    process = start()
    _, err = process.communicate(timeout=SOON)
    assert process.returncode == ClusterError.status
    assert said in err and "that was the last of 1 restarts per instance" in err
    assert slurm.jobs() == []


def test_the_fleet_grows_with_the_work_and_shrinks_at_its_end(folder: Path, slurm: SlurmCluster) -> None:
    write_prompts(folder, {"web-blogpost": 550, "wikihow-wikihow": 0})
    settings(folder, instances={"min": 1, "max": 3}, concurrency=16)
    hold(folder, "")  # all
    process = start()
    wait_until(lambda: len(list(folder.glob("holds.[0-9]*"))) == 3)  # three jobs have something to do
    jobs = running(slurm)
    assert len(jobs) == 3
    hold(folder, f"^{min(jobs, key=int)} ")  # 16 requests at the oldest, which goes last
    wait_until(lambda: len(slurm.jobs()) == 1)
    assert running(slurm) == [min(jobs, key=int)] and process.poll() is None
    release(folder)
    assert_whole(process, 550)
    assert max(asked(folder).values()) == 1 and slurm.jobs() == []


def test_two_drivers_share_a_fleet_and_the_last_one_ends_it(folder: Path, slurm: SlurmCluster) -> None:
    pilot = start("pilot")
    assert pilot.wait(SOON) == 0
    hold(folder, LAST)
    first = start()
    wait_until(lambda: len(asked(folder)) > 60)
    (name,) = known_fleets()
    lease = folder / ".store/fleets" / name / "drivers" / "other-1"
    lease.touch()
    os.utime(lease, (time.time() + SOON,) * 2)  # it stays fresh for the whole test
    release(folder)
    assert_whole(first)
    assert len(running(slurm)) == 2  # another driver uses it
    lease.unlink()
    assert sorted(end_fleet(name)) and slurm.jobs() == []


def test_a_cancelled_job_ends_the_run_with_its_name(folder: Path, slurm: SlurmCluster) -> None:
    """A person's scancel is not a failure to repair, whatever `restarts` says."""
    hold(folder, LAST)
    process = start()
    wait_until(lambda: len(asked(folder)) > 40 and len(running(slurm)) == 2)
    victim = min(running(slurm), key=int)
    slurm.run("scancel", victim)
    _, err = process.communicate(timeout=SOON)
    assert process.returncode == ClusterError.status
    assert f"job {victim} of cosmo-" in err and "was cancelled by scancel, `cosmo cluster reap` or an admin" in err
    assert "it is submitted again" not in err and slurm.jobs() == []


def test_a_fleet_that_stays_pending_says_why_and_since_when(folder: Path, slurm: SlurmCluster) -> None:
    settings(folder, slurm={"time": "10", "cpus": 2, "extra": ["--hold"]}, instances=1)
    process = start()
    status = Path(".store/runs/generate.status.json")
    wait_until(lambda: status.exists() and "JobHeldUser" in (json.loads(status.read_text())["expecting"] or ""))
    (job,) = slurm.jobs()
    assert re.fullmatch(
        rf"job {job.id} is pending since \d\d:\d\d \(\d min\): JobHeldUser \(held; scontrol release continues it\)",
        json.loads(status.read_text())["expecting"],
    )
    slurm.run("scontrol", "release", job.id)
    assert_whole(process)


def test_waiting_is_reported_after_a_minute_when_its_reason_changes_and_every_ten_minutes(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    now = 1000.0
    monkeypatch.setattr(commands.time, "monotonic", lambda: now)
    report = commands.PendingReport("generate")
    said = []
    for minute in range(24):
        now = 1000.0 + 61 * minute
        reason = "Priority" if minute < 4 else "Resources"
        report.look([commands.SlurmJob("7", "PENDING", "cosmo-x", "", reason, "2026-11-29T12:00:00", 0)])
        said.append(capsys.readouterr().err)
    assert [minute for minute, line in enumerate(said) if line] == [1, 4, 14]
    assert said[1].startswith("generate: job 7 is pending since ") and said[1].endswith("Priority\n")
    report.look([commands.SlurmJob("7", "RUNNING", "cosmo-x", "n1", "None", "", 0)])
    now += 10_000
    report.look([commands.SlurmJob("8", "PENDING", "cosmo-x", "", "Priority", "", 0)])
    assert capsys.readouterr().err == ""  # it waits only now


def test_a_template_that_does_not_render_is_named(folder: Path, slurm: SlurmCluster) -> None:
    path = folder / "compute/templates/server.sh.j2"
    path.write_text(path.read_text() + "{{ nonsense }}")
    process = start()
    _, err = process.communicate(timeout=SOON)
    assert process.returncode == ConfigError.status and "server.sh.j2: 'nonsense' is undefined" in err
    assert slurm.jobs() == []


@pytest.mark.parametrize(("engine", "option"), [("vllm", "--quantization"), ("tgi", "--quantize")])
def test_names_and_paths_reach_the_shell_as_they_are(folder: Path, engine: str, option: str) -> None:
    content = yaml.safe_load((ROOT / "compute/slurm-h100.yaml").read_text())["serving"]
    content |= {"engine": engine, "container": None, "arguments": ["--x=$(touch pwned) 'a' \"b\"; echo"]}
    name, quantisation = "org/we$(touch pwned)ird 'name'", "fp8; rm -rf x"
    model = GenerationModel(folder / "a b", name, "main", quantisation, 400, name, "main")
    script = SlurmFleet("generate", model, GpuJobs.model_validate(content)).script()
    command = {"vllm": "vllm", "tgi": "text-generation-launcher"}[engine]
    script = script.replace(f"exec  {command}", "exec printf '%s\\n'")
    body = script[script.index("serve()") : script.index("export -f")] + "serve"
    variables = {
        **os.environ,
        "PORT": "1",
        "COSMO_SERVING_KEY": "k",
        "COSMO_SECOND_PORT": "2",
        "COSMO_THIRD_PORT": "3",
    }
    shown = subprocess.run(["bash", "-c", body], capture_output=True, text=True, env=variables, check=True).stdout
    words = shown.splitlines()
    assert name in words and words[words.index(option) + 1] == quantisation
    assert "--x=$(touch pwned) 'a' \"b\"; echo" in words
    assert not Path("pwned").exists()


def test_no_path_is_too_odd_and_no_token_is_written_down(
    folder: Path,
    slurm: SlurmCluster,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    write_prompts(folder, {"web-blogpost": 30, "wikihow-wikihow": 0})
    token = "hf_abcdefghijklmnopqrstuvwxyz"
    monkeypatch.setenv("HF_TOKEN", token)
    settings(folder, slurm={"time": "10", "cpus": 2, "extra": ['--comment=it\'s a "b" # $c']}, instances=1)
    odd = folder / 'it\'s a "b" $(touch pwned) # 50%j'
    odd.mkdir()
    for name in ("compute", "data", "models", "params.yaml", "profiles"):
        (folder / name).rename(odd / name)
    monkeypatch.chdir(odd)
    hold(folder, LAST)
    process = start()
    wait_until(lambda: running(slurm))
    assert slurm.run("squeue", "--noheader", "--format=%k") == 'it\'s a "b" # $c\n'
    release(folder)
    said = assert_whole(process, 30)
    assert not list(folder.rglob("pwned")) and token not in said
    (log,) = (odd / ".store").glob("fleets/*/logs/*.log")
    assert "is healthy" in log.read_text()
    written = [path for path in (odd / ".store").rglob("*") if path.is_file()]
    assert any(path.name == "server.sh" for path in written)
    assert all(token.encode() not in path.read_bytes() for path in written)


def test_a_controller_that_is_away_is_said_clearly(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(commands, "TRIES", 1)
    with monkeypatch.context() as patch:
        patch.setenv("PATH", "/nowhere")
        with pytest.raises(ClusterError, match="squeue is not on the PATH"):
            commands.queue("x")
