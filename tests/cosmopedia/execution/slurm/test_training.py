"""nanotron as a job on a real Slurm: the same digits through requeues, a dead driver and several nodes."""

import csv
import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from cosmopedia.core.errors import ClusterError
from tests.support.slurm_cluster import SlurmCluster, slurm  # noqa: F401  (the fixture)
from tests.support.training_repository import ROOT, repository, set_compute, set_recipe  # noqa: F401  (the fixture)

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not (ROOT / ".nanotron").exists(), reason="no .nanotron; run `make nanotron`"),
]
STAGE = "from stages.train.__main__ import main, run_stage\nrun_stage('train', main)"
SHAPE = {"layers": 2, "heads": 4, "kv_heads": 2, "width": 32, "intermediate": 48, "tied_embeddings": False}
TRAINING = {"backend": "nanotron", "architecture": SHAPE, "warmup_steps": 3}


@pytest.fixture
def folder(repository: Path, slurm: SlurmCluster, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    (repository / "compute/templates").symlink_to(ROOT / "compute/templates")
    monkeypatch.setenv("COSMO_NODE_ADDRESS", "127.0.0.1")
    monkeypatch.setenv("SLURM_CONF", slurm.environment["SLURM_CONF"])
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "lo")
    yield repository
    for job in slurm.jobs():
        slurm.run("scancel", job.id)
    slurm.wait_empty(60)


def train() -> str:
    from stages.train.__main__ import main

    return main()


def start() -> "subprocess.Popen[str]":
    pipe = subprocess.PIPE
    return subprocess.Popen([sys.executable, "-c", STAGE], stdout=pipe, stderr=pipe, text=True)


def wait_until(condition: Callable[[], object], process: "subprocess.Popen[Any]", seconds: float = 180) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end and process.poll() is None, process.communicate()
        time.sleep(0.05)


def losses() -> list[list[str]]:
    with Path("models/train/seed-1/losses.csv").open(newline="") as stream:
        return list(csv.reader(stream))[1:]


def steps_done() -> int:
    return sum(text.read_text().count("\n") - 1 for text in Path(".store/train").glob("*/steps.csv"))


def running(cluster: SlurmCluster) -> list[str]:
    return [job.id for job in cluster.jobs() if job.state == "RUNNING"]


def test_requeues_and_a_dead_driver_change_no_digit(folder: Path, slurm: SlurmCluster) -> None:
    """The driver is killed, the job requeued by hand, and then warned as Slurm warns before a time limit."""
    set_recipe(folder, **TRAINING, steps=150)
    train()
    whole = losses()
    Path(".store").rename(".store-local")
    set_compute(folder, launcher="slurm", checkpoint_minutes=1e-6, slurm={"time": "10", "cpus": 2})
    process = start()
    wait_until(lambda: list(Path(".store/train").glob("*/checkpoints/*/losses.csv")), process)
    process.kill()
    process.communicate()
    (job,) = running(slurm)
    slurm.run("scontrol", "requeuehold", job)  # else it may be done before there is another driver
    with Path("err.txt").open("w") as err:
        process = subprocess.Popen([sys.executable, "-c", STAGE], stdout=err, stderr=err)
    wait_until(lambda: f"job {job} of cosmo-train-" in Path("err.txt").read_text(), process)
    slurm.run("scontrol", "release", job)
    (log,) = Path(".store/train").glob("*/log.txt")
    wait_until(lambda: log.read_text().count("=== torchrun starts") == 2 and running(slurm), process)
    (steps,) = Path(".store/train").glob("*/steps.csv")
    before = steps.stat().st_mtime_ns
    wait_until(lambda: steps.stat().st_mtime_ns != before, process)
    slurm.run("scancel", "--batch", "--signal=TERM", job)
    assert process.wait(timeout=400) == 0 and "adopted" in Path("err.txt").read_text()
    assert losses() == whole
    assert slurm.jobs() == []


def test_a_signal_ends_the_job_after_a_checkpoint(folder: Path, slurm: SlurmCluster) -> None:
    set_recipe(folder, **TRAINING, steps=100_000)
    set_compute(folder, launcher="slurm", slurm={"time": "10", "cpus": 2})
    process = start()
    wait_until(lambda: steps_done() > 20, process)
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=120)
    assert process.returncode == ClusterError.status, err
    assert "stopped by a signal at step" in err
    assert slurm.jobs() == []
    assert list(Path(".store/train").glob("*/checkpoints/*/losses.csv"))


def test_a_cancelled_job_is_not_submitted_again(folder: Path, slurm: SlurmCluster) -> None:
    set_recipe(folder, **TRAINING, steps=100_000)
    set_compute(folder, launcher="slurm", slurm={"time": "10", "cpus": 2})
    process = start()
    wait_until(lambda: steps_done() > 20, process)
    (job,) = running(slurm)
    slurm.run("scancel", job)
    _, err = process.communicate(timeout=120)
    assert process.returncode == ClusterError.status
    assert f"job {job} of cosmo-train-" in err and "was cancelled by scancel" in err
    slurm.wait_empty(30)  # nor does it requeue itself


def test_processes_on_two_nodes_train_one_model(folder: Path, slurm: SlurmCluster) -> None:
    set_recipe(folder, **TRAINING, steps=10)
    train()
    whole = [float(row[1]) for row in losses()]
    set_compute(
        folder, launcher="slurm", layout={"dp": 2}, warn_seconds=30, slurm={"time": "10", "cpus": 1, "nodes": 2}
    )
    Path(".store").rename(".store-local")
    train()
    assert [float(row[1]) for row in losses()] == pytest.approx(whole, abs=1e-4)
    assert json.loads(Path("metrics/train.json").read_text())["backend"] == "nanotron"
    assert slurm.jobs() == []


def test_a_job_that_keeps_failing_shows_its_log(folder: Path, slurm: SlurmCluster) -> None:
    set_recipe(folder, **TRAINING, steps=10)
    setup = ["echo 'the module is not there' >> /dev/stderr", "exit 3"]
    set_compute(folder, launcher="slurm", restarts=1, slurm={"time": "10", "setup": setup})
    with pytest.raises(ClusterError, match=r"the module is not there(.|\n)*the last of 1 restarts"):
        train()
    assert slurm.jobs() == []
