"""Start processes under torchrun, follow them, and end them: on this machine, or as a Slurm job.

In: a `TorchrunJob` and the compute file. The processes report in the job's folder:

    steps.csv     a line per step, the step's number first, below a header; replaced when a training resumes
    stop          written from outside: write a checkpoint and end (SIGTERM, Slurm's warning)
    result.json   written by the processes at their end; error.json when they failed

A training that was interrupted continues from the newest checkpoint when it is started again; a Slurm job that a
killed driver left behind is found by its name and followed again.
"""

import contextlib
import csv
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from cosmopedia.core.errors import ClusterError, ConfigError, CosmoError
from cosmopedia.core.files import indented_tail, write_text
from cosmopedia.core.rng import content_hash
from cosmopedia.execution import child_process
from cosmopedia.execution.compute import LocalTraining, SlurmTraining, Training, compute_path
from cosmopedia.execution.redaction import say
from cosmopedia.execution.slurm import commands
from cosmopedia.execution.slurm.job_scripts import Shell, in_container, log_option, options_of, render

LOOK_SECONDS = 0.5  # between two looks at a training
QUEUE_SECONDS = 2.0  # between two calls of squeue
STOP_SECONDS = 600.0  # for a checkpoint to be written after a request to stop
START = "=== torchrun starts ===\n"  # in the log; the job script writes it too
TORCHRUN = "torch/distributed/elastic/"  # in torchrun's own lines when a process has failed


@dataclass(frozen=True)
class TorchrunJob:
    """What is to run."""

    folder: Path  # the job's, on a file system that its nodes share
    module: str  # what each process runs: python -m <module> <folder>
    processes: int
    steps: int  # in all
    error: Callable[[], CosmoError | None]  # what the processes failed with, if they reported it


class Processes(Protocol):
    """A training's processes, wherever they run."""

    def over(self) -> str | None:
        """How it ended, or None while it runs. `ClusterError` when it cannot be kept running."""
        ...

    def end(self) -> None:
        """End it at once."""
        ...


def python_of(training: Training) -> str:
    """The interpreter that has nanotron. `ConfigError` when it is not there."""
    if training.container:
        return training.python  # the image's own
    path = Path(training.python)
    if not path.exists():
        raise ConfigError(
            f"{path} is missing: nanotron has an environment of its own; run `make nanotron`, or set training.python"
            f" in {compute_path()}"
        )
    return str(path if path.is_absolute() else Path.cwd() / path)


def log_of(folder: Path) -> Path:
    return folder / "log.txt"


def log_tail(folder: Path) -> str:
    """The end of what the processes of the last start wrote themselves, without torchrun's summary of their end."""
    try:
        text = log_of(folder).read_text(encoding="utf-8", errors="replace")
    except FileNotFoundError:
        return "    (no log was written)"
    lines = text.rpartition(START)[2].splitlines()
    summary = next((number for number, line in enumerate(lines) if TORCHRUN in line), None)
    return indented_tail([line for line in lines[:summary] if line.strip()])


class LocalProcesses:
    """torchrun on this machine."""

    def __init__(self, job: TorchrunJob, training: LocalTraining):
        python = python_of(training)
        threads = training.threads or max((os.cpu_count() or 1) // job.processes, 1)
        environment = child_process.environment() | {"OMP_NUM_THREADS": str(threads)} | training.environment
        command = [python, "-m", "torch.distributed.run", "--nproc-per-node", str(job.processes), "--standalone"]
        command += ["--max-restarts", "0", "-m", job.module, str(job.folder)]
        log = log_of(job.folder)
        with log.open("ab") as stream:
            stream.write(START.encode())
        self._process = child_process.start(command, log, signal.SIGTERM, env=environment)  # torchrun ends its own

    def over(self) -> str | None:
        status = self._process.poll()
        if status is None:
            return None
        return f"by signal {signal.Signals(-status).name}" if status < 0 else f"with status {status}"

    def end(self) -> None:
        for number in (signal.SIGTERM, signal.SIGKILL):
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, number)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(40)  # torchrun gives its processes 30 s
                return


