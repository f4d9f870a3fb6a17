"""Where the tasks of a datatrove pipeline run: processes here, a Slurm job array, or Ray.

Each executor returns when every task is done, runs failed tasks again where that can help (Slurm, Ray), and fails with
the log of a task that keeps failing. A task is done when it has datatrove's own marker, which is written after the
task's last file; tasks that already have it do not run.
"""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
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

from cosmopedia.core.errors import ClusterError, ConfigError
from cosmopedia.core.files import log_tail
from cosmopedia.core.rng import content_hash
from cosmopedia.execution import child_process
from cosmopedia.execution.compute import Data, LocalData, RayData, SlurmData
from cosmopedia.execution.redaction import redact, say
from cosmopedia.execution.slurm import commands
from cosmopedia.execution.slurm.job_scripts import options_of

RAY = "2.60.0"  # what tests/cosmopedia/execution/test_ray.py was run with
LOOPBACK_ONLY = "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"  # must be 0 at import: else a local Ray listens on all addresses
LOOK_SECONDS = 2.0
MAX_ARRAY_SIZE = 1000  # tasks; Slurm's own default limit is 1,001
GRACE_SECONDS = 30.0  # for a task's marker to appear on a shared file system after the job has ended
END_SECONDS = 60.0  # for the cancelled tasks of a killed driver to end
UNQUOTABLE = '"\\%\n'  # Slurm 22.05 cannot open an array's log in such a path, however it is quoted
CONNECT_SECONDS = 10.0  # for the Ray at $RAY_ADDRESS to answer
Steps = list[PipelineStep | Callable]
logger.disable("datatrove")  # a page of log per task; failures arrive as exceptions, progress through Progress


@contextlib.contextmanager
def prepared(stage: str, data: Data) -> Iterator[None]:
    """Ready to run the stage's tasks: those of a driver that was killed have ended; Ray is connected."""
    if isinstance(data, SlurmData):
        begin, end = _job_name(stage, "").split("*")
        queue = [job for job in commands.queue() if not job.ended]
        orphans = [job.id for job in queue if job.name.startswith(begin) and job.name.endswith(end)]
        commands.cancel(orphans)
        stuck = commands.wait_ended(orphans, END_SECONDS)
        if stuck:
            raise ClusterError(
                f"job {stuck[0].id} ({stuck[0].name}) was cancelled, but is {stuck[0].state}; scancel it"
            )
    with _ray(data) if isinstance(data, RayData) else contextlib.nullcontext():
        yield


def execute(stage: str, name: str, steps: Steps, tasks: int, workers: int, data: Data, logs: Path) -> PipelineStats:
    """Run a pipeline of `stage` over `tasks` tasks with the compute file's executor; the sum of their statistics.

    `workers` limits the processes of a local run; `logs` holds the tasks' logs, markers and statistics. `ClusterError`
    when a task keeps failing; a local task's own error arrives unchanged.
    """
    executor: PipelineExecutor
    match data:
        case LocalData():
            executor = LocalExecutor(steps, tasks, min(tasks, workers), str(logs))
        case SlurmData():
            executor = ArrayExecutor(stage, name, steps, tasks, data, logs)
        case RayData():
            executor = RayExecutor(stage, name, steps, tasks, data, logs)
    executor.run()
    missing = executor.get_incomplete_ranks()
    if missing:
        raise ClusterError(f"{stage} {name}: {_named(missing, tasks)} left no marker in {logs}; run the stage again")
    return sum((_statistics(path) for path in sorted((logs / "stats").iterdir())), start=PipelineStats())


