"""Slurm's commands, as far as this repository needs them: submit, list, cancel, and why a job ended.

Everything goes through sbatch, squeue, scancel and scontrol on the login node's PATH, with an ordinary user's rights.
Errors carry Slurm's own message.
"""

import contextlib
import os
import subprocess
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime

from cosmopedia.core.errors import ClusterError
from cosmopedia.execution.redaction import say

COMMAND_SECONDS = 60.0  # a busy controller answers slowly
TRIES = 5  # when the controller does not answer; it may be restarting
COLUMNS = {  # with widths
    "JobArrayID": 40,
    "State": 20,
    "Name": 80,
    "NodeList": 120,
    "Reason": 60,
    "SubmitTime": 24,
    "RestartCnt": 8,
}
FIELDS = ",".join(f"{name}:{width}" for name, width in COLUMNS.items())
ENDED_BY_SLURM = {"TIMEOUT", "PREEMPTED", "NODE_FAIL"}  # not the job's fault; each may also mean a requeue
ENDED = {"COMPLETED", "FAILED", "CANCELLED", "OUT_OF_MEMORY", "BOOT_FAIL", "DEADLINE"} | ENDED_BY_SLURM
CANCELLED = "JobState CANCELLED"  # in `why_it_ended`
BY_A_PERSON = "cancelled by scancel, `cosmo cluster reap` or an administrator"
STUCK = {  # squeue's reasons that do not pass by waiting, and what to do
    "PartitionNodeLimit": "more nodes than the partition gives to a job: see nodes, partition",
    "PartitionTimeLimit": "longer than the partition allows: see time",
    "PartitionDown": "the partition is closed",
    "BadConstraints": "no node has what the job requests",
    "ReqNodeNotAvail": "a node that it requires is down or reserved",
    "JobHeldUser": "held; scontrol release continues it",
    "JobHeldAdmin": "held by an administrator",
    "InvalidAccount": "not an account of yours: see account",
    "InvalidQOS": "not a QOS of yours: see qos",
    "DependencyNeverSatisfied": "it waits for a job that has failed",
}
PENDING_SECONDS = 60.0  # before a job that waits is reported
REPORT_SECONDS = 600.0  # between two reports that say the same


@dataclass(frozen=True)
class SlurmJob:
    """A job as squeue shows it. An array's tasks have ids such as `12_3`."""

    id: str
    state: str
    name: str
    nodes: str
    reason: str
    submitted: str  # or requeued: local time, as 2026-11-29T12:00:00
    restarts: int  # how often it was requeued

    @property
    def ended(self) -> bool:
        return self.state in ENDED

    def waiting(self, now: datetime) -> str:
        """Why and since when it waits, for people: "job 12 is pending since 12:01 (3 min): Resources"."""
        line = f"job {self.id} is {self.state.lower()}"
        with contextlib.suppress(ValueError):
            since = datetime.fromisoformat(self.submitted)
            day = "" if since.date() == now.date() else f"{since:%d %B} "
            line += f" since {day}{since:%H:%M} ({max((now - since).total_seconds(), 0) / 60:.0f} min)"
        stuck = STUCK.get(self.reason.partition(",")[0])
        hint = f" ({stuck})" if stuck else ""
        return f"{line}: {self.reason}{hint}"


def _run(command: list[str], stdin: str | None = None, environment: Mapping[str, str] | None = None) -> str:
    """A command's output. `ClusterError` with its message when it fails."""
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
            f"{command[0]} is not on the PATH; run on a node that has Slurm's commands, or use a compute file whose"
            " launcher is local"
        ) from None
    except subprocess.TimeoutExpired:
        raise ClusterError(
            f"{command[0]} did not answer within {COMMAND_SECONDS:g} s; is the controller up?"
        ) from None
    if done.returncode:
        message = " ".join((done.stderr or done.stdout).split())[:500] or f"status {done.returncode}"
        raise ClusterError(f"{' '.join(command[:2])} failed: {message}")
    return done.stdout


