"""What a person at a login node sees and does: the status of a run, the driver as a job, and nothing left after it."""

import json
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from prompt_rows import ROOT, write_settings
from slurm_cluster import SlurmCluster, slurm  # noqa: F401  (the fixture)

from stages.errors import ConfigError
from stages.launch import driver
from stages.lineage import store_root

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
            "last_trouble": "",
        }
    ],
    "waiting_for": {"http://gpu13:40011": "no answer yet"},
}


def test_the_status_names_progress_load_and_what_is_waited_for() -> None:
    said = driver.describe(STATUS, alive=True)
    assert "generate: running, 81,207 of 310,000 (12,000 from the store, 3 failed)" in said
    assert "8,310 tokens/s (4,155 a GPU), utilisation 97%, 31.40 GPU hours, ETA 422 min" in said
    assert "http://gpu12:40011  in use  240.0    12.0     252" in said
    assert "waiting for http://gpu13:40011: no answer yet" in said
    assert driver.describe(STATUS, alive=False).startswith("generate: killed")


@pytest.fixture
def folder(empty_folder: Path, slurm: SlurmCluster, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:  # noqa: F811
    """A checkout whose `dvc` is a script of ours: DVC itself is run by test_pipeline.py."""
    write_settings(empty_folder, [])
    content = yaml.safe_load((empty_folder / "clusters/local.yaml").read_text())
    (empty_folder / "clusters/local.yaml").write_text(yaml.safe_dump({**content, "driver": {"time": "10"}}))
    (empty_folder / "clusters/templates").symlink_to(ROOT / "clusters/templates")
    (empty_folder / "bin").mkdir()
    fake = empty_folder / "bin/dvc"
    fake.write_text(
        "#!/bin/bash\ntrap 'echo stopped >> said; exit 130' INT TERM\n"
        'echo "$@ on $COSMO_CLUSTER" > said\nwhile [ -e go ]; do sleep 0.1; done\necho ended >> said\n'
    )
    fake.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(empty_folder / "bin/python"))
    yield empty_folder
    for job in slurm.jobs():
        slurm.run("scancel", job.id)
    slurm.wait_empty(30)


def run(monkeypatch: pytest.MonkeyPatch, *words: str) -> str:
    monkeypatch.setattr(sys, "argv", ["driver", *words])
    return driver.main()


def wait_for(path: Path, text: str) -> None:
    end = time.monotonic() + 30
    while not (path.exists() and text in path.read_text()):
        assert time.monotonic() < end, path.read_text() if path.exists() else "nothing was said"
        time.sleep(0.1)


@pytest.mark.slow
def test_the_driver_is_a_job_that_runs_dvc_and_stops_cleanly(
    folder: Path,
    slurm: SlurmCluster,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    Path("go").touch()
    assert "drives dvc repro" in run(monkeypatch, "submit", "pilot", "generate")
    wait_for(folder / "said", f"repro pilot generate on {Path('clusters/local.yaml')}")
    with pytest.raises(ConfigError, match="drives this checkout already"):
        run(monkeypatch, "submit")
    status = store_root() / "runs/generate.status.json"
    status.parent.mkdir(parents=True, exist_ok=True)
    status.write_text(json.dumps(STATUS))
    assert run(monkeypatch, "status") == "1 jobs, 1 stages that ask for completions"
    shown = capsys.readouterr().out
    assert driver.checkout_name("driver") in shown and "81,207 of 310,000" in shown
    os.utime(status, (0, 0))
    run(monkeypatch, "status")
    assert "generate: killed" in capsys.readouterr().out
    assert run(monkeypatch, "stop") == "1 driver stopped"
    wait_for(folder / "said", "stopped")
    assert slurm.jobs() == [] and run(monkeypatch, "stop") == "no driver runs"


@pytest.mark.slow
def test_the_reaper_ends_this_checkouts_jobs_and_no_others(
    folder: Path,
    slurm: SlurmCluster,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    Path("go").touch()
    run(monkeypatch, "submit")
    script = "#!/bin/bash\nsleep 300\n"
    slurm.run("sbatch", "--parsable", f"--job-name={driver.checkout_name('clean')}", stdin=script)
    other = slurm.run("sbatch", "--parsable", "--job-name=cosmo-driver-00000000", stdin=script).strip()
    (store_root() / "fleets/cosmo-0123456789").mkdir(parents=True)
    slurm.run("sbatch", "--parsable", "--job-name=cosmo-0123456789", stdin=script)
    assert run(monkeypatch, "reap") == "3 jobs cancelled"
    assert [job.id for job in slurm.jobs()] == [other]


def test_a_cluster_file_without_a_driver_section_says_so(empty_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_settings(empty_folder, [])
    with pytest.raises(ConfigError, match=r"clusters/local\.yaml has no section driver"):
        run(monkeypatch, "submit")
