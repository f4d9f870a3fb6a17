"""One turn of the driver: `dvc repro` in a job, which is requeued before its time limit, until the pipeline is done.

In: DVC's targets, the cluster file's section driver, the job's environment. Out: DVC's own output, its exit status,
and `<store root>/driver/status.json`. A turn that is out of time interrupts DVC (as Ctrl-C does: what a stage has
completed is in the store), leaves the servers for the next turn, and puts its own job back into the queue. A pipeline
that fails, and a person's `stop`, end the run. Alone: compute/templates/driver.sh.j2 runs it.
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

from cosmopedia.errors import ClusterError, ConfigError, CosmoError
from cosmopedia.execution.compute import Driver, compute_path, load_compute
from cosmopedia.execution.slurm import commands as slurm
from cosmopedia.execution.slurm.fleet import COMES_BACK
from cosmopedia.lineage import store_root

REQUEUE_SECONDS = 60.0  # for Slurm to end this job once it is requeued
INTERRUPTED = 130
BEGINS = re.compile(r"^Running stage '(.+)':$")
SKIPS = re.compile(r"^Stage '(.+)' (?:didn't change, skipping|is cached - skipping run)")


def driver_folder() -> Path:
    """What the driver tells, and what it is told."""
    return store_root() / "driver"


def stop_mark(job: str) -> Path:
    """A file that says that a person stopped this job: it must not come back."""
    return driver_folder() / f"stop-{job}"


def read_status() -> dict[str, Any]:
    """The status file; empty when no driver has run here."""
    with contextlib.suppress(OSError, ValueError):
        return json.loads((driver_folder() / "status.json").read_text(encoding="utf-8"))
    return {}


class Turn:
    """`run` returns the job's exit status: DVC's own, or 130 after a stop."""

    def __init__(self, driver: Driver, targets: list[str]):
        self.driver, self.targets = driver, targets
        if (job := os.environ.get("SLURM_JOB_ID")) is None:
            raise ConfigError("this runs within the driver's job: `cosmo cluster submit`; by hand it is dvc repro")
        self.job, before = job, read_status()
        self.requeued = before["requeued"] if before.get("job") == job else 0
        self.back = driver_folder() / f"back-{job}"
        self.done: set[str] = set()
        self.stage: str | None = None
        self.since = time.time()
        self.total: int | None = None
        self.asked, self.coming = False, False
        self.started = threading.Event()
        self.dvc: subprocess.Popen[str]

    def run(self) -> int:
        interrupter = threading.Thread(target=self._interrupt, daemon=True)

        def asked(*_: object) -> None:
            if not self.asked:
                self.asked = True
                interrupter.start()

        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, asked)
        driver_folder().mkdir(parents=True, exist_ok=True)
        self.back.unlink(missing_ok=True)
        if stop_mark(self.job).exists():  # it was stopped between two turns
            return self._ended("stopped", INTERRUPTED)
        self.total = None if self.targets else _count_stages()
        self.dvc = subprocess.Popen(
            ["dvc", "repro", *self.targets],
            env={**os.environ, COMES_BACK: str(self.back.resolve())},
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
        if not self.asked:
            return self._ended("failed" if status else "done", status)
        interrupter.join()
        if status == 0:
            return self._ended("done", 0)
        return self._requeue() if self.coming else self._ended("stopped", INTERRUPTED)

    def _read(self) -> None:
        """Pass DVC's lines on, and learn from them where it is."""
        assert self.dvc.stdout is not None
        for line in self.dvc.stdout:
            with contextlib.suppress(OSError):  # a full disk under the log must not block DVC
                print(line, end="", flush=True)
            if found := BEGINS.match(line):
                if self.stage:
                    self.done.add(self.stage)
                self.stage, self.since = found[1], time.time()
                self._write("running")
            elif found := SKIPS.match(line):
                self.done.add(found[1])

    def _interrupt(self) -> None:
        """End DVC and its stage in order; they have until some seconds before Slurm would end them."""
        self.started.wait()
        self.coming = self._may_come_back()
        if self.coming:
            self.back.touch()  # before the stage learns of it: it decides then what becomes of the servers
        self._write("out of time" if self.coming else "stopping")
        patience = max(self.driver.lead_seconds - 30.0, self.driver.lead_seconds / 2)
        for number, seconds in ((signal.SIGINT, patience), (signal.SIGKILL, None)):
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.dvc.pid, number)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.dvc.wait(seconds)
                return

    def _may_come_back(self) -> bool:
        """Not after a person's `stop` or scancel (the job is ending then), nor without end."""
        if stop_mark(self.job).exists():
            return False
        with contextlib.suppress(ClusterError):  # a controller that does not answer now may do so in a minute
            # While Slurm delivers its signal, the state may also be SIGNALING.
            if any(job.ended or job.state == "COMPLETING" for job in slurm.queue(jobs=[self.job])):
                return False
        if self.requeued >= self.driver.resubmit:
            told = f"the time limit is near, and this job was requeued driver.resubmit = {self.requeued} times already"
            print(f"driver: {told}; `cosmo cluster submit` goes on where it ends", file=sys.stderr, flush=True)
            return False
        return True

    def _requeue(self) -> int:
        self.requeued += 1
        told = f"out of time; requeued ({self.requeued} of {self.driver.resubmit})"
        print(f"driver: {told}", file=sys.stderr, flush=True)
        self._write("requeued")
        try:
            slurm.requeue(self.job)
        except ClusterError as error:
            print(f"driver: {error}; `cosmo cluster submit` goes on", file=sys.stderr, flush=True)
            return self._ended("stopped", ClusterError.status)
        time.sleep(REQUEUE_SECONDS)  # Slurm ends this process
        return ClusterError.status

    def _ended(self, state: str, status: int) -> int:
        for mark in (self.back, stop_mark(self.job)):
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
            "done": len(self.done),  # stages that this turn ran or found unchanged
            "total": self.total,  # null where targets were named
            "requeued": self.requeued,  # times, for want of time
        }
        path = driver_folder() / "status.json"
        draft = path.with_name(f".status-{threading.get_ident()}")
        draft.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
        draft.replace(path)


def _count_stages() -> int | None:
    """Stages of the pipeline; None when DVC cannot tell (repro then says why)."""
    found = subprocess.run(["dvc", "stage", "list", "--name-only"], capture_output=True, text=True, check=False)
    return len(found.stdout.split()) or None


def main() -> int:
    """A turn with the command line's targets."""
    driver = load_compute().driver
    if driver is None:
        raise ConfigError(f"{compute_path()} has no section driver; give it one with at least its time")
    return Turn(driver, sys.argv[1:]).run()


if __name__ == "__main__":
    try:
        sys.exit(main())
    except CosmoError as error:
        print(f"driver: error: {error}", file=sys.stderr, flush=True)
        sys.exit(error.status)
