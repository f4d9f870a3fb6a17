"""Commands for a person at a login node: submit the driver, see what runs, end what is left.

submit [TARGET...]   `dvc repro` as a Slurm job
status               what runs where and how far it is: driver, stages, jobs, endpoints
stop                 stop the driver cleanly; what was completed is in the store
reap                 cancel every job of this checkout: fleets, arrays, the driver
"""

import contextlib
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil

from cosmopedia.cli.stages import stage_modules
from cosmopedia.errors import ClusterError, ConfigError, run_stage
from cosmopedia.execution.compute import Driver, compute_path, load_compute
from cosmopedia.execution.slurm import commands as slurm
from cosmopedia.execution.slurm.driver_job import read_status, stop_mark
from cosmopedia.execution.slurm.fleet import COMES_BACK, end_fleet, in_use, known_fleets
from cosmopedia.execution.slurm.job_scripts import Shell, log_option, options_of, render, words
from cosmopedia.lineage import store_root
from cosmopedia.rng import content_hash

STALE_SECONDS = 30.0  # a status file that was not rewritten for so long is of a run that was killed
END_SECONDS = 120.0


def checkout_name(what: str) -> str:
    """The name of this checkout's jobs of a kind."""
    return f"cosmo-{what}-{content_hash(Path.cwd(), size=4)}"


def submit(targets: list[str]) -> str:
    driver = load_compute().driver
    if driver is None:
        raise ConfigError(f"{compute_path()} has no section driver; give it one with at least its time")
    if running := [job for job in slurm.queue(name=checkout_name("driver")) if not job.ended]:
        raise ConfigError(f"job {running[0].id} drives this checkout already ({running[0].state}); `stop` ends it")
    script = driver_script(driver, targets)
    logs = store_root().resolve() / "logs"
    logs.mkdir(parents=True, exist_ok=True)
    number = slurm.submit(script)
    return f"job {number} drives dvc repro; its log is {logs}/driver-{number}.log; `make status` shows what it does"


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


def status(_: list[str]) -> str:
    try:
        jobs = own_jobs()
        queued = {job.id: job.state for job in jobs}
    except ClusterError as error:  # no Slurm here: the stages' own status still says something
        jobs, queued = [], None
        print(f"(no jobs: {error})")
    lines = [
        table(
            [["job", "name", "state", "node", "reason"], *([j.id, j.name, j.state, j.nodes, j.reason] for j in jobs)]
        )
    ]
    shown = 0
    if drivers := [*describe_driver(read_status(), queued, time.time()), *by_hand(time.time())]:
        lines += ["", *drivers]
    for path in sorted((store_root() / "runs").glob("*.status.json")):
        found = json.loads(path.read_text(encoding="utf-8"))
        alive = found["state"] != "running" or time.time() - path.stat().st_mtime < STALE_SECONDS
        lines += ["", describe(found, alive)]
        shown += found["state"] == "running" and alive
    for module in stage_modules("status"):
        if of_stage := module.lines():
            lines += ["", *of_stage]
    print("\n".join(lines))
    return f"{len(jobs)} jobs, {shown} stages that ask for completions"


def describe(found: dict[str, Any], alive: bool) -> str:
    """A stage's status file for people."""
    done, missing = found["completed"] + found["failed"], found["to_send"]
    state = found["state"] if alive else "killed"
    speed = f"{found['tokens_per_second']:,.0f} tokens/s"
    if found["tokens_per_second_gpu"]:
        speed += f" ({found['tokens_per_second_gpu']:,.0f} a GPU)"
    eta = f", ETA {found['eta_seconds'] // 60} min" if state == "running" and found["eta_seconds"] is not None else ""
    used = f"{found['utilisation']:.0%}" if found["utilisation"] is not None else "-"
    head = (
        f"{found['stage']}: {state}, {done:,} of {missing:,} ({found['from_store']:,} from the store,"
        f" {found['failed']:,} failed), {speed}, utilisation {used}, {found['gpu_hours']:.2f} GPU hours{eta}"
    )
    if state != "running":
        return head
    rows = [["endpoint", "state", "running", "waiting", "limit", "completions", "tokens/s", ""]]
    for e in found["endpoints"]:
        cells = [
            e["url"],
            e["state"],
            e["running"],
            e["waiting"],
            e["limit"],
            e["completions"],
            e["tokens_per_second"],
        ]
        rows.append([*("-" if cell is None else str(cell) for cell in cells), e["last_error"][:60]])
    return "\n".join([head, table(rows), *(f"waiting for {url}: {why}" for url, why in found["waiting_for"].items())])


