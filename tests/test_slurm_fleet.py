"""A fleet of servers on a real Slurm: whatever dies, every prompt is completed once and no job is left."""

import contextlib
import os
import signal
import stat
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import yaml
from prompt_rows import ROOT, write_model, write_prompts, write_settings
from slurm_cluster import SlurmCluster, slurm  # noqa: F401  (the fixture)

from stages.errors import ClusterError, ConfigError
from stages.launch import slurm as commands
from stages.launch.servers import SlurmFleet, end_fleet, known_fleets
from stages.tables.contracts import DOCUMENT
from stages.tables.parquet import read_table

pytestmark = pytest.mark.slow

DRIVER = """
import sys
from contextlib import nullcontext
from stages.errors import run_stage
from stages.launch import servers
from stages.serving import balancing, generation
servers.LOOK_SECONDS, balancing.MEMBER_SECONDS = 0.3, 0.2
generation._mlflow = lambda *_: nullcontext()
from importlib import import_module
run_stage(sys.argv[1], import_module(f"stages.{sys.argv[1]}").main)
"""


@pytest.fixture
def folder(empty_folder: Path, slurm: SlurmCluster, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:  # noqa: F811
    """A small repository whose servers are jobs that run the fake server in the CPU server's place."""
    write_model(empty_folder)
    write_prompts(empty_folder, {"web-blogpost": 150, "wikihow-wikihow": 50})
    template = (ROOT / "clusters/templates/server.sh.j2").read_text()
    assert "-m stages.serving.cpu_server" in template
    (empty_folder / "clusters/templates").mkdir(parents=True)
    changed = template.replace("-m stages.serving.cpu_server", str(ROOT / "tests/fake_tgi.py"))
    (empty_folder / "clusters/templates/server.sh.j2").write_text(changed)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("COSMO_NODE_ADDRESS", "127.0.0.1")
    monkeypatch.setenv("FAKE_TGI_LOG", str(empty_folder / "asked.jsonl"))
    monkeypatch.setenv("FAKE_TGI_DELAY", "0.2")
    settings(empty_folder)
    yield empty_folder
    for job in slurm.jobs():
        with contextlib.suppress(RuntimeError):
            slurm.run("scancel", job.id.partition("_")[0])
    slurm.wait_empty(30)


def settings(folder: Path, **changes: object) -> None:
    write_settings(
        folder,
        [],
        **{
            "serving.launcher": "slurm",
            "serving.slurm": {"time": "10", "cpus": 2},  # a node each
            "serving.instances": {"min": 2, "max": 2},
            "serving.idle_minutes": 1.0,
            "serving.startup_timeout_s": 20,
            "serving.restarts": 2,
            **{f"serving.{name}": value for name, value in changes.items()},
        },
    )


def start(stage: str = "generate") -> "subprocess.Popen[str]":
    pipe = subprocess.PIPE
    return subprocess.Popen([sys.executable, "-c", DRIVER, stage], stdout=pipe, stderr=pipe, text=True)


def wait_until(condition: Callable[[], object], seconds: float = 40.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited too long"
        time.sleep(0.05)


def asked(folder: Path) -> Counter[str]:
    path = folder / "asked.jsonl"
    return Counter(path.read_text().splitlines()) if path.exists() else Counter()


def running(cluster: SlurmCluster) -> list[str]:
    return [job.id for job in cluster.jobs() if job.state == "RUNNING"]


def assert_whole(process: "subprocess.Popen[str]", rows: int = 200) -> str:
    """The driver ended well and every prompt has its one text."""
    out, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    found = [r for p in sorted(Path("data/generate").glob("*.parquet")) for r in read_table(p, DOCUMENT).to_pylist()]
    assert len(found) == rows and all(row["text"].startswith("Text ") for row in found)
    return out + err


def test_servers_are_jobs_and_none_is_left(folder: Path, slurm: SlurmCluster) -> None:  # noqa: F811
    process = start()
    wait_until(lambda: len(running(slurm)) == 2)
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


def test_one_fleet_serves_pilot_and_generate(folder: Path, slurm: SlurmCluster) -> None:  # noqa: F811
    pilot = start("pilot")
    assert pilot.wait(60) == 0
    jobs = sorted(running(slurm))
    assert len(jobs) == 2
    process = start()
    said = assert_whole(process)
    assert "2 job(s) of cosmo-" in said and "adopted" in said
    assert slurm.jobs() == []
    numbers = [int(path.stem) for path in Path(".store/fleets").glob("*/logs/*.log")]
    assert sorted(map(str, numbers)) == jobs  # no other job was ever started


def test_a_node_that_dies_costs_nothing_but_time(folder: Path, slurm: SlurmCluster) -> None:  # noqa: F811
    write_prompts(folder, {"web-blogpost": 550})
    settings(folder, startup_timeout_s=60)
    process = start()
    wait_until(lambda: len(asked(folder)) > 40 and len(running(slurm)) == 2)
    victim = next(job.node for job in slurm.jobs() if job.state == "RUNNING")
    slurm.kill_node(int(victim[1:]))
    try:
        assert_whole(process, 600)
    finally:
        slurm.restart_node(int(victim[1:]))
    slurm.wait_empty(30)
    slurm.wait_idle()


def test_a_requeued_job_is_used_again_at_its_new_address(folder: Path, slurm: SlurmCluster) -> None:  # noqa: F811
    write_prompts(folder, {"web-blogpost": 650})
    settings(folder, instances=1)
    process = start()
    wait_until(lambda: len(asked(folder)) > 20)
    (job,) = running(slurm)
    slurm.run("scontrol", "requeue", job)
    wait_until(lambda: list(Path(".store/fleets").glob(f"*/servers/{job}.1.json")))
    said = assert_whole(process, 700)
    assert "restart" not in said and slurm.jobs() == []
    assert max(asked(folder).values()) <= 2  # what was in flight at the requeue is asked again, and nothing else


def test_a_killed_driver_comes_back_to_its_servers(folder: Path, slurm: SlurmCluster) -> None:  # noqa: F811
    process = start()
    wait_until(lambda: len(asked(folder)) > 40 and len(running(slurm)) == 2)
    jobs = running(slurm)
    process.kill()
    process.communicate()
    assert running(slurm) == jobs
    said = assert_whole(start())
    assert "2 job(s) of cosmo-" in said and slurm.jobs() == []


def test_servers_end_when_no_driver_comes_back(folder: Path, slurm: SlurmCluster) -> None:  # noqa: F811
    settings(folder, idle_minutes=0.05)
    process = start()
    wait_until(lambda: len(asked(folder)) > 10)
    process.kill()
    process.communicate()
    slurm.wait_empty(60)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_every_job(number: signal.Signals, folder: Path, slurm: SlurmCluster) -> None:  # noqa: F811
    process = start()
    wait_until(lambda: len(asked(folder)) > 10)
    process.send_signal(number)
    assert process.wait(60) == 130
    assert slurm.jobs() == []


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
    slurm: SlurmCluster,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv(variable, "1")
    settings(folder, instances=1, restarts=1, startup_timeout_s=3)
    process = start()
    _, err = process.communicate(timeout=90)
    assert process.returncode == ClusterError.status
    assert said in err and "that was the last of 1 restarts an instance" in err
    assert slurm.jobs() == []


def test_the_fleet_grows_with_the_work_and_shrinks_at_its_end(
    folder: Path,
    slurm: SlurmCluster,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("FAKE_TGI_SLOW", "web fact 549.")
    write_prompts(folder, {"web-blogpost": 550, "wikihow-wikihow": 0})
    settings(folder, instances={"min": 1, "max": 3}, concurrency=16, request_timeout_s=60)
    most, seen = 0, []
    process = start()

    def watch() -> None:
        while process.poll() is None:
            seen.append(len(running(slurm)))
            time.sleep(0.1)

    thread = threading.Thread(target=watch)
    thread.start()
    assert_whole(process, 550)
    thread.join()
    most = max(seen)
    assert most == 3 and 1 in seen[seen.index(3) :], seen
    assert max(asked(folder).values()) == 1


def test_two_drivers_share_a_fleet_and_the_last_one_ends_it(folder: Path, slurm: SlurmCluster) -> None:  # noqa: F811
    pilot = start("pilot")
    pilot.wait(60)
    first = start()
    wait_until(lambda: len(asked(folder)) > 60)
    (name,) = known_fleets()
    lease = folder / ".store/fleets" / name / "drivers" / "other-1"
    lease.touch()
    assert_whole(first)
    assert len(running(slurm)) == 2  # somebody else lives on it
    lease.unlink()
    assert sorted(end_fleet(name)) and slurm.jobs() == []


def test_a_template_that_does_not_render_is_named(folder: Path, slurm: SlurmCluster) -> None:  # noqa: F811
    path = folder / "clusters/templates/server.sh.j2"
    path.write_text(path.read_text() + "{{ nonsense }}")
    process = start()
    _, err = process.communicate(timeout=60)
    assert process.returncode == ConfigError.status and "server.sh.j2: 'nonsense' is undefined" in err
    assert slurm.jobs() == []


def test_names_and_paths_reach_the_shell_as_they_are(folder: Path, slurm: SlurmCluster) -> None:  # noqa: F811
    content = yaml.safe_load((folder / "clusters/local.yaml").read_text())
    content["serving"] |= {"engine": "vllm", "arguments": ["--x=$(touch pwned) 'a' \"b\"; echo"]}
    from stages.clusters import Serving

    serving = Serving.model_validate(content["serving"])
    model, quantisation = "org/we$(touch pwned)ird 'name'", "fp8; rm -rf x"
    fleet = SlurmFleet("generate", folder / "a b", model, "main", 400, quantisation, serving)
    script = fleet.script().replace("exec  vllm", "exec printf '%s\\n'")
    body = script[script.index("serve()") : script.index("export -f")] + "serve"
    variables = {**os.environ, "PORT": "1", "COSMO_SERVING_KEY": "k"}
    shown = subprocess.run(["bash", "-c", body], capture_output=True, text=True, env=variables, check=True).stdout
    assert model in shown.splitlines() and quantisation in shown.splitlines()
    assert "--x=$(touch pwned) 'a' \"b\"; echo" in shown.splitlines()
    assert not Path("pwned").exists()


def test_a_controller_that_is_away_is_said_clearly(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(commands, "TRIES", 1)
    with monkeypatch.context() as patch:
        patch.setenv("PATH", "/nowhere")
        with pytest.raises(ClusterError, match="squeue is not on the PATH"):
            commands.queue("x")
