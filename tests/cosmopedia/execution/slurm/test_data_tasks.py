"""The data stages as arrays of tasks, mostly on a real Slurm, in a checkout whose path has a blank and a quote.

The same bytes as without an array, failed tasks again, killed ones taken up again, a clear end, nothing left.
"""

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import yaml

from cosmopedia.core.errors import ClusterError, ConfigError
from cosmopedia.core.rng import draw_u64
from cosmopedia.corpus import pipeline as cells
from cosmopedia.corpus import row_ranges
from cosmopedia.corpus.vectors import table_of_vectors
from cosmopedia.execution import executors
from cosmopedia.execution.compute import SlurmData
from cosmopedia.tables.contracts import EMBEDDING, SOURCE
from cosmopedia.tables.parquet import TableWriter, write_table
from stages.clean import __main__ as clean
from stages.cluster import __main__ as cluster
from stages.cluster.umap_hdbscan import Groups
from stages.dedup import __main__ as dedup
from stages.embed import __main__ as embed
from tests.support.documents import ROOT, byte_tokenizer, bytes_of, document, repository, write_documents
from tests.support.slurm_cluster import SlurmCluster, slurm  # noqa: F401  (the fixture)

pytestmark = pytest.mark.slow
CELLS = ("openstax-college", "web-blogpost", "wikihow-article")


def text(number: int) -> str:
    """Different texts, except every tenth, which nearly equals the one before."""
    topic = number - (number % 10 == 9)
    words = [f"w{draw_u64(1, topic, position) % 5000}" for position in range(120)]
    said = [" ".join(words[at : at + 12]).capitalize() + "." for at in range(0, 120, 12)]
    return " ".join([*said, "And so it is." if number % 10 == 9 else "That is all of it."])


