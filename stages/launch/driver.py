"""Commands for a person at a login node: submit the driver, see what runs, end what is left.

python -m stages.launch.driver submit [TARGET...]   `dvc repro` as a Slurm job (make cluster-repro)
python -m stages.launch.driver status               stages, jobs, endpoints, tokens/s, ETA, GPU hours (make status)
python -m stages.launch.driver stop                 stop the driver cleanly; what was completed is in the store
python -m stages.launch.driver reap                 cancel every job of this checkout: fleets, arrays, the driver
"""

import json
import shlex
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from stages.clusters import Slurm, cluster_path, load_cluster
from stages.draws import content_hash
from stages.errors import ClusterError, ConfigError, run_stage
from stages.launch import slurm
from stages.launch.servers import TEMPLATES, known_fleets
from stages.lineage import store_root

STALE_SECONDS = 30.0  # a status file that was not rewritten for so long is of a run that was killed
END_SECONDS = 120.0


def checkout_name(what: str) -> str:
    """The name of this checkout's jobs of a kind."""
    return f"cosmo-{what}-{content_hash(Path.cwd(), size=4)}"


def submit(targets: list[str]) -> str:
    driver = load_cluster().driver
    if driver is None:
        raise ConfigError(f"{cluster_path()} has no section driver; give it one with at least its time")
    if running := [job for job in slurm.queue(name=checkout_name("driver")) if not job.ended]:
        raise ConfigError(f"job {running[0].id} drives this checkout already ({running[0].state}); `stop` ends it")
    script = driver_script(driver, targets)
    logs = store_root().resolve() / "logs"
    logs.mkdir(parents=True, exist_ok=True)
    number = slurm.submit(script)
    return f"job {number} drives dvc repro; its log is {logs}/driver-{number}.log; `make status` shows what it does"


def driver_script(driver: Slurm, targets: list[str]) -> str:
    """The job script of the driver."""
    environment = Environment(loader=FileSystemLoader(TEMPLATES), undefined=StrictUndefined, trim_blocks=True)
    return environment.get_template("driver.sh.j2").render(
        name=checkout_name("driver"),
        log=f"{store_root().resolve()}/logs/driver-%j.log",
        options=driver.options(),
        setup=driver.setup,
        checkout=shlex.quote(str(Path.cwd())),
        bin=shlex.quote(str(Path(sys.executable).parent)),
        cluster=shlex.quote(str(cluster_path())),
        targets=" ".join(map(shlex.quote, targets)),
    )


def own_jobs() -> list[slurm.Job]:
    """Jobs of this checkout's driver, arrays and fleets that wait or run."""
    fleets, suffix = set(known_fleets()), content_hash(Path.cwd(), size=4)
    found = [job for job in slurm.queue() if not job.ended]
    return [
        job for job in found if job.name in fleets or (job.name.startswith("cosmo-") and job.name.endswith(suffix))
    ]


def status(_: list[str]) -> str:
    try:
        jobs = own_jobs()
    except ClusterError as error:  # no Slurm here: the stages' own status still says something
        jobs = []
        print(f"(no jobs: {error})")
    lines = [
        table(
            [["job", "name", "state", "node", "reason"], *([j.id, j.name, j.state, j.nodes, j.reason] for j in jobs)]
        )
    ]
    shown = 0
    for path in sorted((store_root() / "runs").glob("*.status.json")):
        found = json.loads(path.read_text(encoding="utf-8"))
        alive = found["state"] != "running" or time.time() - path.stat().st_mtime < STALE_SECONDS
        lines += ["", describe(found, alive)]
        shown += found["state"] == "running" and alive
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
        rows.append([*("-" if cell is None else str(cell) for cell in cells), e["last_trouble"][:60]])
    return "\n".join([head, table(rows), *(f"waiting for {url}: {why}" for url, why in found["waiting_for"].items())])


def table(rows: list[list[str]]) -> str:
    """Rows in columns; the first is the head."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return "\n".join("  ".join(map(str.ljust, row, widths)).rstrip() for row in rows)


def stop(_: list[str]) -> str:
    jobs = [job.id for job in slurm.queue(name=checkout_name("driver")) if not job.ended]
    slurm.cancel(jobs, number="TERM")
    if left := slurm.wait_ended(jobs, END_SECONDS):
        raise ClusterError(f"job {left[0].id} does not stop; `reap` cancels everything")
    return f"{len(jobs)} driver stopped" if jobs else "no driver runs"


def reap(_: list[str]) -> str:
    jobs = own_jobs()
    slurm.cancel(job.id for job in sorted(jobs, key=lambda job: "driver" not in job.name))  # the driver first
    left = slurm.wait_ended([job.id for job in jobs], END_SECONDS)
    if left:
        raise ClusterError(f"jobs {', '.join(job.id for job in left)} do not end; look at squeue")
    return f"{len(jobs)} jobs cancelled"


COMMANDS: dict[str, Callable[[list[str]], str]] = {"submit": submit, "status": status, "stop": stop, "reap": reap}


def main() -> str:
    command, *rest = sys.argv[1:] or ["status"]
    if command not in COMMANDS or (rest and command != "submit"):
        raise ConfigError(f"unknown command {' '.join(sys.argv[1:])!r}; use {', '.join(COMMANDS)}")
    return COMMANDS[command](rest)


if __name__ == "__main__":
    run_stage("driver", main)
