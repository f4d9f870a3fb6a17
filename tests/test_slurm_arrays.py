"""The corpus stages as job arrays on a real Slurm: the same bytes, failed tasks again, a clear end, nothing left."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from rows import ROOT, byte_tokenizer, bytes_of, document, repository, write_documents
from slurm_cluster import SlurmCluster, slurm  # noqa: F401  (the fixture)

from stages import clean, dedup
from stages.corpus import cells
from stages.draws import draw_u64
from stages.errors import ClusterError
from stages.launch import arrays

pytestmark = pytest.mark.slow
CELLS = ("openstax-college", "web-blogpost", "wikihow-article")


def text(number: int) -> str:
    """Different texts, but for every tenth, which is nearly the one before."""
    topic = number - (number % 10 == 9)
    words = [f"w{draw_u64(1, topic, position) % 5000}" for position in range(120)]
    said = [" ".join(words[at : at + 12]).capitalize() + "." for at in range(0, 120, 12)]
    return " ".join([*said, "And so it is." if number % 10 == 9 else "That is all of it."])


@pytest.fixture
def corpus(empty_folder: Path, slurm: SlurmCluster, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:  # noqa: F811
    """Three cells of generated documents, a tokenizer, benchmark items, and every task of a size of its own."""
    byte_tokenizer(empty_folder / "models/generator")
    for position, cell in enumerate(CELLS):
        rows = [document(text=text(number)) for number in range(position * 40, position * 40 + 40)]
        write_documents(empty_folder / f"data/generate/{cell}.parquet", rows)
    monkeypatch.setattr(cells, "ROWS_PER_TASK", 10)
    monkeypatch.setattr(arrays, "LOOK_SECONDS", 0.3)
    monkeypatch.setattr(arrays, "GRACE_SECONDS", 5.0)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    yield empty_folder
    for job in slurm.jobs():
        slurm.run("scancel", job.id.partition("_")[0])
    slurm.wait_empty(30)


def clean_locally(folder: Path) -> None:
    settings(folder, "clean", "local")
    clean.main()


def settings(folder: Path, stage: str, executor: str, **data: object) -> None:
    """The repository's own params of a stage, and a cluster file."""
    repository(folder, stage, 3)
    path = folder / "clusters/local.yaml"
    content = yaml.safe_load(path.read_text())
    content["data"] = {"executor": executor, "tasks": 3, "workers": 2, "slurm": {"time": "10"}, **data}
    path.write_text(yaml.safe_dump(content))


def test_arrays_write_the_bytes_of_a_local_run(corpus: Path, slurm: SlurmCluster) -> None:  # noqa: F811
    """Every corpus stage in the whole pipeline: tests/test_pipeline.py; here the one with most arrays."""
    clean_locally(corpus)
    found = {}
    for executor in ("local", "slurm"):
        settings(corpus, "dedup", executor)
        dedup.main()
        found[executor] = bytes_of(corpus / "data/dedup") | {"metrics": Path("metrics/dedup.json").read_bytes()}
    assert found["local"] == found["slurm"] and len(found["local"]) > 3
    assert slurm.jobs() == []
    assert json.loads(Path("metrics/dedup.json").read_text())["rows_removed"] > 0


FAILING = """
import os
from pathlib import Path
from stages.corpus import cleaning
times = int(os.environ["FAIL_TIMES"])
def filter_once(self, doc, keep=cleaning.CleanFilter.filter):
    seen = Path(os.environ["FAIL_FOLDER"]) / doc.metadata["cell"]
    if doc.metadata["cell"] == "web-blogpost":
        count = int(seen.read_text()) if seen.exists() else 0
        if count < times:
            seen.write_text(str(count + 1))
            raise ValueError("the disk of this node is odd")
    return keep(self, doc)
cleaning.CleanFilter.filter = filter_once
"""


@pytest.fixture
def failing(corpus: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Array tasks of clean whose cell web-blogpost raises the first FAIL_TIMES times (in the tasks' Python alone)."""
    (corpus / "site").mkdir()
    hook = "import os, sys\nif 'SLURM_ARRAY_TASK_ID' in os.environ and 'launch_pickled' in ' '.join(sys.orig_argv):\n"
    (corpus / "site/sitecustomize.py").write_text(hook + "".join(f"    {line}\n" for line in FAILING.splitlines()))
    monkeypatch.setenv("PYTHONPATH", f"{corpus / 'site'}:{ROOT}")
    monkeypatch.setenv("FAIL_FOLDER", str(corpus / "site"))
    return corpus


def test_a_task_that_fails_once_is_run_again_alone(
    failing: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    clean_locally(failing)
    wanted = bytes_of(failing / "data/clean")
    monkeypatch.setenv("FAIL_TIMES", "1")
    settings(failing, "clean", "slurm", retries=1)
    clean.main()
    assert bytes_of(failing / "data/clean") == wanted
    said = capfd.readouterr().err
    assert "task(s) [1] of 3 failed" in said and "the disk of this node is odd" in said


def test_a_task_that_keeps_failing_ends_the_stage_with_its_log(
    failing: Path,
    slurm: SlurmCluster,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("FAIL_TIMES", "9")
    settings(failing, "clean", "slurm", retries=1)
    with pytest.raises(ClusterError, match=r"clean.*task\(s\) \[1\] of 3 failed[\s\S]*the disk of this node is odd"):
        clean.main()
    assert slurm.jobs() == [] and not list(Path("data/clean").glob(".scratch-*"))


def test_a_signal_cancels_the_array(corpus: Path, slurm: SlurmCluster) -> None:  # noqa: F811
    settings(corpus, "clean", "slurm", slurm={"time": "10", "cpus": 2, "extra": ["--begin=now+300"]})
    code = "from stages.clean import main\nfrom stages.errors import run_stage\nrun_stage('clean', main)"
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    process = subprocess.Popen([sys.executable, "-c", code], env=environment, stderr=subprocess.PIPE, text=True)
    end = time.monotonic() + 40
    while not slurm.jobs():
        assert time.monotonic() < end and process.poll() is None
        time.sleep(0.1)
    process.send_signal(signal.SIGTERM)
    assert process.wait(30) == 130
    slurm.wait_empty(20)