@pytest.fixture
def checkout(empty_folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Three cells of generated documents, a tokenizer, and a dvc.yaml with the deps of clean and dedup."""
    folder = empty_folder / "this user's checkout"
    byte_tokenizer(folder / "models/generator")
    monkeypatch.chdir(folder)
    for position, cell in enumerate(CELLS):
        rows = [document(text=text(number)) for number in range(position * 40, position * 40 + 40)]
        write_documents(folder / f"data/generate/{cell}.parquet", rows)
    deps = {"clean": ["data/generate", "models/generator/tokenizer.json"], "dedup": ["data/clean"]}
    (folder / "dvc.yaml").write_text(yaml.safe_dump({"stages": {name: {"deps": deps[name]} for name in deps}}))
    monkeypatch.setattr(cells, "WORTH_SECONDS", 0)
    return folder


@pytest.fixture
def corpus(checkout: Path, slurm: SlurmCluster, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The checkout on a cluster, polled quickly; jobs that a test leaves are cancelled."""
    monkeypatch.setattr(executors, "LOOK_SECONDS", 0.3)
    monkeypatch.setattr(executors, "GRACE_SECONDS", 5.0)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    yield checkout
    for job in slurm.jobs():
        slurm.run("scancel", job.id.partition("_")[0])
    slurm.wait_empty(30)


def clean_locally(folder: Path) -> None:
    settings(folder, "clean", "local")
    clean.main()


def settings(folder: Path, stage: str, executor: str, **data: object) -> None:
    """The repository's own params of a stage, and a compute file."""
    repository(folder, stage, 3)
    path = folder / "compute/local.yaml"
    content = yaml.safe_load(path.read_text())
    slurm = {"slurm": {"time": "10"}} if executor == "slurm" else {}
    content["data"] = {"executor": executor, "tasks": 3, "workers": 2, **slurm, **data}
    path.write_text(yaml.safe_dump(content))


def test_arrays_write_the_bytes_of_a_local_run(corpus: Path, slurm: SlurmCluster) -> None:
    """Every corpus stage in the pipeline: tests/repository/test_pipeline.py; here the one with the most arrays."""
    clean_locally(corpus)
    found = {}
    for executor in ("local", "slurm"):
        settings(corpus, "dedup", executor, tasks=2)
        dedup.main()
        found[executor] = bytes_of(corpus / "data/dedup") | {"metrics": Path("metrics/dedup.json").read_bytes()}
    assert found["local"] == found["slurm"] and len(found["local"]) > 3
    assert slurm.jobs() == []
    assert json.loads(Path("metrics/dedup.json").read_text())["rows_removed"] > 0


def test_embed_as_an_array_writes_the_bytes_of_a_local_run(
    corpus: Path,
    slurm: SlurmCluster,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Five texts in batches of two: one task has four of them, the other the last."""
    fixed = {"source": "web", "title": "", "context": "{}", "url": None, "licence": "CC0-1.0", "revision": "r"}
    rows = [{"row_id": f"web/{n}", "original_id": str(n), "text": text(n) * (n + 1), **fixed} for n in range(5)]
    write_table("data/sources/web.parquet", rows, SOURCE)
    monkeypatch.setattr(row_ranges, "BATCH_ROWS", 2)
    found = {}
    for executor in ("local", "slurm"):
        settings(corpus, "embed", executor, tasks=2)
        embed.main()
        found[executor] = bytes_of(corpus / "data/embed") | {"metrics": Path("metrics/embed.json").read_bytes()}
    assert found["local"] == found["slurm"]
    assert slurm.jobs() == []


def test_cluster_assigns_the_same_in_this_process_in_several_and_in_an_array(
    corpus: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The groups of the sample are given: UMAP and HDBSCAN run in the stage's own process (test_cluster.py)."""
    vectors = np.random.default_rng(1).normal(size=(50, 8)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    ids = [f"web/{n:02d}" for n in range(50)]
    monkeypatch.setattr(row_ranges, "BATCH_ROWS", 7)
    monkeypatch.setattr(cluster, "ROWS_PER_TASK", 5)
    with TableWriter("data/embed/vectors.parquet", EMBEDDING) as writer:
        writer.write_table(table_of_vectors(pa.chunked_array([ids]), vectors))
    sampled = np.array([0, 0, 1, 1, 2, -1], np.int32)
    groups = Groups(ids[:6], sampled, vectors[:6, :2], vectors[:3], 1.0)
    monkeypatch.setattr(cluster, "find_groups", lambda *_, **__: groups)
    found = []
    for executor, tasks in (("local", 1), ("local", 3), ("slurm", 2)):
        settings(corpus, "cluster", executor, tasks=tasks)
        cluster.main()
        found.append(bytes_of(corpus / "data/cluster") | {"metrics": Path("metrics/cluster.json").read_bytes()})
    assert found[0] == found[1] == found[2] and len(found[0]) == 3


FAILING = """
import os, time
from pathlib import Path
from stages.clean import rules as cleaning
times, folder = int(os.environ["FAIL_TIMES"]), Path(os.environ["FAIL_FOLDER"])
cells = set()
def filter_once(self, doc, keep=cleaning.CleanFilter.filter):
    cell = doc.metadata["cell"]
    if cell not in cells:
        cells.add(cell)
        with (folder / "began").open("a") as file:
            file.write(cell + " ")
    seen = folder / cell
    while cell == "web-blogpost" and (folder / "wait").exists():
        time.sleep(0.1)
    if cell == "web-blogpost":
        count = int(seen.read_text()) if seen.exists() else 0
        if count < times:
            seen.write_text(str(count + 1))
            raise ValueError("the disk of this node is odd")
    return keep(self, doc)
cleaning.CleanFilter.filter = filter_once
"""


@pytest.fixture
def failing(corpus: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Array tasks of clean whose cell web-blogpost raises the first FAIL_TIMES times (in the tasks' Python alone).

    They note in `site/began` which cells they work on, and that cell's waits while there is a file `site/wait`.
    """
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
    slurm: SlurmCluster,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("FAIL_TIMES", "9")
    settings(failing, "clean", "slurm", retries=1)
    with pytest.raises(ClusterError, match=r"clean.*task\(s\) \[1\] of 3 failed[\s\S]*the disk of this node is odd"):
        clean.main()
    assert slurm.jobs() == []


MIXED = """
import os, sys
if "launch_pickled" in " ".join(sys.orig_argv):
    if os.environ["SLURM_ARRAY_TASK_ID"] == "0":
        os.execvp("sleep", ["sleep", "600"])  # until the test ends it as Slurm would
    if os.environ["SLURM_ARRAY_TASK_ID"] == "1":
        raise SystemExit("this task ends by itself")
"""


@pytest.mark.parametrize("cancelled", [False, True])
def test_an_array_whose_tasks_end_differently_reports_each(
    cancelled: bool, corpus: Path, slurm: SlurmCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One runs out of time or is cancelled by a person, one fails, one is done."""
    (corpus / "site").mkdir()
    (corpus / "site/sitecustomize.py").write_text(MIXED)
    monkeypatch.setenv("PYTHONPATH", f"{corpus / 'site'}:{ROOT}")
    settings(corpus, "clean", "slurm", retries=0, workers=3)

    def end_the_first() -> None:
        while {job.id.partition("_")[2] for job in slurm.jobs()} != {"0"}:
            time.sleep(0.1)
        (job,) = slurm.jobs()
        if cancelled:
            slurm.run("scancel", job.id)
        else:
            slurm.run("scontrol", "update", f"JobId={job.id}", "TimeLimit=0")

    ending = threading.Thread(target=end_the_first)
    ending.start()
    try:
        clean.main()
    except ClusterError as error:
        said = str(error)
    ending.join()
    if cancelled:
        assert re.search(r"task\(s\) \[0\] of 3 \(job \d+\) were cancelled by scancel", said)
    else:
        assert "task(s) [0, 1] of 3 failed: [0] TIMEOUT (TimeLimit), [1] FAILED (NonZeroExitCode)" in said
        assert said.count("the end of ") == 2 and "this task ends by itself" in said
    assert slurm.jobs() == []


def test_after_a_killed_driver_only_the_tasks_that_were_not_done_run(
    failing: Path,
    slurm: SlurmCluster,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    clean_locally(failing)
    wanted = bytes_of(failing / "data/clean")
    monkeypatch.setenv("FAIL_TIMES", "0")
    (failing / "site/wait").touch()
    settings(failing, "clean", "slurm", workers=3)
    code = "from cosmopedia.corpus import pipeline\npipeline.WORTH_SECONDS = 0\n"
    code += "from stages.clean.__main__ import main\nmain()"
    driver = subprocess.Popen([sys.executable, "-c", code])
    work, end = failing / ".store/work/clean", time.monotonic() + 60

    def begun() -> list[str]:
        path = failing / "site/began"
        return sorted(path.read_text().split()) if path.is_file() else []

    while len(list(work.rglob("completions/*"))) < 2 or len(slurm.jobs()) > 1 or len(begun()) < len(CELLS):
        assert time.monotonic() < end and driver.poll() is None
        time.sleep(0.1)
    driver.kill()
    driver.wait()
    (left,) = slurm.jobs()
    assert left.state == "RUNNING"
    assert begun() == sorted(CELLS)

    def go_on() -> None:  # the abandoned task never ends by itself
        while any(job.id == left.id for job in slurm.jobs()):
            time.sleep(0.1)
        (failing / "site/wait").unlink()

    (failing / "site/began").unlink()
    going = threading.Thread(target=go_on)
    going.start()
    clean.main()
    going.join()
    assert "clean: 2 of 3 tasks were done before" in capfd.readouterr().err
    assert (failing / "site/began").read_text() == "web-blogpost "
    assert bytes_of(failing / "data/clean") == wanted
    assert slurm.jobs() == [] and list(work.iterdir()) == []


def test_a_run_that_broke_off_is_taken_up_unless_something_changed(
    checkout: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    clean_locally(checkout)
    settings(checkout, "dedup", "local", workers=1)
    dedup.main()
    wanted = bytes_of(checkout / "data/dedup")
    assert "done before" not in capfd.readouterr().err
    whole = dedup.write_kept

    def stopped(*arguments: object) -> None:
        whole(*arguments)  # type: ignore[arg-type]
        raise KeyboardInterrupt

    for changed in (False, True):
        monkeypatch.setattr(dedup, "write_kept", stopped)
        with pytest.raises(KeyboardInterrupt):
            dedup.main()
        assert list(Path(".store/work/dedup").iterdir())
        monkeypatch.setattr(dedup, "write_kept", whole)
        capfd.readouterr()
        if changed:
            (checkout / "data/clean/web-blogpost.parquet").unlink()
        dedup.main()
        said = capfd.readouterr().err
        assert ("index: 3 of 3 tasks were done before" in said) != changed
        assert ("pairs: 3 of 3 tasks were done before" in said) != changed
        assert "filter" not in said  # its cells went to the out, which DVC may have emptied
        assert (bytes_of(checkout / "data/dedup") == wanted) != changed
    assert list(Path(".store/work/dedup").iterdir()) == []


def test_a_path_in_which_an_array_can_keep_no_log_is_refused(tmp_path: Path) -> None:
    data = SlurmData.model_validate({"executor": "slurm", "tasks": 1, "workers": 1, "slurm": {"time": "1"}})
    with pytest.raises(ConfigError, match=r"100% sure: a job array cannot log to a path with '%'; move the checkout"):
        executors.ArrayExecutor("clean", "clean", [], 1, data, tmp_path / "100% sure")


def test_a_signal_cancels_the_array(corpus: Path, slurm: SlurmCluster) -> None:
    settings(corpus, "clean", "slurm", slurm={"time": "10", "cpus": 2, "extra": ["--begin=now+300"]})
    code = "from stages.clean.__main__ import main, run_stage\nrun_stage('clean', main)"
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    process = subprocess.Popen([sys.executable, "-c", code], env=environment, stderr=subprocess.PIPE, text=True)
    end = time.monotonic() + 120
    while not slurm.jobs():
        assert time.monotonic() < end and process.poll() is None
        time.sleep(0.1)
    process.send_signal(signal.SIGTERM)
    assert process.wait(120) == 130
    slurm.wait_empty(120)
