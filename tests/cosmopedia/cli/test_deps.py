"""`cosmo deps` writes code deps into dvc.yaml, and says what would change."""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from cosmopedia.cli.deps import app
from cosmopedia.errors import ConfigError
from tests.support.command_line import cosmo

DVC = """# a pipeline
stages:
  one:
    cmd: python -m stages.one
    deps:
      - data/in
      - stages/gone
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
    assert changed == ["-       - stages/gone", "+       - stages/one", "+       - cosmopedia/shared.py"]
    wanted = DVC.replace("      - stages/gone\n", "      - stages/one\n      - cosmopedia/shared.py\n")
    assert (folder / "dvc.yaml").read_text() == wanted
    assert cosmo(app) == cosmo(app, "--check") == "dvc.yaml is up to date"


def test_a_check_writes_nothing(folder: Path) -> None:
    for words in ([], ["--json"]):
        result = CliRunner().invoke(app, ["--check", *words])
        assert isinstance(result.exception, ConfigError) and "stages/gone" in result.stdout
    assert json.loads(result.stdout)["changed"]
    assert (folder / "dvc.yaml").read_text() == DVC
