"""The driver's job: `dvc repro`, requeued before its time limit until the pipeline is done.

In: DVC's targets, the compute file's section `driver`, the job's environment. Out: DVC's own output, its exit status,
and `<store root>/driver/status.json`. A job that runs out of time interrupts DVC (as Ctrl-C does: what a stage has
completed is in the store), leaves the servers running, and requeues itself. The run ends when the pipeline fails or a
person stops it. Run: by compute/templates/driver.sh.j2.
"""

import contextlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

from cosmopedia.core.errors import ClusterError, ConfigError, CosmoError
from cosmopedia.core.files import write_text
from cosmopedia.core.lineage import main_checkout, store_root
from cosmopedia.core.rng import content_hash
from cosmopedia.execution.compute import Driver, compute_path, load_compute
from cosmopedia.execution.redaction import redact, say
from cosmopedia.execution.settings import repairs
from cosmopedia.execution.slurm import commands
from cosmopedia.execution.slurm.fleet import COMES_BACK

REQUEUE_SECONDS = 60.0  # for Slurm to end this job once it is requeued
INTERRUPTED = 130
BEGINS = re.compile(r"^Running stage '(.+)':$")
SKIPS = re.compile(r"^Stage '(.+)' (?:didn't change, skipping|is cached - skipping run)")


def driver_folder() -> Path:
    """The driver's status, and the marks that tell it what to do."""
    return store_root() / "driver"


def status_path(checkout: Path | None = None) -> Path:
    """The status file of a checkout's driver (default: of the current folder); checkouts may share a store."""
    checkout = (checkout or Path.cwd()).resolve()
    suffix = "" if checkout == main_checkout() else f"-{content_hash(checkout, size=4)}"
    return driver_folder() / f"status{suffix}.json"


def stop_mark(job: str) -> Path:
    """A file that exists when a person has stopped this job: it must not be requeued."""
    return driver_folder() / f"stop-{job}"


def read_status() -> dict[str, Any]:
    """The status file; empty when no driver has run here."""
    with contextlib.suppress(OSError, ValueError):
        return json.loads(status_path().read_text(encoding="utf-8"))
    return {}


