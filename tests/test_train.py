"""Training: what the weights depend on, what a kill costs, what is refused before the first step."""

import json
import os
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import yaml

from stages.errors import ClusterError, ConfigError, DataError
from stages.settings import check
from stages.training.recipe import Architecture, Recipe
from stages.training.shards import Corpus, Split, TokenShards, WindowOrder, read_corpus

ROOT = Path(__file__).parent.parent
VOCABULARY, STEPS = 64, 24
RECIPE = {
    "backend": "transformers",
    "architecture": {
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
    "steps": STEPS,
    "learning_rate": 0.01,
    "warmup_steps": 2,
    "seed": 1,
    "final_rate_share": 0.1,
    "betas": [0.9, 0.95],
    "epsilon": 1e-8,
    "weight_decay": 0.1,
    "gradient_clip": 1.0,
    "precision": "fp32",
}


def write_corpus(folder: Path, tokens: int = 1500, parts: int = 2) -> None:
    """Shards of a text that can be learned: a noisy count upwards."""
    draws = np.random.default_rng(0).integers(1, 3, tokens)
    text = (np.cumsum(draws) % VOCABULARY).astype("<u2")
    for split, content in (("train", text), ("validation", text[: tokens // 10])):
        (folder / split).mkdir(parents=True)
        for i, part in enumerate(np.array_split(content, parts)):
            part.tofile(folder / split / f"{i:03d}_{split}.ds")
    splits = {"train": {"tokens": tokens, "documents": 9}, "validation": {"tokens": tokens // 10, "documents": 1}}
    card = {**splits, "vocab_size": VOCABULARY, "token_bytes": 2, "eos": 0, "dataset_hash": "d" * 64}
    (folder / "corpus.json").write_text(json.dumps(card))


@pytest.fixture
def repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A small repository with a corpus, as the current folder."""
    for name in ("DVC_ROOT", "DVC_EXP_NAME", "MLFLOW_TRACKING_URI", "COSMO_STORE", "COSMO_CLUSTER"):
        monkeypatch.delenv(name, raising=False)
    (tmp_path / "profiles").mkdir()
    (tmp_path / "clusters").mkdir()
    (tmp_path / "params.yaml").write_text("profile: tiny\n")
    cluster = yaml.safe_load((ROOT / "clusters/local.yaml").read_text())
    cluster["training"]["threads"] = 1
    (tmp_path / "clusters/local.yaml").write_text(yaml.safe_dump(cluster))
    set_recipe(tmp_path)
    write_corpus(tmp_path / "data/tokenize_corpus")
    monkeypatch.chdir(tmp_path)
    yield tmp_path


def set_recipe(folder: Path, **changes: object) -> None:
    (folder / "profiles/tiny.yaml").write_text(yaml.safe_dump({"train": {**RECIPE, **changes}}))


def train() -> str:
    from stages.train import main

    return main()


def result(folder: Path) -> tuple[bytes, str, dict]:
    """Weights, loss log and metrics."""
    weights, losses = folder / "models/train/model.safetensors", folder / "models/train/losses.csv"
    return weights.read_bytes(), losses.read_text(), json.loads((folder / "metrics/train.json").read_text())


def shards_of(folder: Path, sequence: int = 16) -> TokenShards:
    corpus = read_corpus(folder)
    return TokenShards(folder / "train", corpus.train, corpus, sequence)


def test_windows_do_not_depend_on_how_many_shards_there_are(tmp_path: Path):
    for parts in (1, 3, 7):
        write_corpus(tmp_path / str(parts), parts=parts)
    one, three, seven = (shards_of(tmp_path / str(parts)) for parts in (1, 3, 7))
    assert one.windows == three.windows == seven.windows == (1500 - 1) // 16
    for i in range(one.windows):
        assert one.window(i).tolist() == three.window(i).tolist() == seven.window(i).tolist()
    assert one.window(0)[-1] == one.window(1)[0]


def test_every_window_is_seen_once_an_epoch_in_an_order_that_the_seed_draws():
    order = WindowOrder(50, seed=1)
    epochs = [[order[e * 50 + i] for i in range(50)] for e in range(3)]
    assert all(sorted(epoch) == list(range(50)) for epoch in epochs)
    assert epochs[0] != epochs[1] != epochs[2]
    assert [WindowOrder(50, seed=1)[i] for i in range(50)] == epochs[0]
    assert [WindowOrder(50, seed=2)[i] for i in range(50)] != epochs[0]


def test_a_shard_of_an_odd_size_is_refused(tmp_path: Path):
    write_corpus(tmp_path)
    shard = tmp_path / "train/001_train.ds"
    shard.write_bytes(shard.read_bytes()[:-1])
    with pytest.raises(DataError, match=r"001_train\.ds is corrupt: \d+ bytes are no whole number of 2-byte tokens"):
        shards_of(tmp_path)


def test_a_shard_that_was_cut_short_is_refused(tmp_path: Path):
    write_corpus(tmp_path)
    shard = tmp_path / "train/001_train.ds"
    shard.write_bytes(shard.read_bytes()[:-2])
    with pytest.raises(DataError, match=r"hold 1499 tokens, but corpus\.json says 1500"):
        shards_of(tmp_path)


def test_tokens_outside_the_vocabulary_are_refused_with_their_place(tmp_path: Path):
    path = tmp_path / "000_train.ds"
    np.array([1, 2, 70, 3], dtype="<u2").tofile(path)
    split = Split(tokens=4, documents=1)
    corpus = Corpus(train=split, validation=split, vocab_size=64, token_bytes=2, eos=0, dataset_hash="")
    with pytest.raises(DataError, match=r"000_train\.ds: token 2 is 70, but .* vocabulary of 64"):
        TokenShards(tmp_path, split, corpus, 2).check_vocabulary()


def test_too_few_tokens_for_one_batch_are_refused(repository: Path):
    set_recipe(repository, batch=200, micro_batch=2)
    with pytest.raises(DataError, match="1500 tokens, but one batch of 200 x 16 takes 3201"):
        train()


def test_nanotron_is_refused_until_it_can_be_launched(repository: Path):
    set_recipe(repository, backend="nanotron")
    with pytest.raises(ConfigError, match=r"train\.backend is nanotron"):
        train()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"micro_batch": 3}, "batch 4 must be a multiple of micro_batch 3"),
        ({"sequence": 64}, "sequence 64 exceeds max_positions 32"),
        ({"architecture": {**RECIPE["architecture"], "heads": 3}}, "width 16 must be an even multiple of heads 3"),
        ({"learning_rat": 1}, "train.learning_rat is not a parameter"),
    ],
)
def test_a_recipe_that_cannot_be_is_refused(changes: dict, message: str):
    with pytest.raises(ConfigError, match=message):
        check({**RECIPE, **changes}, Recipe, "train")


@pytest.mark.parametrize("profile", ["rehearsal", "laptop", "cluster"])
def test_every_profile_holds_a_recipe(profile: str):
    recipe, scale = (yaml.safe_load((ROOT / name).read_text()) for name in ("params.yaml", f"profiles/{profile}.yaml"))
    check(recipe["train"] | scale["train"], Recipe, "train")


def test_the_number_of_parameters_is_known_before_the_first_step():
    from stages.training.light import new_model

    for changes in ({}, {"tied_embeddings": False, "kv_heads": 2, "layers": 3}):
        recipe = check({**RECIPE, "architecture": {**RECIPE["architecture"], **changes}}, Recipe, "train")
        assert new_model(recipe, VOCABULARY, 0).num_parameters() == recipe.architecture.parameters(VOCABULARY)
    cluster = yaml.safe_load((ROOT / "profiles/cluster.yaml").read_text())["train"]["architecture"]
    assert Architecture(**cluster).parameters(32_000) == 1_741_785_088


@pytest.mark.slow
def test_the_same_corpus_and_recipe_give_the_same_weights(repository: Path):
    train()
    first = result(repository)
    train()
    assert result(repository) == first
    losses = [float(line.split(",")[1]) for line in first[1].splitlines()[1:]]
    assert len(losses) == STEPS and losses[-1] < losses[0] - 0.5
    assert first[2]["train_loss"] == pytest.approx(losses[-1], rel=1e-4)  # 5% of 24 steps is one
    assert first[2]["tokens"] == STEPS * 4 * 16
    assert not list((repository / ".store/train").iterdir())

    set_recipe(repository, micro_batch=4)  # the same batches in one piece: the same model but for the last digits
    train()
    whole = [float(line.split(",")[1]) for line in result(repository)[1].splitlines()[1:]]
    assert whole == pytest.approx(losses, abs=1e-4)


KILLED = """
import sys
from stages.training import light
light.CHECKPOINT_SECONDS, light.CHECKPOINT_SHARE = 0.0, 1e9  # a checkpoint after every step
from stages.train import main
main()
"""


@pytest.mark.slow
def test_a_killed_training_gives_the_weights_of_an_undisturbed_one(repository: Path):
    train()
    undisturbed = result(repository)
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"}
    process = subprocess.Popen([sys.executable, "-c", KILLED], env=environment, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while not (found := list(repository.glob(".store/train/*/checkpoint-1[0-9]/losses.csv"))):
        assert process.poll() is None and time.monotonic() < deadline, "training ended before it could be killed"
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    torn = found[0].parent.parent / "checkpoint-99"  # what a kill in the middle of writing one leaves
    torn.mkdir()
    (torn / "model.safetensors").write_bytes(b"half")

    line = train()
    assert "resumed at step 1" in line or "resumed at step 2" in line
    assert result(repository) == undisturbed
    with sqlite3.connect(repository / "mlflow.db") as database:
        runs = database.execute("select run_uuid, status from runs order by start_time").fetchall()
        points = database.execute(
            "select step from metrics where key = 'loss' and run_uuid = ? order by step", (runs[-1][0],)
        ).fetchall()
    assert [status for _, status in runs] == ["FINISHED", "FINISHED"]  # the killed run and its continuation are one
    assert [step for (step,) in points] == list(range(1, STEPS + 1))


@pytest.mark.slow
def test_sigterm_writes_a_checkpoint_first(repository: Path, monkeypatch: pytest.MonkeyPatch):
    from stages.training.light import WindowTrainer

    step = WindowTrainer.training_step
    calls: list[int] = []

    def interrupted(self, *args, **kwargs):
        calls.append(1)
        if len(calls) == 9:  # the first half of step 5
            os.kill(os.getpid(), signal.SIGTERM)
        return step(self, *args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(WindowTrainer, "training_step", interrupted)
        with pytest.raises(ClusterError, match="stopped by SIGTERM at step 5 of 24"):
            train()
    assert "resumed at step 5" in train()


@pytest.mark.slow
def test_a_loss_that_is_no_number_stops_the_training(repository: Path):
    set_recipe(repository, learning_rate=1e30, warmup_steps=0)
    with pytest.raises(ConfigError, match=r"the loss is .* at step \d+ of 24; lower train.learning_rate"):
        train()
