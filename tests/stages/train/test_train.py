"""Training: what the weights depend on, what a kill costs, what is refused before the first step."""

import json
import os
import re
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from cosmopedia.core.errors import ClusterError, ConfigError, DataError, errors_as_sentences
from cosmopedia.core.params import check
from cosmopedia.execution.mlflow_run import Run
from cosmopedia.execution.mlflow_sender import STARTED, started
from stages.train.recipe import Architecture, TrainParams
from stages.train.repeats import check_repeats
from stages.train.windows import Corpus, Split, TokenShards, WindowOrder, read_corpus
from tests.support.training_repository import (  # noqa: F401  (the fixture)
    RECIPE,
    ROOT,
    VOCABULARY,
    recipe_of,
    repository,
    set_compute,
    set_recipe,
    write_corpus,
)

STEPS = RECIPE["steps"]


def train() -> str:
    from stages.train.__main__ import main

    return main()


def result(folder: Path) -> tuple[bytes, str, dict]:
    """Weights, loss log and metrics."""
    model, metrics = folder / "models/train/seed-1", json.loads((folder / "metrics/train.json").read_text())
    return (model / "model.safetensors").read_bytes(), (model / "losses.csv").read_text(), metrics


def earlier(folder: Path, step: int) -> Path:
    """The weights of a step that was kept."""
    return folder / f"models/train/seed-1/checkpoints/step-{step}/model.safetensors"


def forget(folder: Path) -> None:
    """Remove what training left in the store, finished models too."""
    shutil.rmtree(folder / ".store/train")


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


def test_repeats_above_the_limit_are_refused_before_the_first_step(repository: Path):
    limits = {"synthetic": {"copies": 1.0, "max_repeats": 2}, "web": {"copies": 2.5, "max_repeats": 2}}
    Path("metrics/mix.json").write_text(json.dumps({"components": limits}))
    message = (
        r"train.steps 24 x batch 4 is 1\.03 epochs of 93 windows: documents of 'web' \(2\.50 copies in the mix\) would"
        r" be seen 2\.58 times, and mix.max_repeats.web allows 2; set train.steps to at most 18,"
    )
    with pytest.raises(ConfigError, match=message):
        train()
    assert not (repository / "models").exists() and not (repository / ".store").exists()
    recipe = recipe_of(steps=18)
    check_repeats(recipe, 93)
    with pytest.raises(ConfigError, match="of 'web'"):
        check_repeats(recipe_of(steps=19), 93)


def test_a_flipped_bit_inside_the_vocabulary_is_refused_with_its_file(tmp_path: Path):
    write_corpus(tmp_path)
    shards_of(tmp_path).check_vocabulary()
    shard = tmp_path / "train/001_train.ds"
    content = bytearray(shard.read_bytes())
    content[100] ^= 1
    shard.write_bytes(content)
    with pytest.raises(DataError, match=r"001_train\.ds is corrupt: corpus\.json says SHA-256 [0-9a-f]{64}"):
        shards_of(tmp_path).check_vocabulary()


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
        recipe_of(**changes)


@pytest.mark.parametrize("profile", ["smoke", "rehearsal", "laptop", "cluster"])
def test_every_profile_is_a_recipe(profile: str):
    recipe, scale = (yaml.safe_load((ROOT / name).read_text()) for name in ("params.yaml", f"profiles/{profile}.yaml"))
    check(recipe["train"] | scale["train"], TrainParams, "train")


@pytest.mark.parametrize(
    ("amx", "avx512_bf16", "vendor", "quick"),
    [
        (True, True, "GenuineIntel", True),
        (False, True, "GenuineIntel", False),
        (False, True, "AuthenticAMD", True),
        (False, False, "AuthenticAMD", False),
    ],
)
def test_bf16_is_used_where_it_is_faster(
    amx: bool, avx512_bf16: bool, vendor: str, quick: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    import torch

    from cosmopedia import cpu_features
    from stages.train import transformers_trainer

    (tmp_path / "cpuinfo").write_text(f"vendor_id\t: {vendor}\n")
    monkeypatch.setattr(cpu_features, "CPUINFO", tmp_path / "cpuinfo")
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: amx)
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: avx512_bf16)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert transformers_trainer.resolve_precision("auto") == ("bf16" if quick else "fp32")


