"""MLflow, the record of runs: one run per stage, in the main checkout's SQLite file unless MLFLOW_TRACKING_URI is set.

Where a run is recorded changes no result, and recording delays none. A stage writes to a spool, a file of JSON lines
in `<store>/mlflow/`; a thread sends it (mlflow_sender.py). What a dead server did not take stays in the spool, and the
next stage that records sends it. Telemetry is off, and artefacts stay next to the database.
"""

import logging
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Self
from uuid import uuid4

from cosmopedia.execution.mlflow_sender import SETTINGS, Sender, Spool, this_process
from cosmopedia.lineage import git_revision, store_root
from cosmopedia.params import profile_path, read_yaml

WAIT_SECONDS = 30.0  # at most so long, and only while MLflow answers, is the end of a stage's work waited for,
WAIT_AFTER_ERROR_SECONDS = 2.0  # and that of a stage that fails or is stopped


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


class Run:
    """One MLflow run; use as a context manager. Nothing in here waits for MLflow, except the end of the block: see
    `WAIT_SECONDS`.

    The run ends FINISHED, or FAILED when the block raises. With a `key`, a run that did not finish is continued by the
    next one of that stage and key, without the points that MLflow already has. Runs of this host whose process was
    killed are set to KILLED when another run begins; a continued one is RUNNING again.
    """

    def __init__(self, stage: str, tags: dict[str, str], key: str | None = None):
        for name, value in SETTINGS.items():
            os.environ.setdefault(name, value)
        for name in ("alembic", "mlflow.store.db.utils", "mlflow.tracking"):
            logging.getLogger(name).setLevel(logging.WARNING)
        import mlflow.tracking  # noqa: F401  (here and not in the thread, which would import next to this one)

        self.stage = stage
        self._sender: Sender | None = None
        try:
            self._spool = self._open(key)
            self._sender = Sender(self._spool, stage)
            if not self._spool.has_head:
                self._write(self._head(tags, resumable=key is not None))
            self._write({"process": this_process()})
        except OSError as error:
            self._give_up(error)
            return
        self._sender.start()

    def _open(self, key: str | None) -> Spool:
        """The spool of this stage and key, if no other process has it; else a new one."""
        folder = store_root() / "mlflow"
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / f"{self.stage}-{key or uuid4().hex}.jsonl"
        if path.exists():
            spool = Spool.claim(path)
            if spool is not None:
                return spool
            path = path.with_name(f"{self.stage}-{uuid4().hex}.jsonl")
        return Spool.new(path)

    def _head(self, tags: dict[str, str], resumable: bool) -> dict[str, Any]:
        experiment = os.environ.get("DVC_EXP_NAME")
        all_tags = {
            "mlflow.runName": f"{self.stage} {experiment}" if experiment else self.stage,
            "stage": self.stage,
            "git_revision": git_revision(),
            **({"dvc_experiment": experiment} if experiment else {}),
            **tags,
        }
        return {"tags": all_tags, "params": all_params(), "time": _now(), "resumable": resumable}

    @property
    def id(self) -> str | None:
        """The run's id in MLflow; None until MLflow has given one."""
        return self._sender.run_id if self._sender else None

    def metrics(self, values: dict[str, float], step: int = 0) -> None:
        """Add one point to each named series."""
        self._write({"step": step, "time": _now(), "values": {name: float(value) for name, value in values.items()}})

    def flush(self, seconds: float = WAIT_SECONDS) -> bool:
        """Wait until MLflow has all points, or until it fails; whether it has them."""
        return self._sender is not None and self._sender.drain(seconds)

    def _write(self, entry: dict[str, Any]) -> None:
        if self._sender is None:
            return
        try:
            self._spool.append(entry)
        except OSError as error:
            self._give_up(error)

    def _give_up(self, error: OSError) -> None:
        """The disk takes no more: the stage goes on without a record."""
        self._sender = None
        print(
            f"{self.stage}: warning: MLflow's spool in {store_root() / 'mlflow'} cannot be written"
            f" ({error.strerror or error}); this run is not recorded from here on",
            file=sys.stderr,
            flush=True,
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        """End the run; what MLflow does not take in time stays in the spool."""
        self._write({"end": "FINISHED" if kind is None else "FAILED", "time": _now()})
        if self._sender and not self.flush(WAIT_SECONDS if kind is None else WAIT_AFTER_ERROR_SECONDS):
            self._sender.stop()
            path = _shown(self._spool.path)
            print(
                f"{self.stage}: warning: MLflow has not taken the whole record of this run; the rest waits in {path},"
                " and the next stage that records sends it",
                file=sys.stderr,
                flush=True,
            )


def _now() -> int:
    return int(time.time() * 1000)


def _shown(path: Path) -> Path:
    return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path
