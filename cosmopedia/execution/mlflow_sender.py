"""Sends spools to MLflow from a thread, so that a slow or dead server delays no stage.

A spool has a line of JSON per entry: the head (tags, params, start), the process that records, points, the end, and
the run's id as soon as MLflow has given one. Sending a spool again does no harm, since points that MLflow has are left
out. A killed process cannot end its run, so each run names its process, and the next run on that host ends those that
were left.
"""

import contextlib
import json
import os
import socket
import sys
import threading
import time
from base64 import b64decode
from collections.abc import Iterator
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any
from urllib.parse import quote

from cosmopedia.core.files import lock, replacing, write_text
from cosmopedia.core.lineage import main_checkout
from cosmopedia.execution.mlflow_views import write_view
from cosmopedia.execution.redaction import redact

if TYPE_CHECKING:
    from mlflow.tracking import MlflowClient

EXPERIMENT = "cosmopedia"
SCORES = "cosmopedia scores"  # evaluated models, in a table of their own that has only what compares them
KEY = "cosmopedia.key"  # the tag by which a run is found again
SETTINGS = {  # of MLflow, unless the environment has its own
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",  # with the password in it
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0",  # the spool is sent again
}
HOST, PID, STARTED = "process.host", "process.id", "process.started"  # tags that name a run's process
INTERVAL = 1.0  # seconds between two requests, whose points are sent together,
LONGEST_PAUSE = 60.0  # and after failures
MAX_BYTES = 256 << 20  # of a spool; points beyond that are left out
DIGEST_CHARS = 36  # of a dataset, MLflow's limit
REJECTED = ("INVALID_PARAMETER_VALUE", "BAD_REQUEST")  # MLflow will not take such an entry later either


def tracking_uri() -> str:
    """`$MLFLOW_TRACKING_URI`, else `mlflow.db` in the main checkout (also from inside a queued experiment)."""
    return os.environ.get("MLFLOW_TRACKING_URI") or sqlite_uri(main_checkout() / "mlflow.db")


def sqlite_uri(path: Path) -> str:
    """The URI of a SQLite file. MLflow makes the folder that an absolute URI names without unquoting it, so a path
    with a character like "?" or "#" is given relative to the current folder."""
    name = str(path.absolute())
    return f"sqlite:///{quote(name if quote(name) == name else os.path.relpath(name))}"


def started(pid: int) -> str:
    """When a process of this host began, as boot id and clock ticks: it differs for a later process of the same pid.

    Empty when there is no such process, or only a zombie (proc(5), `/proc/pid/stat`).
    """
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
        fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return ""
    return "" if fields[0] in "ZX" else f"{boot}/{fields[19]}"


def this_process() -> dict[str, str]:
    """The tags that name this process; none where no /proc can tell whether it still lives."""
    began = started(os.getpid())
    return {HOST: socket.gethostname(), PID: str(os.getpid()), STARTED: began} if began else {}