def test_the_number_of_parameters_is_known_before_the_first_step():
    from stages.train.init_weights import new_model

    for changes in ({}, {"tied_embeddings": False, "kv_heads": 2, "layers": 3}):
        recipe = recipe_of(architecture={**RECIPE["architecture"], **changes})
        assert new_model(recipe, 0).num_parameters() == recipe.parameters
    cluster = yaml.safe_load((ROOT / "profiles/cluster.yaml").read_text())["train"]["architecture"]
    assert Architecture(**cluster).parameters == 1_741_785_088


@pytest.mark.parametrize("kv_heads", [1, 2])
def test_the_cpu_kernels_give_the_models_own_attention_and_loss_except_for_rounding(kv_heads: int, monkeypatch):
    import torch

    from stages.train import cpu_kernels, transformers_trainer
    from stages.train.init_weights import new_model

    monkeypatch.setattr(cpu_kernels, "PIECE", 10)  # several pieces, the last one short
    recipe = recipe_of(architecture={**RECIPE["architecture"], "kv_heads": kv_heads, "layers": 2})
    model = new_model(recipe, 0)
    tokens = torch.randint(0, VOCABULARY, (3, 17), generator=torch.Generator().manual_seed(0))
    inputs, labels = tokens[:, :-1], tokens[:, 1:]
    plain = transformers_trainer.token_loss(model(input_ids=inputs), labels)
    plain.backward()
    gradients = [weight.grad.clone() for weight in model.parameters() if weight.grad is not None]
    model.zero_grad()
    with transformers_trainer.quick_attention(model, 16, "bf16"):  # which works in float32 as well
        assert model.config._attn_implementation == "causal_products"
        hidden = model.model(input_ids=inputs).last_hidden_state
        quick = cpu_kernels.PieceLoss.apply(hidden, model.lm_head.weight, labels, torch.float32) / labels.numel()  # type: ignore
    quick.backward()
    assert model.config._attn_implementation != "causal_products"  # the exported model does not have it
    assert quick.item() == pytest.approx(plain.item(), abs=1e-6)
    for weight, gradient in zip(model.parameters(), gradients, strict=True):
        assert torch.allclose(weight.grad, gradient, atol=1e-6)  # type: ignore[arg-type]


@pytest.mark.slow
def test_the_same_corpus_and_recipe_give_the_same_weights(repository: Path):
    train()
    first = result(repository)
    forget(repository)
    set_recipe(repository, keep_last=2)  # which keeps weights, and changes none
    train()
    assert result(repository) == first
    assert earlier(repository, 22).read_bytes() != first[0]
    forget(repository)
    set_recipe(repository)
    train()
    assert result(repository) == first and not earlier(repository, 22).exists()
    losses = [float(line.split(",")[1]) for line in first[1].splitlines()[1:]]
    assert len(losses) == STEPS and losses[-1] < losses[0] - 0.5
    assert first[2]["train_loss"] == pytest.approx(losses[-1], rel=1e-4)  # 5% of 24 steps is one
    assert first[2]["tokens"] == STEPS * 4 * 16
    assert [path.name for path in repository.glob(".store/train/*/*")] == ["finished"]  # no checkpoints

    set_recipe(repository, micro_batch=4)  # the same batches in one piece: the same model except for the last digits
    train()
    whole = [float(line.split(",")[1]) for line in result(repository)[1].splitlines()[1:]]
    assert whole == pytest.approx(losses, abs=1e-4)


KILLED = """
import sys
from stages.train import transformers_trainer
transformers_trainer.CHECKPOINT_SECONDS = 0.0
transformers_trainer.CHECKPOINT_SHARE = 1e9  # a checkpoint after every step
from stages.train.__main__ import main
main()
"""


@pytest.mark.slow
def test_a_killed_training_gives_the_weights_of_an_undisturbed_one(repository: Path):
    set_recipe(repository, precision="bf16", keep_last=3, keep_spacing=0.4)  # steps 4, 14 and 24
    train()
    undisturbed = result(repository)
    kept = [earlier(repository, step).read_bytes() for step in (4, 14)]
    forget(repository)
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
    assert [earlier(repository, step).read_bytes() for step in (4, 14)] == kept
    assert len({*kept, undisturbed[0]}) == 3
    with sqlite3.connect(repository / "mlflow.db") as database:
        runs = database.execute("select name, run_uuid, status from runs order by name").fetchall()
        points = database.execute(
            "select step from metrics where key = 'loss' and run_uuid = ? order by step", (runs[-1][1],)
        ).fetchall()
        parents = database.execute("select value from tags where key = 'mlflow.parentRunId'").fetchall()
    # The same training, killed and continued, and the undisturbed one before it are one run, below that of the means.
    assert [(name.rpartition(" ")[0], status) for name, _, status in runs] == [
        ("train no revision", "FINISHED"),
        ("train no revision seed", "FINISHED"),
    ]
    assert parents == [(runs[0][1],)]
    assert [step for (step,) in points] == list(range(1, STEPS + 1))


