"""`cosmo verify`: an out that depends on its surroundings is named, and no other."""

import json
from hashlib import md5
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

from cosmopedia.cli.verify import app
from cosmopedia.sweeps.proof import SURROUNDINGS, Out, outs_of, write_compute
from tests.support.sweep_repository import commit_repository

# `kept` takes what the store has, as training does; the rest is what a stage may do wrong.
STAGE = """
import os, sys
from pathlib import Path
name = sys.argv[1]
order = "".join({"a", "b", "c", "d", "e", "f", "g", "h"})
kept = Path(os.environ["COSMO_STORE"], "train/kept")
if name == "kept" and not kept.exists():
    kept.parent.mkdir(parents=True)
    kept.write_text(order)
texts = {"fixed": "1", "set_order": order, "kept": kept.read_text() if kept.exists() else ""}
Path(f"{name}.json").write_text(texts[name])
"""


def lock_of(**hashes: str) -> str:
    stages = {name: {"cmd": "x", "outs": [{"path": f"{name}.json", "md5": hash}]} for name, hash in hashes.items()}
    return yaml.safe_dump({"schema": "2.0", "stages": stages})


def test_the_outs_of_a_lock_have_stage_and_hash() -> None:
    assert outs_of(lock_of(a="1", b="2")) == {"a.json": ("a", "1"), "b.json": ("b", "2")}
    assert outs_of("stages: {a: {cmd: x}}") == outs_of("<<<<<<< ours") == {}


def test_runs_agree_when_both_have_the_out_with_one_hash() -> None:
    hashes = [("1", "1"), ("1", "2"), ("1", None)]
    assert [Out("a", "a.json", pair, committed="2").same for pair in hashes] == [True, False, False]


def test_the_runs_differ_in_all_that_must_not_matter(empty_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Path("mine.yaml").write_text("serving: {engine: cpu}\ndata: {executor: local, tasks: 7, workers: 7}\n")
    monkeypatch.setenv("COSMO_COMPUTE", "mine.yaml")
    one, two = SURROUNDINGS
    assert one.variables.keys() == two.variables.keys() and one.umask != two.umask
    assert all(one.variables[name] != two.variables[name] for name in one.variables)
    written = [yaml.safe_load(write_compute(empty_folder / str(each.umask), each).read_text()) for each in (one, two)]
    assert [content["data"] for content in written] == [
        {"executor": "local", "tasks": each.tasks, "workers": each.workers} for each in (one, two)
    ]
    assert written[0]["data"] != written[1]["data"] and written[0]["serving"] == {"engine": "cpu"}


@pytest.mark.slow
def test_what_depends_on_its_surroundings_is_named_and_nothing_else(
    empty_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where a run would take from the store what the other one left there."""
    names = ("fixed", "set_order", "kept")
    pipeline = {name: {"cmd": f"python stage.py {name}", "outs": [f"{name}.json"]} for name in names}
    files = {"stage.py": STAGE, "compute.yaml": "data: {tasks: 1, workers: 1}", "params.yaml": "{}"}
    files |= {"dvc.yaml": yaml.safe_dump({"stages": pipeline})}
    files |= {"dvc.lock": lock_of(fixed=md5(b"1").hexdigest(), set_order="of another machine")}
    for name, content in files.items():
        Path(name).write_text(content, encoding="utf-8")
    commit_repository(empty_folder, empty_folder.parent / "notes")
    monkeypatch.setenv("COSMO_COMPUTE", str(empty_folder / "compute.yaml"))
    monkeypatch.delenv("COSMO_STORE", raising=False)
    monkeypatch.delenv("DVC_ROOT", raising=False)
    result = CliRunner().invoke(app, ["--json"], catch_exceptions=False)
    outs = {out["stage"]: out for out in json.loads(result.stdout)}
    assert result.exit_code == 1
    assert {name: out["same"] for name, out in outs.items()} == {"fixed": True, "set_order": False, "kept": False}
    assert outs["fixed"]["committed"] == outs["fixed"]["hashes"][0] and outs["kept"]["committed"] is None
    assert not list(Path(".store/verify").glob("*/")) and not Path(".store/train").exists()
