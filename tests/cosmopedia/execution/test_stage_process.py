"""The process of a stage under DVC: settings first, alone in its checkout, gone when DVC is killed, no lock lost."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

from cosmopedia.cli.__main__ import app
from cosmopedia.core.params import SafeLoader
from cosmopedia.execution.lock_repair import is_whole
from cosmopedia.execution.settings import check_settings_once, problems
from tests.support.command_line import cosmo
from tests.support.own_params import OWN_PARAMS, text_of
from tests.support.prompt_rows import ROOT, write_settings

SLOW = """
import os, time
from pathlib import Path
from cosmopedia.execution.stage_process import run_stage

def main():
    Path("pid").write_text(str(os.getpid()))
    time.sleep(float(Path("seconds").read_text()))
    Path("out.txt").write_text("done")
    return "done"

run_stage("slow", main)
"""
DVC = [str(Path(sys.executable).parent / "dvc"), "repro"]


@pytest.fixture
def checkout(empty_folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The repository's own settings, to be spoilt."""
    for name in ("dvc.yaml", "compute", "prompts", "curation", "stages"):
        (empty_folder / name).symlink_to(ROOT / name)
    (empty_folder / "profiles").mkdir()
    for name in OWN_PARAMS:
        (empty_folder / name).write_text(text_of(name), encoding="utf-8")
    return empty_folder


def spoil(path: Path, old: str, new: str) -> None:
    text = path.read_text(encoding="utf-8")
    assert old in text
    path.write_text(text.replace(old, new, 1), encoding="utf-8")


@pytest.mark.slow
def test_every_mistake_of_every_stage_is_found_before_anything_runs(checkout: Path) -> None:
    assert list(problems()) == []
    check_settings_once()
    profile = checkout / "profiles/smoke.yaml"
    spoil(profile, "  learning_rate: 2.0e-3", "  learning_rate: abc")
    spoil(profile, "  min_tokens: 2 ", "  min_tokens: many ")
    spoil(profile, "batch_tokens: 8192", "batch_tokens: 0.5")
    spoil(checkout / "params.yaml", "  topic_probability:", "  topic_likelihood: 1\n  topic_probability:")
    (checkout / "prompts").unlink()
    (checkout / "prompts/web").mkdir(parents=True)
    for path in (ROOT / "prompts").rglob("*.txt"):
        copy = checkout / path.relative_to(ROOT)
        copy.parent.mkdir(exist_ok=True)
        copy.write_text(path.read_text(encoding="utf-8"), encoding="utf-8")
    result = CliRunner().invoke(app, ["check"])
    assert result.exit_code == 2
    for name in ("train.learning_rate", "clean.min_tokens", "prompts.topic_likelihood", "evaluate.batch_tokens"):
        assert name in result.output
    spoil(checkout / "params.yaml", "  topic_likelihood: 1\n", "")
    spoil(checkout / "prompts/web/blogpost.txt", "$extract", "$extrcat")
    assert "prompts/web/blogpost.txt:" in "; ".join(problems())


def under_dvc(folder: Path, seconds: float) -> subprocess.Popen[str]:
    """`dvc repro` of a stage that takes so long, begun; a process group of its own."""
    (folder / "slow.py").write_text(SLOW, encoding="utf-8")
    (folder / "seconds").write_text(str(seconds), encoding="utf-8")
    stage = {"cmd": f"{sys.executable} slow.py", "deps": ["slow.py"], "outs": ["out.txt"]}
    (folder / "dvc.yaml").write_text(yaml.safe_dump({"stages": {"slow": stage}}), encoding="utf-8")
    write_settings(folder, [])
    if not (folder / ".dvc").is_dir():
        subprocess.run([DVC[0], "init", "-q", "--no-scm"], cwd=folder, check=True)
    process = start(folder, *DVC)
    wait_until((folder / "pid").is_file)
    return process


