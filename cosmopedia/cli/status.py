"""status: show what runs where and how far it is."""

import time
from dataclasses import asdict
from typing import Annotated, Any

import typer

from cosmopedia.cli.output import Json, new_app, print_json, print_table
from cosmopedia.cli.stages import stage_modules
from cosmopedia.core.errors import ClusterError

app = new_app()


@app.command(epilog="Example: cosmo status --runs 20")
def status(
    runs: Annotated[int, typer.Option(min=0, help="Show the last so many runs of stages, and what in.")] = 0,
    as_json: Json = False,
) -> None:
    """Show what runs where and how far it is: Slurm jobs, the driver, stages with their endpoints, trainings."""
    if runs:
        print_runs(runs, as_json)
        return
    current = read()
    if as_json:
        print_json(current)
        return
    jobs = current["jobs"]
    if jobs is None:
        typer.echo(f"(no jobs: {current['no_jobs']})")
    else:
        names = ("id", "name", "state", "nodes", "submitted", "reason")
        print_table(["job", *names[1:]], ([job[name] for name in names] for job in jobs))
    queued = None if jobs is None else {job["id"]: job["state"] for job in jobs}
    now = time.time()
    lines = describe_driver(current["driver"], queued, now)
    lines += [f"dvc repro by hand: in {name} for {(now - at) / 60:.0f} min" for name, at in current["by_hand"].items()]
    if lines:
        typer.echo("\n" + "\n".join(lines))
    for stage in current["stages"]:
        typer.echo(f"\n{describe_stage(stage)}")
        if is_running(stage):
            print_endpoints(stage)
    for module in stage_modules("status"):
        if entries := current[module.NAME]:
            typer.echo("\n" + "\n".join(module.describe(entry) for entry in entries))
    running = sum(map(is_running, current["stages"]))
    typer.echo(f"\n{len(jobs or ())} jobs, {running} stages that ask for completions")


def print_runs(count: int, as_json: bool) -> None:
    """The last runs of stages: when, time, memory, code, machine. JSON has versions, engines and flags too."""
    from cosmopedia.execution.environment import read_runs

    last = read_runs()[-count:]
    if as_json:
        print_json(last)
        return
    head = ["began", "stage", "seconds", "CPU s", "peak MB", "outcome"]
    head += ["revision", "experiment", "host", "compute", "python", "torch"]
    rows = []
    for run in last:
        seconds = f"{run['ended'] - run['began']:,.1f}" if "ended" in run else None
        commit, _, dirty = run["git_revision"].partition("-")
        rows.append(
            [
                time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(run["began"])),
                run["stage"],
                seconds,
                run.get("cpu_seconds"),
                run.get("peak_mb"),
                run.get("outcome", "killed, or still running"),
                commit[:9] + (f"-{dirty}" if dirty else ""),
                *(run.get(name) for name in ("experiment", "host", "compute", "python")),
                run["packages"].get("torch"),
            ]
        )
    print_table(head, rows, right=(2, 3, 4))


def read() -> dict[str, Any]:
    """Everything that is known; `jobs` is null, and `no_jobs` says why, where Slurm does not answer."""
    from cosmopedia.execution.slurm import driver, driver_job

    try:
        jobs = [asdict(job) for job in driver.own_jobs()]
        no_jobs = None
    except ClusterError as error:  # no Slurm here: the stages' own status still says something
        jobs = None
        no_jobs = str(error)
    return {
        "jobs": jobs,
        "no_jobs": no_jobs,
        "driver": driver_job.read_status(),
        "by_hand": driver.by_hand(),
        "stages": driver.stage_statuses(time.time()),
        **{module.NAME: module.read() for module in stage_modules("status")},
    }


def is_running(stage: dict[str, Any]) -> bool:
    """Whether a stage asks for completions at this moment."""
    return stage["state"] == "running" and stage["alive"]


def describe_stage(stage: dict[str, Any]) -> str:
    """A stage's status file in one line."""
    done = stage["completed"] + stage["failed"]
    state = stage["state"] if stage["alive"] else "killed"
    speed = f"{stage['tokens_per_second']:,.0f} tokens/s"
    if stage["tokens_per_second_gpu"]:
        speed += f" ({stage['tokens_per_second_gpu']:,.0f} per GPU)"
    eta = f", ETA {stage['eta_seconds'] // 60} min" if is_running(stage) and stage["eta_seconds"] is not None else ""
    used = f"{stage['utilisation']:.0%}" if stage["utilisation"] is not None else "-"
    return (
        f"{stage['stage']}: {state}, {done:,} of {stage['to_send']:,} ({stage['from_store']:,} from the store,"
        f" {stage['failed']:,} failed), {speed}, utilisation {used}, {stage['gpu_hours']:.2f} GPU hours{eta}"
    )


def print_endpoints(stage: dict[str, Any]) -> None:
    """A stage's endpoints, and those that it waits for."""
    columns = ("url", "state", "running", "waiting", "limit", "completions", "tokens_per_second")
    print_table(
        ["endpoint", *columns[1:-1], "tokens/s", ""],
        ([*(endpoint[name] for name in columns), endpoint["last_error"][:60]] for endpoint in stage["endpoints"]),
    )
    for url, reason in stage["waiting_for"].items():
        typer.echo(f"waiting for {url}: {reason}")
    if stage.get("expecting"):
        typer.echo(f"servers to come: {stage['expecting']}")


def describe_driver(driver: dict[str, Any], jobs: dict[str, str] | None, now: float) -> list[str]:
    """The driver's status file for people, given the states of queued jobs (None: unknown); a line or none."""
    if not driver:
        return []
    state = driver["state"]
    if jobs and jobs.get(driver["job"]) == "PENDING":
        state = "waits for its next turn"
    elif (
        jobs is not None and driver["job"] not in jobs and state in ("running", "stopping", "out of time", "requeued")
    ):
        state = "killed"
    line = f"driver: job {driver['job']}, {state}"
    if driver["stage"] and state != "done":
        duration = f" for {(now - driver['since']) / 60:.0f} min" if state == "running" else ""
        line += f", {'in' if state == 'running' else 'last in'} {driver['stage']}{duration}"
    line += f", {driver['done']}{' of ' + str(driver['total']) if driver['total'] else ''} stages done"
    return [line + (f", requeued {driver['requeued']} times" if driver["requeued"] else "")]
