"""Running a sweep's arms: several at once, resumable, and no stage in two arms that one of them can do for both.

What has become of an arm is in `<store root>/sweeps/<sweep>/<arm>.json`; next to it are its log and, until it is done,
its worktree. A finished arm is a DVC experiment, `<sweep>-<arm>`.
"""

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Protocol

from cosmopedia.core.errors import ClusterError, ConfigError, CosmoError
from cosmopedia.core.files import lock, log_tail, write_text
from cosmopedia.core.lineage import store_root
from cosmopedia.execution.child_process import start
from cosmopedia.execution.redaction import redact, say
from cosmopedia.execution.slurm.driver_job import BEGINS, SKIPS
from cosmopedia.sweeps.definition import Sweep
from cosmopedia.sweeps.sharing import Stage, waits
from cosmopedia.sweeps.worktrees import Start, discard, environment, git, prepare, save

POLL_SECONDS = 0.5
ERROR = re.compile(r"^.*\berror: .+$|^ERROR: .+$", re.MULTILINE)


@dataclass
class ArmState:
    """What has become of an arm."""

    arm: str
    fingerprint: str = ""
    state: str = "waiting"  # waiting | running | done | failed | stopped
    stage: str | None = None  # that runs, or ran last
    finished: list[str] = field(default_factory=list)  # stages
    seconds: float = 0.0  # that the arm has run, all attempts together but those that were killed
    commit: str | None = None  # of the experiment
    error: str | None = None
    job: str | None = None


class Process(Protocol):
    """An arm that runs."""

    job: str | None
    survives: bool  # whether it goes on when `cosmo sweep run` is stopped

    def poll(self) -> int | None:
        """The exit status; None while it runs."""
        ...

    def output(self) -> list[str]:
        """New lines of its log."""
        ...

    def stop(self) -> None:
        """Ask it to stop; what is finished stays."""
        ...


def folder_of(sweep: str) -> Path:
    """Where a sweep keeps its worktrees, logs and states."""
    return store_root().resolve() / "sweeps" / sweep


def read_state(sweep: str, arm: str) -> ArmState:
    """An arm's state; of one that has never run, `waiting`."""
    with suppress(OSError, ValueError, TypeError):
        content = json.loads((folder_of(sweep) / f"{arm}.json").read_text(encoding="utf-8"))
        return ArmState(**content)
    return ArmState(arm)


def is_done(state: ArmState, fingerprint: str) -> bool:
    """Whether an arm with these changes has been run, and its experiment still exists."""
    return state.state == "done" and state.fingerprint == fingerprint and _exists(state.commit)


def _exists(commit: str | None) -> bool:
    return bool(commit) and commit in git("for-each-ref", "--format=%(objectname)", "refs/exps").split()


@contextmanager
def alone(sweep: str) -> Iterator[None]:
    """`ConfigError` when another process runs this sweep."""
    folder_of(sweep).mkdir(parents=True, exist_ok=True)
    with (folder_of(sweep) / "lock").open("a") as file:
        if not lock(file):
            raise ConfigError(f"another `cosmo sweep run {sweep}` is at work; `cosmo sweep status {sweep}` shows it")
        yield


class Local:
    """`dvc repro` in an arm's worktree on this machine; it ends when this process does."""

    job: str | None = None
    survives = False

    def __init__(self, folder: Path, log: Path, experiment: str, arguments: list[str]):
        self.log, self.read = log, log.stat().st_size if log.exists() else 0
        command = [sys.executable, "-m", "cosmopedia.sweeps.drive", "run", *arguments]
        self.process = start(command, log, signal.SIGTERM, cwd=folder, env=environment(experiment))

    def poll(self) -> int | None:
        return self.process.poll()

    def output(self) -> list[str]:
        with self.log.open("rb") as stream:
            stream.seek(self.read)
            content = stream.read()
        whole = content[: content.rfind(b"\n") + 1]
        self.read += len(whole)
        return whole.decode("utf-8", "replace").splitlines()

    def stop(self) -> None:
        with suppress(ProcessLookupError):  # to the stage too: it ends in order, and DVC after it
            os.killpg(self.process.pid, signal.SIGINT)