def start(folder: Path, *command: str) -> subprocess.Popen[str]:
    keep = {k: v for k, v in os.environ.items() if not k.startswith(("COSMO_", "DVC_"))}
    return subprocess.Popen(
        command,
        cwd=folder,
        env={**keep, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def wait_until(condition: Callable[[], bool], seconds: float = 300) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not come"
        time.sleep(0.05)


def runs(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


@pytest.mark.slow
@pytest.mark.parametrize("shell", ["/bin/sh", "/bin/bash"])
def test_a_stage_ends_with_a_dvc_that_is_killed_and_a_second_one_waits_its_turn(
    empty_folder: Path, monkeypatch: pytest.MonkeyPatch, shell: str
) -> None:
    """dash stays between DVC and the stage, bash does not."""
    monkeypatch.setenv("SHELL", shell)
    process = under_dvc(empty_folder, 120)
    pid = int((empty_folder / "pid").read_text())
    second = start(empty_folder, sys.executable, "slow.py")
    assert second.stdout is not None
    assert f"process {pid} of an earlier run still works on this stage; waiting" in second.stdout.readline()
    (empty_folder / "seconds").write_text("0")
    process.send_signal(signal.SIGKILL)  # DVC alone
    process.wait()
    wait_until(lambda: not runs(pid), 60)
    assert second.wait(300) == 0 and (empty_folder / "out.txt").read_text() == "done"


@pytest.mark.slow
def test_what_a_kill_has_cut_short_of_dvcs_files_is_restored_and_nothing_runs_twice(empty_folder: Path) -> None:
    git = ["git", "-c", "user.name=t", "-c", "user.email=t@t"]
    subprocess.run(["git", "init", "-q"], check=True)
    subprocess.run([DVC[0], "init", "-q"], check=True)
    assert under_dvc(empty_folder, 0).wait(300) == 0
    subprocess.run([*git, "add", "-A"], check=True)
    subprocess.run([*git, "commit", "-qm", "t"], check=True)
    (empty_folder / "slow.py").write_text(SLOW + "# edited\n", encoding="utf-8")
    assert start(empty_folder, *DVC).wait(300) == 0  # newer than what is committed
    whole = Path("dvc.lock").read_text()
    (empty_folder / "pid").unlink()
    for cut in ("", whole[: whole.index("- path") + 6]):
        Path("dvc.lock").write_text(cut)
        Path(".dvc/tmp/rwlock").write_text(cut and '{"write": {"')
        assert not is_whole(cut)
        printed = cosmo(app, "check")
        assert "dvc.lock was cut short" in printed and ".dvc/tmp/rwlock was cut short" in printed
        done = subprocess.run(DVC, capture_output=True, text=True, check=True)
        assert "is cached - skipping run" in done.stdout and Path("dvc.lock").read_text() == whole
    assert not (empty_folder / "pid").exists()


@pytest.mark.slow
def test_no_lock_that_dvc_would_refuse_counts_as_whole() -> None:
    from dvc.schema import COMPILED_LOCKFILE_SCHEMA

    file = {"path": "data/prompts", "hash": "md5", "md5": "0123456789abcdef.dir", "size": 12, "nfiles": 3}
    params = {"params.yaml": {"train.betas": [0.9, 0.95], "train": {"steps": 9}}}
    stage = {"cmd": "python -m stages.train", "deps": [file, file], "params": params, "outs": [file]}
    text = yaml.safe_dump({"schema": "2.0", "stages": {"prompts": stage, "train": stage}}, sort_keys=False)
    for length in range(len(text)):
        try:
            COMPILED_LOCKFILE_SCHEMA(yaml.load(text[:length], SafeLoader))
            accepted = True
        except Exception:
            accepted = False
        assert accepted or not is_whole(text[:length]), text[:length][-80:]
    assert is_whole(text)


@pytest.mark.slow
def test_edits_of_comments_and_docstrings_rerun_nothing_and_others_do(empty_folder: Path) -> None:
    git = ["git", "-c", "user.name=t", "-c", "user.email=t@t"]
    dvc = DVC[0]
    library, stage = Path("cosmopedia/lib.py"), Path("stages/slow/code.py")
    code = '"""What."""\n\n\ndef f():\n    """Why."""\n    return 1  # how\n'
    for path in (library, stage, stage.with_name("cosmo_view.py")):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(code)
    (empty_folder / ".dvcignore").write_text("__pycache__\nstages/*/cosmo_*.py\n")
    slow = {"cmd": "echo > out.txt", "deps": [str(library), "stages/slow"], "outs": ["out.txt"]}
    Path("dvc.yaml").write_text(yaml.safe_dump({"stages": {"slow": slow}}))
    write_settings(empty_folder, [])
    for command in (["git", "init", "-q"], [dvc, "init", "-q"], [dvc, "repro", "-q"], [*git, "add", "-A"]):
        subprocess.run(command, check=True)
    subprocess.run([*git, "commit", "-qm", "t"], check=True)

    library.write_text(code.replace("What", "What else").replace("# how", "# and how"))
    stage.write_text(code.replace('    """Why."""\n', ""))
    assert "edited in cosmopedia/lib.py, stages/slow: nothing" in cosmo(app, "check")
    status = subprocess.run([dvc, "status"], capture_output=True, text=True, check=True)
    assert "up to date" in status.stdout
    stage.write_text(code.replace("return 1", "return 2"))
    assert "stages/slow" not in cosmo(app, "check")
    status = subprocess.run([dvc, "status", "--json"], capture_output=True, text=True, check=True)
    assert json.loads(status.stdout) == {"slow": [{"changed deps": {"stages/slow": "modified"}}]}


def test_each_run_of_a_stage_is_kept_with_what_it_ran_in_and_delays_nothing(
    checkout: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from cosmopedia.execution import environment

    (checkout / ".store/runs").mkdir(parents=True)
    (checkout / ".store/runs/stages.jsonl").write_text('{"run": "cut sh\n')
    monkeypatch.setenv("COSMO_COMPUTE", "slurm-h100")
    entered = time.thread_time()
    with environment.recorded("prompts"):
        entered = time.thread_time() - entered
        child = (
            "x = b'x' * 300_000_000; import time; t = time.process_time() + 0.3\nwhile time.process_time() < t: pass"
        )
        subprocess.run([sys.executable, "-c", child], check=True)
    with pytest.raises(ZeroDivisionError), environment.recorded("train"):
        raise ZeroDivisionError
    first, second = environment.read_runs()
    assert (first["stage"], first["outcome"], second["outcome"]) == ("prompts", "done", "failed")
    assert first["images"] == {"serving": "/fsx/images/text-generation-inference.sqsh"} and first["engine"] == "tgi"
    assert "--max-batch-prefill-tokens=16384" in first["arguments"] and first["profile"] == "smoke"
    assert first["packages"]["polars"] and first["git_revision"] and first["python"] and first["processor"]
    assert entered < 0.01
    assert first["cpu_seconds"] > 0.3 and first["peak_mb"] > 300
    large = "import sys, subprocess; x = b'x' * 300_000_000; print(subprocess.check_output(sys.argv[1:], text=True))"
    small = "from cosmopedia.execution.environment import used; print(used()['peak_mb'])"
    paths = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", large, sys.executable, "-c", small]  # what a large process starts is small
    assert int(subprocess.run(command, capture_output=True, text=True, check=True, env=paths).stdout) < 200
    shown = cosmo(app, "status", "--runs", 5)
    assert "prompts" in shown and "done" in shown and "failed" in shown
    (checkout / ".store/runs/stages.jsonl").unlink()
    (checkout / ".store/runs/stages.jsonl").mkdir()
    with environment.recorded("prompts"):  # a record that cannot be written stops no stage
        pass
