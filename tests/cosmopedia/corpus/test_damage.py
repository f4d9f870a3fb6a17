"""Promises about files between two steps: damage is found before the file is used, and the file is named."""

import os
import subprocess
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import yaml

from cosmopedia.core.errors import DataError
from cosmopedia.core.rng import draw_u64
from cosmopedia.corpus.pipeline import CorpusRun
from stages.clean import __main__ as clean
from stages.dedup import __main__ as dedup
from stages.tokenize_corpus import __main__ as tokenize_corpus
from tests.support.documents import ROOT, byte_tokenizer, bytes_of, document, repository, write_documents

STAGES = {
    "clean": ("data/generate", clean),
    "dedup": ("data/clean", dedup),
    "tokenize_corpus": ("data/decontaminate", tokenize_corpus),
}


def essay(number: int) -> str:
    drawn = (draw_u64(1, number, i) for i in range(120))  # letters: candidates are found with 0 for every number
    return " ".join("".join(chr(97 + (value >> shift) % 26) for shift in (0, 8, 16)) for value in drawn) + "."


@pytest.fixture
def corpus(empty_folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Three cells for each of the stages, with duplicates and texts to remove, run as three tasks."""
    monkeypatch.setattr("cosmopedia.corpus.pipeline.WORTH_SECONDS", 0)
    byte_tokenizer(empty_folder / "models/generator")
    for folder, _ in STAGES.values():
        for n, cell in enumerate(("openstax-college", "web-blogpost", "wikihow-article")):
            rows = [document(text=essay(20 * n + i), completion_id=f"{n}{i:02}") for i in range(8)]
            rows.append(document(text=essay(1), completion_id=f"{n}90"))  # exact
            rows.append(document(text=f"{essay(2)} And {cell}.", completion_id=f"{n}91"))  # near
            if folder != "data/decontaminate":
                rows.append(document(text=" ", completion_id=f"{n}92"))
            write_documents(empty_folder / folder / f"{cell}.parquet", rows)
    return empty_folder


def settings(folder: Path, stage: str) -> None:
    """Three tasks; the essays are in no language, and a stage that removes every document stops."""
    repository(folder, stage, cluster_tasks=3, **({"language": None} if stage == "clean" else {}))


def run(folder: Path, stage: str) -> None:
    settings(folder, stage)
    STAGES[stage][1].main()


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-4])


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    place = len(content) // 2
    if path.suffix == ".parquet":  # in its data; nothing guards the statistics in the footer
        group = pq.read_metadata(path).row_group(0)
        column = max(map(group.column, range(group.num_columns)), key=lambda column: column.total_compressed_size)
        place = (column.dictionary_page_offset or column.data_page_offset) + column.total_compressed_size // 2
    content[place] ^= 1
    path.write_bytes(content)


@pytest.mark.slow
@pytest.mark.parametrize("damage", [cut, flip, Path.unlink])
@pytest.mark.parametrize(
    ("stage", "after", "pattern"),
    [
        ("clean", "clean", "removed/*.parquet"),
        ("dedup", "index", "keys/*.npy"),
        ("dedup", "pairs", "pairs/*.npy"),
        ("dedup", "clusters", "clusters.npy"),
        ("dedup", "members", "members/*/*.parquet"),
        ("dedup", "verify", "verified/*.parquet"),
        ("dedup", "filter", "removed/*.parquet"),
        ("tokenize_corpus", "tokenise train", "train-cells/*.ds"),
        ("tokenize_corpus", "tokenise train", "train-cells/*.index"),
        ("tokenize_corpus", "tokenise train", "train-documents/*.parquet"),
        ("tokenize_corpus", "merge train", "train-order.npy"),
    ],
)
def test_a_damaged_file_between_two_steps_is_named(
    corpus: Path, monkeypatch: pytest.MonkeyPatch, stage: str, after: str, pattern: str, damage
):
    whole = CorpusRun.run
    hit: list[str] = []

    def damaging(self: CorpusRun, name: str, *arguments, **options):
        found = whole(self, name, *arguments, **options)
        if name == after:
            path = next(path for path in sorted(self.scratch.glob(pattern)) if path.stat().st_size)
            damage(path)
            hit.append(str(path))
        return found

    monkeypatch.setattr(CorpusRun, "run", damaging)
    with pytest.raises(DataError) as caught:
        run(corpus, stage)
    assert len(hit) == 1 and str(caught.value).startswith(f"{hit[0]}: ")
    assert "run the stage again" in str(caught.value)
    if damage is cut:
        monkeypatch.setattr(CorpusRun, "run", whole)
        run(corpus, stage)


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("damage", [cut, flip])
def test_a_damaged_input_is_named(corpus: Path, stage: str, damage):
    cell = corpus / STAGES[stage][0] / "web-blogpost.parquet"
    damage(cell)
    with pytest.raises(DataError, match=r"web-blogpost\.parquet: "):
        run(corpus, stage)


KILLED = """
import os, signal, sys
from cosmopedia.corpus import pipeline as cells
from cosmopedia.execution.executors import LocalExecutor
cells.WORTH_SECONDS, whole, left = 0, LocalExecutor._run_for_rank, int(sys.argv[2])
def counted(self, *arguments):
    global left
    left -= 1
    if not left:
        os.kill(os.getpid(), signal.SIGKILL)
    return whole(self, *arguments)
LocalExecutor._run_for_rank = counted
__import__(f"stages.{sys.argv[1]}.__main__", fromlist=["main"]).main()
"""


def kill(folder: Path, stage: str, task: int) -> None:
    """Run a stage in another process, and kill it (-9) before the task of that number."""
    deps = {name: {"deps": [inputs]} for name, (inputs, _) in STAGES.items()}
    (folder / "dvc.yaml").write_text(yaml.safe_dump({"stages": deps}), encoding="utf-8")
    settings(folder, stage)
    done = subprocess.run(
        [sys.executable, "-c", KILLED, stage, str(task)],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == -9, done.stderr


@pytest.mark.slow
@pytest.mark.parametrize(
    ("stage", "task", "said"),
    [
        ("clean", 3, "clean clean: 2 of 3 tasks"),
        ("dedup", 3, "dedup index: 2 of 3 tasks"),
        ("dedup", 6, "dedup pairs: 2 of 3 tasks"),
        ("dedup", 10, "dedup members: 2 of 3 tasks"),
        ("dedup", 14, "dedup filter: 2 of 3 tasks"),
        ("tokenize_corpus", 3, "tokenize_corpus tokenise train: 2 of 3 tasks"),
        ("tokenize_corpus", 6, "tokenize_corpus tokenise validation: 1 of 3 tasks"),
    ],
)
def test_a_killed_stage_goes_on_and_gives_the_same_bytes(
    corpus: Path, capfd: pytest.CaptureFixture[str], stage: str, task: int, said: str
):
    run(corpus, stage)
    wanted = bytes_of(corpus / "data" / stage) | {"metrics": (corpus / f"metrics/{stage}.json").read_bytes()}
    kill(corpus, stage, task)
    capfd.readouterr()
    run(corpus, stage)
    assert f"{said} were done before" in capfd.readouterr().err
    assert bytes_of(corpus / "data" / stage) | {"metrics": (corpus / f"metrics/{stage}.json").read_bytes()} == wanted


@pytest.mark.slow
def test_what_was_damaged_after_a_kill_is_done_again(corpus: Path, capfd: pytest.CaptureFixture[str]):
    run(corpus, "dedup")
    wanted = bytes_of(corpus / "data/dedup")
    kill(corpus, "dedup", 6)
    keys = next((corpus / ".store/work/dedup").glob("*/0/keys/*.npy"))
    cut(keys)
    capfd.readouterr()
    run(corpus, "dedup")
    said = capfd.readouterr().err
    assert f"{keys.resolve()}: expected " in said and "; its tasks run again" in said
    assert bytes_of(corpus / "data/dedup") == wanted