class LocalExecutor(LocalPipelineExecutor):
    """datatrove's, but one worker runs in this process, and a kill (-9) leaves no process behind.

    datatrove's own `run` starts a process that counts for the workers and outlives this one.
    """

    def run(self) -> None:
        """Run the tasks that are not done yet."""
        ranks = self.get_incomplete_ranks()
        if self.workers == 1:
            for rank in ranks:
                self._run_for_rank(rank)
        else:
            with multiprocess.get_context(self.start_method).Pool(self.workers) as pool:  # type: ignore[attr-defined]
                deque(pool.imap_unordered(self._run_for_rank, ranks), maxlen=0)

    def _run_for_rank(self, rank: int, local_rank: int = 0, node_rank: int = -1) -> PipelineStats:
        """datatrove's without its log: setting that up takes longer than a small task, and nothing is logged."""
        steps: list = deepcopy(self.pipeline)
        documents = None
        for step in steps:
            documents = step(documents, rank, self.world_size)
        deque(documents or (), maxlen=0)
        stats = PipelineStats(steps)
        with self.logging_dir.open(f"stats/{rank:05d}.json", "w") as file:
            stats.save_to_disk(file)
        self.mark_rank_as_completed(rank)
        return stats


class ArrayExecutor(SlurmPipelineExecutor):
    """A pipeline over `tasks` tasks; `run` returns when all are done. `ClusterError` when one keeps failing, or when a
    person has cancelled one."""

    def __init__(self, stage: str, name: str, steps: Steps, tasks: int, data: SlurmData, logs: Path):
        self.stage = f"{stage} {name}"
        self.retries = data.retries
        self.ends: dict[str, commands.SlurmJob] = {}  # of this attempt's tasks, by id
        self.options = options_of(data.slurm)
        forbidden = [character for character in str(logs) if character in UNQUOTABLE]
        if forbidden:
            raise ConfigError(
                f"{logs}: a job array cannot log to a path with {forbidden[0]!r}; move the checkout, or $COSMO_STORE"
            )
        super().__init__(
            steps,
            tasks=tasks,
            time=data.slurm.time,
            partition="",
            workers=min(data.workers, tasks),
            job_name=_job_name(stage, name),
            max_array_size=MAX_ARRAY_SIZE,
            env_command=_task_environment(Path.cwd(), data.slurm.setup),
            logging_dir=str(logs),
            requeue_signals=None,
            with_srun=False,
        )

    @property
    def job_id(self) -> str | None:
        """The newest array's id. datatrove sets it once per array of at most MAX_ARRAY_SIZE tasks."""
        return self.arrays[-1] if self.arrays else None

    @job_id.setter
    def job_id(self, number: object) -> None:
        self.arrays: list[str] = [] if number is None else [*self.arrays, str(number)]

    def get_sbatch_args(self, max_array: int = 1) -> dict[str, Any]:
        """datatrove's, with the compute file's options instead of its own, and values quoted for sbatch."""
        arguments = super().get_sbatch_args(max_array)
        for name in ("mem-per-cpu", "partition", "qos", "cpus-per-task", "nodes", "time", "error"):
            arguments.pop(name, None)
        own = (option.removeprefix("--").partition("=") for option in self.options)
        return {**arguments, **{name: value for name, _, value in own}, "output": f'"{arguments["output"]}"'}

    def get_launch_file_contents(self, sbatch_args: dict, run_script: str) -> str:
        """datatrove's, with a command that also works in a folder with spaces."""
        pickled = quote(str(self.logging_dir.resolve_paths("executor.pik")))
        command = f"{quote(sys.executable)} -m datatrove.tools.launch_pickled_pipeline {pickled}"
        return super().get_launch_file_contents(sbatch_args, command)

    def launch_merge_stats(self) -> None:
        """Not a job of its own: `execute` adds them up."""

    def run(self) -> None:
        """Submit and wait; within a task of the array (where datatrove calls this too), do the task's work."""
        if "SLURM_ARRAY_TASK_ID" in os.environ:
            return super().run()
        with _ending(lambda: self.arrays):
            _until_done(self, self.stage, self.retries, self._submit_and_wait, self._log, self._end)

    def _submit_and_wait(self) -> list[int]:
        """Run what is not done as an array; returns the tasks that failed, whose `ends` are known."""
        self.job_id, self.ends = None, {}
        try:
            self.launch_job()
        except subprocess.CalledProcessError as error:  # sbatch's own message is on the terminal
            raise ClusterError(f"{self.stage}: sbatch ended with {error.returncode}; see data.slurm") from None
        pending = commands.PendingReport(self.stage)
        while unfinished := self._unfinished():
            pending.look(unfinished)
            time.sleep(LOOK_SECONDS)
        deadline = time.monotonic() + GRACE_SECONDS
        while missing := self.get_incomplete_ranks():
            # Where Slurm says that a task ended well, its marker can only be late.
            late = all(self._state(rank) == "COMPLETED" for rank in missing)
            if not late or time.monotonic() > deadline:
                break
            time.sleep(1.0)
        cancelled = [rank for rank in missing if self._state(rank) == "CANCELLED"]
        if cancelled:
            raise ClusterError(
                f"{self.stage}: {_named(cancelled, self.world_size)} (job {', '.join(self.arrays)}) were"
                f" {commands.BY_A_PERSON}, so the stage stops; finished tasks are kept: run it again to go on"
            )
        return missing

    def _unfinished(self) -> list[commands.SlurmJob]:
        """Tasks that wait or run; remembers how the others ended, which the controller forgets after minutes."""
        queue = commands.queue(jobs=self.arrays)
        self.ends |= {job.id: job for job in queue if job.ended}
        return [job for job in queue if not job.ended]

    def _task(self, rank: int) -> str:
        """A task's id in its array, as squeue and the log's name have it: array and index."""
        with self.logging_dir.open("ranks_to_run.json", "r") as file:
            array, number = divmod(json.load(file).index(rank), MAX_ARRAY_SIZE)
        return f"{self.arrays[array]}_{number}"

    def _state(self, rank: int) -> str:
        end = self.ends.get(self._task(rank))
        return end.state if end else "forgotten by Slurm"

    def _end(self, rank: int) -> str:
        """How a task ended: TIMEOUT (TimeLimit)."""
        end = self.ends.get(self._task(rank))
        return f"{end.state} ({end.reason})" if end and end.reason not in ("", "None") else self._state(rank)

    def _log(self, rank: int) -> Path:
        return Path(str(self.slurm_logs_folder)) / f"{self._task(rank)}.out"