class Spool:
    """The record of a run on this disk. Its lock is kept as long as its process may write to it."""

    def __init__(self, path: Path, file: IO[bytes]):
        self.path, self._file = path, file
        self.has_head = path.stat().st_size > 0
        if self.entries(0)[1] < path.stat().st_size:  # a kill cut the last line short
            self._file.write(b"\n")

    @classmethod
    def new(cls, path: Path) -> "Spool":
        file = path.open("ab", buffering=0)
        with contextlib.suppress(OSError):  # a file system without locks
            lock(file)
        return cls(path, file)

    @classmethod
    def claim(cls, path: Path) -> "Spool | None":
        """The spool that is at a path; None when there is none, or another process has it."""
        try:
            file = open(os.open(path, os.O_WRONLY | os.O_APPEND), "ab", buffering=0)  # noqa: PTH123, SIM115
        except FileNotFoundError:
            return None
        with contextlib.suppress(OSError):
            if lock(file) and os.path.samestat(os.fstat(file.fileno()), path.stat()):
                return cls(path, file)
        file.close()
        return None

    def append(self, entry: dict[str, Any]) -> None:
        if self._file.tell() < MAX_BYTES:
            self._file.write(json.dumps(entry).encode() + b"\n")

    def entries(self, start: int) -> tuple[list[dict[str, Any]], int]:
        """The whole entries from a byte on, and where the next one begins."""
        with self.path.open("rb") as stream:
            stream.seek(start)
            content = stream.read()
        whole = content[: content.rfind(b"\n") + 1]
        entries = []
        for line in whole.splitlines():
            with contextlib.suppress(ValueError):  # a line that a kill cut short
                entries.append(json.loads(line))
        return entries, start + len(whole)

    def is_left(self) -> bool:
        """Whether its process has ended and MLflow has not all of it. A lock may not be seen from another host, so a
        spool of one is left alone until nobody has written to it for a day."""
        entries = [entry for entry in self.entries(0)[0] if not entry.keys() & {"tags", "run"}]
        host = next((entry["process"].get(HOST) for entry in reversed(entries) if "process" in entry), None)
        here = host in (None, socket.gethostname())
        return bool(entries) and (here or self.path.stat().st_mtime < time.time() - 86400)

    def close(self) -> None:
        self._file.close()