class Job:
    """A Slurm job that drives an arm's worktree (`cosmo cluster submit` there).

    It goes on without this process, and the next `cosmo sweep run` finds it; `cosmo cluster stop` in its worktree
    ends it.
    """

    survives = True

    def __init__(self, folder: Path, log: Path, experiment: str, arguments: list[str]):
        from cosmopedia.execution.slurm.driver_job import status_path

        self.folder, self.experiment = folder, experiment
        self.job: str | None = self._submit(arguments)
        self.status = status_path(folder)
        write_text(log, f"job {self.job}: {store_root() / 'logs' / f'driver-{self.job}.log'}\n")
        self.begun: set[str] = set()
        self.finished: set[str] = set()

    def _submit(self, arguments: list[str]) -> str:
        command = [sys.executable, "-m", "cosmopedia.sweeps.drive", "submit", *arguments]
        done = subprocess.run(
            command, cwd=self.folder, env=environment(self.experiment), capture_output=True, text=True, check=False
        )
        if done.returncode:
            raise ClusterError(done.stderr.strip()[-500:])
        return done.stdout.split()[-1]

    def poll(self) -> int | None:
        from cosmopedia.execution.slurm import commands

        status = self._status()
        if status.get("state") in ("done", "failed", "stopped"):
            return 0 if status["state"] == "done" else 1
        with suppress(ClusterError):  # a controller that does not answer now may do so in a minute
            if all(job.ended for job in commands.queue(jobs=[str(self.job)])):
                return 0 if self._status().get("state") == "done" else 1
        return None

    def _status(self) -> dict[str, Any]:
        with suppress(OSError, ValueError):
            status = json.loads(self.status.read_text(encoding="utf-8"))
            return status if status.get("job") == self.job else {}
        return {}

    def output(self) -> list[str]:
        """As DVC would print it: the stages that are finished, those too that were quicker than a look, and the one
        that runs."""
        status = self._status()
        finished = [stage for stage in status.get("finished", ()) if stage not in self.finished]
        self.finished.update(finished)
        lines = [f"Stage '{stage}' didn't change, skipping" for stage in finished]
        if (stage := status.get("stage")) and stage not in self.begun:
            self.begun.add(stage)
            lines.append(f"Running stage '{stage}':")
        return lines

    def stop(self) -> None:
        pass


