"""MLflow is a record at the side: no server, however it fails, delays a stage or loses what was recorded."""

import os
import signal
import socket
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from cosmopedia.core.params import read_yaml
from cosmopedia.execution import mlflow_params, mlflow_run, mlflow_sender
from cosmopedia.execution.mlflow_run import About, Dataset, Parent, Run, leave

ROOT = Path(__file__).parents[3]
NAMES = ("COSMO_STORE", "COSMO_COMPUTE", "DVC_ROOT", "DVC_EXP_NAME", "MLFLOW_TRACKING_URI")
RECORDS = """
import sys
from cosmopedia.execution.mlflow_run import Run
with Run("evaluate", {"number": sys.argv[1]}) as run:
    run.metrics({"acc": 0.5})
"""
SERVER = """
import os, sys
from mlflow.server import ARTIFACT_ROOT_ENV_VAR, BACKEND_STORE_URI_ENV_VAR
os.environ[BACKEND_STORE_URI_ENV_VAR] = sys.argv[1]
os.environ[ARTIFACT_ROOT_ENV_VAR] = os.path.abspath("artifacts")
from mlflow.server import app
from werkzeug.serving import make_server
server = make_server("127.0.0.1", int(sys.argv[2]), app, threaded=True)
print(server.server_port, flush=True)
server.serve_forever()
"""


def settings(folder: Path) -> Path:
    (folder / "profiles").mkdir(parents=True)
    (folder / "profiles/tiny.yaml").write_text("{}\n")
    (folder / "params.yaml").write_text("profile: tiny\n")
    return folder


@pytest.fixture
def folder(empty_folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in NAMES:
        monkeypatch.delenv(name, raising=False)
    return settings(empty_folder)


@pytest.fixture(scope="module")
def two_processes(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[str]]:
    """A checkout whose path has characters with a meaning in URLs, after two stages that began there at once; and what
    they wrote to stderr."""
    folder = settings(tmp_path_factory.mktemp("checkouts") / "what? 100%41 #1")
    environment = {name: value for name, value in os.environ.items() if name not in NAMES}
    environment["PYTHONPATH"] = str(ROOT)
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", RECORDS, number], cwd=folder, env=environment, stderr=subprocess.PIPE, text=True
        )
        for number in ("1", "2")
    ]
    return folder, [process.communicate()[1] for process in processes]


@pytest.mark.slow
def test_two_stages_that_create_the_database_at_once_both_record(two_processes: tuple[Path, list[str]]) -> None:
    folder, complaints = two_processes
    assert not any("warning" in text or "Traceback" in text for text in complaints), complaints
    with sqlite3.connect(folder / "mlflow.db") as database:
        assert database.execute("select status from runs").fetchall() == [("FINISHED",), ("FINISHED",)]
        assert database.execute("select value from metrics").fetchall() == [(0.5,), (0.5,)]
    assert sorted(path.name for path in folder.iterdir()) == [
        ".store",
        "mlflow.db",
        "mlruns",  # every run has all params as an artifact
        "params.yaml",
        "profiles",
    ]
    assert [path.name for path in (folder / ".store/mlflow").iterdir()] == ["lock"]
    assert list(folder.parent.iterdir()) == [folder]  # and no folder of a similar name next to it


class Server:
    """A real MLflow server on loopback, in a process that can be killed and started again."""

    def __init__(self, database: Path):
        self.uri = mlflow_sender.sqlite_uri(database)
        self.port, self.process = 0, None
        self.start()

    def start(self) -> None:
        command = [sys.executable, "-c", SERVER, self.uri, str(self.port)]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
        assert self.process.stdout is not None
        self.port = int(self.process.stdout.readline())

    def kill(self) -> None:
        assert self.process is not None
        self.process.kill()
        self.process.wait()


@pytest.fixture
def server(two_processes: tuple[Path, list[str]], folder: Path) -> Iterator[Server]:
    database = folder / "server.db"
    database.write_bytes((two_processes[0] / "mlflow.db").read_bytes())
    server = Server(database)
    yield server
    server.kill()


