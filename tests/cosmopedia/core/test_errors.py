"""Errors of the disk, and code of another place: one sentence with the place and what to do."""

import errno
import os
import shutil
import subprocess
import sys
from collections import namedtuple
from pathlib import Path

import pytest

from cosmopedia.execution.stage_process import run_stage

ROOT = Path(__file__).parents[3]
FULL = "No space left on device"
FREE, CHANGE = "free some space there and run it again", "make it writable for you and run it again"
COPIED = shutil.Error([("from/model", "models/train/seed-1/model", f"[Errno 28] {FULL}: 'from/model'")])


def said(capsys: pytest.CaptureFixture[str], error: Exception) -> str:
    """What a stage prints that fails with an error."""

    def main() -> str:
        raise error

    with pytest.raises(SystemExit) as ended:
        run_stage("prompts", main)
    assert ended.value.code == 4
    return capsys.readouterr().err


@pytest.mark.parametrize(
    ("error", "sentence"),
    [
        (OSError(28, FULL, "data/a"), f"{FULL} (data/a); {FREE}"),
        (OSError(28, FULL, "from", None, "to"), f"{FULL} (to); {FREE}"),
        (COPIED, f"{FULL} (models/train/seed-1/model); {FREE}"),
        (
            OSError(122, os.strerror(errno.EDQUOT), "a"),
            f"Disk quota exceeded (a); {FREE}",
        ),
        (
            OSError(30, "Read-only file system", "a"),
            f"Read-only file system (a); {CHANGE}",
        ),
        (
            PermissionError(13, "Permission denied", "a"),
            f"Permission denied (a); {CHANGE}",
        ),
        (PermissionError(13, "Permission denied"), "Permission denied"),
        (FileNotFoundError(2, "No such file or directory", "data/a"), "No such file or directory (data/a)"),
    ],
)
def test_an_error_of_the_disk_is_a_sentence_with_the_path(
    error: Exception, sentence: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert said(capsys, error) == f"prompts: error: {sentence}\n"


@pytest.mark.parametrize(
    "error",
    [
        OSError(28, f"Error writing bytes to file. Detail: [errno 28] {FULL}"),  # pyarrow
        ValueError(f"parquet: underlying IO error: {FULL} (os error 28)"),  # polars, safetensors
        RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos 576 vs 534"),  # torch
        OSError("1048576 requested and 131056 written"),  # numpy
    ],
)
def test_a_full_disk_is_found_where_a_library_does_not_name_it(
    error: Exception, empty_folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (empty_folder / "data").mkdir()
    (empty_folder / "scratch").mkdir()
    (empty_folder / "data/prompts").symlink_to(empty_folder / "scratch")
    usage = namedtuple("usage", ["free"])
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(4096 if Path(path).name == "prompts" else 10**9))
    assert said(capsys, error) == (
        f"prompts: error: {FULL} ({empty_folder}/scratch has the least space, 0 MB); {FREE}\n"
    )


def test_a_defect_keeps_its_traceback(empty_folder: Path) -> None:
    def main() -> str:
        raise RuntimeError("[enforce fail at inline_container.cc:672] . file is corrupt")  # and no disk is full

    with pytest.raises(RuntimeError, match="corrupt"):
        run_stage("train", main)


@pytest.mark.parametrize("variable", ["PYTHONSAFEPATH", "PYTHONPATH"])
def test_a_stage_runs_no_code_of_another_place(tmp_path: Path, variable: str) -> None:
    """An experiment's folder with the code of the main checkout; .venv with the packages of a module system."""
    experiment, other = tmp_path / "experiment", tmp_path / "other"
    (experiment / "cosmopedia/core").mkdir(parents=True)
    (experiment / "cosmopedia/core/errors.py").touch()
    other.mkdir()
    (other / "tabulate.py").touch()
    program = (
        "import tabulate; from cosmopedia.execution import stage_process as p; p.run_stage('prompts', 'done'.lower)"
    )
    command = [sys.executable, "-c", program]
    kept = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    if variable == "PYTHONSAFEPATH":  # the editable install leads to the main checkout
        environment, folder = {"PYTHONSAFEPATH": "1", "PYTHONPATH": str(ROOT)}, experiment
        complaint = f"the code of {ROOT} runs in {experiment}; unset PYTHONSAFEPATH and PYTHONPATH"
    else:
        environment, folder = {"PYTHONPATH": f"{other}{os.pathsep}{ROOT}"}, tmp_path
        complaint = f"tabulate comes from {other} and not from .venv, since PYTHONPATH names that folder"
    done = subprocess.run(command, cwd=folder, env=kept | environment, capture_output=True, text=True)
    assert done.returncode == 2 and f"prompts: error: {complaint}" in done.stderr, done.stderr
    (other / "tabulate.py").unlink()
    if variable == "PYTHONPATH":  # a folder that takes nothing's place does no harm
        done = subprocess.run(command, cwd=folder, env=kept | environment, capture_output=True, text=True)
        assert done.returncode == 0 and "prompts: done" in done.stdout, done.stderr