def submit(script: str, options: Iterable[str] = ()) -> str:
    """Submit a job script (its text) and return the job's id.

    This process's environment reaches the job (the templates say `--export=ALL`), except what Slurm set for the job in
    which this process may itself run: its CPUs and memory must not become the new job's.
    """
    environment = {n: v for n, v in os.environ.items() if n == "SLURM_CONF" or not n.startswith(("SLURM_", "SBATCH_"))}
    return _run(["sbatch", "--parsable", *options], script, environment).strip().partition(";")[0]


def queue(name: str | None = None, jobs: Iterable[str] = ()) -> list[SlurmJob]:
    """This user's jobs that wait, run or have just ended, by name or by id."""
    command = ["squeue", "--noheader", "--states=all", f"--Format={FIELDS}", "--user", str(os.getuid())]
    if name is not None:
        command += ["--name", name]
    if ids := ",".join(jobs):
        command += ["--jobs", ids]
    environment = os.environ | {"SLURM_TIME_FORMAT": "standard"}
    for tries_left in reversed(range(TRIES)):
        try:
            return [_parse(line) for line in _run(command, environment=environment).splitlines() if line.strip()]
        except ClusterError as error:
            if "Invalid job id" in str(error):
                break
            if not tries_left:
                raise
            time.sleep(1.0)
    return []


def _parse(line: str) -> SlurmJob:
    fields, at = [], 0
    for width in COLUMNS.values():
        fields.append(line[at : at + width].strip())
        at += width
    *texts, restarts = fields
    return SlurmJob(*texts, restarts=int(restarts) if restarts.isdecimal() else 0)


class PendingReport:
    """Says on stderr why jobs wait and since when: after a minute, when a reason changes, and every ten minutes."""

    def __init__(self, stage: str):
        self.stage = stage
        self._since: float | None = None  # when all of them began to wait
        self._reported = 0.0
        self._reasons: set[tuple[str, str]] = set()

    def look(self, jobs: Iterable[SlurmJob]) -> None:
        """The jobs that have not ended; nothing is said while one of them runs."""
        waiting, now = list(jobs), time.monotonic()
        if not waiting or any(job.state != "PENDING" for job in waiting):
            self._since = None
            return
        self._since = self._since or now
        reasons = {(job.id, job.reason) for job in waiting}
        due = now - self._reported > (REPORT_SECONDS if reasons == self._reasons else PENDING_SECONDS)
        if now - self._since > PENDING_SECONDS and due:
            self._reported, self._reasons = now, reasons
            lines = [job.waiting(datetime.now()) for job in waiting[:3]]
            more = f"; and {len(waiting) - 3} more" if len(waiting) > 3 else ""
            say(f"{self.stage}: {'; '.join(lines)}{more}")


def cancel(jobs: Iterable[str], number: str | None = None) -> None:
    """Cancel jobs, or send their scripts a signal; jobs that have already ended are not an error."""
    ids = list(jobs)
    if ids:
        try:
            _run(["scancel", *([f"--signal={number}", "--batch"] if number else []), *ids])
        except ClusterError as error:
            if "Invalid job id" not in str(error):
                raise


def requeue(job: str) -> None:
    """Put a running job back into the queue under its id; Slurm ends its processes. `ClusterError` if it refuses."""
    _run(["scontrol", "requeue", job])


def wait_ended(jobs: Iterable[str], seconds: float) -> list[SlurmJob]:
    """Wait until jobs have ended; returns those that have not in time."""
    ids = list(jobs)
    deadline = time.monotonic() + seconds
    while ids and (left := [job for job in queue(jobs=ids) if not job.ended]):
        if time.monotonic() > deadline:
            return left
        time.sleep(0.3)
    return []


def why_it_ended(job: str) -> str:
    """What the controller knows about a job that has ended: state, exit code, reason; "" when it has forgotten it."""
    try:
        shown = _run(["scontrol", "show", "job", "--oneliner", job])
    except ClusterError:
        return ""
    fields = dict(part.split("=", 1) for part in shown.split() if "=" in part)
    names = ("JobState", "Reason", "ExitCode", "NodeList", "Restarts")
    return ", ".join(f"{name} {fields[name]}" for name in names if name in fields)
