"""A stage's arrays: datatrove pipelines over numbered tasks, run where the cluster file says, resumed after a kill.

DVC empties a stage's outs before it runs it, so tasks write to a folder outside of them,
`<store>/work/<stage>/<key>.<number>/<attempt>/`. The key says from what they work: what dvc.yaml names as the stage's
deps, by its bytes, the stage's parameters, the number of tasks. An attempt begins with an empty folder, so that a
stage need not know of the ones before it. When it comes to an array of which tasks were done in an earlier attempt
with the same key, what they wrote is copied (a task of a killed driver may still write to the original) and then their
markers, so that only the others run. A pipeline of one task is always done anew.

When an array is done, the size and the SHA-256 of every file that its tasks wrote are noted, and compared before the
next array reads them or a later attempt takes them over: half a minute each time for the signatures of 30 million
documents (28 GB).
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

from datatrove.utils.stats import PipelineStats

from cosmopedia.errors import DataError
from cosmopedia.execution.compute import Data
from cosmopedia.execution.executors import Steps, execute, prepared
from cosmopedia.execution.progress import Progress
from cosmopedia.execution.workdir import work_folder


class Arrays:
    """A stage's arrays and their folder `scratch`, which `run`'s tasks write to, and nowhere else.

    A context manager. The folder goes when the body ends well, and when it finds what the tasks wrote to be wrong
    (`DataError`, `InternalError`); otherwise it stays for the next run of the stage. `identity` is what else decides
    the results, in words.
    """

    def __init__(self, stage: str, data: Data, *identity: object):
        self.stage, self.data, self.identity = stage, data, identity

    def __enter__(self) -> "Arrays":
        with ExitStack() as stack:
            stack.enter_context(prepared(self.stage, self.data))
            folder = stack.enter_context(work_folder(self.stage, *self.identity, self.data.tasks))
            earlier = sorted(int(path.name) for path in folder.iterdir() if path.name.isdigit())
            self._earlier = [folder / str(number) for number in earlier]
            self.scratch = folder / str(earlier[-1] + 1 if earlier else 0)
            self.scratch.mkdir()
            self._seals: dict[str, list] = {}  # of files that no array has read yet: path -> [bytes, SHA-256]
            self._stack = stack.pop_all()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None):
        self._stack.__exit__(kind, error, trace)

    def notes(self, name: str) -> Path:
        """The folder in which task `n` of the pipeline `name` keeps the file `n`: how much it has done."""
        folder = self.scratch / "progress" / _label(name)
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

        `workers` bounds the processes of a local run, if by less than the cluster file. `total` units (counted in
        `notes`) make a progress bar. Errors: see `executors.execute`.
        """
        logs, notes = self.scratch / "logs" / _label(name), self.notes(name)
        logs.mkdir(parents=True)
        self.check()
        (logs / "before.json").write_text(json.dumps({"tasks": tasks, "files": sorted(self._files(self.scratch))}))
        if tasks > 1:
            self._take_up(name, tasks)
        with _watched(f"{self.stage} {name}" if name != self.stage else name, total, unit, notes):
            found = execute(self.stage, name, steps, tasks, workers or self.data.workers, self.data, logs)
        self._seals = _sealed(self.scratch, sorted(self._made(self.scratch, name)))
        (logs / "made.json").write_text(json.dumps(self._seals))
        return found

    def check(self) -> None:
        """`DataError` when a file is not as a task of the last array wrote it; for what reads it that is no array."""
        if wrong := _broken(self.scratch, self._seals):
            raise DataError(f"{wrong}; it was damaged after a task of {self.stage} wrote it: run the stage again")
        self._seals = {}

    def put_away(self, path: Path) -> None:
        """A file of the last array is about to be moved or removed: the next one will not miss it."""
        self._seals.pop(str(path.relative_to(self.scratch)), None)

    def _files(self, attempt: Path) -> set[str]:
        """What lies in an attempt's folder, but for the logs."""
        found = (path.relative_to(attempt) for path in attempt.rglob("*") if path.is_file())
        return {str(path) for path in found if path.parts[0] != "logs" and path.suffix != ".partial"}

    def _made(self, attempt: Path, name: str) -> set[str]:
        """What an array's tasks wrote in an attempt."""
        logs = attempt / "logs" / _label(name)
        if (made := logs / "made.json").is_file():
            return set(json.loads(made.read_text()))
        return self._files(attempt) - set(json.loads((logs / "before.json").read_text())["files"])

    def _take_up(self, name: str, tasks: int) -> None:
        """Bring what an earlier attempt's tasks finished; of several attempts the one that came farthest."""
        best: tuple[int, Path, set[str]] = (0, self.scratch, set())
        for attempt in self._earlier:
            logs = attempt / "logs" / _label(name)
            markers = logs / "completions"
            if not markers.is_dir() or json.loads((logs / "before.json").read_text())["tasks"] != tasks:
                continue
            done = {f"logs/{_label(name)}/completions/{path.name}" for path in markers.iterdir()}
            made = self._made(attempt, name)
            if len(done) < max(best[0], 1) or not all((attempt / path).is_file() for path in made):
                continue
            seals = json.loads((logs / "made.json").read_text()) if (logs / "made.json").is_file() else {}
            if wrong := _broken(attempt, seals):
                print(f"{self.stage} {name}: {wrong}; done again", file=sys.stderr, flush=True)
                continue
            best = (len(done), attempt, done)
        number, attempt, done = best
        if not number:
            return
        stats = {path.replace("completions", "stats") + ".json" for path in done}
        made = self._made(attempt, name)
        for path in [*sorted(made), *sorted(stats), *sorted(done)]:  # a marker after what it marks
            (self.scratch / path).parent.mkdir(parents=True, exist_ok=True)
            with suppress(FileNotFoundError):  # a task that goes on without its driver put it away
                shutil.copyfile(attempt / path, self.scratch / path)
        print(f"{self.stage} {name}: {number} of {tasks} tasks were done before", file=sys.stderr, flush=True)


def _label(name: str) -> str:
    return name.replace(" ", "-")


def _sealed(folder: Path, names: list[str]) -> dict[str, list]:
    """{name: [bytes, SHA-256]} of files in a folder."""

    def seal(name: str) -> list:
        with (folder / name).open("rb") as file:
            return [os.fstat(file.fileno()).st_size, hashlib.file_digest(file, "sha256").hexdigest()]

    with ThreadPoolExecutor() as threads:
        return dict(zip(names, threads.map(seal, names), strict=True))


def _broken(folder: Path, seals: dict[str, list]) -> str | None:
    """What is wrong with the first of the sealed files that is not as it was; None when all are."""
    for name, (size, _) in seals.items():
        found = (folder / name).stat().st_size if (folder / name).is_file() else None
        if found != size:
            return f"{folder / name}: expected {size} bytes, got {'no file' if found is None else found}"
    for name, seal in _sealed(folder, list(seals)).items():
        if seal != seals[name]:
            return f"{folder / name}: its {seal[0]} bytes are not those that were written"
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
