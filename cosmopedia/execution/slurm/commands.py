"""Slurm's commands, as far as this repository needs them: submit, look, cancel, and why a job ended.

Everything goes through sbatch, squeue, scancel and scontrol of the login node's PATH; nothing needs rights that a user
has not. Errors carry Slurm's own words.
"""

import os
import re
import subprocess
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from cosmopedia.errors import ClusterError, ConfigError

COMMAND_SECONDS = 60.0  # a busy controller answers slowly
TRIES = 5  # of a question to a controller that does not answer; it may be restarting
COLUMNS = {"JobArrayID": 40, "State": 20, "Name": 80, "NodeList": 120, "Reason": 60, "RestartCnt": 8}  # with widths
FIELDS = ",".join(f"{name}:{width}" for name, width in COLUMNS.items())
ENDED_BY_SLURM = {"TIMEOUT", "PREEMPTED", "NODE_FAIL"}  # through no fault of the job; each may also mean a requeue
ENDED = {"COMPLETED", "FAILED", "CANCELLED", "OUT_OF_MEMORY", "BOOT_FAIL", "DEADLINE"} | ENDED_BY_SLURM


@dataclass(frozen=True)
class SlurmJob:
    """A job as squeue shows it. An array's tasks have ids such as `12_3`."""

    id: str
    state: str
    name: str
    nodes: str
    reason: str
    restarts: int  # times that it was requeued

    @property
    def ended(self) -> bool:
        return self.state in ENDED


def _run(command: list[str], stdin: str | None = None, environment: Mapping[str, str] | None = None) -> str:
    """A command's output. `ClusterError` with its words when it fails."""
    try:
        done = subprocess.run(
            command,
            input=stdin,
            capture_output=True,
            text=True,
            timeout=COMMAND_SECONDS,
            env=environment,
        )
    except FileNotFoundError:
        raise ClusterError(
            f"{command[0]} is not on the PATH; run on a node where Slurm's commands are, or take a cluster file whose"
            " launcher is local"
        ) from None
    except subprocess.TimeoutExpired:
        raise ClusterError(
            f"{command[0]} did not answer within {COMMAND_SECONDS:g} s; is the controller up?"
        ) from None
    if done.returncode:
        said = " ".join((done.stderr or done.stdout).split())[:500] or f"status {done.returncode}"
        raise ClusterError(f"{' '.join(command[:2])} failed: {said}")
    return done.stdout


def directive(option: str) -> str:
    """An option as a #SBATCH line takes it: sbatch splits the line at blanks and knows quotes and backslashes."""
    name, equals, value = option.partition("=")
    escaped = value.replace("\\", "\\\\").replace('"', '\\"')
    return f'{name}{equals}"{escaped}"' if re.search(r"[^\w@%+=:,./-]", value) else option


def log_option(folder: Path, name: str) -> str:
    """--output for a file whose name has Slurm's patterns (%j), in a folder whose path is to be taken as it is.

    `ConfigError` for a backslash or a line's end in it: to sbatch they mean something, however they are quoted.
    """
    if wrong := re.search(r"[\\\n]", str(folder)):
        raise ConfigError(f"{folder}: sbatch takes no path with {wrong[0]!r}; move the checkout, or $COSMO_STORE")
    return directive(f"--output={str(folder).replace('%', '%%')}/{name}")


def submit(script: str, options: Iterable[str] = ()) -> str:
    """Submit a job script (its text) and return the job's id.

    This process's environment reaches the job (`--export=ALL` stands in the templates), but for what Slurm set for the
    job in which this process itself may run: its number of CPUs or its memory must not become the new job's.
    """
    kept = {n: v for n, v in os.environ.items() if n == "SLURM_CONF" or not n.startswith(("SLURM_", "SBATCH_"))}
    return _run(["sbatch", "--parsable", *options], script, kept).strip().partition(";")[0]


def queue(name: str | None = None, jobs: Iterable[str] = ()) -> list[SlurmJob]:
    """Jobs of this user that are waiting, running or have just ended, by name or by id."""
    command = ["squeue", "--noheader", "--states=all", f"--Format={FIELDS}", "--user", str(os.getuid())]
    if name is not None:
        command += ["--name", name]
    if ids := ",".join(jobs):
        command += ["--jobs", ids]
    for left in range(TRIES, 0, -1):
        try:
            lines = _run(command).splitlines()
            break
        except ClusterError as error:
            if "Invalid job id" in str(error):
                return []
            if left == 1:
                raise
            time.sleep(1.0)
    else:
        return []
    return [_parse(line) for line in lines if line.strip()]


def _parse(line: str) -> SlurmJob:
    fields, at = [], 0
    for width in COLUMNS.values():
        fields.append(line[at : at + width].strip())
        at += width
    *texts, restarts = fields
    return SlurmJob(*texts, restarts=int(restarts) if restarts.isdecimal() else 0)


def cancel(jobs: Iterable[str], number: str | None = None) -> None:
    """Cancel jobs, or send their scripts a signal; those that have ended already are no error."""
    ids = list(jobs)
    if ids:
        try:
            _run(["scancel", *([f"--signal={number}", "--batch"] if number else []), *ids])
        except ClusterError as error:
            if "Invalid job id" not in str(error):
                raise


def requeue(job: str) -> None:
    """Put a running job back into the queue under its id; Slurm ends its processes. `ClusterError` if it may not."""
    _run(["scontrol", "requeue", job])


def wait_ended(jobs: Iterable[str], seconds: float) -> list[SlurmJob]:
    """Wait until jobs have ended; returns those that have not in time."""
    ids, end = list(jobs), time.monotonic() + seconds
    while ids and (left := [job for job in queue(jobs=ids) if not job.ended]):
        if time.monotonic() > end:
            return left
        time.sleep(0.3)
    return []


def why_it_ended(job: str) -> str:
    """What the controller knows of a job that is gone: state, exit code, reason; "" when it has forgotten it."""
    try:
        shown = _run(["scontrol", "show", "job", "--oneliner", job])
    except ClusterError:
        return ""
    found = dict(part.split("=", 1) for part in shown.split() if "=" in part)
    named = {name: found[name] for name in ("JobState", "Reason", "ExitCode", "NodeList", "Restarts") if name in found}
    return ", ".join(f"{name} {value}" for name, value in named.items())


def tail(log: Path, lines: int = 15) -> str:
    """The last lines of a job's log, indented."""
    try:
        found = log.read_text(encoding="utf-8", errors="replace").splitlines()[-lines:]
    except FileNotFoundError:
        return "    (no log was written)"
    return "\n".join(f"    {line}" for line in found) or "    (empty)"
