"""Files: whole or absent, whatever kills the writer."""

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from cosmopedia.core.files import clear_folder, discard, lock, log_tail, replacing, write_text

KILLED = """
import os, signal, sys
from pathlib import Path
from cosmopedia.core.files import replacing
with replacing(Path(sys.argv[1])) as draft:
    draft.write_text("half")
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_killed_writer_leaves_the_old_content_and_the_next_one_removes_its_draft(tmp_path: Path) -> None:
    path = tmp_path / "a[1].json"
    write_text(path, "old\n")
    done = subprocess.run([sys.executable, "-c", KILLED, str(path)], cwd=Path(__file__).parents[3])
    assert done.returncode == -signal.SIGKILL
    assert path.read_text() == "old\n" and len(list(tmp_path.iterdir())) == 2
    write_text(path, "new\n")
    assert path.read_text() == "new\n" and list(tmp_path.iterdir()) == [path]


def test_a_draft_of_a_writer_that_goes_on_stays(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    with replacing(path) as draft:
        draft.write_text("slow")
        other = draft.with_name(draft.name.replace(str(os.getpid()), str(os.getppid())))
        draft.rename(other)  # a draft of another process, which runs
        write_text(path, "quick")
        other.rename(draft)
    assert path.read_text() == "slow"


def test_what_fails_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError), replacing(tmp_path / "folder") as draft:
        draft.mkdir()
        (draft / "part").touch()
        raise RuntimeError
    assert not list(tmp_path.iterdir())


def test_one_process_has_a_lock(tmp_path: Path) -> None:
    with (tmp_path / "lock").open("w") as first, (tmp_path / "lock").open("w") as second:
        assert lock(first) and not lock(second)


def test_the_end_of_a_log_is_indented(tmp_path: Path) -> None:
    log = tmp_path / "log"
    assert log_tail(log) == "    (no log was written)"
    log.write_text("".join(f"line {n}\n" for n in range(30)))
    assert log_tail(log, 2) == "    line 28\n    line 29"


@pytest.mark.parametrize("linked", [False, True])
def test_a_cleared_folder_is_empty_also_behind_a_link(tmp_path: Path, linked: bool) -> None:
    real, path = tmp_path / "scratch/prompts", tmp_path / "data/prompts"
    path.parent.mkdir()
    if linked:
        path.symlink_to(real)
    clear_folder(path)  # for the first time; the scratch disk may have been purged
    assert path.is_dir() and path.is_symlink() == real.is_dir() == linked
    outside = tmp_path / "outside"
    write_text(outside / "mine", "kept")
    (path / "removed").mkdir()
    for name in ("old.parquet", ".hidden", "removed/old.parquet"):
        (path / name).touch()
    (path / "link").symlink_to(outside)
    clear_folder(path)
    assert not list(path.iterdir()) and path.is_symlink() == linked
    assert (outside / "mine").read_text() == "kept"


def test_a_file_in_place_of_a_folder_is_named_and_stays(tmp_path: Path) -> None:
    (tmp_path / "prompts").write_text("notes of mine")
    with pytest.raises(NotADirectoryError, match=r"move it away.*prompts"):
        clear_folder(tmp_path / "prompts")
    assert (tmp_path / "prompts").read_text() == "notes of mine"


def test_what_cannot_be_removed_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "data/removed").mkdir(parents=True)
    (tmp_path / "data/removed/stale.parquet").touch()

    def refuse(path: str, **_: object) -> None:
        raise PermissionError(13, "Permission denied", path)

    monkeypatch.setattr(os, "unlink", refuse)
    with pytest.raises(PermissionError, match="stale"):
        clear_folder(tmp_path / "data")
    discard(tmp_path / "data")
    assert re.search("warning: .*stale.parquet could not be removed: Permission denied", capsys.readouterr().err)
