"""Row-parallel work as a Slurm job array: datatrove's Slurm executor, waited for.

The stage's own process submits the array, waits, submits tasks that failed again, and fails with the log of one that
keeps failing. A task counts as done when datatrove's own marker says so, which it writes after the task's last file.
"""

import contextlib
import json
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from datatrove.executor.slurm import SlurmPipelineExecutor
from datatrove.pipeline.base import PipelineStep
from datatrove.utils.stats import PipelineStats

from stages.clusters import Data
from stages.draws import content_hash
from stages.errors import ClusterError
from stages.launch import slurm

LOOK_SECONDS = 2.0
MOST_TASKS = 1000  # of one array; Slurm's own bound is 1,001 if nobody changed it
GRACE_SECONDS = 30.0  # for a task's marker to be seen on a shared file system after the job has ended


class ArrayExecutor(SlurmPipelineExecutor):
    """A pipeline over `tasks` tasks; `run` returns when all are done. `ClusterError` when one keeps failing."""

    def __init__(self, stage: str, steps: list[PipelineStep | Callable], tasks: int, data: Data, logs: Path):
        assert data.slurm is not None
        self.stage, self.retries, self.options = stage, data.retries, data.slurm.options()
        checkout = Path.cwd()
        super().__init__(
            steps,
            tasks=tasks,
            time=data.slurm.time,
            partition="",
            workers=min(data.workers, tasks),
            job_name=f"cosmo-{stage}-{content_hash(checkout, size=4)}".replace(" ", "-"),
            max_array_size=MOST_TASKS,
            env_command=_surroundings(checkout, data.slurm.setup),
            logging_dir=str(logs.resolve()),
            requeue_signals=None,
            with_srun=False,
        )

    def get_sbatch_args(self, max_array: int = 1) -> dict[str, Any]:
        """datatrove's, with the cluster file's own where the two say the same."""
        found = super().get_sbatch_args(max_array)
        for name in ("mem-per-cpu", "partition", "qos", "cpus-per-task", "nodes", "time"):
            found.pop(name, None)
        parts = (option.removeprefix("--").partition("=") for option in self.options)
        return {**found, **{name: value for name, _, value in parts}}

    def launch_merge_stats(self) -> None:
        """Not as a job of its own: `run` adds them up."""

    def run(self) -> PipelineStats | None:  # type: ignore[override]
        """Submit and wait; within a task of the array (where datatrove calls this too) do the task's work."""
        if "SLURM_ARRAY_TASK_ID" in os.environ:
            return super().run()
        slurm.cancel(job.id for job in slurm.queue(name=self.job_name) if not job.ended)  # of a driver that was killed
        with _ending(lambda: self.job_id):
            for left in range(self.retries, -1, -1):
                self.job_id = None
                self.launch_job()
                self._wait()
                missing = self._incomplete()
                if not missing:
                    break
                told = f"{self.stage}: task(s) {missing} of {self.tasks} failed; the end of {self._log(missing[0])}:\n"
                told += slurm.tail(self._log(missing[0]))
                if not left:
                    raise ClusterError(f"{told}\nrun the stage again when it is mended")
                print(f"warning: {told}\nthey are submitted again", file=sys.stderr, flush=True)
        return self._statistics()

    def _wait(self) -> None:
        """Until no task of the array waits or runs."""
        said = time.monotonic()
        while waiting := [job for job in slurm.queue(jobs=[str(self.job_id)]) if not job.ended]:
            if time.monotonic() - said > 60 and all(job.state == "PENDING" for job in waiting):
                said = time.monotonic()
                why = ", ".join(sorted({job.reason for job in waiting}))
                print(f"{self.stage}: job {self.job_id} is pending ({why})", file=sys.stderr, flush=True)
            time.sleep(LOOK_SECONDS)

    def _incomplete(self) -> list[int]:
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

    def _statistics(self) -> PipelineStats:
        """Those of all tasks, added up."""
        found = []
        for name in sorted(self.logging_dir.list_files("stats")):
            with self.logging_dir.open(name, "r") as file:
                found.append(PipelineStats.from_json(json.load(file)))
        return sum(found, start=PipelineStats())


def _surroundings(checkout: Path, setup: list[str]) -> str:
    """Lines of shell that make a task find this checkout and its Python."""
    from shlex import quote

    lines = [*setup, f"cd {quote(str(checkout))}", f"export PATH={quote(str(Path(sys.executable).parent))}:$PATH"]
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