class SlurmProcesses:
    """torchrun as a job that requeues itself before its time limit; a job that failed is submitted again."""

    def __init__(self, job: TorchrunJob, training: SlurmTraining):
        self.folder, self.training, self.job = job.folder, training, job
        self.name = job_name(job.folder)
        self._failed = 0
        self._looked = 0.0
        self._pending = commands.PendingReport("train")
        running = self._running()
        if running:
            self.number = running[0].id
            say(f"train: job {self.number} of {self.name} adopted")
        else:
            self._submit()

    def _submit(self) -> None:
        script = job_script(self.job, self.training)
        write_text(self.folder / "train.sh", script)
        self.number = commands.submit(script)
        say(f"train: job {self.number} submitted; its log is {log_of(self.folder)}")

    def _running(self) -> list[commands.SlurmJob]:
        """Jobs of this name that wait or run."""
        return [job for job in commands.queue(name=self.name) if not job.ended]

    def over(self) -> str | None:
        if time.monotonic() - self._looked < QUEUE_SECONDS:
            return None
        self._looked = time.monotonic()
        if running := self._running():
            self._pending.look(running)
            return None
        why = commands.why_it_ended(self.number) or "it has left the queue"
        if any((self.folder / name).exists() for name in ("result.json", "error.json")):
            return f"({why})"
        if commands.CANCELLED in why:
            raise ClusterError(
                f"train: job {self.number} of {self.name} was {commands.BY_A_PERSON}, so the run stops; its"
                " checkpoints are kept: run it again to go on"
            )
        if (self.folder / "stop").exists():
            return f"({why})"
        self._failed += 1
        report = f"job {self.number} of {self.name} ended ({why}); the end of {log_of(self.folder)}:\n"
        report += log_tail(self.folder)
        if self._failed > self.training.restarts:
            raise ClusterError(f"train: {report}\nthat was the last of {self.training.restarts} restarts")
        say(f"warning: {report}\nit is submitted again")
        self._submit()
        return None

    def end(self) -> None:
        jobs = [job.id for job in self._running()]
        commands.cancel(jobs)
        commands.wait_ended(jobs, 60)


def job_name(folder: Path) -> str:
    """The name of a training's job; it holds this checkout's hash, so that `reap` finds it."""
    return f"cosmo-train-{folder.name[:8]}-{content_hash(Path.cwd(), size=4)}"


def job_script(job: TorchrunJob, training: SlurmTraining) -> str:
    """compute/templates/train.sh.j2, rendered."""
    nodes, cpus = training.slurm.nodes, training.slurm.cpus
    return render(
        "train.sh.j2",
        name=job_name(job.folder),
        log=log_option(job.folder, log_of(job.folder).name),
        warn=training.warn_seconds,
        options=options_of(training.slurm),
        setup=map(Shell, training.slurm.setup),
        environment=training.environment,
        checkout=Path.cwd(),
        folder=job.folder,
        module=job.module,
        python=python_of(training),
        threads=training.threads or cpus,
        nodes=nodes,
        processes=job.processes // nodes,
        container=in_container(training.container, nodes, cpus),
    )


class Tail:
    """New rows of steps.csv, each step once."""

    def __init__(self, path: Path):
        self.path = path
        self.last = 0  # step
        self._inode = 0  # of the file, which a resume replaces
        self._read = 0  # bytes of it

    def new(self) -> list[list[str]]:
        try:
            with self.path.open("rb") as stream:
                inode = os.fstat(stream.fileno()).st_ino
                if inode != self._inode:
                    self._inode, self._read = inode, 0
                stream.seek(self._read)
                text = stream.read()
        except FileNotFoundError:
            return []
        whole = text[: text.rfind(b"\n") + 1]
        self._read += len(whole)
        lines = [line for line in whole.decode().splitlines() if line[:1].isdigit()]
        rows = [row for row in csv.reader(lines) if int(row[0]) > self.last]
        self.last = max((int(row[0]) for row in rows), default=self.last)
        return rows


@contextlib.contextmanager
def stop_on_signal(folder: Path) -> Iterator[Callable[[], bool]]:
    """SIGTERM and SIGINT tell the training to write a checkpoint and end; yields whether one has arrived."""
    signals = []

    def stop(number: int, _: object) -> None:
        if signals:
            raise KeyboardInterrupt  # the second time, at once
        signals.append(number)
        (folder / "stop").touch()
        print("train: stopping after a checkpoint; a second signal ends it at once", file=sys.stderr, flush=True)

    before = {number: signal.signal(number, stop) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield lambda: bool(signals)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def follow(job: TorchrunJob, training: Training, book: Callable[[list[list[str]]], None]) -> None:
    """Run until result.json exists; `book` gets the row of every step once, from the first.

    `ClusterError` after a signal (a checkpoint was written first) and when the processes cannot be kept running; the
    processes' own errors unchanged.
    """
    folder = job.folder
    for name in ("stop", "error.json"):
        (folder / name).unlink(missing_ok=True)
    tail = Tail(folder / "steps.csv")
    deadline = None
    with stop_on_signal(folder) as stopping:
        processes: Processes
        if isinstance(training, SlurmTraining):
            processes = SlurmProcesses(job, training)
        else:
            processes = LocalProcesses(job, training)
        try:
            while True:
                ended = processes.over()
                book(tail.new())
                if ended is not None:
                    break
                if stopping():
                    deadline = deadline or time.monotonic() + STOP_SECONDS
                    if time.monotonic() > deadline:
                        break
                time.sleep(LOOK_SECONDS)
        finally:
            processes.end()
    if (folder / "result.json").is_file():
        return
    error = job.error()
    if error:
        raise error
    if stopping():
        raise ClusterError(f"stopped by a signal at step {tail.last} of {job.steps}; run it again to continue")
    raise ClusterError(
        f"the training ended {ended} at step {tail.last} of {job.steps}; the end of {log_of(folder)}:\n"
        f"{log_tail(folder)}\nrun it again to continue from the newest checkpoint"
    )
