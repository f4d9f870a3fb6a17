"""The revision in records of runs: dirty means that somebody changed what counts, not that a run wrote results."""

import subprocess
from pathlib import Path

import pytest

from cosmopedia.core.files import write_text
from cosmopedia.execution.revision import git_revision


@pytest.fixture
def checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A git repository with a template, a lock file and metrics; the current folder."""
    monkeypatch.chdir(tmp_path)
    for name in ("prompts/web/blogpost.txt", "dvc.lock", "metrics/clean.json", "metrics/plots/loss.csv", "README.md"):
        write_text(tmp_path / name, "first\n")
    write_text(tmp_path / ".gitignore", "/data\n")
    identity = ["-c", "user.name=t", "-c", "user.email=t@t"]
    for command in (["init", "-q"], ["add", "-A"], [*identity, "commit", "-qm", "first"]):
        subprocess.run(["git", *command], check=True)
    return tmp_path


def test_what_a_run_writes_is_not_dirty(checkout: Path):
    clean = git_revision()
    assert len(clean) == 40
    for name in ("dvc.lock", "metrics/clean.json", "metrics/new.json", "data/clean/a.parquet", "notes.txt"):
        write_text(checkout / name, "second\n")
    (checkout / "metrics/plots/loss.csv").unlink()  # DVC does so before a stage, and a stage that fails leaves it so
    assert git_revision() == clean


@pytest.mark.parametrize("name", ["prompts/web/blogpost.txt", "README.md", "prompts/web/new.txt", "stages/new/a.py"])
def test_what_somebody_changed_is_dirty(checkout: Path, name: str):
    clean = git_revision()
    write_text(checkout / name, "second\n")
    assert git_revision() == f"{clean}-dirty"


def test_outside_a_git_repository_the_revision_is_unknown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    assert git_revision() == "unknown"
