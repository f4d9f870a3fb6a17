"""Data stages on a Ray of two workers on this machine: the bytes of a local run, a clear error from a failing task.

Only where the package is installed, which it is not by the lock files. To run it without touching .venv:

    python3.11 -m venv ~/ray-env && ~/ray-env/bin/pip install ray==2.60.0
    echo $PWD/.venv/lib/python3.11/site-packages > ~/ray-env/lib/python3.11/site-packages/checkout.pth
    ~/ray-env/bin/python -m pytest tests/cosmopedia/execution/test_ray.py
"""

from importlib.util import find_spec
from pathlib import Path

import pytest
import yaml

from cosmopedia.core.errors import ClusterError, ConfigError
from cosmopedia.corpus import pipeline as cells
from stages.clean import __main__ as clean
from tests.support.documents import ROOT, byte_tokenizer, bytes_of, document, repository, write_documents

needs_ray = pytest.mark.skipif(find_spec("ray") is None, reason="ray is not installed; this file's docstring says how")
CELLS = ("openstax-college", "web-blogpost", "wikihow-article")


@pytest.fixture
def corpus(empty_folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Three cells of ten documents, each a task of its own."""
    byte_tokenizer(empty_folder / "models/generator")
    for position, cell in enumerate(CELLS):
        said = [" ".join(f"w{(n % 9) * 100 + k}" for k in range(60)) for n in range(10)]
        rows = [document(text=f"{cell} {words}.", completion_id=f"{position}{n}-0") for n, words in enumerate(said)]
        write_documents(empty_folder / f"data/generate/{cell}.parquet", rows)
    monkeypatch.setattr(cells, "WORTH_SECONDS", 0)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    return empty_folder


def settings(folder: Path, stage: str, executor: str) -> None:
    repository(folder, stage, 3, 2)
    path = folder / "compute/local.yaml"
    content = yaml.safe_load(path.read_text())
    content["data"] |= {"executor": executor} | ({"retries": 1} if executor == "ray" else {})
    path.write_text(yaml.safe_dump(content))


@pytest.mark.slow
@needs_ray
def test_ray_writes_the_bytes_of_a_local_run(corpus: Path) -> None:
    found = {}
    for executor in ("local", "ray"):
        settings(corpus, "clean", executor)
        clean.main()
        found[executor] = bytes_of(corpus / "data/clean") | {"metrics": Path("metrics/clean.json").read_bytes()}
    assert found["local"] == found["ray"] and len(found["local"]) == 5


@pytest.mark.slow
@needs_ray
def test_a_task_that_fails_on_ray_ends_the_stage_with_its_log(corpus: Path) -> None:
    settings(corpus, "clean", "ray")
    cell = corpus / "data/generate/web-blogpost.parquet"
    whole = cell.read_bytes()
    cell.write_bytes(whole[:4] + bytes(200) + whole[204:])  # the footer is unchanged
    with pytest.raises(ClusterError, match=r"task\(s\) \[1\] of 3 failed[\s\S]*web-blogpost.parquet: damaged parquet"):
        clean.main()


@pytest.mark.skipif(find_spec("ray") is not None, reason="ray is installed")
def test_without_the_package_the_message_says_what_to_install(corpus: Path) -> None:
    settings(corpus, "clean", "ray")
    with pytest.raises(ConfigError, match=r"the package ray is not installed; run \.venv/bin/pip install ray==2\.\d+"):
        clean.main()
