"""What a server's job starts is what its engine documents, in every container; docker's ends with its job."""

import os
import signal
import stat
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cosmopedia.execution.compute import GpuJobs
from cosmopedia.execution.slurm import commands
from tests.support.engine_options import PROGRAMS, ROOT, calls, documented, fleet, serving, start, write_fakes
from tests.support.slurm_cluster import SlurmCluster, slurm  # noqa: F401  (the fixture)

DIGEST = "registry/image@sha256:" + "0" * 64
RUNTIMES = {
    "none": None,
    "pyxis": {"runtime": "pyxis", "image": "/x.sqsh", "mounts": ["/a:/b"]},
    "apptainer": {"runtime": "apptainer", "image": "/x.sif", "mounts": ["/a:/b"]},
    "docker": {"runtime": "docker", "image": DIGEST, "mounts": ["/a:/b"]},
}


@pytest.fixture
def folder(empty_folder: Path) -> Path:
    (empty_folder / "compute").mkdir()
    (empty_folder / "compute/templates").symlink_to(ROOT / "compute/templates")
    return empty_folder


def started(folder: Path, jobs: GpuJobs, quantisation: str | None = None) -> dict[str, Any]:
    """How the job's engine, or what it is put into, is called."""
    environment = write_fakes(folder) | {"SLURM_JOB_ID": "7", "SLURM_JOB_GPUS": "2,5", "CUDA_VISIBLE_DEVICES": "0,1"}
    process = start(fleet(jobs, quantisation).script(), environment)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 0, err
    (call,) = [call for call in calls(folder) if call["words"][:2] not in (["docker", "rm"], ["docker", "stop"])]
    return call


@pytest.mark.parametrize("runtime", RUNTIMES)
@pytest.mark.parametrize("engine", ["tgi", "vllm"])
def test_every_option_is_one_that_the_engine_documents(engine: str, runtime: str, folder: Path) -> None:
    """Every field of the compute file that makes an option is set, and so is the generator's quantisation."""
    call = started(folder, serving(engine, container=RUNTIMES[runtime]), "fp8")
    words, program = call["words"], PROGRAMS[engine]
    first = words.index(program[0])
    assert words[first : first + len(program)] == program
    rest = words[first + len(program) :]
    if engine == "vllm":
        assert rest.pop(0) == "org/name"
    options, given = documented(engine), {}
    while rest:
        name, equals, value = rest.pop(0).partition("=")
        assert name in options, f"{engine} has no option {name}"
        if options[name].takes_value:
            given[name] = value if equals else rest.pop(0)
            assert not options[name].values or given[name] in options[name].values
        else:
            assert not equals
    assert given[{"tgi": "--quantize", "vllm": "--quantization"}[engine]] == "fp8"
    assert given["--port"] == "8001" and given["--revision"] == "main"
    if engine == "tgi" and runtime != "docker":
        variables = {option.variable: option for option in options.values()}
        for name in ("API_KEY", "USAGE_STATS", "SHARD_UDS_PATH", "MASTER_PORT", "PROMETHEUS_PORT"):
            assert call["environment"][name] and name in variables
        assert call["environment"]["USAGE_STATS"] == "off"
    assert "the-key" not in words


OTHER = {  # every field of a section for TGI or vLLM: another value
    "engine": "vllm",
    "gpus": 4,
    "concurrency": 7,
    "arguments": ["--seed=1"],
    "environment": {"A": "1"},
    "ports": {"first": 40000, "last": 40009},
    "slurm": {"time": "7"},
    "container": RUNTIMES["pyxis"],
    "startup_timeout_s": 7.0,
    "idle_minutes": 7.0,
    "instances": 7,
    "restarts": 7,
    "tokens_per_second": 7.0,
    "request_timeout_s": 7.0,
    "attempts": 7,
    "max_failed_share": 0.7,
    "launcher": "slurm",
}
DRIVERS_OWN = {"instances", "restarts", "tokens_per_second", "request_timeout_s", "attempts", "max_failed_share"}
PATIENCE = {"startup_timeout_s", "idle_minutes"}  # in the script, but servers with others can be shared


@pytest.mark.parametrize("field", GpuJobs.model_fields)
def test_every_field_is_in_the_job_script_or_the_drivers_own(field: str, folder: Path) -> None:
    before, after = fleet(serving("tgi")), fleet(serving("tgi", **{field: OTHER[field]}))
    differs = before.script().replace(before.name, "") != after.script().replace(after.name, "")
    assert differs is (field not in DRIVERS_OWN and field != "launcher")
    assert (before.name != after.name) is (differs and field not in PATIENCE)


