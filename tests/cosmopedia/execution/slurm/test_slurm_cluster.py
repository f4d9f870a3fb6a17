"""The tests' own Slurm: jobs run, are requeued and cancelled as on a cluster, and nothing is left behind."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.slurm_cluster import SlurmCluster, missing, slurm

pytestmark = [pytest.mark.slow, pytest.mark.skipif(bool(missing()), reason=missing())]
__all__ = ["slurm"]
SOON = 180.0  # seconds; a limit for what takes one second on a free machine


def wait(done: Callable[[], object], cluster: SlurmCluster, seconds: float = SOON) -> None:
    end = time.monotonic() + seconds
    while not done():
        assert time.monotonic() < end, f"{cluster.jobs()}\n{cluster.logs()}"
        time.sleep(0.05)


def submit(cluster: SlurmCluster, output: Path, script: str, *options: str) -> str:
    text = f"#!/bin/bash\n{script}\n"
    return cluster.run(
        "sbatch", "--parsable", f"--output={output}", "--open-mode=append", *options, stdin=text
    ).strip()


def processes(folder: Path) -> list[int]:
    """The processes whose command line or environment names the folder; a cluster's jobs inherit its SLURM_CONF."""
    found = []
    for process in Path("/proc").iterdir():
        try:
            named = (process / "cmdline").read_bytes() + (process / "environ").read_bytes()
        except OSError:
            continue
        if process.name.isdigit() and os.fsencode(folder) in named and int(process.name) != os.getpid():
            found.append(int(process.name))
    return found


def listening(pids: list[int]) -> set[str]:
    """The addresses on which processes accept connections, in the kernel's notation."""
    sockets = set()
    for pid in pids:
        for entry in Path(f"/proc/{pid}/fd").iterdir():
            sockets.add(str(entry.readlink()))
    rows = [row.split() for name in ("tcp", "tcp6") for row in Path(f"/proc/net/{name}").read_text().splitlines()[1:]]
    return {row[1].partition(":")[0] for row in rows if row[3] == "0A" and f"socket:[{row[9]}]" in sockets}


def test_a_job_runs_and_its_output_arrives(slurm: SlurmCluster, tmp_path: Path) -> None:
    job = submit(slurm, tmp_path / "out", "echo on $SLURMD_NODENAME")
    slurm.wait_empty(SOON)
    assert (tmp_path / "out").read_text() in {f"on {node}\n" for node in slurm.nodes}
    assert "COMPLETED" in slurm.run("sacct", "-c", "-j", job, "--format=state")


def test_an_array_runs_each_task_once(slurm: SlurmCluster, tmp_path: Path) -> None:
    submit(slurm, tmp_path / "%a", "echo $SLURM_ARRAY_TASK_ID of $SLURM_ARRAY_TASK_COUNT", "--array=0-7%4")
    slurm.wait_empty(SOON)
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {f"{n}": f"{n} of 8\n" for n in range(8)}


def test_the_environment_reaches_a_job_through_export(slurm: SlurmCluster, tmp_path: Path) -> None:
    submit(slurm, tmp_path / "out", "echo $RUN_NAME", "--export=ALL,RUN_NAME=a b")
    slurm.wait_empty(SOON)
    assert (tmp_path / "out").read_text() == "a b\n"


def test_gpus_are_scheduled_and_numbered(slurm: SlurmCluster, tmp_path: Path) -> None:
    submit(slurm, tmp_path / "two", "echo $CUDA_VISIBLE_DEVICES", "--gpus-per-node=2", "--nodes=1")
    submit(slurm, tmp_path / "one", "echo $CUDA_VISIBLE_DEVICES", "--gres=gpu:1", "--mem=200G")
    slurm.wait_empty(SOON)
    assert (tmp_path / "two").read_text() == "0,1\n"
    assert (tmp_path / "one").read_text() in {"0\n", "1\n"}
    with pytest.raises(RuntimeError, match="not available"):
        submit(slurm, tmp_path / "three", "true", "--gpus-per-node=3")


def test_a_cancelled_job_ends_with_its_processes(slurm: SlurmCluster, tmp_path: Path) -> None:
    job = submit(slurm, tmp_path / "out", "setsid sleep 611 & echo $!; wait")
    wait((tmp_path / "out").exists, slurm)
    wait((tmp_path / "out").read_text, slurm)
    slurm.run("scancel", job)
    slurm.wait_empty(SOON)
    assert not Path("/proc", (tmp_path / "out").read_text().strip()).exists()
    assert "CANCELLED" in slurm.run("sacct", "-c", "-j", job, "--format=state")


def test_a_requeued_job_knows_that_it_was_restarted(slurm: SlurmCluster, tmp_path: Path) -> None:
    out = tmp_path / "out"
    job = submit(
        slurm, out, 'echo start ${SLURM_RESTART_COUNT:-0}; [ -n "$SLURM_RESTART_COUNT" ] || sleep 612', "--requeue"
    )
    wait(lambda: out.exists() and out.read_text(), slurm)
    slurm.run("scontrol", "requeue", job)
    slurm.wait_empty(SOON)
    assert out.read_text().splitlines()[0] == "start 0" and out.read_text().endswith("start 1\n")


def test_a_dead_nodes_job_goes_on_elsewhere_and_the_node_comes_back(slurm: SlurmCluster, tmp_path: Path) -> None:
    out = tmp_path / "out"
    submit(slurm, out, 'echo $SLURMD_NODENAME; [ -n "$SLURM_RESTART_COUNT" ] || sleep 613', "--requeue")
    wait(lambda: out.exists() and out.read_text(), slurm)
    dead = out.read_text().strip()
    slurm.kill_node(slurm.nodes.index(dead) + 1)
    assert [job.node for job in slurm.jobs()] == [dead]  # Slurm does not know yet
    slurm.wait_empty(SOON)
    first, second = out.read_text().splitlines()
    assert first == dead and second in {*slurm.nodes} - {dead}
    slurm.restart_node(slurm.nodes.index(dead) + 1)
    slurm.wait_idle()


def test_it_listens_on_loopback_alone_and_leaves_no_process(tmp_path: Path) -> None:
    with pytest.raises(KeyError), SlurmCluster(tmp_path / "slurm", nodes=2) as cluster:
        submit(cluster, tmp_path / "out", "echo started; setsid sleep 614 & trap '' TERM; wait")
        wait(lambda: (tmp_path / "out").exists() and (tmp_path / "out").read_text(), cluster)
        found = processes(cluster.folder)
        assert len(found) > 8 and listening(found) == {"0100007F"}  # 127.0.0.1
        raise KeyError("a failing test")
    assert processes(tmp_path) == []


def test_it_ends_with_a_pytest_that_was_killed(tmp_path: Path) -> None:
    code = f"""
import sys, time
from pathlib import Path
sys.path.insert(0, {str(Path(__file__).parents[4])!r})
from tests.support.slurm_cluster import SlurmCluster
with SlurmCluster(Path({str(tmp_path / "slurm")!r}), nodes=1) as cluster:
    cluster.run("sbatch", "--output=/dev/null", stdin="#!/bin/bash\\nsetsid sleep 615 & sleep 616")
    while not any(job.state == "RUNNING" for job in cluster.jobs()):
        time.sleep(0.05)
    print("running", flush=True)
    time.sleep(600)
"""
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as driver:
        assert driver.stdout and driver.stdout.readline() == "running\n"
        assert len(processes(tmp_path)) > 6
        os.kill(driver.pid, signal.SIGKILL)
    end = time.monotonic() + SOON
    while left := processes(tmp_path):
        assert time.monotonic() < end, left
        time.sleep(0.05)