class RayExecutor(RayPipelineExecutor):
    """datatrove's, with retries of failed tasks. The nodes share the checkout and the store with this machine."""

    def __init__(self, stage: str, name: str, steps: Steps, tasks: int, data: RayData, logs: Path):
        super().__init__(
            steps,
            tasks=tasks,
            workers=min(data.workers, tasks),
            logging_dir=str(logs),
            cpus_per_task=data.cpus,
            mem_per_cpu_gb=data.memory_gb / data.cpus,
        )
        self.stage = f"{stage} {name}"
        self.retries = data.retries
        self.checkout = Path.cwd()
        self.logs = logs

    def run(self) -> None:
        """Run the tasks on the Ray to which `prepared` has connected."""
        _until_done(self, self.stage, self.retries, self._submit_and_wait, self._log)

    def _submit_and_wait(self) -> list[int]:
        super().run()
        return self.get_incomplete_ranks()

    def _run_for_rank(self, rank: int, local_rank: int = 0, node_rank: int = -1) -> PipelineStats:
        """One task, on a node. datatrove's own would log to a folder in /tmp that all users share."""
        os.chdir(self.checkout)
        try:
            return PipelineExecutor._run_for_rank(self, rank, local_rank, node_rank)
        except BaseException:
            self._log(rank).write_text(traceback.format_exc(), encoding="utf-8")
            raise

    def _log(self, rank: int) -> Path:
        return self.logs / f"failed-{rank:05d}.log"


def _until_done(
    executor: PipelineExecutor,
    stage: str,
    retries: int,
    attempt: Callable[[], list[int]],
    log: Callable[[int], Path],
    end: Callable[[int], str] = lambda rank: "failed",
) -> None:
    """`attempt` what is not done (it returns the tasks that failed), and again up to `retries` times.

    The report says how each failed task ended, and shows one log for each way.
    """
    if not executor.get_incomplete_ranks():
        return
    for retries_left in reversed(range(retries + 1)):
        failed = attempt()
        if not failed:
            return
        ends: dict[str, list[int]] = {}
        for rank in failed:
            ends.setdefault(end(rank), []).append(rank)
        ways = ", ".join(f"{ranks} {way}" for way, ranks in ends.items() if way != "failed")
        report = f"{stage}: {_named(failed, executor.world_size)} failed{f': {ways}' if ways else ''}"
        for ranks in ends.values():
            report += f"; the end of {log(ranks[0])}:\n{log_tail(log(ranks[0]))}\n"
        if not retries_left:
            raise ClusterError(f"{report}fix it and run the stage again; finished tasks are kept")
        say(f"warning: {report}they are submitted again")


