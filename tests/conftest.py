"""What several test files start from, and the order of a parallel run (`make test`).

A file's tests stay on one worker (--dist loadfile), for they share fixtures, a Slurm or code that is compiled at its
first use.
"""

import fcntl
import os
import shutil
from pathlib import Path

import pytest

TESTS = Path(__file__).parent
# The files that take longest, each longer than a worker should be left with at the end; the longest first.
LONGEST = [
    "stages/train/test_nanotron.py",
    "cosmopedia/execution/slurm/test_driver.py",
    "cosmopedia/execution/slurm/test_fleet.py",
    "cosmopedia/execution/slurm/test_data_tasks.py",
    "cosmopedia/execution/slurm/test_training.py",
    "cosmopedia/cpu_server/test_cpu_server.py",
    "stages/train/test_train.py",
    "stages/cluster/test_cluster.py",
    "repository/test_setup.py",
    "repository/test_experiments.py",
    "cosmopedia/execution/test_earlier.py",
    "cosmopedia/execution/test_stage_process.py",
    "cosmopedia/execution/test_mlflow_run.py",
]

# Workers that start threads for every core each only wait for each other. Before torch is imported anywhere.
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")


def pytest_xdist_auto_num_workers() -> int:
    """One worker more than cores, for the tests on Slurm mostly wait."""
    return (os.cpu_count() or 1) + 1


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put the longest files first; skip what is long unless $COSMO_LONG is set."""
    for item in items:
        if item.get_closest_marker("long") and not os.environ.get("COSMO_LONG"):
            item.add_marker(pytest.mark.skip(reason="a minute of CPU time; run it with COSMO_LONG=1"))
    ranks = {TESTS / name: rank for rank, name in enumerate(LONGEST)}
    items.sort(key=lambda item: ranks.get(item.path, len(ranks)))


@pytest.fixture
def empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty current folder, with nothing in the environment that would lead a stage elsewhere."""
    for name in ("COSMO_STORE", "COSMO_COMPUTE", "COSMO_CLUSTER", "DVC_ROOT"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def mlflow_database(
    request: pytest.FixtureRequest, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory, worker_id: str
) -> None:
    """Put an empty MLflow database into the folder of a slow test. Making its tables takes seconds, so it is done once
    for all tests of all workers."""
    if not request.node.get_closest_marker("slow"):
        return
    base = tmp_path_factory.getbasetemp()
    path = (base if worker_id == "master" else base.parent) / "empty-mlflow.db"
    with path.with_suffix(".lock").open("w") as stream:
        fcntl.flock(stream, fcntl.LOCK_EX)
        if not path.exists():
            from mlflow.tracking import MlflowClient

            draft = path.with_suffix(".draft")
            MlflowClient(f"sqlite:///{draft}").search_experiments(max_results=1)
            draft.rename(path)
    shutil.copy(path, tmp_path / "mlflow.db")
