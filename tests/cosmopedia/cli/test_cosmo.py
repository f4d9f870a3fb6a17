"""`cosmo`: finds its commands, explains them, and fails in one sentence."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from cosmopedia.cli.__main__ import app
from cosmopedia.cli.store import app as store_app
from cosmopedia.core.errors import ClusterError, ConfigError, DataError
from tests.support.command_line import cosmo

ROOT = Path(__file__).parents[3]
COMMANDS = ["calibrate", "check", "cluster", "compare", "deps", "diff", "doctor", "explore", "generators", "lock"]
COMMANDS += ["pin", "plan", "preview", "publish", "report", "status", "store", "sweep", "topics", "trace", "tune"]
COMMANDS += ["verify", "view"]
CLUSTER = ["submit", "stop", "reap"]
PUBLISH = ["dataset", "model", "summary"]
STORE = ["show", "forecast", "verify", "compact", "repair", "import", "push", "pull", "unused"]
HEAVY = ("numpy", "polars", "pyarrow", "torch", "transformers", "dvc", "mlflow", "psutil", "jinja2", "rich")


@pytest.fixture
def checkout(empty_folder: Path) -> Path:
    for name in ("dvc.yaml", "params.yaml", "profiles", "compute"):
        (empty_folder / name).symlink_to(ROOT / name)
    (empty_folder / "docs/decisions").mkdir(parents=True)
    return empty_folder


def start(*words: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    """The command in a process of its own."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "cosmopedia.cli", *words]
    return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True)


def test_help_lists_every_command_with_a_line_that_is_not_cut() -> None:
    lines = cosmo(app, "--help").partition("Commands:\n")[2].splitlines()[: len(COMMANDS)]
    assert [line.split()[0] for line in lines] == COMMANDS
    assert all(line.endswith(".") and not line.endswith("...") for line in lines)


@pytest.mark.parametrize(
    "command",
    [
        [],
        *([name] for name in COMMANDS),
        *(["cluster", name] for name in CLUSTER),
        *(["publish", name] for name in PUBLISH),
        *(["store", name] for name in STORE),
    ],
    ids=" ".join,
)
def test_every_command_explains_itself_outside_a_checkout_too(command: list[str], empty_folder: Path) -> None:
    printed = cosmo(app, *command, "--help")
    assert printed.startswith("Usage:") and ("Example: " in printed or not command)


@pytest.mark.parametrize("words", [["--help"], ["store", "--help"], ["preview", "--help"], ["status", "--help"]])
def test_help_imports_nothing_heavy(words: list[str]) -> None:
    script = (
        "import sys\nfrom cosmopedia.cli.__main__ import app\n"
        f"try:\n    app({words})\nexcept SystemExit as end:\n    assert end.code == 0\n"
        f"loaded = sorted(set({HEAVY}) & set(sys.modules))\nassert not loaded, loaded"
    )
    subprocess.run([sys.executable, "-c", script], cwd=ROOT, check=True, stdout=subprocess.DEVNULL)


def test_completion_knows_commands_without_importing_them(empty_folder: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "_COSMO_COMPLETE": "complete_bash"}
    script = "import sys; from cosmopedia.cli.__main__ import app; app(prog_name='cosmo')"
    for line, wanted in (("cosmo st", {"status", "store"}), ("cosmo store ve", {"verify"})):
        words = {"COMP_WORDS": line, "COMP_CWORD": str(line.count(" "))}
        done = subprocess.run(
            [sys.executable, "-c", script], env=environment | words, cwd=empty_folder, capture_output=True, text=True
        )
        assert set(done.stdout.split()) == wanted, done.stderr


def test_an_unknown_command_is_answered_with_those_that_are_meant() -> None:
    result = CliRunner().invoke(app, ["stor"])
    assert result.exit_code == 2 and "No such command 'stor'. Did you mean 'store'" in result.stderr
    result = CliRunner().invoke(store_app, ["contens"])
    assert result.exit_code == 2 and "No such command 'contens'" in result.stderr


def test_outside_a_checkout_it_says_what_to_do(empty_folder: Path) -> None:
    done = start("plan", cwd=empty_folder)
    assert (done.returncode, done.stdout) == (ConfigError.status, "")
    assert done.stderr == (
        f"error: {empty_folder} is in no checkout (a folder with dvc.yaml and params.yaml); go to yours first\n"
    )


@pytest.mark.slow
def test_in_a_subfolder_it_works_on_the_checkout(checkout: Path) -> None:
    folder = checkout / "docs/decisions"
    done = start("store", "show", "--json", cwd=folder)
    assert json.loads(done.stdout)["address"] == str(checkout / ".store/completions")
    done = start("store", "import", "no.parquet", cwd=folder)
    assert str(folder / "no.parquet") in done.stderr and done.stderr.count("\n") == 1


@pytest.mark.parametrize("error", [ConfigError, DataError, ClusterError])
def test_an_error_is_one_sentence_and_the_exit_status_of_its_class(
    error: type[ConfigError], checkout: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail() -> None:
        raise error("this is wrong; do that")

    monkeypatch.setattr("cosmopedia.cli.completions.contents", fail)
    result = CliRunner().invoke(app, ["store"])
    assert (result.exit_code, result.stderr) == (error.status, "error: this is wrong; do that\n")


def test_a_damaged_store_is_status_3_in_json_too(checkout: Path) -> None:
    (checkout / ".store/completions").mkdir(parents=True)
    (checkout / ".store/completions/a.parquet").write_bytes(b"no parquet")
    result = CliRunner().invoke(app, ["store", "verify", "--json"])
    assert result.exit_code == DataError.status and len(json.loads(result.stdout)["problems"]) == 1
    assert "run `cosmo store repair`" in result.stderr
    assert cosmo(app, "store", "repair").startswith("1 damaged files set aside, 0 completions kept")
    assert json.loads(cosmo(app, "store", "verify", "--json"))["problems"] == []


def test_push_is_for_a_bucket(checkout: Path) -> None:
    result = CliRunner().invoke(app, ["store", "push"])
    assert result.exit_code == ConfigError.status and "name a bucket: cosmo store push s3://" in result.stderr


def test_the_status_is_json_where_no_slurm_answers(checkout: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(checkout))
    assert json.loads(cosmo(app, "status", "--json"))["jobs"] is None
    assert cosmo(app, "status").endswith("0 jobs, 0 stages that ask for completions")
