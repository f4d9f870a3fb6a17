"""What a person at a login node sees and does: the status of a run, the driver as a job, and nothing left after it."""

import contextlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from cosmopedia.cli.cluster import app as cluster_app
from cosmopedia.cli.status import app as status_app
from cosmopedia.cli.status import describe_driver, describe_stage, print_endpoints
from cosmopedia.core.errors import ConfigError
from cosmopedia.core.lineage import store_root
from cosmopedia.execution.compute import load_compute
from cosmopedia.execution.slurm import driver, driver_job
from tests.support.command_line import cosmo
from tests.support.prompt_rows import ROOT, write_settings
from tests.support.slurm_cluster import SlurmCluster, slurm  # noqa: F401  (the fixture)
from tests.support.sweep_repository import commit_repository, git, write_files

SOON = 240.0  # seconds; a limit for what takes a few on a free machine
STATUS = {
    "stage": "generate",
    "state": "running",
    "completed": 81204,
    "failed": 3,
    "from_store": 12000,
    "to_send": 310000,
    "tokens_per_second": 8310.2,
    "tokens_per_second_gpu": 4155.1,
    "utilisation": 0.97,
    "gpu_hours": 31.4,
    "eta_seconds": 25320,
    "endpoints": [
        {
            "url": "http://gpu12:40011",
            "state": "in use",
            "running": 240.0,
            "waiting": 12.0,
            "limit": 252,
            "completions": 81204,
            "tokens_per_second": 8310.2,
            "last_error": "",
        }
    ],
    "waiting_for": {"http://gpu13:40011": "no answer yet"},
}


def test_the_status_names_progress_load_and_what_is_waited_for(capsys: pytest.CaptureFixture[str]) -> None:
    running = {**STATUS, "alive": True}
    said = describe_stage(running)
    assert "generate: running, 81,207 of 310,000 (12,000 from the store, 3 failed)" in said
    assert "8,310 tokens/s (4,155 per GPU), utilisation 97%, 31.40 GPU hours, ETA 422 min" in said
    print_endpoints(running)
    shown = capsys.readouterr().out
    assert "http://gpu12:40011  in use  240.0    12.0     252" in shown
    assert "waiting for http://gpu13:40011: no answer yet" in shown
    assert describe_stage({**STATUS, "alive": False}).startswith("generate: killed")


def test_the_status_names_the_drivers_stage() -> None:
    found = {"job": "7", "state": "running", "stage": "generate", "since": 0.0, "done": 12, "total": 28, "requeued": 2}
    said = describe_driver(found, {"7": "RUNNING"}, 2520.0)
    assert said == ["driver: job 7, running, in generate for 42 min, 12 of 28 stages done, requeued 2 times"]
    assert "waits for its next turn, last in generate" in describe_driver(found, {"7": "PENDING"}, 2520.0)[0]
    assert "job 7, killed" in describe_driver(found, {}, 2520.0)[0]
    assert describe_driver({}, {}, 0.0) == []


