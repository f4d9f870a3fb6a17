"""Start processes under torchrun, follow them, and end them: on this machine, or as a Slurm job.

In: a `TorchrunJob` and the compute file. The processes say in the job's folder how far they are:

    steps.csv     a line per step, its number first, below a head; replaced when a training resumes
    stop          written here: somebody wants a checkpoint and the end (SIGTERM, Slurm's warning)
    result.json   written by the processes at their end, error.json when they failed

What was interrupted goes on from the newest checkpoint when it is started again; a Slurm job that a killed driver left
is found by its name and followed again.
"""

import contextlib
import csv
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from cosmopedia.errors import ClusterError, ConfigError, CosmoError
from cosmopedia.execution import child_process as leash
from cosmopedia.execution.compute import Container, Training, compute_path
from cosmopedia.execution.slurm import commands as slurm
from cosmopedia.rng import content_hash

LOOK_SECONDS = 0.5  # between two looks at a training
QUEUE_SECONDS = 2.0  # between two looks at Slurm's queue
STOP_SECONDS = 600.0  # for a checkpoint to be written when the end was asked for
TEMPLATES = Path("compute/templates")
START = "=== torchrun starts ===\n"  # in the log, also written by the job script
TORCHRUN = "torch/distributed/elastic/"  # in the lines that torchrun itself writes when a process has failed


@dataclass(frozen=True)
class TorchrunJob:
    """What is to run."""

    folder: Path  # the job's, on a file system that its nodes share
    module: str  # what each process runs: python -m <module> <folder>
    processes: int
    steps: int  # when it is done
    error: Callable[[], CosmoError | None]  # what the processes failed with, if they said so


class Processes(Protocol):
    """A training that runs somewhere."""

    def over(self) -> str | None:
        """How it ended, or None while it runs. `ClusterError` when it cannot be kept running."""
        ...

    def end(self) -> None:
        """End it at once."""
        ...


def python_of(training: Training) -> str:
    """The interpreter that has nanotron. `ConfigError` when it is not there."""
    path = Path(training.python)
    if training.container is None and not path.exists():
        raise ConfigError(
            f"{path} is missing: nanotron has an environment of its own; run `make nanotron`, or name its Python in"
            f" training.python of {compute_path()}"
        )
    return str(path if path.is_absolute() or training.container else Path.cwd() / path)


def log_of(folder: Path) -> Path:
    return folder / "log.txt"


def _python_path() -> str:
    return os.pathsep.join([str(Path.cwd()), *filter(None, [os.environ.get("PYTHONPATH")])])


def log_tail(folder: Path, lines: int = 15) -> str:
    """The end of what the processes of the last start said themselves, without torchrun's summary of their end."""
    try:
        found = log_of(folder).read_text(encoding="utf-8", errors="replace").rpartition(START)[2].splitlines()
    except FileNotFoundError:
        return "    (no log was written)"
    ends = [number for number, line in enumerate(found) if TORCHRUN in line]
    found = [line for line in found[: ends[0] if ends else None] if line.strip()]
    return "\n".join(f"    {line}" for line in found[-lines:]) or "    (empty)"