class SpoolSender:
    """Brings one spool to MLflow, as far as it has been written."""

    def __init__(self, spool: Spool):
        self.spool, self.run_id, self.ended = spool, None, False
        self.sent = 0  # bytes of the spool
        self._head: dict[str, Any] = {}
        self._known: dict[str, set[int]] | None = None  # steps of each series that MLflow has
        self._described = True

    def send(self, client: "MlflowClient", experiments: "Experiments", alive: bool = True) -> None:
        """Send what is new. A spool that is not `alive` is of a process that has ended: its run gets an end."""
        entries, until = self.spool.entries(self.sent)
        for entry in entries:
            self._head = entry if "tags" in entry else self._head
            self.run_id = entry.get("run", self.run_id)
        entries = [entry for entry in entries if "run" not in entry]
        if entries and self._head:
            parts = _by_process(entries)
            self._open(client, experiments, parts[-1][0].get("process", {}) if alive else {})
            for part in parts:
                self._send_points(client, part, may_come_again=part is not parts[-1])
            self._send_artifacts(client, entries)
            last = entries[-1]
            self.ended = "end" in last
            if self.ended or not alive:
                status = last.get("end", "KILLED")
                client.set_terminated(self.run_id, status, last.get("time"))  # type: ignore[arg-type]
                self._tidy(status)
        self.sent = until

    def _open(self, client: "MlflowClient", experiments: "Experiments", process: dict[str, str]) -> None:
        """Create the run, or find it again and make it this process's. A deleted run is begun anew."""
        if self._known is not None:
            return
        if self.run_id is not None and self._described and self._take_up(client, process):
            return
        experiment = experiments.id(self._head.get("experiment", EXPERIMENT))
        tags, start = self._head["tags"] | process, self._head["time"]
        if parent := self._head.get("parent"):
            found = _find(client, experiment, parent)
            tags["mlflow.parentRunId"] = found or client.create_run(experiment, start, parent).info.run_id
        if view := self._head.get("view"):
            write_view(client, experiment, *view)
        for tag, of in self._head.get("links", {}).items():
            if found := _find(client, experiments.id(EXPERIMENT), of):
                tags[tag] = found
        if self.run_id is None:
            self.run_id = _find(client, experiment, tags) if KEY in tags else None
        if self.run_id is None:
            self.run_id = client.create_run(experiment, start_time=start, tags=tags).info.run_id
            known: dict[str, set[int]] = {}
        else:
            known = self._update(client, tags, bool(process))
        self._described = False
        self._describe(client)
        self.spool.append({"run": self.run_id})
        self._known, self._described = known, True

    def _take_up(self, client: "MlflowClient", process: dict[str, str]) -> bool:
        """Go on with the run whose id the spool has; False when MLflow has it no longer."""
        from mlflow.exceptions import MlflowException

        assert self.run_id is not None
        try:
            for name, value in process.items():
                client.set_tag(self.run_id, name, value)
            if process:
                client.update_run(self.run_id, status="RUNNING")
            self._known = _steps(client, self.run_id)
        except MlflowException as error:
            if error.error_code not in ("RESOURCE_DOES_NOT_EXIST", *REJECTED):
                raise
            self.run_id = None
        return self.run_id is not None

    def _update(self, client: "MlflowClient", tags: dict[str, str], running: bool) -> dict[str, set[int]]:
        """Bring the run of an earlier process with the same key up to date; the points that need not be sent again:
        those of a curve. Of scores, which are points of step 0, the newer one counts."""
        assert self.run_id is not None
        for name, value in tags.items():
            client.set_tag(self.run_id, name, value)
        client.update_run(self.run_id, status="RUNNING" if running else None, name=tags.get("mlflow.runName"))
        return {name: steps - {0} for name, steps in _steps(client, self.run_id).items()}

    def _describe(self, client: "MlflowClient") -> None:
        """Params, which MLflow lets nobody change, and inputs."""
        from mlflow.entities import Dataset, DatasetInput, InputTag, Param

        assert self.run_id is not None
        run_id = self.run_id
        known = client.get_run(run_id).data.params
        params = [Param(key, value) for key, value in self._head["params"].items() if key not in known]
        _send_all(lambda: client.log_batch(run_id, params=params), "its params")
        inputs = [
            DatasetInput(
                Dataset(
                    name=one["name"],
                    digest=one["digest"][:DIGEST_CHARS],
                    source_type="local",
                    source=json.dumps({"uri": one["source"]}),
                    profile=json.dumps(one["facts"] | {"hash": one["digest"]}),
                ),
                [InputTag("mlflow.data.context", one["use"])],
            )
            for one in self._head.get("datasets", ())
        ]
        if inputs:
            _send_all(lambda: client.log_inputs(run_id, inputs), "its datasets")

    def _send_artifacts(self, client: "MlflowClient", entries: list[dict[str, Any]]) -> None:
        """Send files. They are copies, so that one which MLflow does not take is left out with a warning."""
        from tempfile import TemporaryDirectory

        assert self.run_id is not None
        files = [entry for entry in entries if "artifact" in entry]
        with TemporaryDirectory() as scratch:
            for entry in files:
                name = entry["artifact"]
                path = Path(scratch) / Path(name).name
                path.write_bytes(b64decode(entry["base64"]))
                try:
                    client.log_artifact(self.run_id, str(path), str(Path(name).parent) if "/" in name else None)
                except Exception as error:  # MLflow's, requests', boto's, the file system's
                    print(f"warning: MLflow keeps no {name} ({_reason(error)})", file=sys.stderr, flush=True)
                    return

    def _send_points(self, client: "MlflowClient", entries: list[dict[str, Any]], may_come_again: bool) -> None:
        """`may_come_again`: the process that continues a killed one records some of its points once more."""
        from mlflow.entities import Metric

        assert self._known is not None
        points = [
            Metric(name, value, entry["time"], entry["step"])
            for entry in entries
            for name, value in entry.get("values", {}).items()
            if entry["step"] not in self._known.get(name, ())
        ]
        if points:
            _send_all(lambda: client.log_batch(self.run_id, metrics=points), f"{len(points)} points")  # type: ignore[arg-type]
        for point in points if may_come_again else ():
            self._known.setdefault(point.key, set()).add(point.step)

    def _tidy(self, status: str) -> None:
        """Everything is sent: remove the spool, or leave the run's id to the process that will continue it."""
        if status == "FINISHED" or not self._head["resumable"]:
            self.spool.path.unlink(missing_ok=True)
        else:
            lines = [json.dumps(entry) for entry in (self._head, {"run": self.run_id})]
            write_text(self.spool.path, "".join(f"{line}\n" for line in lines))