class DriverJob:
    """`run` returns the job's exit status: DVC's own, or 130 after a stop."""

    def __init__(self, driver: Driver, targets: list[str]):
        job = os.environ.get("SLURM_JOB_ID")
        if job is None:
            raise ConfigError("this runs inside the driver's job, see cosmo cluster submit; by hand, run dvc repro")
        self.driver, self.targets, self.job = driver, targets, job
        before = read_status()
        self.requeued = before["requeued"] if before.get("job") == job else 0
        self.comes_back = driver_folder() / f"back-{job}"  # exists while this job waits to run again
        self.done: set[str] = set()
        self.stage: str | None = None
        self.since = time.time()
        self.total: int | None = None
        self.signalled = False
        self.will_requeue = False
        self.started = threading.Event()
        self.dvc: subprocess.Popen[str]

    def run(self) -> int:
        interrupter = threading.Thread(target=self._interrupt, daemon=True)

        def interrupt(*_: object) -> None:
            if not self.signalled:
                self.signalled = True
                interrupter.start()

        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, interrupt)
        driver_folder().mkdir(parents=True, exist_ok=True)
        self.comes_back.unlink(missing_ok=True)
        if stop_mark(self.job).exists():  # it was stopped while it waited
            return self._ended("stopped", INTERRUPTED)
        self.total = None if self.targets else _count_stages()
        self.dvc = subprocess.Popen(
            ["dvc", "repro", *self.targets],
            env={**os.environ, COMES_BACK: str(self.comes_back.resolve())},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            encoding="utf-8",
            errors="replace",
            start_new_session=True,
        )
        self.started.set()
        reader = threading.Thread(target=self._read, daemon=True)
        reader.start()
        self._write("running")
        status = self.dvc.wait()
        reader.join(5.0)  # a process that a stage left behind may hold the pipe open
        if not self.signalled:
            return self._ended("failed" if status else "done", status)
        interrupter.join()
        if status == 0:
            return self._ended("done", 0)
        return self._requeue() if self.will_requeue else self._ended("stopped", INTERRUPTED)

    def _read(self) -> None:
        """Pass DVC's lines on, and read from them where it is."""
        assert self.dvc.stdout is not None
        for line in self.dvc.stdout:
            with contextlib.suppress(OSError):  # a full disk under the log must not block DVC
                print(redact(line), end="", flush=True)
            if begins := BEGINS.match(line):
                if self.stage:
                    self.done.add(self.stage)
                self.stage, self.since = begins[1], time.time()
                self._write("running")
            elif skips := SKIPS.match(line):
                self.done.add(skips[1])

    def _interrupt(self) -> None:
        """End DVC and its stage in order; they have until a few seconds before Slurm would end them."""
        self.started.wait()
        self.will_requeue = self._may_requeue()
        if self.will_requeue:
            self.comes_back.touch()  # before the signal: the stage then decides whether its servers stay
        self._write("out of time" if self.will_requeue else "stopping")
        patience = max(self.driver.lead_seconds - 30.0, self.driver.lead_seconds / 2)
        for number, seconds in ((signal.SIGINT, patience), (signal.SIGKILL, None)):
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.dvc.pid, number)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.dvc.wait(seconds)
                return

    def _may_requeue(self) -> bool:
        """Not after a person's `stop` or scancel (the job is ending then), and at most `resubmit` times."""
        if stop_mark(self.job).exists():
            return False
        with contextlib.suppress(ClusterError):  # a controller that does not answer now may do so in a minute
            # While Slurm delivers its signal, the state may also be SIGNALING.
            if any(job.ended or job.state == "COMPLETING" for job in commands.queue(jobs=[self.job])):
                return False
        if self.requeued >= self.driver.resubmit:
            why = f"the time limit is near, and this job was already requeued driver.resubmit = {self.requeued} times"
            say(f"driver: {why}; cosmo cluster submit continues from here")
            return False
        return True

    def _requeue(self) -> int:
        self.requeued += 1
        note = f"out of time; requeued ({self.requeued} of {self.driver.resubmit})"
        print(f"driver: {note}", file=sys.stderr, flush=True)
        self._write("requeued")
        try:
            commands.requeue(self.job)
        except ClusterError as error:
            say(f"driver: {error}; cosmo cluster submit continues")
            return self._ended("stopped", ClusterError.status)
        time.sleep(REQUEUE_SECONDS)  # Slurm ends this process
        return ClusterError.status

    def _ended(self, state: str, status: int) -> int:
        for mark in (self.comes_back, stop_mark(self.job)):
            mark.unlink(missing_ok=True)
        if state == "done" and self.stage:
            self.done.add(self.stage)
        self._write(state)
        return status

    def _write(self, state: str) -> None:
        content = {
            "job": self.job,
            "host": socket.gethostname(),
            "state": state,
            "stage": self.stage,
            "since": self.since,  # seconds since the epoch, of the stage
            "done": len(self.done),  # stages that this job ran, or skipped as unchanged
            "finished": sorted(self.done),
            "total": self.total,  # null where targets were named
            "requeued": self.requeued,  # how often, for lack of time
        }
        write_text(status_path(), json.dumps(content, indent=2) + "\n")


def _count_stages() -> int | None:
    """The pipeline's stages; None when DVC cannot list them (repro then says why)."""
    stages = subprocess.run(["dvc", "stage", "list", "--name-only"], capture_output=True, text=True, check=False)
    return len(stages.stdout.split()) or None


def main() -> int:
    """`dvc repro` with the command line's targets."""
    driver = load_compute().driver
    if driver is None:
        raise ConfigError(f"{compute_path()} has no section driver; give it one with at least its time")
    for sentence in repairs():
        say(f"driver: {sentence}")
    return DriverJob(driver, sys.argv[1:]).run()


if __name__ == "__main__":
    try:
        sys.exit(main())
    except CosmoError as error:
        say(f"driver: error: {error}")
        sys.exit(error.status)