@pytest.fixture
def folder(empty_folder: Path, slurm: SlurmCluster, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A checkout whose `dvc` is our script; `real_dvc` replaces it with DVC."""
    write_settings(empty_folder, [])
    settings(time="10")
    (empty_folder / "compute/templates").symlink_to(ROOT / "compute/templates")
    (empty_folder / "bin").mkdir()
    fake = empty_folder / "bin/dvc"
    fake.write_text(
        "#!/bin/bash\n[ $1 = repro ] || exit 0\ntrap 'echo stopped >> said; exit 130' INT TERM\n"
        'echo "$@ on $COSMO_COMPUTE" >> said\nwhile [ -e go ]; do sleep 0.1; done\necho ended >> said\n'
    )
    python = empty_folder / "bin/python"
    python.write_text(f'#!/bin/bash\nexec {sys.executable} "$@"\n')
    for path in (fake, python):
        path.chmod(0o755)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setattr(sys, "executable", str(empty_folder / "bin/python"))
    yield empty_folder
    for job in slurm.jobs():
        with contextlib.suppress(RuntimeError):
            slurm.run("scancel", job.id)
    slurm.wait_empty(SOON)


def settings(**of_driver: object) -> None:
    """The compute file's section driver."""
    path = Path("compute/local.yaml")
    path.write_text(yaml.safe_dump({**yaml.safe_load(path.read_text()), "driver": of_driver}))


def real_dvc(folder: Path, second: str) -> None:
    """A pipeline of two stages for DVC itself: one that ends at once, and one with this command."""
    (folder / "bin/dvc").write_text('#!/bin/bash\nexec "$(dirname "$0")/python" -m dvc "$@"\n')
    subprocess.run([folder / "bin/dvc", "init", "--no-scm", "--quiet"], check=True)
    stages = {
        "first": {"cmd": "echo first >> ran; echo 1 > one", "outs": ["one"]},
        "second": {"cmd": f"echo second >> ran; {second}; echo 2 > two", "deps": ["one"], "outs": ["two"]},
    }
    (folder / "dvc.yaml").write_text(yaml.safe_dump({"stages": stages}))


def log() -> str:
    """The output of the driver's jobs."""
    return "".join(path.read_text() for path in (store_root() / "logs").glob("driver-*.log"))


def run(*words: str) -> str:
    """`cosmo cluster submit`, `stop`, `reap`."""
    return cosmo(cluster_app, *words)


def wait_for(path: Path, text: str) -> None:
    end = time.monotonic() + SOON
    while not (path.exists() and text in path.read_text()):
        assert time.monotonic() < end, path.read_text() if path.exists() else "nothing was said"
        time.sleep(0.1)


@pytest.mark.slow
def test_the_driver_is_a_job_that_runs_dvc_and_stops_cleanly(
    folder: Path,
    slurm: SlurmCluster,
) -> None:
    Path("go").touch()
    assert "drives dvc repro" in run("submit", "pilot", "generate")
    wait_for(folder / "said", f"repro pilot generate on {Path('compute/local.yaml')}")
    with pytest.raises(ConfigError, match="drives this checkout already"):
        run("submit")
    status = store_root() / "runs/generate.status.json"
    status.parent.mkdir(parents=True, exist_ok=True)
    status.write_text(json.dumps(STATUS))
    shown = cosmo(status_app)
    assert shown.endswith("1 jobs, 1 stages that ask for completions")
    assert [job["state"] for job in json.loads(cosmo(status_app, "--json"))["jobs"]] == ["RUNNING"]
    assert driver.checkout_name("driver") in shown and "81,207 of 310,000" in shown
    os.utime(status, (0, 0))
    assert "generate: killed" in cosmo(status_app)
    assert run("stop") == "driver stopped"
    wait_for(folder / "said", "stopped")
    assert slurm.jobs() == [] and run("stop") == "no driver runs"


@pytest.mark.slow
def test_a_driver_out_of_time_goes_on_by_itself(
    folder: Path,
    slurm: SlurmCluster,
) -> None:
    real_dvc(folder, "while [ ! -e go ]; do sleep 0.1; done")
    settings(time="1", lead_seconds=20)  # Slurm checks every 30 s, and signals up to that much earlier
    run("submit")
    wait_for(folder / "ran", "first\nsecond\nsecond\n")  # the second run; the limit is a minute
    wait_for(driver_job.driver_folder() / "status.json", '"stage": "second"')
    assert ", running, in second for 0 min, 1 of 2 stages done, requeued 1 times" in cosmo(status_app)
    Path("go").touch()
    slurm.wait_empty(SOON)
    assert (folder / "ran").read_text() == "first\nsecond\nsecond\n" and Path("two").exists()
    assert driver_job.read_status() | {"state": "done", "done": 2, "requeued": 1} == driver_job.read_status()
    assert "out of time; requeued (1 of 20)" in log()


@pytest.mark.slow
def test_a_pipeline_that_fails_is_not_run_again(
    folder: Path,
    slurm: SlurmCluster,
) -> None:
    real_dvc(folder, "exit 3")
    run("submit")
    slurm.wait_empty(SOON)
    assert (folder / "ran").read_text() == "first\nsecond\n"
    assert driver_job.read_status()["state"] == "failed" and "failed to reproduce 'second'" in log()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("resubmit", "command", "turns"),
    [
        (0, ("scancel", "--signal=TERM", "--batch"), 1),  # what Slurm sends before the time limit
        (1, ("scancel",), 1),  # by a person, without `stop`
        (0, ("scontrol", "requeue"), 2),  # as after a preemption or the loss of a node
    ],
)
def test_a_driver_comes_back_as_often_as_it_may(
    resubmit: int,
    command: tuple[str, ...],
    turns: int,
    folder: Path,
    slurm: SlurmCluster,
) -> None:
    settings(time="10", resubmit=resubmit)
    Path("go").touch()
    run("submit")
    wait_for(folder / "said", "repro")
    (job,) = [job.id for job in slurm.jobs()]
    slurm.run(*command, job)
    if turns == 2:
        end = time.monotonic() + SOON
        while (folder / "said").read_text().count("repro") < 2:
            assert time.monotonic() < end, log()
            time.sleep(0.1)
        Path("go").unlink()
    slurm.wait_empty(SOON)
    assert (folder / "said").read_text().count("repro") == turns
    assert ("driver.resubmit = 0" in log()) == (resubmit == 0 and turns == 1)
    assert not list(driver_job.driver_folder().glob("back-*"))


@pytest.mark.slow
def test_a_run_by_hand_is_seen(folder: Path) -> None:
    real_dvc(folder, "while [ ! -e go ]; do sleep 0.1; done")
    with subprocess.Popen([folder / "bin/dvc", "repro", "--quiet"]) as repro:
        wait_for(folder / "ran", "second")
        assert list(driver.by_hand()) == ["second"]
        assert "dvc repro by hand: in second for 0 min" in cosmo(status_app)
        Path("go").touch()
    assert repro.returncode == 0 and driver.by_hand() == {}