@pytest.mark.slow
def test_sigterm_writes_a_checkpoint_first(repository: Path, monkeypatch: pytest.MonkeyPatch):
    from stages.train.transformers_trainer import WindowTrainer

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
    with pytest.raises(ConfigError, match=r"the loss is .* at step \d+ of 24; .*documents\.parquet is missing"):
        train()


@pytest.mark.slow
def test_a_loss_that_is_no_number_names_the_documents_of_its_batch(repository: Path):
    set_recipe(repository, learning_rate=1e30, warmup_steps=0)
    names, split = [f"completion-{i:03d}" for i in range(150)], repository / "data/tokenize_corpus/train"
    starts = [*range(0, 750, 10), *range(0, 750, 10)]  # documents of ten tokens, 75 in each of two shards
    columns = {"completion_id": names, "shard": [0] * 75 + [1] * 75, "start": starts, "tokens": [10] * 150}
    pq.write_table(pa.table(columns), split / "documents.parquet")
    with pytest.raises(ConfigError) as error:
        train()
    step = int(re.findall(r"at step (\d+) of 24", str(error.value))[0])
    order = WindowOrder((1500 - 1) // 16, 1)
    windows = sorted(order[position] for position in range((step - 1) * 4, step * 4))
    named = list(dict.fromkeys(names[token // 10] for w in windows for token in range(w * 16, w * 16 + 17)))
    assert f"({', '.join(named[:10])} and {len(named) - 10} more)" in str(error.value) or len(named) <= 10
    assert "lower train.learning_rate (now 1e+30) or raise train.warmup_steps (now 0)" in str(error.value)


@pytest.mark.slow
def test_out_of_memory_names_the_micro_batch_and_other_defects_stay_defects(
    repository: Path, monkeypatch: pytest.MonkeyPatch
):
    import torch
    from transformers import LlamaModel

    exhausted = (
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
        RuntimeError("[enforce fail at alloc_cpu.cpp:127] DefaultCPUAllocator: can't allocate memory: you tried"),
        MemoryError(),
    )
    for error in (*exhausted, RuntimeError("mat1 and mat2 shapes cannot be multiplied")):

        def forward(*_: object, error: Exception = error, **__: object) -> None:
            raise error

        monkeypatch.setattr(LlamaModel, "forward", forward)
        wanted, message = ConfigError, r"forward pass over 2 x 16 tokens .* lower train\.micro_batch \(now 2\)"
        if error not in exhausted:
            wanted, message = RuntimeError, "cannot be multiplied"
        with pytest.raises(wanted, match=message):
            train()


@pytest.mark.slow
def test_a_damaged_checkpoint_is_refused_and_the_one_before_it_used(repository: Path, monkeypatch: pytest.MonkeyPatch):
    from stages.train import transformers_trainer
    from stages.train.transformers_trainer import WindowTrainer

    monkeypatch.setattr(transformers_trainer, "CHECKPOINT_SECONDS", 0.0)
    monkeypatch.setattr(transformers_trainer, "CHECKPOINT_SHARE", 1e9)
    step, calls = WindowTrainer.training_step, []

    def interrupted(self, *args, **kwargs):
        calls.append(1)
        if len(calls) == 9:  # the first half of step 5
            raise KeyboardInterrupt
        return step(self, *args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(WindowTrainer, "training_step", interrupted)
        with pytest.raises(KeyboardInterrupt):
            train()
    (last,) = repository.glob(".store/train/*/checkpoint-4")
    for name in ("model.safetensors", "optimizer.pt", "trainer_state.json", "contents.json"):
        content = (last / name).read_bytes()
        (last / name).write_bytes(content[: len(content) // 2])
        with pytest.raises(ClusterError, match=rf"checkpoint-4: {name}.*(damaged|cannot be read).*from step 3"):
            train()
        (last / name).write_bytes(content)
    shutil.rmtree(last)
    assert "resumed at step 3" in train()


ENDLESS = """
import time
from cosmopedia.execution.mlflow_run import Run
with Run("train", {}, "model") as run:
    while run.id is None:
        run.flush()
    print(run.id, flush=True)
    time.sleep(600)
"""


def statuses(folder: Path) -> dict[str, str]:
    """Run id -> status, in MLflow's database."""
    with sqlite3.connect(folder / "mlflow.db") as database:
        return dict(database.execute("select run_uuid, status from runs"))


@pytest.fixture
def endless(repository: Path) -> Iterator[tuple[subprocess.Popen, str]]:
    """A process that is in the middle of a run, and the run's id."""
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"}
    process = subprocess.Popen([sys.executable, "-c", ENDLESS], env=environment, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    yield process, process.stdout.readline().strip()
    process.kill()
    process.wait()


@pytest.mark.slow
def test_the_run_of_a_killed_process_is_marked_and_resumed(repository: Path, endless: tuple[subprocess.Popen, str]):
    process, killed = endless
    with Run("evaluate", {}) as run:
        assert run.flush() and statuses(repository)[killed] == "RUNNING"  # its process lives
    process.send_signal(signal.SIGKILL)
    while started(process.pid):
        time.sleep(0.01)
    with Run("evaluate", {}) as other:
        assert other.flush() and statuses(repository) == {killed: "KILLED", other.id: "RUNNING"} | {
            run: "FINISHED" for run in statuses(repository) if run not in (killed, other.id)
        }
    with Run("train", {}, "model") as again:
        assert again.flush() and again.id == killed and statuses(repository)[killed] == "RUNNING"
        with Run("evaluate", {}) as run:
            assert run.flush() and statuses(repository)[killed] == "RUNNING"
    assert statuses(repository)[killed] == "FINISHED"


@pytest.mark.slow
def test_a_process_that_got_the_number_of_a_killed_one_is_not_taken_for_it(
    repository: Path, endless: tuple[subprocess.Popen, str]
):
    process, run = endless
    with sqlite3.connect(repository / "mlflow.db") as database:  # as if the live process had begun after the run's
        database.execute("update tags set value = value || '0' where key = ? and run_uuid = ?", (STARTED, run))
    with Run("evaluate", {}) as other:
        assert other.flush() and process.poll() is None and statuses(repository)[run] == "KILLED"


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 8 kB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=8k", "tmpfs", disk], capture_output=True).returncode:
        pytest.skip("only root can mount a small disk")
    yield disk
    subprocess.run(["umount", disk], check=True)


@pytest.mark.slow
def test_a_full_disk_behind_a_link_is_named_and_leaves_no_half_model(
    repository: Path, small_disk: Path, capsys: pytest.CaptureFixture[str]
):
    (repository / "models").mkdir()
    (repository / "models/train").symlink_to(small_disk)
    (small_disk / "seed-99").mkdir()  # of an earlier run
    with pytest.raises(SystemExit), errors_as_sentences("train: "):
        train()
    complaint = capsys.readouterr().err.splitlines()[-1]
    assert complaint.startswith("train: error: No space left on device (models/train/") and "run it again" in complaint
    assert not list(small_disk.iterdir()) and not (repository / "metrics/train.json").exists()
    subprocess.run(["mount", "-o", "remount,size=1m", small_disk], check=True)
    assert "from the store" in train()
    assert [path.name for path in small_disk.iterdir()] == ["seed-1"] and (repository / "models/train").is_symlink()
    subprocess.run(["mount", "-o", "remount,ro", small_disk], check=True)
    with pytest.raises(SystemExit), errors_as_sentences("train: "):
        train()
    complaint = capsys.readouterr().err.splitlines()[-1]
    assert re.fullmatch(
        r"train: error: Read-only file system \(.+\); make it writable for you and run it again", complaint
    )


@pytest.mark.slow
def test_other_code_does_not_take_what_was_trained_before(repository: Path, monkeypatch: pytest.MonkeyPatch):
    from stages.train import seed_run

    train()
    assert "from the store" in train()
    monkeypatch.setattr(seed_run, "code_hash", lambda: "other")
    assert "from the store" not in train()
    assert len(list((repository / ".store/train").glob("*/finished"))) == 2


@pytest.mark.slow
def test_threads_that_take_a_part_each_change_the_losses_only_by_rounding(repository: Path):
    import torch

    set_recipe(repository, micro_batch=4)
    train()
    one = [float(line.split(",")[1]) for line in result(repository)[1].splitlines()[1:]]
    set_recipe(repository, micro_batch=4, cpu_threads=2)
    found = []
    for _ in range(2):
        shutil.rmtree(repository / ".store/train")
        train()
        found.append(result(repository)[:2])
    assert torch.get_num_threads() == 2
    assert found[0] == found[1]  # whichever thread was done first
    two = [float(line.split(",")[1]) for line in found[0][1].splitlines()[1:]]
    assert two != one and two == pytest.approx(one, abs=1e-4)
