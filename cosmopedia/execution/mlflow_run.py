"""MLflow, the record of runs: one run per stage, in the main checkout's SQLite file unless MLFLOW_TRACKING_URI is set.

Where a run is recorded changes no result. Telemetry is off, and artefacts stay next to the database. A killed process
cannot end its run, so each run names its process, and the next run on that host ends those that were left.
"""

import contextlib
import logging
import os
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cosmopedia.errors import ClusterError
from cosmopedia.lineage import git_revision, main_checkout
from cosmopedia.params import profile_path, read_yaml
from cosmopedia.redaction import redact

if TYPE_CHECKING:
    from mlflow.utils.async_logging.run_operations import RunOperations

EXPERIMENT = "cosmopedia"
SETTINGS = {  # of MLflow, unless the environment has its own
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_ASYNC_LOGGING_BUFFERING_SECONDS": "1",  # the points of so long are sent together
    "MLFLOW_ASYNC_LOGGING_THREADPOOL_SIZE": "1",  # SQLite has one writer
}
HOST, PID, STARTED = "process.host", "process.id", "process.started"  # tags that name a run's process


def tracking_uri() -> str:
    """`$MLFLOW_TRACKING_URI`, else `mlflow.db` in the main checkout (also from inside a queued experiment)."""
    return os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{main_checkout() / 'mlflow.db'}"


def all_params() -> dict[str, str]:
    """Every leaf of params.yaml and of the chosen profile, under its dotted name."""
    profile = profile_path()
    return dict(_flatten(read_yaml(profile.parent.parent / "params.yaml"))) | dict(_flatten(read_yaml(profile)))


def _flatten(node: Any, name: str = "") -> Iterator[tuple[str, str]]:
    if isinstance(node, dict):
        for key, value in node.items():
            yield from _flatten(value, f"{name}.{key}" if name else str(key))
    else:
        yield name, str(node)[:6000]


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


class Run:
    """One MLflow run. MLflow sends metrics from a thread of its own; use as a context manager.

    The run ends FINISHED, or FAILED when the block raises. `resume` continues an earlier run by its id, and leaves out
    the points that it already has. Runs of this host whose process was killed are set to KILLED when another run
    begins; a resumed one is RUNNING again.
    """

    def __init__(self, stage: str, tags: dict[str, str], resume: str | None = None):
        for name, value in SETTINGS.items():
            os.environ.setdefault(name, value)
        for name in ("alembic", "mlflow.store.db.utils", "mlflow.tracking"):
            logging.getLogger(name).setLevel(logging.WARNING)
        from mlflow.exceptions import MlflowException
        from mlflow.tracking import MlflowClient

        self._error = MlflowException
        self._known: dict[str, set[int]] = {}  # steps of each series that a resumed run has
        self._sending: RunOperations | None = None
        with self._explained():
            self._client = MlflowClient(tracking_uri())
            self._end_killed_runs()
            self.id = self._resume(resume) or self._create(stage, tags)

    def _end_killed_runs(self) -> None:
        """Set RUNNING runs of this host to KILLED when their process is gone."""
        process = this_process()
        token = None
        while process:
            page = self._client.search_runs(
                [self._experiment()],
                f"attributes.status = 'RUNNING' and tags.`{HOST}` = '{process[HOST]}'",
                page_token=token,
            )
            for run in page:
                if started(int(run.data.tags[PID])) != run.data.tags[STARTED]:
                    self._client.set_terminated(run.info.run_id, "KILLED")
            token = page.token
            if not token:
                return

    def _resume(self, run_id: str | None) -> str | None:
        """The run's id if MLflow still has it; a deleted run is begun anew."""
        if run_id is None:
            return None
        try:
            for name, value in this_process().items():
                self._client.set_tag(run_id, name, value)
            self._client.update_run(run_id, status="RUNNING")
            for name in self._client.get_run(run_id).data.metrics:
                self._known[name] = {point.step for point in self._client.get_metric_history(run_id, name)}
        except self._error:
            return None
        return run_id

    def _create(self, stage: str, tags: dict[str, str]) -> str:
        from mlflow.entities import Param

        experiment = os.environ.get("DVC_EXP_NAME")
        all_tags = {
            "mlflow.runName": f"{stage} {experiment}" if experiment else stage,
            "stage": stage,
            "git_revision": git_revision(),
            **this_process(),
            **({"dvc_experiment": experiment} if experiment else {}),
            **tags,
        }
        run = self._client.create_run(self._experiment(), tags=all_tags)
        self._client.log_batch(run.info.run_id, params=[Param(key, value) for key, value in all_params().items()])
        return run.info.run_id

    def _experiment(self) -> str:
        experiment = self._client.get_experiment_by_name(EXPERIMENT)
        if experiment is not None:
            return experiment.experiment_id
        local = (main_checkout() / "mlruns").as_uri() if tracking_uri().startswith("sqlite:") else None
        try:
            return self._client.create_experiment(EXPERIMENT, artifact_location=local)
        except self._error:  # another process has created it meanwhile
            experiment = self._client.get_experiment_by_name(EXPERIMENT)
            if experiment is None:
                raise
            return experiment.experiment_id

    def metrics(self, values: dict[str, float], step: int = 0) -> None:
        """Add one point to each named series. MLflow prints an error for points that it could not send."""
        from mlflow.entities import Metric

        now = int(time.time() * 1000)
        missing = {name: value for name, value in values.items() if step not in self._known.get(name, ())}
        points = [Metric(name, float(value), now, step) for name, value in missing.items()]
        if points:
            self._sending = self._client.log_batch(self.id, metrics=points, synchronous=False)

    def flush(self) -> None:
        """Wait until all points are sent, in order. `ClusterError` when MLflow does not take the last ones."""
        with self._explained():
            if self._sending is not None:
                self._sending.wait()

    @contextlib.contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except self._error as error:
            reason = " ".join(redact(str(error)).split())[:300]
            raise ClusterError(
                f"MLflow at {redact(tracking_uri())} does not answer: {reason}; fix it, or unset MLFLOW_TRACKING_URI"
                " to record in the checkout's mlflow.db"
            ) from None

    def __enter__(self) -> "Run":
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        """End the run; MLflow sends the last points first."""
        with self._explained() if kind is None else contextlib.suppress(self._error):
            self._client.set_terminated(self.id, "FINISHED" if kind is None else "FAILED")
