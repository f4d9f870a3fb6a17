"""Where the tasks of a datatrove pipeline run: processes here, a Slurm job array, or Ray.

Each executor returns when every task is done, runs tasks that failed again where that can help (Slurm, Ray), and
fails with the log of one that keeps failing. A task counts as done when datatrove's own marker says so, which it
writes after the task's last file; tasks that are marked already do not run.
"""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
import traceback
from collections import deque
from collections.abc import Callable, Iterator
from copy import deepcopy
from pathlib import Path
from shlex import quote
from typing import Any

import multiprocess
from datatrove.executor.base import PipelineExecutor
from datatrove.executor.local import LocalPipelineExecutor
from datatrove.executor.ray import RayPipelineExecutor
from datatrove.executor.slurm import SlurmPipelineExecutor
from datatrove.pipeline.base import PipelineStep
from datatrove.utils.stats import MetricStatsDict, PipelineStats
from loguru import logger

from cosmopedia.errors import ClusterError, ConfigError
from cosmopedia.execution.compute import Data
from cosmopedia.execution.slurm import commands as slurm
from cosmopedia.rng import content_hash

RAY = "2.60.0"  # what tests/cosmopedia/execution/test_ray.py was run with
LOOPBACK_ONLY = "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"  # 0 when it is imported: else a local Ray listens on all addresses
LOOK_SECONDS = 2.0
MOST_TASKS = 1000  # of one array; Slurm's own bound is 1,001 if nobody changed it
GRACE_SECONDS = 30.0  # for a task's marker to be seen on a shared file system after the job has ended
END_SECONDS = 60.0  # for the tasks of a driver that was killed to end when they are told to
UNQUOTABLE = '"\\%\n'  # of an array, Slurm 22.05 opens no log in such a path, however it is quoted
CONNECT_SECONDS = 10.0  # for the Ray at $RAY_ADDRESS to answer
GIB = {"K": 2**-20, "M": 2**-10, "G": 1.0, "T": 2**10}
Steps = list[PipelineStep | Callable]
logger.disable("datatrove")  # a page of log for each task; failures arrive as exceptions, progress through Progress


@contextlib.contextmanager
def prepared(stage: str, data: Data) -> Iterator[None]:
    """A place where `stage` can run tasks: of a driver that was killed no task goes on; Ray is connected."""
    if data.executor == "slurm":
        begin, end = _job_name(stage, "").split("*")
        left = [
            job for job in slurm.queue() if job.name.startswith(begin) and job.name.endswith(end) and not job.ended
        ]
        slurm.cancel(job.id for job in left)
        if stuck := slurm.wait_ended((job.id for job in left), END_SECONDS):
            raise ClusterError(
                f"job {stuck[0].id} ({stuck[0].name}) was cancelled, but is {stuck[0].state}; scancel it"
            )
    with _ray(data) if data.executor == "ray" else contextlib.nullcontext():
        yield


def execute(stage: str, name: str, steps: Steps, tasks: int, workers: int, data: Data, logs: Path) -> PipelineStats:
    """Run a pipeline of `stage` over `tasks` tasks through the cluster's executor; the sum of their statistics.

    `workers` bounds the processes of a local run; `logs` holds the tasks' logs, markers and statistics. `ClusterError`
    when a task keeps failing; a local task's own error arrives as it is.
    """
    executor: PipelineExecutor
    if data.executor == "slurm":
        executor = ArrayExecutor(stage, name, steps, tasks, data, logs)
    elif data.executor == "ray":
        executor = RayExecutor(stage, name, steps, tasks, data, logs)
    else:
        executor = LocalExecutor(steps, tasks, min(tasks, workers), str(logs))
    executor.run()
    if missing := executor.get_incomplete_ranks():
        raise ClusterError(f"{stage} {name}: {_named(missing, tasks)} left no marker in {logs}; run the stage again")
    return sum((_statistics(path) for path in sorted((logs / "stats").iterdir())), start=PipelineStats())


class LocalExecutor(LocalPipelineExecutor):
    """datatrove's, but with one worker no other process is started, and a kill (-9) leaves none behind.

    datatrove's own `run` starts a process that counts for the workers, and does not see that this one is gone.
    """

    def run(self) -> None:
        """Do the tasks that are not done yet."""
        ranks = self.get_incomplete_ranks()
        if self.workers == 1:
            steps = self.pipeline
            for rank in ranks:
                self.pipeline = deepcopy(steps)
                self._run_for_rank(rank)
        else:
            with multiprocess.get_context(self.start_method).Pool(self.workers) as pool:  # type: ignore[attr-defined]
                deque(pool.imap_unordered(self._run_for_rank, ranks), maxlen=0)