def table(rows: list[list[str]]) -> str:
    """Rows in columns; the first is the head."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return "\n".join("  ".join(map(str.ljust, row, widths)).rstrip() for row in rows)


def describe_driver(found: dict[str, Any], jobs: dict[str, str] | None, now: float) -> list[str]:
    """The driver's status file for people, given the states of queued jobs (None: unknown); a line or none."""
    if not found:
        return []
    state = found["state"]
    if jobs and jobs.get(found["job"]) == "PENDING":
        state = "waits for its next turn"
    elif jobs is not None and found["job"] not in jobs and state in ("running", "stopping", "out of time", "requeued"):
        state = "killed"
    line = f"driver: job {found['job']}, {state}"
    if found["stage"] and state != "done":
        ago = f" for {(now - found['since']) / 60:.0f} min" if state == "running" else ""
        line += f", {'in' if state == 'running' else 'last in'} {found['stage']}{ago}"
    line += f", {found['done']}{' of ' + str(found['total']) if found['total'] else ''} stages done"
    return [line + (f", requeued {found['requeued']} times" if found["requeued"] else "")]


def by_hand(now: float) -> list[str]:
    """Stages of this checkout that a person's DVC runs on this machine."""
    began: dict[str, float] = {}
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            variables = process.environ()
            name, here = variables.get("DVC_STAGE"), variables.get("DVC_ROOT") == str(Path.cwd())
            if name and here and COMES_BACK not in variables:
                start = process.create_time()
                began[name] = min(start, began.get(name, start))
    return [f"dvc repro by hand: in {name} for {(now - at) / 60:.0f} min" for name, at in sorted(began.items())]


def stop(_: list[str]) -> str:
    end, stopped, told = time.monotonic() + END_SECONDS, set[str](), set[str]()
    while jobs := [job for job in slurm.queue(name=checkout_name("driver")) if not job.ended]:
        for job in jobs:
            stopped.add(job.id)
            mark_stopped(job.id)
            if job.state == "PENDING":  # it has not begun, or waits for its next turn
                slurm.cancel([job.id])
            elif job.state == "RUNNING" and job.id not in told:
                slurm.cancel([job.id], number="TERM")
                told.add(job.id)
        if time.monotonic() > end:
            raise ClusterError(f"job {jobs[0].id} does not stop; `reap` cancels everything")
        time.sleep(0.5)
    for number in stopped:
        stop_mark(number).unlink(missing_ok=True)
    for name in known_fleets():  # that a driver left for its next turn
        if not in_use(name):
            end_fleet(name)
    return f"{len(stopped)} driver stopped" if stopped else "no driver runs"


def mark_stopped(job: str) -> None:
    """Before the signal, so that the driver does not take it for its time limit and comes back."""
    stop_mark(job).parent.mkdir(parents=True, exist_ok=True)
    stop_mark(job).touch()


def reap(_: list[str]) -> str:
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
    return f"{len(jobs)} jobs cancelled"


COMMANDS: dict[str, Callable[[list[str]], str]] = {"submit": submit, "status": status, "stop": stop, "reap": reap}


def main() -> str:
    command, *rest = sys.argv[1:] or ["status"]
    if command not in COMMANDS or (rest and command != "submit"):
        raise ConfigError(f"unknown command {' '.join(sys.argv[1:])!r}; use {', '.join(COMMANDS)}")
    return COMMANDS[command](rest)


if __name__ == "__main__":
    run_stage("driver", main)