def test_another_template_is_another_fleet(folder: Path) -> None:
    before = fleet(serving("tgi")).name
    template = (ROOT / "compute/templates/server.sh.j2").read_text()
    (folder / "compute/templates").unlink()
    (folder / "compute/templates").mkdir()
    (folder / "compute/templates/server.sh.j2").write_text(template)
    assert fleet(serving("tgi")).name == before
    (folder / "compute/templates/server.sh.j2").write_text(template.replace("USAGE_STATS=off", "USAGE_STATS=on"))
    assert fleet(serving("tgi")).name != before


def test_docker_gets_the_jobs_gpus_by_their_numbers_on_the_node_a_name_and_no_secret(folder: Path) -> None:
    words = started(folder, serving("tgi", container=RUNTIMES["docker"]))["words"]
    run = words[: words.index(DIGEST)]
    assert run[:4] == ["docker", "run", "--rm", "--name"] and run[4] == "cosmo-7"
    assert run[run.index("--gpus") + 1] == '"device=2,5"'  # docker reads the value as a line of CSV
    passed = [run[at + 1] for at, word in enumerate(run) if word == "--env"]
    assert {"HF_TOKEN", "API_KEY", "USAGE_STATS"} < set(passed) and not any("=" in name for name in passed)
    assert calls(folder)[0]["words"] == ["docker", "rm", "--force", "cosmo-7"]


def test_docker_without_a_gpu_of_the_job_is_not_started(folder: Path) -> None:
    environment = write_fakes(folder) | {"SLURM_JOB_ID": "7", "SLURM_JOB_GPUS": "", "CUDA_VISIBLE_DEVICES": ""}
    process = start(fleet(serving("vllm", container=RUNTIMES["docker"])).script(), environment)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 1 and "Slurm gave this job no GPU" in err and calls(folder) == []


def test_dockers_own_failure_is_the_jobs(folder: Path) -> None:
    environment = write_fakes(folder) | {"SLURM_JOB_ID": "7", "SLURM_JOB_GPUS": "0", "FAKE_STATUS": "125"}
    process = start(fleet(serving("vllm", container=RUNTIMES["docker"])).script(), environment)
    assert process.wait(60) == 125


def wait_until(condition: Callable[[], object]) -> None:
    end = time.monotonic() + 120
    while not condition():
        assert time.monotonic() < end, "waited too long"
        time.sleep(0.05)


def stopped(folder: Path) -> list[list[str]]:
    return [call["words"] for call in calls(folder) if call["words"][1] == "stop"]


def test_a_signal_to_the_job_stops_dockers_container(folder: Path) -> None:
    environment = write_fakes(folder) | {"SLURM_JOB_ID": "7", "SLURM_JOB_GPUS": "0", "FAKE_RUNS": "1"}
    process = start(fleet(serving("tgi", container=RUNTIMES["docker"])).script(), environment)
    wait_until(lambda: any(call["words"][1] == "run" for call in calls(folder)))
    os.killpg(process.pid, signal.SIGTERM)
    assert process.wait(60) == 143
    assert stopped(folder) == [["docker", "stop", "-t", "10", "cosmo-7"]]


@pytest.mark.slow
def test_a_cancelled_job_on_slurm_stops_its_container_which_had_its_gpu(
    folder: Path, slurm: SlurmCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in (write_fakes(folder) | {"FAKE_RUNS": "1", "PYTHONPATH": str(ROOT)}).items():
        monkeypatch.setenv(name, value)
    jobs = serving("tgi", gpus=1, slurm={"time": "10"}, container=RUNTIMES["docker"])
    fleets = fleet(jobs)
    for name in ("servers", "drivers", "logs"):
        (fleets.folder / name).mkdir(parents=True)
    (fleets.folder / "key").write_text("the-key")
    (fleets.folder / "key").chmod(stat.S_IRUSR)
    (fleets.folder / "drivers/me").touch()
    job = commands.submit(fleets.script())
    wait_until(lambda: any(call["words"][1] == "run" for call in calls(folder)))
    (run,) = [call["words"] for call in calls(folder) if call["words"][1] == "run"]
    assert run[run.index("--gpus") + 1] in ('"device=0"', '"device=1"') and f"cosmo-{job}" in run
    slurm.run("scancel", job)
    wait_until(lambda: stopped(folder))
    assert stopped(folder)[0][-1] == f"cosmo-{job}"
    slurm.wait_empty(60)
