"""MLflow, the record of runs: one run a stage, in the main checkout's sqlite file unless MLFLOW_TRACKING_URI is set.

Where a run is recorded changes no result. Telemetry is off, and artefacts stay beside the database. A process that is
killed cannot end its run, so each run names its process, and the next run of that host ends those that were left.
"""

import contextlib
import logging
import os
import socket
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from cosmopedia.errors import ClusterError
from cosmopedia.lineage import git_revision, main_checkout
from cosmopedia.params import profile_path, read_yaml

EXPERIMENT = "cosmopedia"
FLUSH_SECONDS = 5.0
BATCH, POINTS = 100, 1000  # params and metrics in one request; MLflow's limits
HOST, PID, STARTED = "process.host", "process.id", "process.started"  # tags that name a run's process


def tracking_uri() -> str:
    """`$MLFLOW_TRACKING_URI`, else `mlflow.db` in the main checkout (also from inside a queued experiment)."""
    return os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{main_checkout() / 'mlflow.db'}"


def all_params() -> dict[str, str]:
    """Every leaf of params.yaml and of the chosen profile, under its dotted name."""
    return dict(_flatten(read_yaml(profile_path().parent.parent / "params.yaml"))) | dict(
        _flatten(read_yaml(profile_path()))
    )


def _flatten(node: Any, name: str = "") -> Iterator[tuple[str, str]]:
    if isinstance(node, dict):
        for key, value in node.items():
            yield from _flatten(value, f"{name}.{key}" if name else str(key))
    else:
        yield name, str(node)[:6000]


def started(pid: int) -> str:
    """When a process of this host began, as boot and clock ticks since then: another one of the same id differs in it.

    Empty when there is none, or only one that has ended and waits to be collected (proc(5), `/proc/pid/stat`).
    """
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
        fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return ""
    return "" if fields[0] in "ZX" else f"{boot}/{fields[19]}"


def this_process() -> dict[str, str]:
    """The tags that name this process; none where there is no /proc to tell whether it still lives."""
    begun = started(os.getpid())
    return {HOST: socket.gethostname(), PID: str(os.getpid()), STARTED: begun} if begun else {}


class Run:
    """One MLflow run. Metrics are sent at most every five seconds; use as a context manager.

    The run ends FINISHED, or FAILED when the block raises. `resume` takes up an earlier run by its id, and leaves out
    the points of a series that it already holds. Runs of this host whose process was killed are set to KILLED when
    another run begins; one that is taken up is RUNNING again.
    """

    def __init__(self, stage: str, tags: dict[str, str], resume: str | None = None):
        os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
        for name in ("alembic", "mlflow.store.db.utils", "mlflow.tracking"):
            logging.getLogger(name).setLevel(logging.WARNING)
        from mlflow.exceptions import MlflowException
        from mlflow.tracking import MlflowClient

        self._error = MlflowException
        self._pending: list[tuple[str, float, int, int]] = []
        self._sent = time.monotonic()
        self._held: dict[str, int] = {}
        with self._blamed():
            self._client = MlflowClient(tracking_uri())
            self._bury()
            self.id = self._take_up(resume) or self._create(stage, tags)

    def _bury(self) -> None:
        """Set the RUNNING runs of processes of this host that are gone to KILLED."""
        here, token = this_process(), None
        while here:
            found = self._client.search_runs(
                [self._experiment()],
                f"attributes.status = 'RUNNING' and tags.`{HOST}` = '{here[HOST]}'",
                page_token=token,
            )
            for run in found:
                if started(int(run.data.tags[PID])) != run.data.tags[STARTED]:
                    self._client.set_terminated(run.info.run_id, "KILLED")
            token = found.token
            if not token:
                return

    def _take_up(self, run_id: str | None) -> str | None:
        """The run's id if the store still has it; a deleted run is begun anew."""
        if run_id is None:
            return None
        try:
            for name, value in this_process().items():
                self._client.set_tag(run_id, name, value)
            self._client.update_run(run_id, status="RUNNING")
            for name in self._client.get_run(run_id).data.metrics:
                self._held[name] = max(point.step for point in self._client.get_metric_history(run_id, name))
        except self._error:
            return None
        return run_id

    def _create(self, stage: str, tags: dict[str, str]) -> str:
        from mlflow.entities import Param

        name = os.environ.get("DVC_EXP_NAME")
        given = {
            "mlflow.runName": f"{stage} {name}" if name else stage,
            "stage": stage,
            "git_revision": git_revision(),
            **this_process(),
        }
        run = self._client.create_run(
            self._experiment(), tags=given | ({"dvc_experiment": name} if name else {}) | tags
        )
        params = [Param(key, value) for key, value in all_params().items()]
        for start in range(0, len(params), BATCH):
            self._client.log_batch(run.info.run_id, params=params[start : start + BATCH])
        return run.info.run_id

    def _experiment(self) -> str:
        found = self._client.get_experiment_by_name(EXPERIMENT)
        if found is not None:
            return found.experiment_id
        local = (main_checkout() / "mlruns").as_uri() if tracking_uri().startswith("sqlite:") else None
        try:
            return self._client.create_experiment(EXPERIMENT, artifact_location=local)
        except self._error:  # another process made it in the meantime
            found = self._client.get_experiment_by_name(EXPERIMENT)
            if found is None:
                raise
            return found.experiment_id

    def metrics(self, values: dict[str, float], step: int = 0) -> None:
        """Add one point to each named series."""
        now = int(time.time() * 1000)
        self._pending += [(n, float(v), now, step) for n, v in values.items() if step > self._held.get(n, -1)]
        if time.monotonic() - self._sent >= FLUSH_SECONDS:
            try:
                self.flush()
            except ClusterError as error:  # a long computation outlives its record; the end tries again
                print(f"warning: {error}", file=sys.stderr, flush=True)

    def flush(self) -> None:
        """Send what is waiting. `ClusterError` when MLflow does not take it; it then goes on waiting."""
        from mlflow.entities import Metric

        self._sent = time.monotonic()
        with self._blamed():
            while self._pending:
                self._client.log_batch(self.id, metrics=[Metric(*point) for point in self._pending[:POINTS]])
                del self._pending[:POINTS]

    @contextlib.contextmanager
    def _blamed(self) -> Iterator[None]:
        try:
            yield
        except self._error as error:
            reason = " ".join(str(error).split())[:300]
            raise ClusterError(
                f"MLflow at {tracking_uri()} does not answer: {reason}; mend it, or unset MLFLOW_TRACKING_URI to"
                " record in the checkout's mlflow.db"
            ) from None

    def __enter__(self) -> "Run":
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None:
            self.flush()
        with contextlib.suppress(self._error, ClusterError):
            if kind is not None:
                self.flush()
            self._client.set_terminated(self.id, "FINISHED" if kind is None else "FAILED")