class SweepRun:
    """One `cosmo sweep run`."""

    def __init__(self, sweep: Sweep, jobs: int, stages: list[Stage], process: Callable[..., Process]):
        self.sweep, self.jobs, self.process = sweep, jobs, process
        self.stages = [stage.name for stage in stages]
        self.waits = waits(stages, sweep.arms)
        self.folder, self.start = folder_of(sweep.name), Start()
        self.states = {name: read_state(sweep.name, name) for name in sweep.arms}
        self.running: dict[str, Process] = {}
        self.began: dict[str, float] = {}
        self.stopped = False

    def run(self) -> dict[str, ArmState]:
        """Run what is not done yet; every arm's state at the end. A failed arm does not end the others."""
        for name, state in self.states.items():
            fingerprint = self.start.fingerprint(self.sweep.arms[name])
            if is_done(state, fingerprint):
                self._say(name, f"done already: experiment {self.sweep.experiment(name)}")
                continue
            fresh = state.fingerprint != fingerprint or not (self.folder / name / ".git").is_file()
            seconds = 0.0 if fresh else state.seconds
            self.states[name] = ArmState(name, fingerprint, seconds=seconds)
            if fresh:
                prepare(self.folder / name, self.start, self.sweep.arms[name])
            self._write(name)
        handlers = {number: signal.signal(number, self._stop) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            while (self._waiting() and not self.stopped) or (
                self.running and not (self.stopped and self._surviving())
            ):
                self._begin()
                time.sleep(POLL_SECONDS)
                for name in list(self.running):
                    self._follow(name)
        finally:
            for number, handler in handlers.items():
                signal.signal(number, handler)
        return self.states

    def _waiting(self) -> list[str]:
        return [name for name, state in self.states.items() if state.state == "waiting"]

    def _begin(self) -> None:
        for name in self._waiting():
            if self.stopped or len(self.running) >= self.jobs:
                return
            if self._may_begin(name):
                log = self.folder / f"{name}.log"
                try:
                    experiment, arguments = self.sweep.experiment(name), self._arguments(name)
                    self.running[name] = self.process(self.folder / name, log, experiment, arguments)
                except CosmoError as error:
                    self._end(name, "failed", str(error))
                    continue
                self.began[name] = time.monotonic()
                self.states[name].state, self.states[name].job = "running", self.running[name].job
                self._write(name)
                self._say(name, f"begins; its log is {log}")

    def _arguments(self, name: str) -> list[str]:
        """For `dvc repro`: every stage by itself, in an order that has first what other arms wait for."""
        awaited = set().union(*(leaders.get(name, set()) for leaders in self.waits.values()))
        return ["-s", *sorted(self.stages, key=lambda stage: stage not in awaited)]

    def _may_begin(self, name: str) -> bool:
        """Whether the stages that an earlier arm does for this one too are finished there."""
        return all(
            self.states[leader].state in ("done", "failed", "stopped") or stages <= set(self.states[leader].finished)
            for leader, stages in self.waits[name].items()
        )

    def _follow(self, name: str) -> None:
        process, state = self.running[name], self.states[name]
        status = process.poll()
        changed, finished = False, set(state.finished)
        for line in process.output():
            if begins := BEGINS.match(line):
                if state.stage:
                    finished.add(state.stage)
                state.stage, changed = begins[1], True
                self._say(name, begins[1])
            elif skips := SKIPS.match(line):
                finished.add(skips[1])
        state.finished = sorted(finished)
        if status is not None:
            del self.running[name]
            state.seconds += time.monotonic() - self.began[name]
            self._finish(name, status)
        elif changed:
            self._write(name)

    def _finish(self, name: str, status: int) -> None:
        state = self.states[name]
        if status and self.stopped:
            self._end(name, "stopped", None)
        elif status:
            tail = log_tail(self.folder / f"{name}.log", 200)
            errors = [line.strip() for line in ERROR.findall(tail)]
            self._end(name, "failed", redact(errors[0]) if errors else f"dvc repro ended with status {status}")
        else:
            try:
                state.commit = save(self.folder / name, self.sweep.experiment(name))
            except CosmoError as error:
                self._end(name, "failed", str(error))
                return
            self._end(name, "done", None)
            discard(self.folder / name)

    def _end(self, name: str, state: str, error: str | None) -> None:
        self.states[name].state, self.states[name].error = state, error
        self._write(name)
        minutes = f"{self.states[name].seconds / 60:.1f} minutes"
        words = {"done": f"done after {minutes}", "stopped": "stopped; `cosmo sweep run` goes on from here"}
        self._say(name, words.get(state, f"failed after {minutes}: {error}"))

    def _write(self, name: str) -> None:
        write_text(self.folder / f"{name}.json", json.dumps(asdict(self.states[name]), indent=1) + "\n")

    def _say(self, name: str, text: str) -> None:
        print(f"{name}: {text}", flush=True)

    def _stop(self, *_: object) -> None:
        if not self.stopped:
            self.stopped = True
            say("sweep: stopping; what is finished stays" + ("; jobs go on" if self._surviving() else ""))
            for process in self.running.values():
                process.stop()

    def _surviving(self) -> bool:
        return any(process.survives for process in self.running.values())