def _find(client: "MlflowClient", experiment: str, tags: dict[str, str]) -> str | None:
    """The newest run with the stage and the key of `tags`; without a key, the newest with all of them."""
    names = ("stage", KEY) if KEY in tags else tuple(tags)
    wanted = " and ".join(f"tags.`{name}` = '{tags[name]}'" for name in names)
    runs = client.search_runs([experiment], wanted, max_results=1)
    return runs[0].info.run_id if runs else None


def _steps(client: "MlflowClient", run: str) -> dict[str, set[int]]:
    """The steps of each series that MLflow has."""
    series = client.get_run(run).data.metrics
    return {name: {point.step for point in client.get_metric_history(run, name)} for name in series}


def _by_process(entries: list[dict[str, Any]]) -> list[list[dict[str, Any]]]:
    """Entries in groups, each of one process."""
    groups: list[list[dict[str, Any]]] = [[]]
    for entry in entries:
        if "process" in entry and groups[-1]:
            groups.append([])
        groups[-1].append(entry)
    return groups


def _send_all(send: Any, what: str) -> None:
    """Send; what MLflow refuses for good is left out with a warning."""
    from mlflow.exceptions import MlflowException

    try:
        send()
    except MlflowException as error:
        if error.error_code not in REJECTED:
            raise
        print(f"warning: MLflow refuses {what} ({_reason(error)})", file=sys.stderr, flush=True)


def _reason(error: Exception) -> str:
    return redact(" ".join(str(error).split()))[:300]


class Sender(threading.Thread):
    """Sends the spool of this process, and those that processes before it left."""

    def __init__(self, spool: Spool, stage: str):
        super().__init__(name="mlflow", daemon=True)
        self.stage, self._own = stage, SpoolSender(spool)
        self._uri, self._checkout, self._folder = tracking_uri(), main_checkout(), spool.path.parent
        self._client: MlflowClient | None = None
        self._experiments: Experiments | None = None
        self._failures, self._stopped = 0, False
        self._wake, self._changed = threading.Event(), threading.Condition()
        self._wanted: int | None = None  # bytes of the spool for which `drain` waits

    @property
    def run_id(self) -> str | None:
        return self._own.run_id

    def run(self) -> None:
        while not (self._own.ended or self._stopped):
            try:
                self._pass()
                if self._failures:
                    print(f"{self.stage}: MLflow answers again", file=sys.stderr, flush=True)
                self._failures = 0
            except Exception as error:  # whatever it is, the stage goes on
                self._failed(error)
            with self._changed:
                self._changed.notify_all()
            if self._failures or self._wanted is None:
                self._wake.wait(min(INTERVAL * 2**self._failures, LONGEST_PAUSE))
            self._wake.clear()
        self._own.spool.close()

    def stop(self) -> None:
        """Leave the rest to the next run, as soon as the request that is under way has ended."""
        self._stopped = True
        self._wake.set()

    def _pass(self) -> None:
        refusal = None
        client, experiments = self._client, self._experiments
        if client is None or experiments is None:
            client, experiments = connect(self._uri, self._checkout, self._folder)
            _end_killed_runs(client, experiments.id(EXPERIMENT))
            refusal = self._send_left(client, experiments)
        self._own.send(client, experiments)
        self._client, self._experiments = client, experiments
        if refusal is not None:
            reason = _reason(refusal)
            print(f"{self.stage}: warning: MLflow does not take an earlier record ({reason})", file=sys.stderr)

    def _failed(self, error: Exception) -> None:
        self._failures += 1
        if self._failures == 1:
            print(
                f"{self.stage}: warning: MLflow at {redact(self._uri)} does not take the record of this"
                f" run ({_reason(error)}); the stage goes on, and the record waits in {self._folder}",
                file=sys.stderr,
                flush=True,
            )

    def drain(self, seconds: float) -> bool:
        """Wait until what has been written is sent, or sending fails, or the time is over; whether it is sent."""
        deadline = time.monotonic() + seconds
        self._wanted = self._own.spool.path.stat().st_size if self._own.spool.path.exists() else 0
        self._wake.set()
        with self._changed:
            while (left := deadline - time.monotonic()) > 0 and not self._done() and not self._failures:
                self._changed.wait(left)
        done = self._done()
        self._wanted = None
        return done

    def _done(self) -> bool:
        return self._own.ended or (self._wanted is not None and self._own.sent >= self._wanted)

    def _send_left(self, client: "MlflowClient", experiments: "Experiments") -> Exception | None:
        """Send the spools of processes that have ended, up to the first that MLflow does not take; its error. That one
        must not keep this process's own record."""
        for path in sorted(self._folder.glob("*.jsonl")):
            spool = None if path == self._own.spool.path else Spool.claim(path)
            if spool is None:
                continue
            try:
                if spool.is_left():
                    SpoolSender(spool).send(client, experiments, alive=False)
            except Exception as error:  # whatever it is
                return error
            finally:
                spool.close()
        return None