@pytest.mark.slow
def test_a_driver_that_waits_for_its_turn_is_stopped(
    folder: Path,
    slurm: SlurmCluster,
) -> None:
    settings(time="10", extra=["--begin=now+1hour"])
    run("submit")
    assert run("stop") == "driver stopped"
    assert slurm.jobs() == [] and not (folder / "said").exists()


@pytest.mark.slow
def test_no_path_is_too_odd_and_no_token_is_written_down(
    folder: Path,
    slurm: SlurmCluster,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_abcdefghijklmnopqrstuvwxyz")
    odd = folder / 'it\'s a "b" $(touch pwned) # 50%j'
    odd.mkdir()
    for name in ("compute", "bin"):
        (folder / name).rename(odd / name)
    monkeypatch.chdir(odd)
    monkeypatch.setattr(sys, "executable", str(odd / "bin/python"))
    cluster = load_compute().driver
    assert cluster is not None
    assert "hf_abcdefghijklmnopqrstuvwxyz" not in driver.driver_script(cluster, [])
    run("submit", "a 'target'")
    slurm.wait_empty(SOON)
    assert f"repro a 'target' on {Path('compute/local.yaml')}" in (odd / "said").read_text(), log()
    assert driver_job.read_status()["state"] == "done" and "hf_" not in log()
    assert len(list((odd / ".store/logs").glob("driver-*.log"))) == 1 and not list(folder.rglob("pwned"))


@pytest.mark.slow
def test_the_reaper_ends_this_checkouts_jobs_and_no_others(
    folder: Path,
    slurm: SlurmCluster,
) -> None:
    Path("go").touch()
    run("submit")
    script = "#!/bin/bash\nsleep 300\n"
    slurm.run("sbatch", "--parsable", f"--job-name={driver.checkout_name('clean')}", stdin=script)
    other = slurm.run("sbatch", "--parsable", "--job-name=cosmo-driver-00000000", stdin=script).strip()
    (store_root() / "fleets/cosmo-0123456789").mkdir(parents=True)
    slurm.run("sbatch", "--parsable", "--job-name=cosmo-0123456789", stdin=script)
    assert run("reap") == "3 jobs cancelled"
    assert [job.id for job in slurm.jobs()] == [other]


def test_a_path_that_sbatch_cannot_take_is_named(empty_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_settings(empty_folder, [])
    settings(time="10")
    (empty_folder / "compute/templates").symlink_to(ROOT / "compute/templates")
    monkeypatch.setenv("COSMO_STORE", str(empty_folder / "a\\b"))
    monkeypatch.setattr(driver.slurm, "queue", lambda name: [])
    with pytest.raises(ConfigError, match="sbatch takes no path with"):
        run("submit")


def test_a_compute_file_without_a_driver_section_says_so(empty_folder: Path) -> None:
    write_settings(empty_folder, [])
    with pytest.raises(ConfigError, match=r"compute/local\.yaml has no section driver"):
        run("submit")


@pytest.mark.slow
@pytest.mark.long
def test_a_sweep_runs_its_arms_as_jobs(empty_folder: Path, slurm: SlurmCluster) -> None:
    """Each arm's job drives its own worktree; a sweep that was killed finds its jobs again."""
    write_files()
    Path("sweeps/steps.yaml").write_text(
        "question: q\ncontrol: base\nseeds: [1]\narms: {base: {}, more: {set: {train.steps: 20}}}\n"
    )
    Path("compute").mkdir()
    Path("compute/templates").symlink_to(ROOT / "compute/templates")
    Path("compute/local.yaml").write_text((ROOT / "compute/local.yaml").read_text())
    settings(time="10")
    notes, gate = empty_folder.parent / "job-notes", empty_folder.parent / "gate"
    notes.unlink(missing_ok=True)
    gate.unlink(missing_ok=True)
    variables = commit_repository(empty_folder, notes)
    command = [sys.executable, "-m", "cosmopedia.cli", "sweep", "run", "steps", "-j", "2", "--slurm"]
    with subprocess.Popen(command, env=variables, start_new_session=True, stdout=subprocess.DEVNULL) as first:
        end = time.monotonic() + SOON
        try:
            while not notes.exists() or notes.read_text().split().count("train") < 2:
                assert time.monotonic() < end and first.poll() is None
                time.sleep(0.2)
        finally:
            first.kill()
    before = {job.id for job in slurm.jobs()}
    assert len(before) == 2
    gate.touch()
    done = subprocess.run(command, env=variables, capture_output=True, text=True, timeout=SOON, check=False)
    assert done.returncode == 0 and "2 of 2 arms are done" in done.stdout, done.stdout + done.stderr
    assert notes.read_text().split() == ["sources", "prompts", "train", "train"]
    names = {line.rpartition("/")[2] for line in git(empty_folder, "for-each-ref", "refs/exps").splitlines()}
    assert {"steps-base", "steps-more"} <= names
    slurm.wait_empty(SOON)