def _statistics(path: Path) -> PipelineStats:
    """A task's statistics from its file, in which datatrove leaves plain numbers and dicts."""
    statistics = PipelineStats.from_json(json.loads(path.read_text(encoding="utf-8")))
    for step in statistics.stats:
        step.stats = MetricStatsDict() + step.stats
    return statistics


def _named(ranks: list[int], tasks: int) -> str:
    return f"task(s) {ranks} of {tasks}"


def _job_name(stage: str, name: str) -> str:
    """The name of an array's job; an empty `name` becomes `*`."""
    return f"cosmo-{stage}-{name.replace(' ', '-') or '*'}-{content_hash(Path.cwd(), size=4)}"


def _task_environment(checkout: Path, setup: list[str]) -> str:
    """Shell lines that give a task this checkout and its Python, and tell it its CPUs."""
    lines = [*setup, f"cd {quote(str(checkout))}", f"export PATH={quote(str(Path(sys.executable).parent))}:$PATH"]
    lines.append("export OMP_NUM_THREADS=$SLURM_CPUS_PER_TASK")
    lines.append(f"unset {' '.join(child_process.LEADING)}")
    return "\n".join([*lines, f"export PYTHONPATH={quote(str(checkout))}${{PYTHONPATH:+:$PYTHONPATH}}"])


@contextlib.contextmanager
def _ending(arrays: Callable[[], list[str]]) -> Iterator[None]:
    """Cancel the arrays when the body does not end well, also after SIGTERM."""

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    try:
        before = signal.signal(signal.SIGTERM, interrupt)
    except ValueError:  # not the main thread
        before = None
    try:
        yield
    except BaseException:
        commands.cancel(arrays())
        raise
    finally:
        if before is not None:
            signal.signal(signal.SIGTERM, before)


@contextlib.contextmanager
def _ray(data: RayData) -> Iterator[None]:
    """Connected to the Ray at `$RAY_ADDRESS`, else to one on this machine that lives as long as the body.

    `ConfigError` without the package, `ClusterError` when no Ray answers.
    """
    address = os.environ.get("RAY_ADDRESS")
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    if not address:
        os.environ[LOOPBACK_ONLY] = "0"
    try:
        import ray  # type: ignore[import-not-found]  # not locked: only this executor needs it
    except ImportError:
        raise ConfigError(
            f"data.executor is ray, but the package ray is not installed; run .venv/bin/pip install ray=={RAY} on"
            " every node, or use executor local or slurm"
        ) from None
    paths = [str(Path.cwd()), *filter(None, [os.environ.get("PYTHONPATH")])]
    options: dict[str, Any] = {"runtime_env": {"env_vars": {"PYTHONPATH": os.pathsep.join(paths)}}}
    if not address:
        cpus = data.workers * data.cpus
        options |= {"num_cpus": cpus, "include_dashboard": False, "_node_ip_address": "127.0.0.1"}
    host, _, port = (address or "").removeprefix("ray://").rpartition(":")
    folder = None if address else tempfile.TemporaryDirectory(prefix="cosmo-ray-", ignore_cleanup_errors=True)
    if folder:  # by default in /tmp/ray, which all users share
        options["_temp_dir"] = folder.name
    try:
        if port.isdecimal():  # ray.init would try an address without a server for minutes
            socket.create_connection((host, int(port)), CONNECT_SECONDS).close()
        ray.init(address=address or "local", log_to_driver=False, logging_level="ERROR", **options)
    except (ConnectionError, RuntimeError, OSError) as error:
        message = " ".join(redact(str(error)).split())[:300]
        raise ClusterError(
            f"no Ray at {address or 'this machine'}: {message}; see `ray status`, and export its RAY_AUTH_TOKEN"
        ) from None
    try:
        yield
    finally:
        ray.shutdown()
        if folder:
            folder.cleanup()