class Experiments:
    """MLflow's experiments by name, each made when it is first needed, by one process at a time."""

    def __init__(self, client: "MlflowClient", artifacts: str | None, lock_path: Path):
        self._client, self._artifacts, self._lock = client, artifacts, lock_path
        self._ids: dict[str, str] = {}

    def id(self, name: str) -> str:
        """An experiment's id."""
        if name not in self._ids:
            with _one_at_a_time(self._lock):
                self._ids[name] = _experiment(self._client, name, self._artifacts)
        return self._ids[name]


def connect(uri: str, checkout: Path, folder: Path) -> "tuple[MlflowClient, Experiments]":
    """MLflow's client and the experiments. The database is made if need be, by one process at a time."""
    from mlflow.tracking import MlflowClient

    database = checkout / "mlflow.db"
    with _one_at_a_time(folder / "lock"):
        if uri == sqlite_uri(database) and not database.exists():
            with replacing(database) as draft:  # a kill in the middle leaves no half database
                MlflowClient(sqlite_uri(draft)).search_experiments(max_results=1)
        client = MlflowClient(uri)
    artifacts = (checkout / "mlruns").as_uri() if uri.startswith("sqlite:") else None
    return client, Experiments(client, artifacts, folder / "lock")


@contextlib.contextmanager
def _one_at_a_time(path: Path) -> Iterator[None]:
    with path.open("a") as file:
        with contextlib.suppress(OSError):  # a file system without locks
            while not lock(file):
                time.sleep(0.05)
        yield


def _experiment(client: "MlflowClient", name: str, artifacts: str | None) -> str:
    from mlflow.exceptions import MlflowException

    experiment = client.get_experiment_by_name(name)
    if experiment is not None:
        return experiment.experiment_id
    try:
        return client.create_experiment(name, artifact_location=artifacts)
    except MlflowException:  # another machine has created it meanwhile
        experiment = client.get_experiment_by_name(name)
        if experiment is None:
            raise
        return experiment.experiment_id


def _end_killed_runs(client: "MlflowClient", experiment: str) -> None:
    """Set RUNNING runs of this host to KILLED when their process is gone."""
    process = this_process()
    token = None
    while process:
        wanted = f"attributes.status = 'RUNNING' and tags.`{HOST}` = '{process[HOST]}'"
        page = client.search_runs([experiment], wanted, page_token=token)
        for run in page:
            if started(int(run.data.tags[PID])) != run.data.tags[STARTED]:
                client.set_terminated(run.info.run_id, "KILLED")
        token = page.token
        if not token:
            return