class ArrayExecutor(SlurmPipelineExecutor):
    """A pipeline over `tasks` tasks; `run` returns when all are done. `ClusterError` when one keeps failing."""

    def __init__(self, stage: str, name: str, steps: Steps, tasks: int, data: Data, logs: Path):
        assert data.slurm is not None
        self.stage, self.retries, self.options = f"{stage} {name}", data.retries, data.slurm.options()
        if wrong := [character for character in str(logs) if character in UNQUOTABLE]:
            raise ConfigError(
                f"{logs}: an array's log cannot lie in a path with {wrong[0]!r}; move the checkout, or $COSMO_STORE"
            )
        super().__init__(
            steps,
            tasks=tasks,
            time=data.slurm.time,
            partition="",
            workers=min(data.workers, tasks),
            job_name=_job_name(stage, name),
            max_array_size=MOST_TASKS,
            env_command=_surroundings(Path.cwd(), data.slurm.setup),
            logging_dir=str(logs),
            requeue_signals=None,
            with_srun=False,
        )

    def get_sbatch_args(self, max_array: int = 1) -> dict[str, Any]:
        """datatrove's, with the cluster file's own where the two say the same, and values quoted for sbatch."""
        found = super().get_sbatch_args(max_array)
        for name in ("mem-per-cpu", "partition", "qos", "cpus-per-task", "nodes", "time", "error"):
            found.pop(name, None)
        parts = (slurm.directive(option).removeprefix("--").partition("=") for option in self.options)
        return {**found, **{name: value for name, _, value in parts}, "output": f'"{found["output"]}"'}

    def get_launch_file_contents(self, sbatch_args: dict, run_script: str) -> str:
        """datatrove's, with a command that also finds its file and its Python in a folder with spaces."""
        pickled = quote(str(self.logging_dir.resolve_paths("executor.pik")))
        command = f"{quote(sys.executable)} -m datatrove.tools.launch_pickled_pipeline {pickled}"
        return super().get_launch_file_contents(sbatch_args, command)

    def launch_merge_stats(self) -> None:
        """Not as a job of its own: `execute` adds them up."""

    def run(self) -> None:
        """Submit and wait; within a task of the array (where datatrove calls this too) do the task's work."""
        if "SLURM_ARRAY_TASK_ID" in os.environ:
            return super().run()
        with _ending(lambda: self.job_id):
            _until_done(self, self.stage, self.retries, self._submit_and_wait, self._log)

    def _submit_and_wait(self) -> list[int]:
        """Run what is not done as one array; the tasks that failed."""
        self.job_id = None
        try:
            self.launch_job()
        except subprocess.CalledProcessError as error:  # sbatch's own words are on the terminal
            raise ClusterError(f"{self.stage}: sbatch ended with {error.returncode}; see data.slurm") from None
        said = time.monotonic()
        while waiting := [job for job in slurm.queue(jobs=[str(self.job_id)]) if not job.ended]:
            if time.monotonic() - said > 60 and all(job.state == "PENDING" for job in waiting):
                said = time.monotonic()
                why = ", ".join(sorted({job.reason for job in waiting}))
                print(f"{self.stage}: job {self.job_id} is pending ({why})", file=sys.stderr, flush=True)
            time.sleep(LOOK_SECONDS)
        end = time.monotonic() + GRACE_SECONDS
        while (missing := self.get_incomplete_ranks()) and time.monotonic() < end and self._ended_well():
            time.sleep(1.0)
        return missing

    def _ended_well(self) -> bool:
        """Whether Slurm says that the array ended well, so that a marker can only be late."""
        return "FAILED" not in (why := slurm.why_it_ended(str(self.job_id))) and "COMPLETED" in why

    def _log(self, rank: int) -> Path:
        with self.logging_dir.open("ranks_to_run.json", "r") as file:
            number = json.load(file).index(rank) % MOST_TASKS
        return Path(str(self.slurm_logs_folder)) / f"{self.job_id}_{number}.out"


class RayExecutor(RayPipelineExecutor):
    """datatrove's, with failed tasks tried again. The nodes share the checkout and the store with this machine."""

    def __init__(self, stage: str, name: str, steps: Steps, tasks: int, data: Data, logs: Path):
        cpus, memory = _resources(data)
        super().__init__(
            steps,
            tasks=tasks,
            workers=min(data.workers, tasks),
            logging_dir=str(logs),
            cpus_per_task=cpus,
            mem_per_cpu_gb=memory / cpus,
        )
        self.stage, self.retries, self.checkout, self.logs = f"{stage} {name}", data.retries, Path.cwd(), logs

    def run(self) -> None:
        """Run the tasks on the Ray to which `prepared` has connected."""
        _until_done(self, self.stage, self.retries, self._submit_and_wait, self._log)

    def _submit_and_wait(self) -> list[int]:
        super().run()
        return self.get_incomplete_ranks()

    def _run_for_rank(self, rank: int, local_rank: int = 0, node_rank: int = -1) -> PipelineStats:
        """One task, on a node. datatrove's own would keep its log in a folder of /tmp that all users share."""
        os.chdir(self.checkout)
        try:
            return PipelineExecutor._run_for_rank(self, rank, local_rank, node_rank)
        except BaseException:
            self._log(rank).write_text(traceback.format_exc(), encoding="utf-8")
            raise

    def _log(self, rank: int) -> Path:
        return self.logs / f"failed-{rank:05d}.log"


