"""A stage's numbered tasks: datatrove pipelines, run where the compute file says, resumed after a kill.

DVC empties a stage's outs before it runs it, so tasks write to a folder outside of them,
`<store>/work/<stage>/<key>.<number>/<attempt>/`. The key is a hash of their input: the bytes of the stage's deps in
dvc.yaml, the stage's parameters, the number of tasks. Each attempt starts with an empty folder, so that a stage need
not know of earlier ones. When it reaches a pipeline of which an earlier attempt with the same key finished some tasks,
their files are copied (a task of a killed driver may still write to the originals) and then their markers, so that
only the other tasks run. A pipeline of one task always runs anew.

When a pipeline is done, the size and the SHA-256 of every file that its tasks wrote are recorded, and compared before
the next pipeline reads the files or a later attempt takes them over: half a minute each time for the signatures of 30
million documents (28 GB).
"""

import hashlib
import json
import os
import shutil
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import Any

from datatrove.utils.stats import PipelineStats

from cosmopedia.core.errors import DataError
from cosmopedia.execution.compute import Data
from cosmopedia.execution.executors import Steps, execute, prepared
from cosmopedia.execution.progress import Progress
from cosmopedia.execution.workdir import work_folder

Checksums = dict[str, list[Any]]  # path -> [bytes, SHA-256]


class DataTasks:
    """A stage's tasks and their folder `workdir`; the tasks that `run` runs write nowhere else.

    A context manager. The folder is removed when the body ends well, and when the body finds what the tasks wrote to
    be wrong (`DataError`, `InternalError`); otherwise it stays for the next run of the stage. `identity` is whatever
    else decides the results.
    """

    def __init__(self, stage: str, data: Data, *identity: object):
        self.stage, self.data, self.identity = stage, data, identity

    def __enter__(self) -> "DataTasks":
        with ExitStack() as stack:
            stack.enter_context(prepared(self.stage, self.data))
            folder = stack.enter_context(work_folder(self.stage, *self.identity, self.data.tasks))
            earlier = sorted(int(path.name) for path in folder.iterdir() if path.name.isdigit())
            self._earlier = [folder / str(number) for number in earlier]
            self.workdir = folder / str(earlier[-1] + 1 if earlier else 0)
            self.workdir.mkdir()
            self._checksums: Checksums = {}  # of files that no pipeline has read yet
            self._stack = stack.pop_all()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None):
        self._stack.__exit__(kind, error, trace)

    def notes(self, name: str) -> Path:
        """The folder in which task `n` of the pipeline `name` keeps its progress, a number, in the file `n`."""
        folder = self.workdir / "progress" / _label(name)
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    def run(
        self,
        name: str,
        steps: Steps,
        tasks: int,
        workers: int | None = None,
        total: int | None = None,
        unit: str = "documents",
    ) -> PipelineStats:
        """Run a pipeline over `tasks` tasks; datatrove's statistics of its steps, those of earlier attempts included.

        `workers` limits the processes of a local run to fewer than the compute file does. `total` units (counted in
        `notes`) make a progress bar. Errors: see `executors.execute`.
        """
        notes = self.notes(name)
        logs = self.workdir / "logs" / _label(name)
        logs.mkdir(parents=True)
        self.check()
        (logs / "before.json").write_text(json.dumps({"tasks": tasks, "files": sorted(self._files(self.workdir))}))
        if tasks > 1:
            self._reuse(name, tasks)
        with _watched(f"{self.stage} {name}" if name != self.stage else name, total, unit, notes):
            statistics = execute(self.stage, name, steps, tasks, workers or self.data.workers, self.data, logs)
        self._checksums = _checksums(self.workdir, sorted(self._written(self.workdir, name)))
        (logs / "made.json").write_text(json.dumps(self._checksums))
        return statistics

    def check(self) -> None:
        """`DataError` when a file is not as a task of the last pipeline wrote it. For readers that are no pipeline."""
        damage = _damage(self.workdir, self._checksums)
        if damage:
            raise DataError(f"{damage}; it was damaged after a task of {self.stage} wrote it: run the stage again")
        self._checksums = {}

    def put_away(self, path: Path) -> None:
        """A file of the last pipeline is about to be moved or removed: the next one does not check it."""
        self._checksums.pop(str(path.relative_to(self.workdir)), None)

    def _files(self, attempt: Path) -> set[str]:
        """The files in an attempt's folder, except the logs."""
        paths = (path.relative_to(attempt) for path in attempt.rglob("*") if path.is_file())
        return {str(path) for path in paths if path.parts[0] != "logs" and path.suffix != ".partial"}

    def _written(self, attempt: Path, name: str) -> set[str]:
        """What a pipeline's tasks wrote in an attempt."""
        logs = attempt / "logs" / _label(name)
        made = logs / "made.json"
        if made.is_file():
            return set(json.loads(made.read_text()))
        return self._files(attempt) - set(json.loads((logs / "before.json").read_text())["files"])

    def _reuse(self, name: str, tasks: int) -> None:
        """Copy what an earlier attempt's tasks finished; of several attempts, the one that got farthest."""
        best: tuple[int, Path, set[str]] = (0, self.workdir, set())
        for attempt in self._earlier:
            logs = attempt / "logs" / _label(name)
            markers = logs / "completions"
            if not markers.is_dir() or json.loads((logs / "before.json").read_text())["tasks"] != tasks:
                continue
            done = {f"logs/{_label(name)}/completions/{path.name}" for path in markers.iterdir()}
            written = self._written(attempt, name)
            if len(done) < max(best[0], 1) or not all((attempt / path).is_file() for path in written):
                continue
            checksums = json.loads((logs / "made.json").read_text()) if (logs / "made.json").is_file() else {}
            damage = _damage(attempt, checksums)
            if damage:
                print(f"{self.stage} {name}: {damage}; its tasks run again", file=sys.stderr, flush=True)
                continue
            best = (len(done), attempt, done)
        number, attempt, done = best
        if not number:
            return
        stats = {path.replace("completions", "stats") + ".json" for path in done}
        written = self._written(attempt, name)
        for path in [*sorted(written), *sorted(stats), *sorted(done)]:  # a marker after what it marks
            (self.workdir / path).parent.mkdir(parents=True, exist_ok=True)
            with suppress(FileNotFoundError):  # a task that runs on without its driver has removed it
                shutil.copyfile(attempt / path, self.workdir / path)
        print(f"{self.stage} {name}: {number} of {tasks} tasks were done before", file=sys.stderr, flush=True)


