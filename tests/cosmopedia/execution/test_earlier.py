"""What DVC still has is never generated again: each way to lose data/generate and the store, through DVC itself."""

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import boto3
import pytest
import yaml

from cosmopedia.core.lineage import main_checkout
from cosmopedia.execution.earlier import cache_folders
from tests.support.fake_tgi import FakeTgi
from tests.support.prompt_rows import ROOT, prompt_row, write_model, write_prompts, write_settings
from tests.support.s3_server import objects, s3_server

CELLS = {"web-blogpost": 4, "wikihow-wikihow": 2}
PIPELINE = {
    "stages": {
        "generate": {
            "cmd": "python -m stages.generate",
            "deps": ["data/prompts", "models/generator", "code.txt"],
            "outs": ["data/generate"],
        }
    }
}


class Repository:
    """A checkout with the stage generate alone, and the requests that its server has had."""

    def __init__(self, folder: Path, server: FakeTgi):
        self.folder, self.server = folder, server

    def run(self, *command: str) -> str:
        """A command in the checkout; what it prints."""
        keep = {k: v for k, v in os.environ.items() if not k.startswith(("COSMO_", "DVC_", "MLFLOW"))}
        tools = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        done = subprocess.run(
            command,
            cwd=self.folder,
            env={**keep, "PATH": tools, "PYTHONPATH": str(ROOT)},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout + done.stderr

    def git(self, *command: str) -> None:
        self.run("git", "-c", "user.name=t", "-c", "user.email=t@t", *command)

    def edit(self, name: str = "code.txt") -> None:
        """Change a dep that changes no completion."""
        with (self.folder / name).open("a", encoding="utf-8") as stream:
            stream.write("another line\n")

    def lose_store(self) -> None:
        shutil.rmtree(self.folder / ".store")


@pytest.fixture(scope="module")
def first_run(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Repository]:
    """A committed checkout whose completions have been paid for once."""
    folder = tmp_path_factory.mktemp("earlier") / "first"
    write_model(folder)
    write_prompts(folder, CELLS)
    (folder / "dvc.yaml").write_text(yaml.safe_dump(PIPELINE), encoding="utf-8")
    (folder / "code.txt").write_text("a line\n", encoding="utf-8")
    (folder / ".gitignore").write_text(".store\nmlruns\nmlflow.db*\n", encoding="utf-8")
    with FakeTgi() as server:
        write_settings(folder, [server.url])
        repository = Repository(folder, server)
        repository.git("init", "-q")
        repository.run("dvc", "init", "-q")
        assert "6 sent" in repository.run("dvc", "repro")
        repository.git("add", "-A")
        repository.git("commit", "-qm", "t")
        yield repository


@pytest.fixture
def paid(first_run: Repository, tmp_path: Path) -> Repository:
    """A copy of that checkout; no prompt has been sent since."""
    shutil.copytree(first_run.folder, tmp_path / "first")
    first_run.server.asked.clear()
    return Repository(tmp_path / "first", first_run.server)


@pytest.fixture
def bucket() -> Iterator[str]:
    """An empty bucket, and the environment in which the AWS tools find it."""
    with s3_server() as server:
        boto3.client("s3", endpoint_url=server).create_bucket(Bucket="team")
        yield server


@pytest.mark.slow
def test_a_pulled_clone_without_a_store_sends_only_what_is_changed(
    paid: Repository, tmp_path: Path, bucket: str
) -> None:
    """Through dvc-s3, the run cache with it."""
    paid.run("dvc", "remote", "add", "-d", "there", "s3://team/cosmopedia")
    paid.git("commit", "-qam", "remote")
    paid.run("dvc", "push", "-q", "--run-cache")
    assert all(key.startswith(("cosmopedia/files/md5/", "cosmopedia/runs/")) for key in objects(bucket, "team"))
    paid.git("clone", "-q", ".", str(tmp_path / "second"))
    clone = Repository(tmp_path / "second", paid.server)
    clone.edit()
    warned = clone.run(sys.executable, "-m", "cosmopedia.cli", "store", "forecast")
    assert "`dvc fetch data/generate`" in warned and "6 to generate" in warned
    clone.run("dvc", "pull", "-q", "--run-cache")
    assert "6 cached, 0 to generate" in clone.run(sys.executable, "-m", "cosmopedia.cli", "store", "forecast")
    clone.lose_store()  # the forecast has filled it
    assert "0 sent, 6 from the store" in clone.run("dvc", "repro")
    assert not paid.server.asked

    clone.lose_store()
    changed = [{**prompt_row("wikihow", "wikihow", n), "prompt": f"Another template, fact {n}."} for n in range(2)]
    write_prompts(clone.folder, {"wikihow-wikihow": changed})
    assert "2 sent, 4 from the store" in clone.run("dvc", "repro")
    assert len(paid.server.asked) == 2 and all("Another template" in prompt for prompt in paid.server.asked)
    write_prompts(clone.folder, CELLS)
    clone.git("checkout", "-q", "code.txt")
    assert "is cached - skipping run" in clone.run("dvc", "repro")  # it was the first checkout's run


@pytest.mark.slow
def test_forced_alone_and_after_a_checkout_nothing_is_sent(paid: Repository) -> None:
    paid.lose_store()
    assert "0 sent, 6 from the store" in paid.run("dvc", "repro", "-f", "-s", "generate")
    shutil.rmtree(paid.folder / "data/generate")
    paid.lose_store()
    paid.run("dvc", "checkout", "-q")
    paid.edit()
    assert "0 sent, 6 from the store" in paid.run("dvc", "repro")
    assert not paid.server.asked


@pytest.mark.slow
def test_an_earlier_version_in_the_cache_is_used_too(paid: Repository) -> None:
    prompt = prompt_row("web", "blogpost", 0)
    rows = [{**prompt, "prompt": "Another text."}, *(prompt_row("web", "blogpost", n) for n in range(1, 4))]
    paid.lose_store()
    write_prompts(paid.folder, {"web-blogpost": rows})
    assert "1 sent, 5 from the store" in paid.run("dvc", "repro")
    write_prompts(paid.folder, CELLS)
    paid.lose_store()
    paid.edit()  # or the run cache would restore the stage whole
    (paid.folder / "dvc.lock").write_text("")  # as a kill leaves it
    paid.git("checkout", "-q", "dvc.lock")
    assert "0 sent, 6 from the store" in paid.run("dvc", "repro")


@pytest.mark.slow
def test_an_experiment_in_a_folder_of_its_own_sends_nothing(paid: Repository) -> None:
    paid.lose_store()
    paid.edit()
    assert "0 sent, 6 from the store" in paid.run("dvc", "exp", "run", "--temp", "-v")
    assert (paid.folder / ".store/completions").is_dir() and not paid.server.asked


@pytest.mark.slow
def test_a_git_worktree_shares_store_and_cache_of_its_main_checkout(
    paid: Repository, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    paid.git("worktree", "add", "-q", str(tmp_path / "tree"))
    tree = Repository(tmp_path / "tree", paid.server)
    shutil.copytree(paid.folder / "data/prompts", tree.folder / "data/prompts", dirs_exist_ok=True)
    assert "0 sent, 6 from the store" in tree.run("dvc", "repro", "-f")
    paid.lose_store()
    assert "0 sent, 6 from the store" in tree.run("dvc", "repro", "-f")
    assert not paid.server.asked and not (tree.folder / ".store").exists()

    monkeypatch.delenv("DVC_ROOT", raising=False)
    monkeypatch.chdir(tree.folder)
    assert main_checkout() == paid.folder.resolve()


@pytest.mark.parametrize(
    ("shared", "local", "cache"),
    [("", "", ".dvc/cache"), ("../../c", "", "../c"), ("../../c", "sub/c", ".dvc/sub/c"), ("", "/mnt/c", "/mnt/c")],
)
def test_the_cache_is_where_dvc_has_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, shared: str, local: str, cache: str
) -> None:
    checkout = tmp_path / "checkout"
    (checkout / ".dvc").mkdir(parents=True)
    for name, folder in (("config", shared), ("config.local", local)):
        (checkout / ".dvc" / name).write_text(f"[cache]\n    dir = {folder}\n" if folder else "")
    monkeypatch.chdir(checkout)
    assert cache_folders() == [Path(os.path.normpath(checkout / cache))]
    monkeypatch.chdir(tmp_path)
    assert cache_folders() == []