def _until_done(
    executor: PipelineExecutor, stage: str, retries: int, attempt: Callable[[], list[int]], log: Callable[[int], Path]
) -> None:
    """`attempt` what is not done (it returns the tasks that failed), then those `retries` times more."""
    if not executor.get_incomplete_ranks():
        return
    for left in range(retries, -1, -1):
        if not (missing := attempt()):
            return
        told = f"{stage}: {_named(missing, executor.world_size)} failed; the end of {log(missing[0])}:\n"
        told += slurm.tail(log(missing[0]))
        if not left:
            raise ClusterError(f"{told}\nrun the stage again when it is mended; what is done is kept")
        print(f"warning: {told}\nthey are submitted again", file=sys.stderr, flush=True)


def _statistics(path: Path) -> PipelineStats:
    """A task's statistics from its file, in which datatrove leaves plain numbers and dicts."""
    found = PipelineStats.from_json(json.loads(path.read_text(encoding="utf-8")))
    for step in found.stats:
        step.stats = MetricStatsDict() + step.stats
    return found


def _named(ranks: list[int], tasks: int) -> str:
    return f"task(s) {ranks} of {tasks}"


def _job_name(stage: str, name: str) -> str:
    """The name of an array's job; `*` stands for a `name` that is empty."""
    return f"cosmo-{stage}-{name.replace(' ', '-') or '*'}-{content_hash(Path.cwd(), size=4)}"


def _surroundings(checkout: Path, setup: list[str]) -> str:
    """Lines of shell that make a task find this checkout and its Python, and use the CPUs that it was given."""
    lines = [*setup, f"cd {quote(str(checkout))}", f"export PATH={quote(str(Path(sys.executable).parent))}:$PATH"]
    lines.append("export OMP_NUM_THREADS=$SLURM_CPUS_PER_TASK")
    return "\n".join([*lines, f"export PYTHONPATH={quote(str(checkout))}${{PYTHONPATH:+:$PYTHONPATH}}"])


@contextlib.contextmanager
def _ending(job: Callable[[], str | None]) -> Iterator[None]:
    """Cancel the array when the body does not end well, also after SIGTERM."""

    def asked(*_: object) -> None:
        raise KeyboardInterrupt

    try:
        before = signal.signal(signal.SIGTERM, asked)
    except ValueError:  # not the main thread
        before = None
    try:
        yield
    except BaseException:
        if (number := job()) is not None:
            slurm.cancel([str(number)])
        raise
    finally:
        if before is not None:
            signal.signal(signal.SIGTERM, before)


def _resources(data: Data) -> tuple[int, float]:
    """(CPUs, GiB of memory) that Ray sets aside for a task: those of data.slurm, else one and one."""
    memory = data.slurm.memory if data.slurm else None
    if memory is None:
        return (data.slurm.cpus if data.slurm else 1), 1.0
    number, unit = (memory[:-1], memory[-1]) if memory[-1] in GIB else (memory, "M")  # Slurm's own unit is MB
    return (data.slurm.cpus if data.slurm else 1), int(number) * GIB[unit]


@contextlib.contextmanager
def _ray(data: Data) -> Iterator[None]:
    """Connected to the Ray at `$RAY_ADDRESS`, else to one that lives on this machine for as long as the body.

    `ConfigError` without the package, `ClusterError` when no Ray answers.
    """
    address = os.environ.get("RAY_ADDRESS")
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    if not address:
        os.environ[LOOPBACK_ONLY] = "0"
    try:
        import ray  # type: ignore[import-not-found]  # not locked: only who asks for it needs it
    except ImportError:
        raise ConfigError(
            f"data.executor is ray, but the package ray is not installed; run .venv/bin/pip install ray=={RAY} on"
            " every node, or take executor local or slurm"
        ) from None
    paths = [str(Path.cwd()), *filter(None, [os.environ.get("PYTHONPATH")])]
    options: dict[str, Any] = {"runtime_env": {"env_vars": {"PYTHONPATH": os.pathsep.join(paths)}}}
    if not address:
        cpus, _ = _resources(data)
        own = {"num_cpus": data.workers * cpus, "include_dashboard": False, "_node_ip_address": "127.0.0.1"}
        options = {**options, **own}
    host, _, port = (address or "").removeprefix("ray://").rpartition(":")
    try:
        if port.isdecimal():  # ray.init would ask an address where nobody is for minutes
            socket.create_connection((host, int(port)), CONNECT_SECONDS).close()
        ray.init(address=address or "local", log_to_driver=False, logging_level="ERROR", **options)
    except (ConnectionError, RuntimeError, OSError) as error:
        said = " ".join(str(error).split())[:300]
        where = address or "this machine"
        raise ClusterError(
            f"no Ray at {where}: {said}; see `ray status`, and export the RAY_AUTH_TOKEN it wants"
        ) from None
    try:
        yield
    finally:
        ray.shutdown()
