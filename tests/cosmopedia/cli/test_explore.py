"""`cosmo explore`: the table that embedding-atlas gets, how it is started, and the atlas itself where it is."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from urllib.request import urlopen

import polars as pl
import pytest

from cosmopedia.cli import explore
from cosmopedia.core.errors import ConfigError, DataError
from cosmopedia.tables.contracts import ASSIGNMENT, EMBEDDING
from cosmopedia.tables.parquet import write_table
from tests.support.documents import ROOT
from tests.support.finished_run import finished_run

ATLAS = ROOT / ".explore"
STAND_IN = f"""#!{sys.executable}
import json, os, sys
print(json.dumps([sys.argv[1:], os.environ.get("HF_HUB_OFFLINE"), os.environ.get("LITELLM_LOCAL_MODEL_COST_MAP")]))
"""


@pytest.fixture
def run(empty_folder: Path) -> Path:
    """Five pages, of which one is noise and one is not in the sample."""
    finished_run(empty_folder)
    for name in ("dvc.yaml", "params.yaml"):
        (empty_folder / name).touch()
    place = {"similarity": 0.5, "in_sample": True, "x": 1.0, "y": 2.0}
    rows = [{"row_id": f"web/{n}", "cluster": 4, **place, "x": float(n)} for n in range(3)]
    rows += [{"row_id": "web/3", **place, "cluster": -1}]
    rows += [{"row_id": "web/4", **place, "cluster": 4, "in_sample": False, "x": None, "y": None}]
    write_table("data/cluster/assignments.parquet", rows, ASSIGNMENT)
    vectors = [{"row_id": f"web/{n}", "embedding": [0.0, 1.0]} for n in range(5)]
    write_table("data/embed/vectors.parquet", vectors, EMBEDDING)
    return empty_folder


def test_the_sample_has_its_places_topics_and_texts(run: Path) -> None:
    rows = explore.pages(every=False).collect()
    assert rows["row_id"].to_list() == [f"web/{n}" for n in range(4)] and "embedding" not in rows.columns
    assert rows["topic"].to_list() == ["Tides"] * 3 + [None] and set(rows["text"]) == {"boiling water"}
    rows.write_parquet("pages.parquet")
    assert explore.names(Path("pages.parquet")).to_dicts() == [{"x": 1.0, "y": 2.0, "text": "Tides", "priority": 3}]
    every = explore.pages(every=True).collect()
    assert every.height == 5 and every["embedding"].null_count() == 0 and "x" not in every.columns


def test_it_is_started_on_loopback_and_without_look_ups(run: Path) -> None:
    (run / ".explore/bin").mkdir(parents=True)
    (run / ".explore/installed").touch()
    (run / ".explore/bin/embedding-atlas").write_text(STAND_IN)
    (run / ".explore/bin/embedding-atlas").chmod(0o755)
    command = [sys.executable, "-m", "cosmopedia.cli", "explore", "--port", "8123"]
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"PYTHONPATH": str(ROOT)})
    words, *offline = json.loads(done.stdout.splitlines()[-1])
    assert offline == ["1", "True"] and "--no-mcp" in words and "--disable-projection" in words
    assert words[words.index("--host") + 1] == "127.0.0.1" and words[words.index("--port") + 1] == "8123"
    assert pl.read_parquet(words[0]).height == 4


def test_what_is_missing_is_named(run: Path) -> None:
    with pytest.raises(ConfigError, match=r"\.explore could not be made; its versions are in requirements.lock"):
        explore.make_environment()  # without a Makefile
    (run / "data/topics/topics.parquet").unlink()
    with pytest.raises(DataError, match=r"data/topics/topics.parquet is missing; run `dvc repro topics`"):
        explore.pages(every=False)


@pytest.mark.slow
@pytest.mark.long
def test_the_real_atlas_serves_its_page_on_loopback_and_ends_on_a_signal(run: Path) -> None:
    subprocess.run(["make", "--no-print-directory", ".explore/installed"], cwd=ROOT, check=True)
    (run / ".explore").mkdir()
    (run / ".explore/installed").touch()
    (run / ".explore/bin").symlink_to(ATLAS / "bin")
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        port = one.getsockname()[1]
    command = [sys.executable, "-m", "cosmopedia.cli", "explore", "--port", str(port)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, env=os.environ | {"PYTHONPATH": str(ROOT)})
    try:
        for _ in range(600):
            time.sleep(0.1)
            with socket.socket() as one:
                if one.connect_ex(("127.0.0.1", port)) == 0:
                    break
        with urlopen(f"http://127.0.0.1:{port}/") as answer:
            assert "Embedding Atlas" in answer.read().decode()
    finally:
        process.send_signal(signal.SIGINT)
        assert process.wait(20) in (0, -signal.SIGINT)