@pytest.mark.slow
def test_a_server_that_dies_costs_no_time_and_gets_everything_later(
    server: Server, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://me:hidden@127.0.0.1:{server.port}")

    def interrupted() -> None:
        with Run("train", {}) as run:
            run.metrics({"loss": 0.0}, step=0)
            assert run.flush()
            server.kill()
            began = time.monotonic()
            for step in range(1, 101):
                run.metrics({"loss": float(step)}, step=step)
            assert time.monotonic() - began < 30  # a request that waits takes 250
            deadline = time.monotonic() + 60
            while not (complaint := capfd.readouterr().err) and time.monotonic() < deadline:
                time.sleep(0.1)
            assert (
                f"warning: MLflow at http://[redacted]@127.0.0.1:{server.port} does not take the record" in complaint
            )
            assert "hidden" not in complaint
            os.kill(os.getpid(), signal.SIGTERM)

    def stop(*_: object) -> None:
        nonlocal stopped
        stopped = time.monotonic()
        raise KeyboardInterrupt

    stopped, before = 0.0, signal.signal(signal.SIGTERM, stop)
    try:
        with pytest.raises(KeyboardInterrupt):
            interrupted()
        assert time.monotonic() - stopped < 30
    finally:
        signal.signal(signal.SIGTERM, before)
    complaint = capfd.readouterr()
    assert "the next stage that records sends it" in complaint.err and "hidden" not in complaint.err + complaint.out

    (spool,) = Path(".store/mlflow").glob("train-*.jsonl")
    foreign = spool.with_name("train-foreign.jsonl")
    foreign.write_text(spool.read_text().replace(socket.gethostname(), "another-host").replace('"train"', '"foreign"'))
    server.start()
    with Run("export", {}) as later:
        assert later.flush()
    assert not spool.exists() and foreign.exists()  # whose lock may not be seen here
    os.utime(foreign, (0, 0))
    with Run("export", {}) as later:
        assert later.flush()
    assert not foreign.exists() and "hidden" not in capfd.readouterr().out
    from mlflow.tracking import MlflowClient

    client = MlflowClient(server.uri)
    (run,) = client.search_runs(["1"], "tags.stage = 'train'")
    assert run.info.status == "FAILED"
    points = client.get_metric_history(run.info.run_id, "loss")
    assert sorted((point.step, point.value) for point in points) == [(step, float(step)) for step in range(101)]


@pytest.mark.slow
def test_a_server_that_never_answers_delays_neither_start_nor_end(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(mlflow_run, "WAIT_AFTER_ERROR_SECONDS", 0.2)
    import mlflow.tracking  # noqa: F401  (its import takes seconds)

    with socket.create_server(("127.0.0.1", 0)) as silent:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{silent.getsockname()[1]}")
        began = time.monotonic()
        with pytest.raises(RuntimeError), Run("train", {}) as run:
            run.metrics({"loss": 1.0}, step=1)
            raise RuntimeError
        assert time.monotonic() - began < 30
    (spool,) = (folder / ".store/mlflow").glob("train-*.jsonl")
    assert f"the rest waits in {spool.relative_to(folder)}" in capfd.readouterr().err


def test_a_disk_that_takes_no_spool_costs_the_record_and_not_the_stage(
    folder: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (folder / ".store").mkdir()
    (folder / ".store/mlflow").write_text("a file where the folder should be")
    with Run("train", {}) as run:
        run.metrics({"loss": 1.0}, step=1)
        assert run.id is None and not run.flush()
    assert "warning: MLflow's spool in" in capfd.readouterr().err


def test_a_table_has_few_params_and_first_those_that_differ_from_the_commit(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import shutil

    for name in ("params.yaml", "profiles", "prompts"):
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
        copy(ROOT / name, folder / name, **({"dirs_exist_ok": True} if copy is shutil.copytree else {}))
    git = ["git", "-c", "user.name=t", "-c", "user.email=t@t"]
    for command in (["init", "-qb", "main"], ["add", "-A"], ["commit", "-qm", "baseline"]):
        subprocess.run([*git, *command], check=True)
    baseline = mlflow_params.params_that_matter({})
    assert "changed" not in baseline and len(baseline) <= mlflow_params.MOST < len(mlflow_params.all_params())
    assert baseline["prompts.topic_probability"] == "0.5" and baseline["profile"] == "rehearsal"
    assert mlflow_params.arm().startswith("main@")

    params = (folder / "params.yaml").read_text()
    (folder / "params.yaml").write_text(
        params.replace("clean.min", "").replace("min_agreement: 0.95", "min_agreement: 0.9")
    )
    template = folder / "prompts/web/blogpost.txt"
    template.write_text(template.read_text() + "\n")
    monkeypatch.setenv("DVC_EXP_NAME", "strict")
    arm = mlflow_params.params_that_matter({"seed": "1"})
    assert arm["changed"] == "topics.min_agreement=0.9" and arm["topics.min_agreement"] == "0.9"
    assert arm["prompts.templates"] != baseline["prompts.templates"] and mlflow_params.arm() == "strict"


@pytest.mark.slow
def test_a_repeated_stage_updates_its_runs_below_the_one_of_the_means(
    two_processes: tuple[Path, list[str]], folder: Path
) -> None:
    from mlflow.tracking import MlflowClient

    (folder / "mlflow.db").write_bytes((two_processes[0] / "mlflow.db").read_bytes())
    data = (Dataset("corpus", "d" * 64, "data/tokenize_corpus", {"tokens": 700, "documents": 4}, "training"),)
    with Run("train", {"recipe_hash": "r"}) as training:
        pass
    for score in (0.25, 0.5):
        for seed in (1, 2):
            links = {"training_run": {"stage": "train", "recipe_hash": "r"}}
            about = About(
                f"arm seed {seed}", f"key{seed}", Parent("arm mean", "mean"), {}, data, links, None, "scores"
            )
            leave("evaluate", {"seed": str(seed)}, about, {"acc_norm": score + seed}, {"scores.json": str(score)})
        about = About("arm mean", "mean", datasets=data, experiment="scores", view=(["acc_norm"], ["changed"]))
        with Run("evaluate", {}, about=about) as run:
            run.metrics({"acc_norm": score + 1.5})
            run.artifact("scores.svg", "<svg/>")
    assert not list(Path(".store/mlflow").glob("*.jsonl"))
    client = MlflowClient(f"sqlite:///{folder}/mlflow.db")
    experiment = client.get_experiment_by_name("scores")
    assert experiment is not None and "mlflow.sharedViewState.scores" in experiment.tags
    runs = {run.info.run_name: run for run in client.search_runs([experiment.experiment_id])}
    assert sorted(runs) == ["arm mean", "arm seed 1", "arm seed 2"] and {r.info.status for r in runs.values()} == {
        "FINISHED"
    }
    assert {name: run.data.metrics["acc_norm"] for name, run in runs.items()} == {
        "arm mean": 2.0,
        "arm seed 1": 1.5,
        "arm seed 2": 2.5,
    }
    child = runs["arm seed 1"]
    assert child.data.tags["mlflow.parentRunId"] == runs["arm mean"].info.run_id
    assert child.data.tags["training_run"] == training.id
    (given,) = child.inputs.dataset_inputs
    assert (
        given.dataset.name == "corpus"
        and given.dataset.digest == "d" * 36
        and '"tokens": 700' in given.dataset.profile
    )
    stored = Path(client.download_artifacts(child.info.run_id, ""))
    assert (stored / "scores.json").read_text() == "0.5" and read_yaml(stored / "params.yaml")["profile"] == "tiny"


@pytest.mark.slow
def test_a_dead_server_costs_the_scores_of_many_models_no_time_and_gets_them_later(
    two_processes: tuple[Path, list[str]], folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mlflow.tracking import MlflowClient

    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    began = time.monotonic()
    for seed in range(12):
        leave("evaluate", {}, About(f"seed {seed}", f"key{seed}", experiment="scores"), {"acc_norm": 0.5}, {})
    with Run("evaluate", {}, about=About("mean", "mean", experiment="scores")) as run:
        run.metrics({"acc_norm": 0.5})
    assert time.monotonic() - began < 30 and len(list(Path(".store/mlflow").glob("*.jsonl"))) == 13
    (folder / "mlflow.db").write_bytes((two_processes[0] / "mlflow.db").read_bytes())
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    with Run("export", {}) as later:
        assert later.flush()
    client = MlflowClient(f"sqlite:///{folder}/mlflow.db")
    runs = client.search_runs([client.get_experiment_by_name("scores").experiment_id])  # type: ignore[union-attr]
    assert len(runs) == 13 and {run.data.metrics["acc_norm"] for run in runs} == {0.5}