def _label(name: str) -> str:
    return name.replace(" ", "-")


def _checksums(folder: Path, names: list[str]) -> Checksums:
    """The checksums of files in a folder."""

    def checksum(name: str) -> list[Any]:
        with (folder / name).open("rb") as file:
            return [os.fstat(file.fileno()).st_size, hashlib.file_digest(file, "sha256").hexdigest()]

    with ThreadPoolExecutor() as threads:
        return dict(zip(names, threads.map(checksum, names), strict=True))


def _damage(folder: Path, checksums: Checksums) -> str | None:
    """What is wrong with the first file that differs from its checksum; None when none does."""
    for name, (size, _) in checksums.items():
        actual = (folder / name).stat().st_size if (folder / name).is_file() else None
        if actual != size:
            return f"{folder / name}: expected {size} bytes, got {'no file' if actual is None else actual}"
    for name, checksum in _checksums(folder, list(checksums)).items():
        if checksum != checksums[name]:
            return f"{folder / name}: its {checksum[0]} bytes are not those that were written"
    return None


@contextmanager
def _watched(what: str, total: int | None, unit: str, notes: Path) -> Iterator[None]:
    """Show the sum of the tasks' notes as progress while the body runs."""
    if total is None:
        yield
        return
    stop = threading.Event()

    def show(progress: Progress) -> None:
        done = sum(int(note.read_text() or 0) for note in notes.iterdir())
        progress.advance(done - progress.done)

    with Progress(what, total, unit) as progress:

        def poll() -> None:
            while not stop.wait(1.0):
                show(progress)

        watcher = threading.Thread(target=poll, daemon=True)
        watcher.start()
        try:
            yield
        finally:
            stop.set()
            watcher.join()
            show(progress)
            sys.stderr.flush()