class LocalProcesses:
    """torchrun on this machine."""

    def __init__(self, job: TorchrunJob, training: Training):
        python = python_of(training)
        threads = training.threads or max((os.cpu_count() or 1) // job.processes, 1)
        environment = (
            os.environ | {"OMP_NUM_THREADS": str(threads), "PYTHONPATH": _python_path()} | training.environment
        )
        arguments = ["--nproc-per-node", str(job.processes), "--standalone", "--max-restarts", "0"]
        command = [
            python,
            "-m",
            "torch.distributed.run",
            *arguments,
            "-m",
            job.module,
            str(job.folder),
        ]
        log = log_of(job.folder)
        with log.open("ab") as stream:
            stream.write(START.encode())
        self._process = leash.start(command, log, signal.SIGTERM, env=environment)  # torchrun ends its own

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
    """torchrun as a job, which requeues itself before its time limit; one that failed is submitted again."""

    def __init__(self, job: TorchrunJob, training: Training):
        self.folder, self.training, self.job = job.folder, training, job
        self.name = job_name(job.folder)
        self._failed, self._looked = 0, 0.0
        running = [found for found in slurm.queue(name=self.name) if not found.ended]
        if running:
            self.number = running[0].id
            print(f"train: job {self.number} of {self.name} adopted", file=sys.stderr, flush=True)
        else:
            self._submit()

    def _submit(self) -> None:
        script = job_script(self.job, self.training)
        (self.folder / "train.sh").write_text(script, encoding="utf-8")
        self.number = slurm.submit(script)
        print(f"train: job {self.number} submitted; its log is {log_of(self.folder)}", file=sys.stderr, flush=True)

    def over(self) -> str | None:
        if time.monotonic() - self._looked < QUEUE_SECONDS:
            return None
        self._looked = time.monotonic()
        found = [job for job in slurm.queue(name=self.name) if not job.ended]
        if found:
            return None
        why = slurm.why_it_ended(self.number) or "it is not in the queue any more"
        if (self.folder / "result.json").is_file() or (self.folder / "error.json").is_file() or self._asked():
            return f"({why})"
        self._failed += 1
        told = f"job {self.number} of {self.name} ended ({why}); the end of {log_of(self.folder)}:\n"
        told += log_tail(self.folder)
        if self._failed > self.training.restarts:
            raise ClusterError(f"train: {told}\nthat was the last of {self.training.restarts} restarts")
        print(f"warning: {told}\nit is submitted again", file=sys.stderr, flush=True)
        self._submit()
        return None

    def _asked(self) -> bool:
        return (self.folder / "stop").exists()

    def end(self) -> None:
        jobs = [job.id for job in slurm.queue(name=self.name) if not job.ended]
        slurm.cancel(jobs)
        slurm.wait_ended(jobs, 60)


def job_name(folder: Path) -> str:
    """The name of a training's job: this checkout's, so that `reap` finds it."""
    return f"cosmo-train-{folder.name[:8]}-{content_hash(Path.cwd(), size=4)}"


def in_container(container: Container | None) -> str:
    """What stands between srun and the command."""
    if container is None or container.runtime == "pyxis":
        return ""
    source = container.image if container.image.endswith((".sif", ".sqsh")) else f"docker://{container.image}"
    return " ".join(
        ["apptainer exec --nv", *(f"--bind {shlex.quote(m)}" for m in container.mounts), shlex.quote(source)]
    )


def srun_options(container: Container | None) -> str:
    """pyxis's options of srun."""
    if container is None or container.runtime != "pyxis":
        return ""
    mounts = [f"--container-mounts={shlex.quote(','.join(container.mounts))}"] if container.mounts else []
    return " ".join([f"--container-image={shlex.quote(container.image)}", *mounts])


def job_script(job: TorchrunJob, training: Training) -> str:
    """compute/templates/train.sh.j2, filled in; everything that a shell sees is quoted."""
    assert training.slurm is not None
    quote, nodes = shlex.quote, training.slurm.nodes
    environment = Environment(loader=FileSystemLoader(TEMPLATES), undefined=StrictUndefined, trim_blocks=True)
    return environment.get_template("train.sh.j2").render(
        name=job_name(job.folder),
        log=slurm.log_option(job.folder, log_of(job.folder).name),
        warn=training.warn_seconds,
        options=[slurm.directive(option) for option in training.slurm.options()],
        setup=training.slurm.setup,
        environment={name: quote(value) for name, value in training.environment.items()},
        checkout=quote(str(Path.cwd())),
        folder=quote(str(job.folder)),
        module=job.module,
        python=quote(python_of(training)),
        threads=training.threads or training.slurm.cpus,
        nodes=nodes,
        processes=job.processes // nodes,
        srun=srun_options(training.container),
        container=in_container(training.container),
    )


class Tail:
    """The rows of steps.csv since the last look, each step once."""

    def __init__(self, path: Path):
        self.path, self.last = path, 0
        self._identity: tuple[int, int] = (0, 0)  # of the file, which a resume replaces: inode, and how much was read

    def new(self) -> list[list[str]]:
        try:
            with self.path.open("rb") as stream:
                inode, at = self._identity
                now = os.fstat(stream.fileno()).st_ino
                stream.seek(at if inode == now else 0)
                text = stream.read()
        except FileNotFoundError:
            return []
        whole = text[: text.rfind(b"\n") + 1]
        self._identity = now, (at if inode == now else 0) + len(whole)
        lines = [line for line in whole.decode().splitlines() if line[:1].isdigit()]
        rows = [row for row in csv.reader(lines) if int(row[0]) > self.last]
        self.last = max((int(row[0]) for row in rows), default=self.last)
        return rows


@contextlib.contextmanager
def asked_to_stop(folder: Path) -> Iterator[Callable[[], bool]]:
    """SIGTERM and SIGINT ask the training for a checkpoint and the end."""
    asked = []

    def ask(number: int, _: object) -> None:
        if asked:
            raise KeyboardInterrupt  # the second time, at once
        asked.append(number)
        (folder / "stop").touch()
        print("train: stopping, after a checkpoint; once more ends at once", file=sys.stderr, flush=True)

    before = {number: signal.signal(number, ask) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield lambda: bool(asked)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def follow(job: TorchrunJob, training: Training, booked: Callable[[list[list[str]]], None]) -> None:
    """Run until result.json is there; `booked` gets the row of every step once, from the first.

    `ClusterError` after a signal (a checkpoint was written first) and when the processes cannot be kept running; the
    processes' own errors as they are.
    """
    folder = job.folder
    for name in ("stop", "error.json"):
        (folder / name).unlink(missing_ok=True)
    start = {"local": LocalProcesses, "slurm": SlurmProcesses}[training.launcher]
    tail, deadline = Tail(folder / "steps.csv"), None
    with asked_to_stop(folder) as asked:
        processes: Processes = start(job, training)
        try:
            while True:
                ended = processes.over()
                booked(tail.new())
                if ended is not None:
                    break
                if asked():
                    deadline = deadline or time.monotonic() + STOP_SECONDS
                    if time.monotonic() > deadline:
                        break
                time.sleep(LOOK_SECONDS)
        finally:
            processes.end()
    if (folder / "result.json").is_file():
        return
    if error := job.error():
        raise error
    if asked():
        raise ClusterError(f"stopped by a signal at step {tail.last} of {job.steps}; run it again to go on")
    raise ClusterError(
        f"the training ended {ended} at step {tail.last} of {job.steps}; the end of {log_of(folder)}:\n"
        f"{log_tail(folder)}\nrun it again to go on from the newest checkpoint"
    )
