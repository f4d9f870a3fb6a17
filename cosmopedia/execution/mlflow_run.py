"""MLflow, the record of runs: one run per stage, in the main checkout's SQLite file unless MLFLOW_TRACKING_URI is set.

Where a run is recorded changes no result, and recording delays none. A stage writes to a spool, a file of JSON lines
in `<store>/mlflow/`; a thread sends it (mlflow_sender.py). What a dead server did not take stays in the spool, and the
next stage that records sends it. Telemetry is off, and artefacts stay next to the database.
"""

import json
import logging
import os
import sys
import time
from base64 import b64encode
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Self
from uuid import uuid4

from cosmopedia.core.files import write_text
from cosmopedia.core.lineage import hash_file, store_root
from cosmopedia.execution.environment import environment
from cosmopedia.execution.mlflow_params import arm, as_yaml, params_that_matter
from cosmopedia.execution.mlflow_sender import EXPERIMENT, KEY, SETTINGS, Sender, Spool, this_process
from cosmopedia.execution.revision import git_revision

WAIT_SECONDS = 60.0  # at most so long, and only while MLflow answers, is the end of a stage's work waited for,
WAIT_AFTER_ERROR_SECONDS = 2.0  # and that of a stage that fails or is stopped


SMALL = 1 << 20  # bytes of a file that is an artifact itself; of a larger one MLflow gets the path


@dataclass(frozen=True)
class Dataset:
    """What a run was given: MLflow shows it in the table's column Dataset."""

    name: str
    digest: str
    source: str  # a path in this repository
    facts: dict[str, int]  # documents, tokens
    use: str  # training, evaluation


@dataclass(frozen=True)
class Parent:
    """The run over all seeds of one arm: same data, same recipe."""

    name: str
    key: str


@dataclass(frozen=True)
class About:
    """How MLflow names a run, finds it again and links it."""

    name: str | None = None  # None: "<stage> <arm>"
    key: str | None = (
        None  # the run of this stage and key is updated where MLflow has one, so that no repeat doubles it
    )
    parent: Parent | None = None
    params: dict[str, str] = field(default_factory=dict)  # next to those of params.yaml that matter
    datasets: tuple[Dataset, ...] = ()
    links: dict[str, dict[str, str]] = field(default_factory=dict)  # a tag -> tags of the run whose id it gets
    note: str | None = None  # Markdown: the run's description
    experiment: str = EXPERIMENT
    view: tuple[list[str], list[str]] | None = None  # metrics and params that the experiment's table shows


NOTHING = About()


class Run:
    """One MLflow run; use as a context manager. Nothing in here waits for MLflow, except the end of the block: see
    `WAIT_SECONDS`.

    The run ends FINISHED, or FAILED when the block raises. With a `key`, a run that did not finish is continued by the
    next one of that stage and key, without the points that MLflow already has. Runs of this host whose process was
    killed are set to KILLED when another run begins; a continued one is RUNNING again.
    """

    def __init__(self, stage: str, tags: dict[str, str], key: str | None = None, about: About = NOTHING):
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
                for entry in _head(stage, tags, about, resumable=key is not None):
                    self._write(entry)
            self._write({"process": this_process()})
        except OSError as error:
            self._give_up(error)
            return
        self._sender.start()

    def _open(self, key: str | None) -> Spool:
        """The spool of this stage and key, if no other process has it; else a new one."""
        folder = (store_root() / "mlflow").absolute()
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / f"{self.stage}-{key or uuid4().hex}.jsonl"
        if path.exists():
            spool = Spool.claim(path)
            if spool is not None:
                return spool
            path = path.with_name(f"{self.stage}-{uuid4().hex}.jsonl")
        return Spool.new(path)

    @property
    def id(self) -> str | None:
        """The run's id in MLflow; None until MLflow has given one."""
        return self._sender.run_id if self._sender else None

    def metrics(self, values: dict[str, float], step: int = 0) -> None:
        """Add one point to each named series."""
        self._write(_point(values, step))

    def artifact(self, name: str, content: str | bytes) -> None:
        """Add a file."""
        self._write(_artifact(name, content))

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
        _complain(self.stage, error)

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


def leave(
    stage: str, tags: dict[str, str], about: About, metrics: dict[str, float], artifacts: dict[str, str | bytes]
) -> None:
    """Leave the whole record of something finished in the spool; the next `Run` that begins sends it first."""
    folder = (store_root() / "mlflow").absolute()
    entries = [*_head(stage, tags, about, resumable=False), _point(metrics, 0)]
    entries += [_artifact(name, content) for name, content in artifacts.items()]
    entries.append({"end": "FINISHED", "time": _now()})
    try:
        folder.mkdir(parents=True, exist_ok=True)
        write_text(folder / f"{stage}-{uuid4().hex}.jsonl", "".join(json.dumps(entry) + "\n" for entry in entries))
    except OSError as error:
        _complain(stage, error)


def file_artifact(path: Path) -> tuple[str, str | bytes]:
    """(name, content) of a small file; of a large one a note that says where it is."""
    content = path.read_bytes() if path.stat().st_size <= SMALL else None
    if content is not None:
        return path.name, content
    return f"{path.name}.txt", f"{path}, {path.stat().st_size:,} bytes, sha256 {hash_file(path)}\n"


def _head(stage: str, tags: dict[str, str], about: About, resumable: bool) -> Iterator[dict[str, Any]]:
    """What a spool begins with: the run, and all params as an artifact."""
    experiment = os.environ.get("DVC_EXP_NAME")
    own = {"stage": stage, "git_revision": git_revision()}
    if experiment:
        own["dvc_experiment"] = experiment
    parent = None
    if about.parent:
        parent = own | {"mlflow.runName": about.parent.name, KEY: about.parent.key}
    own["mlflow.runName"] = about.name or f"{stage} {arm()}"
    if about.key:
        own[KEY] = about.key
    if about.note:
        own["mlflow.note.content"] = about.note
    yield {
        "tags": own | tags,
        "params": params_that_matter(about.params),
        "time": _now(),
        "resumable": resumable,
        "experiment": about.experiment,
        "parent": parent,
        "datasets": [asdict(dataset) for dataset in about.datasets],
        "links": about.links,
        "view": about.view,
    }
    yield _artifact("params.yaml", as_yaml())
    yield _artifact("environment.json", json.dumps(environment(), indent=1))


def _point(values: dict[str, float], step: int) -> dict[str, Any]:
    return {"step": step, "time": _now(), "values": {name: float(value) for name, value in values.items()}}


def _artifact(name: str, content: str | bytes) -> dict[str, str]:
    data = content.encode() if isinstance(content, str) else content
    return {"artifact": name, "base64": b64encode(data).decode("ascii")}


def _complain(stage: str, error: OSError) -> None:
    print(
        f"{stage}: warning: MLflow's spool in {store_root() / 'mlflow'} cannot be written"
        f" ({error.strerror or error}); this run is not recorded from here on",
        file=sys.stderr,
        flush=True,
    )


def _now() -> int:
    return int(time.time() * 1000)


def _shown(path: Path) -> Path:
    return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path
