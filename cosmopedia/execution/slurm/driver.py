"""The driver's job seen from a login node: submit it, see what runs, end what is left.

`cosmo cluster` and `cosmo status` print what these functions return.
"""

import contextlib
import json
import sys
import time
from pathlib import Path
from typing import Any

import psutil

from cosmopedia.core.errors import ClusterError, ConfigError
from cosmopedia.core.lineage import store_root
from cosmopedia.core.rng import content_hash
from cosmopedia.execution.compute import Driver, compute_path, load_compute
from cosmopedia.execution.slurm import commands as slurm
from cosmopedia.execution.slurm.driver_job import stop_mark
from cosmopedia.execution.slurm.fleet import COMES_BACK, end_fleet, in_use, known_fleets
from cosmopedia.execution.slurm.job_scripts import Shell, log_option, options_of, render, words

STALE_SECONDS = 30.0  # a status file that was not rewritten for so long is of a run that was killed
END_SECONDS = 120.0


def checkout_name(what: str) -> str:
    """The name of this checkout's jobs of a kind."""
    return f"cosmo-{what}-{content_hash(Path.cwd(), size=4)}"


def submit(targets: list[str]) -> tuple[str, Path]:
    """Submit `dvc repro` of the targets (none: everything) as a job: its number and its log."""
    driver = load_compute().driver
    if driver is None:
        raise ConfigError(f"{compute_path()} has no section driver; give it one with at least its time")
    if running := [job for job in slurm.queue(name=checkout_name("driver")) if not job.ended]:
        job = running[0]
        raise ConfigError(f"job {job.id} drives this checkout already ({job.state}); `cosmo cluster stop` ends it")
    script = driver_script(driver, targets)
    logs = store_root().resolve() / "logs"
    logs.mkdir(parents=True, exist_ok=True)
    number = slurm.submit(script)
    return number, logs / f"driver-{number}.log"


def driver_script(driver: Driver, targets: list[str]) -> str:
    """The job script of the driver."""
    return render(
        "driver.sh.j2",
        name=checkout_name("driver"),
        log=log_option(store_root().resolve() / "logs", "driver-%j.log"),
        lead=driver.lead_seconds,
        options=options_of(driver),
        setup=map(Shell, driver.setup),
        checkout=Path.cwd(),
        bin=Path(sys.executable).parent,
        compute=compute_path(),
        targets=words(targets),
    )


def own_jobs() -> list[slurm.SlurmJob]:
    """Jobs of this checkout's driver, arrays and fleets that wait or run."""
    fleets, suffix = set(known_fleets()), content_hash(Path.cwd(), size=4)
    found = [job for job in slurm.queue() if not job.ended]
    return [
        job for job in found if job.name in fleets or (job.name.startswith("cosmo-") and job.name.endswith(suffix))
    ]


def stage_statuses(now: float) -> list[dict[str, Any]]:
    """The status file of each stage that asked for completions; `alive` is False for a run that was killed."""
    statuses = []
    for path in sorted((store_root() / "runs").glob("*.status.json")):
        status = json.loads(path.read_text(encoding="utf-8"))
        alive = status["state"] != "running" or now - path.stat().st_mtime < STALE_SECONDS
        statuses.append({**status, "alive": alive})
    return statuses


def by_hand() -> dict[str, float]:
    """Stages of this checkout that a person's DVC runs on this machine, and since when."""
    began: dict[str, float] = {}
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            variables = process.environ()
            name, here = variables.get("DVC_STAGE"), variables.get("DVC_ROOT") == str(Path.cwd())
            if name and here and COMES_BACK not in variables:
                start = process.create_time()
                began[name] = min(start, began.get(name, start))
    return dict(sorted(began.items()))


def stop() -> bool:
    """Stop the driver cleanly; what was completed is in the store. Returns whether one ran."""
    end = time.monotonic() + END_SECONDS
    stopped = set[str]()
    signalled = set[str]()
    while jobs := [job for job in slurm.queue(name=checkout_name("driver")) if not job.ended]:
        for job in jobs:
            stopped.add(job.id)
            mark_stopped(job.id)
            if job.state == "PENDING":  # it has not begun, or waits for its next turn
                slurm.cancel([job.id])
            elif job.state == "RUNNING" and job.id not in signalled:
                slurm.cancel([job.id], number="TERM")
                signalled.add(job.id)
        if time.monotonic() > end:
            raise ClusterError(f"job {jobs[0].id} does not stop; `cosmo cluster reap` cancels everything")
        time.sleep(0.5)
    for number in stopped:
        stop_mark(number).unlink(missing_ok=True)
    for name in known_fleets():  # that a driver left for its next turn
        if not in_use(name):
            end_fleet(name)
    return bool(stopped)


def mark_stopped(job: str) -> None:
    """Before the signal, so that the driver does not take it for its time limit and comes back."""
    stop_mark(job).parent.mkdir(parents=True, exist_ok=True)
    stop_mark(job).touch()


def reap() -> int:
    """Cancel every job of this checkout: fleets, arrays, the driver. Returns how many there were."""
    jobs = sorted(own_jobs(), key=lambda job: job.name != checkout_name("driver"))  # the driver first
    for job in jobs:
        if job.name == checkout_name("driver"):
            mark_stopped(job.id)
    slurm.cancel(job.id for job in jobs)
    left = slurm.wait_ended([job.id for job in jobs], END_SECONDS)
    if left:
        raise ClusterError(f"jobs {', '.join(job.id for job in left)} do not end; look at squeue")
    for job in jobs:
        stop_mark(job.id).unlink(missing_ok=True)
    return len(jobs)
