"""Errors of the disk: one sentence with the place and what to do, whatever library passes them on."""

import errno
import os
import shutil
from collections import namedtuple
from pathlib import Path

import pytest

from cosmopedia.errors import run_stage

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
