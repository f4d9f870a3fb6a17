"""`cosmo deps` writes code deps into dvc.yaml, and says what would change."""

import json
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

from cosmopedia.cli.deps import app
from cosmopedia.core.errors import ConfigError
from tests.support.command_line import cosmo

DVC = """# a pipeline
stages:
  one:
    cmd: python -m stages.one
    deps: [data/in, stages/gone]
"""


@pytest.fixture
def folder(empty_folder: Path) -> Path:
    (empty_folder / "dvc.yaml").write_text(DVC)
    for name, text in (
        ("stages/one/__main__.py", "from cosmopedia.shared import x\nfrom cosmopedia.execution import y\n"),
        ("stages/one/cosmo_status.py", "from cosmopedia.of_the_command import z\n"),
        ("cosmopedia/shared.py", ""),
        ("cosmopedia/of_the_command.py", ""),
        ("cosmopedia/execution/__init__.py", ""),
    ):
        (empty_folder / name).parent.mkdir(parents=True, exist_ok=True)
        (empty_folder / name).write_text(text)
    return empty_folder


def test_it_writes_what_the_code_imports(folder: Path) -> None:
    changed = json.loads(cosmo(app, "--json"))["changed"]
    wanted = "    deps: [data/in, stages/one, cosmopedia/shared.py]"
    assert changed == ["-     deps: [data/in, stages/gone]", f"+ {wanted}"]
    assert (folder / "dvc.yaml").read_text() == DVC.replace("    deps: [data/in, stages/gone]", wanted)
    assert cosmo(app) == cosmo(app, "--check") == "dvc.yaml is up to date"


def test_a_folder_that_stages_share_is_one_dep(folder: Path) -> None:
    for name in ("cosmopedia/core/a.py", "cosmopedia/core/b.py", "cosmopedia/core/__init__.py"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).touch()
    (folder / "stages/one/__main__.py").write_text("from cosmopedia import shared\nfrom cosmopedia.core import a\n")
    cosmo(app)
    after = yaml.safe_load((folder / "dvc.yaml").read_text())["stages"]
    assert after["one"]["deps"] == ["data/in", "stages/one", "cosmopedia/core", "cosmopedia/shared.py"]


def test_a_long_list_has_a_line_for_the_inputs_one_for_the_stage_and_one_for_each_room(folder: Path) -> None:
    for room in ("core", "corpus"):
        (folder / f"cosmopedia/{room}").mkdir()
        for name in "abcd":
            (folder / f"cosmopedia/{room}/a_module_of_a_long_name_{name}.py").touch()
    modules = [f"cosmopedia.{room}.a_module_of_a_long_name_{name}" for room in ("core", "corpus") for name in "abcd"]
    text = "".join(f"import {module}\n" for module in ["cosmopedia.shared", *modules])
    (folder / "stages/one/__main__.py").write_text(text)
    cosmo(app)
    long = "cosmopedia/corpus/a_module_of_a_long_name"
    assert (folder / "dvc.yaml").read_text() == DVC.replace(
        " [data/in, stages/gone]",
        f"""
      [data/in,
       stages/one,
       cosmopedia/core, cosmopedia/shared.py,
       {long}_a.py, {long}_b.py,
       {long}_c.py, {long}_d.py]""",
    )
    assert cosmo(app) == "dvc.yaml is up to date"


def test_a_check_writes_nothing(folder: Path) -> None:
    for words in ([], ["--json"]):
        result = CliRunner().invoke(app, ["--check", *words])
        assert isinstance(result.exception, ConfigError) and "stages/gone" in result.stdout
    assert json.loads(result.stdout)["changed"]
    assert (folder / "dvc.yaml").read_text() == DVC


MATRIX = """stages:
  one:
    matrix: {item: [b, a]}
    cmd: python -m stages.one ${item.item}
    deps:
      - data/in
      - stages/one
    outs:
      - data/one/${item.item}.txt
  two:
    cmd: python -m stages.two
    deps:
      - data/one/a.txt
      - data/one/b.txt
      - stages/two
    outs: [data/two]
  three:
    cmd: python -m stages.three
    deps:
      - data/one/a.txt
      - stages/three
    outs: [data/three]
"""


def test_a_file_per_item_makes_the_matrix_and_is_a_dep_of_its_item_alone(folder: Path) -> None:
    (folder / "dvc.yaml").write_text(MATRIX)
    for name in ("one/readers/a", "one/readers/b", "one/readers/__init__", "one/shared", "two/main", "three/main"):
        (folder / f"stages/{name}.py").parent.mkdir(parents=True, exist_ok=True)
        (folder / f"stages/{name}.py").touch()
    cosmo(app)
    before = yaml.safe_load((folder / "dvc.yaml").read_text())["stages"]
    wanted = ["data/in", "stages/one/readers/${item.item}.py", "stages/one/__main__.py", "stages/one/shared.py"]
    assert before["one"]["deps"] == [*wanted, "cosmopedia/shared.py"]
    assert before["one"]["matrix"] == {"item": ["b", "a"]}
    (folder / "stages/one/readers/c.py").touch()
    (folder / "stages/one/readers/b.py").unlink()
    cosmo(app)
    after = yaml.safe_load((folder / "dvc.yaml").read_text())["stages"]
    assert after["one"] == before["one"] | {"matrix": {"item": ["a", "c"]}}
    assert after["two"]["deps"] == ["data/one/a.txt", "data/one/c.txt", "stages/two"]
    assert after["three"]["deps"] == ["data/one/a.txt", "stages/three"]
