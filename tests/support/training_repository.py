"""A small repository with token shards, for the tests of training."""

import json
from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from cosmopedia.core.params import check, read_yaml
from stages.train.recipe import Recipe

ROOT = Path(__file__).parents[2]
PRESETS: dict[str, dict[str, Any]] = read_yaml(ROOT / "params.yaml")["train"]["presets"]
VOCABULARY = 64
RECIPE: dict[str, Any] = {
    "backend": "transformers",
    "preset": None,
    "architecture": {
        "vocabulary": VOCABULARY,
        "layers": 1,
        "heads": 2,
        "kv_heads": 1,
        "width": 16,
        "intermediate": 32,
        "max_positions": 32,
        "rope_theta": 10000,
        "tied_embeddings": True,
    },
    "sequence": 16,
    "batch": 4,
    "micro_batch": 2,
    "steps": 24,
    "learning_rate": 0.01,
    "warmup_steps": 2,
    "seeds": [1],
    "keep_last": 1,
    "keep_spacing": 0.1,
    "final_rate_share": 0.1,
    "betas": [0.9, 0.95],
    "epsilon": 1e-8,
    "weight_decay": 0.1,
    "gradient_clip": 1.0,
    "precision": "fp32",
    "cpu_threads": 1,
}


def recipe_of(**changes: Any) -> Recipe:
    """The recipe of one seed; `architecture` changes single fields."""
    shape = {**RECIPE["architecture"], **changes.pop("architecture", {})}
    shared = {name: value for name, value in RECIPE.items() if name not in ("seeds", "keep_last", "keep_spacing")}
    return check({**shared, "architecture": shape, "seed": 1, **changes}, Recipe, "train")


def write_corpus(folder: Path, tokens: int = 1500, parts: int = 2) -> None:
    """Shards of a text that a model can learn: a noisy count."""
    draws = np.random.default_rng(0).integers(1, 3, tokens)
    text = (np.cumsum(draws) % VOCABULARY).astype("<u2")
    for split, content in (("train", text), ("validation", text[: tokens // 10])):
        (folder / split).mkdir(parents=True)
        for i, part in enumerate(np.array_split(content, parts)):
            part.tofile(folder / split / f"{i:03d}_{split}.ds")
    splits = {"train": {"tokens": tokens, "documents": 9}, "validation": {"tokens": tokens // 10, "documents": 1}}
    card: dict[str, Any] = {**splits, "vocab_size": VOCABULARY, "token_bytes": 2, "eos": 0, "dataset_hash": "d" * 64}
    card["shards"] = {str(p.relative_to(folder)): sha256(p.read_bytes()).hexdigest() for p in folder.rglob("*.ds")}
    (folder / "corpus.json").write_text(json.dumps(card))


@pytest.fixture
def repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mlflow_database: None) -> Iterator[Path]:
    """A small repository with a corpus, as the current folder."""
    for name in ("DVC_ROOT", "DVC_EXP_NAME", "MLFLOW_TRACKING_URI", "COSMO_STORE", "COSMO_COMPUTE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    (tmp_path / "profiles").mkdir()
    (tmp_path / "compute").mkdir()
    (tmp_path / "params.yaml").write_text("profile: tiny\n")
    set_compute(tmp_path)
    set_recipe(tmp_path)
    write_corpus(tmp_path / "data/tokenize_corpus")
    (tmp_path / "metrics").mkdir()
    limits = {"components": {"synthetic": {"copies": 1.0, "max_repeats": 1_000_000}}}
    (tmp_path / "metrics/mix.json").write_text(json.dumps(limits))
    monkeypatch.chdir(tmp_path)
    yield tmp_path


def set_compute(folder: Path, **training: Any) -> None:
    """The local compute file, with other settings in its section `training`."""
    compute = yaml.safe_load((ROOT / "compute/local.yaml").read_text())
    compute["training"] |= {"threads": 1, "python": str(ROOT / ".nanotron/bin/python"), **training}
    (folder / "compute/local.yaml").write_text(yaml.safe_dump(compute))


def set_recipe(folder: Path, **changes: Any) -> None:
    """The profile's `train` section; `architecture` changes single fields."""
    shape = {**RECIPE["architecture"], **changes.pop("architecture", {})}
    train = {**RECIPE, "preset": "profile", "presets": PRESETS, "architecture": shape, **changes}
    (folder / "profiles/tiny.yaml").write_text(yaml.safe_dump({"train": train}))
