"""nanotron trains what transformers trains, on any layout, through kills, and its model comes back whole."""

import csv
import json
import math
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from itertools import product
from pathlib import Path
from typing import Any

import pytest

from cosmopedia.cli.deps import imports_of, module_file
from cosmopedia.core.errors import ClusterError, ConfigError, DataError
from cosmopedia.execution.compute import Layout
from stages.train.nanotron.job import TrainingJob
from stages.train.recipe import learning_rate
from stages.train.steps import Step, parse_step, read_steps, write_steps
from tests.support.training_repository import ROOT, recipe_of, repository, set_compute, set_recipe  # noqa: F401  (the fixture)

NANOTRON = ROOT / ".nanotron/bin/python"
SHAPE = {"layers": 2, "heads": 4, "kv_heads": 2, "width": 32, "intermediate": 48, "tied_embeddings": False}
TRAINING = {"architecture": SHAPE, "batch": 8, "steps": 12, "warmup_steps": 3}
needs_nanotron = pytest.mark.skipif(not NANOTRON.exists(), reason="no .nanotron; run `make nanotron`")


def train() -> str:
    from stages.train.__main__ import main

    return main()


def losses(seed: int = 1) -> list[list[float]]:
    """Step, loss, learning rate, gradient norm of what was trained last."""
    with Path(f"models/train/seed-{seed}/losses.csv").open(newline="") as stream:
        return [[float(value) for value in row] for row in list(csv.reader(stream))[1:]]


KEPT = "seed-1/checkpoints/step-9"


def weights(model: str = "seed-1") -> dict[str, Any]:
    from safetensors.torch import load_file

    return load_file(f"models/train/{model}/model.safetensors")


def assert_exported(tolerance: float = 1e-4) -> None:
    """The model in models/train gives nanotron's own logits when plain transformers loads it."""
    import torch
    from safetensors.torch import load_file
    from transformers import AutoModelForCausalLM

    known = load_file("models/train/seed-1/probe.safetensors")
    model = AutoModelForCausalLM.from_pretrained("models/train/seed-1", dtype=torch.float32).eval()
    with torch.no_grad():
        found = model(input_ids=known["ids"], use_cache=False).logits
    assert known["logits"].std() > 1e-3 and (found - known["logits"]).abs().max() < tolerance


WORKER_ALONE = """
import importlib, sys
from importlib.abc import MetaPathFinder

import torch  # of the base image

class Absent(MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        top = name.partition(".")[0]
        known = {*sys.stdlib_module_names, *sys.argv[1].split(), *BEFORE}
        if top[0] != "_" and top not in known:
            raise ModuleNotFoundError(f"the image has no {name}", name=name)

BEFORE = {name.partition(".")[0] for name in sys.modules}
sys.meta_path.insert(0, Absent())
for name in sys.argv[2].split():
    importlib.import_module(name)
"""


@pytest.mark.slow
def test_the_worker_needs_only_what_the_image_has() -> None:
    modules, waiting = set(), {"stages.train.nanotron.worker"}
    while waiting:  # also what is imported inside functions
        modules |= waiting
        waiting = {name for module in waiting for name in imports_of(module_file(module) or ROOT)} - modules
    image = (ROOT / "compute/containers/training.Dockerfile").read_text()
    (names,) = re.findall(r'names = "(.*?)"', image)
    installed = names.replace("pyyaml", "yaml").replace("-", "_")
    installed += " cosmopedia stages sympy mpmath"  # the checkout's and torch's own
    done = subprocess.run(
        [sys.executable, "-c", WORKER_ALONE, installed, " ".join(sorted(modules))], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert "stages.train.messages" in modules and not modules & {
        "stages.train.transformers_trainer",
        "cosmopedia.execution.mlflow_run",
    }


# --- without nanotron ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kv_heads", [1, 2, 4])
def test_weights_come_back_as_they_went(kv_heads: int) -> None:
    import torch

    from stages.train.init_weights import initial_weight, shapes
    from stages.train.nanotron.weights import names_of, parts_of, to_nanotron, to_transformers

    shape = recipe_of(architecture=SHAPE | {"kv_heads": kv_heads}).architecture
    before = {name: initial_weight(1, name, size) + 0.1 for name, size in shapes(shape).items()}
    after = {}
    for name in names_of(shape):
        whole = to_nanotron(name, before.__getitem__, shape)
        assert whole.numel() == sum(before[part].numel() for part in parts_of(name))
        after |= to_transformers(name, whole, shape)
    assert before.keys() == after.keys() and all(torch.equal(before[name], after[name]) for name in before)
    q = "model.layers.0.self_attn.q_proj.weight"
    turned = to_nanotron("model.decoder.0.pp_block.attn.qkv_proj.weight", before.__getitem__, shape)
    assert torch.equal(turned[0], before[q][0]) and torch.equal(turned[1], before[q][4])  # rows 0 and d/2 of a head


def test_shards_are_joined_and_a_missing_or_damaged_one_is_named(tmp_path: Path) -> None:
    import torch
    from safetensors.torch import save_file

    from stages.train.nanotron.weights import read_weight

    name, whole = "model.decoder.0.pp_block.mlp.gate_up_proj.weight", torch.arange(48.0).view(12, 4)
    folder = tmp_path / "model/model/decoder/0/pp_block/mlp/gate_up_proj"
    folder.mkdir(parents=True)
    files = []
    for rank in range(2):  # gate's six rows and up's six are halved one by one
        at = rank * 3
        rows = torch.cat([whole[at : at + 3], whole[6 + at : 9 + at]])
        slices = f"0,3,None|None,None,None#{at},{at + 3},None|None,None,None;"
        slices += f"3,6,None|None,None,None#{6 + at},{9 + at},None|None,None,None"
        files.append(folder / f"model_weight_pp-rank-0-of-1_tp-rank-{rank}-of-2.safetensors")
        save_file({"data": rows}, files[-1], {"local_global_slices_pairs": slices, "unsharded_shape": "(12, 4)"})
    assert torch.equal(read_weight(tmp_path, name), whole)
    content = files[1].read_bytes()
    files[1].write_bytes(content[:-5])
    with pytest.raises(DataError, match=r"tp-rank-1-of-2\.safetensors is damaged"):
        read_weight(tmp_path, name)
    files[1].unlink()
    with pytest.raises(DataError, match=r"1 shard\(s\) hold 24 of 48 values of .*weight; a shard is missing"):
        read_weight(tmp_path, name)
    with pytest.raises(DataError, match="holds no weight; the checkpoint is not whole"):
        read_weight(tmp_path, "model.lm_head.pp_block.weight")


def test_the_first_weights_depend_on_seed_and_name_alone() -> None:
    import torch

    from stages.train.init_weights import STD, initial_weight

    one = initial_weight(1, "a", (300, 50))
    assert torch.equal(one, initial_weight(1, "a", (300, 50)))
    assert not torch.equal(one, initial_weight(1, "b", (300, 50)))
    assert not torch.equal(one, initial_weight(2, "a", (300, 50)))
    assert one.std() == pytest.approx(STD, rel=0.03) and abs(one.mean()) < 1e-3
    assert initial_weight(1, "a", (4,)).tolist() == [1.0] * 4


def test_every_position_of_the_training_goes_to_one_rank_once() -> None:
    from stages.train.nanotron.worker import positions

    for dp, micro in ((1, 2), (2, 2), (4, 1), (2, 4)):
        job = TrainingJob(
            recipe=recipe_of(batch=8),
            layout=Layout(dp=dp, micro_batch=micro),
            tokens=Path("/t"),
            precision="fp32",
            checkpoint_seconds=1,
        )
        seen: list[int] = []
        for step, number, rank in product(range(3), range(job.accumulation), range(dp)):
            seen += positions(step, job, rank, number)
        assert seen == list(range(24))


@pytest.mark.parametrize(
    ("layout", "recipe", "message"),
    [
        ({"dp": 3}, {}, "train.batch 8 must be a multiple of micro_batch 2 x dp 3"),
        ({"tp": 4}, {}, "train.architecture.kv_heads 2 must be a multiple of tp 4"),
        ({"pp": 3}, {}, "train.architecture.layers 2 is less than pp 3"),
        ({}, {"architecture": SHAPE | {"rope_theta": 5e5}}, "rotary positions of base 10000 only"),
    ],
)
def test_a_layout_that_does_not_fit_is_refused(
    layout: dict,
    recipe: dict,
    message: str,
    repository: Path,
) -> None:
    set_recipe(repository, backend="nanotron", **{**TRAINING, **recipe})
    set_compute(repository, layout=layout)
    with pytest.raises(ConfigError, match=message):
        train()


def test_without_its_environment_the_error_says_how_to_get_it(repository: Path) -> None:
    set_recipe(repository, backend="nanotron", **TRAINING)
    set_compute(repository, python=".nanotron/bin/python")
    with pytest.raises(ConfigError, match="nanotron has an environment of its own; run `make nanotron`"):
        train()


def test_a_line_that_a_kill_cut_short_is_no_step(tmp_path: Path) -> None:
    steps = [Step(n, 1.5 / n, 1e-3, 0.25, 0.5, 100.0, None if n % 2 else 0.4) for n in (1, 2, 3)]
    write_steps(tmp_path / "steps.csv", steps)
    assert read_steps(tmp_path / "steps.csv") == steps
    text = (tmp_path / "steps.csv").read_text()
    (tmp_path / "steps.csv").write_text(text[:-4])
    assert read_steps(tmp_path / "steps.csv") == steps[:2]


def test_the_status_says_how_far_a_training_is(tmp_path: Path) -> None:
    from stages.train.cosmo_status import describe, trainings

    job = TrainingJob(
        recipe=recipe_of(batch=8, steps=100),
        layout=Layout(dp=2),
        tokens=Path("/t"),
        precision="fp32",
        checkpoint_seconds=1,
        peak_tflops=989.4,
    )
    for name in ("one", "none", "damaged"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "job.json").write_text("{" if name == "damaged" else job.model_dump_json())
    write_steps(tmp_path / "one/steps.csv", [Step(n, 3.0 / n, 1e-3, 0.25, 6.0, 21.3, 0.41) for n in range(1, 41)])
    waiting, running = map(describe, trainings(tmp_path))
    assert waiting == "train seed 1: step 0 of 100"
    wanted = "step 40 of 100, loss 0.075, 21 tokens/s, MFU 41.0%, 0.13 GPU hours, ETA 6 min"
    assert running == f"train seed 1: {wanted}"


def test_steps_are_booked_once_also_when_a_resume_writes_them_again(tmp_path: Path) -> None:
    from cosmopedia.execution.torchrun import Tail

    def steps_of(tail: Tail) -> list[Step]:
        return [parse_step(row) for row in tail.new()]

    steps = [Step(n, 1.0, 1e-3, 0.25, 0.5, 100.0, None) for n in range(1, 8)]
    tail = Tail(tmp_path / "steps.csv")
    assert tail.new() == []
    write_steps(tmp_path / "steps.csv", steps[:3])
    assert steps_of(tail) == steps[:3] and tail.new() == []
    with (tmp_path / "steps.csv").open("a") as stream:
        stream.write("4,1.0,0.001,0.25,")
        stream.flush()
        assert tail.new() == []
        stream.write("0.5,100.0,\n")
    assert steps_of(tail) == steps[3:4]
    write_steps(tmp_path / "steps.csv", steps[:2])  # a resume from step 2
    with (tmp_path / "steps.csv").open("a") as stream:
        stream.writelines(f"{n},1.0,0.001,0.25,0.5,100.0,\n" for n in (3, 4, 5))
    assert steps_of(tail) == steps[4:5]


# --- with it ---------------------------------------------------------------------------------------------------------


@pytest.mark.slow
@needs_nanotron
def test_both_trainers_agree(repository: Path) -> None:
    """Parameters, initial loss, schedule, the first losses and the weights, from one recipe."""
    import torch

    kept = {"keep_last": 2, "keep_spacing": 0.25}
    set_recipe(repository, **TRAINING, **kept)
    train()
    steps, before, earlier = losses(), weights(), weights(KEPT)
    metrics = json.loads(Path("metrics/train.json").read_text())
    set_recipe(repository, backend="nanotron", **TRAINING, **kept)
    train()
    others, other_metrics = losses(), json.loads(Path("metrics/train.json").read_text())
    assert metrics["parameters"] == other_metrics["parameters"] == sum(w.numel() for w in weights().values())
    assert others[0][1] == pytest.approx(math.log(64), abs=0.05)
    recipe = recipe_of(**TRAINING)
    for (step, loss, rate, norm), (_, other, other_rate, other_norm) in zip(steps, others, strict=True):
        assert rate == pytest.approx(learning_rate(recipe, int(step))) == pytest.approx(other_rate)
        assert loss == pytest.approx(other, abs=1e-5) and norm == pytest.approx(other_norm, abs=1e-4)
    assert others[-1][1] < others[0][1] - 0.3  # they learn
    assert other_metrics["validation_loss"] == pytest.approx(metrics["validation_loss"], abs=1e-4)
    assert all(torch.allclose(before[name], weight, atol=1e-3) for name, weight in weights().items())
    assert all(torch.allclose(earlier[name], weight, atol=1e-3) for name, weight in weights(KEPT).items())
    assert not all(torch.allclose(before[name], weight, atol=1e-3) for name, weight in earlier.items())
    assert_exported()


@pytest.mark.slow
@needs_nanotron
@pytest.mark.long  # two nodes train one model in test_training.py
def test_the_layout_changes_no_result(repository: Path) -> None:
    shared = {**TRAINING, "architecture": SHAPE | {"tied_embeddings": True}}
    set_recipe(repository, **shared)
    train()
    one = [step[1] for step in losses()]
    set_recipe(repository, backend="nanotron", **shared)
    set_compute(repository, layout={"tp": 2})
    train()
    assert [step[1] for step in losses()] == pytest.approx(one, abs=1e-4)
    assert_exported()
    set_recipe(repository, backend="nanotron", precision="bf16", **shared)
    set_compute(repository, layout={"dp": 2, "micro_batch": 1})
    train()
    assert [step[1] for step in losses()] == pytest.approx(one, abs=0.02)
    assert_exported()


STAGE = "from stages.train.__main__ import main, run_stage\nrun_stage('train', main)"


def start() -> "subprocess.Popen[str]":
    pipe = subprocess.PIPE
    return subprocess.Popen([sys.executable, "-c", STAGE], stdout=pipe, stderr=pipe, text=True)


def whole_checkpoints() -> dict[int, Path]:
    """The folders of whole checkpoints by step."""
    return {int(path.parent.name): path.parent for path in Path(".store").glob("train/*/checkpoints/*/losses.csv")}


def wait_for_checkpoint(process: "subprocess.Popen[str]", after: int = 0) -> int:
    """The step of the first whole checkpoint after step `after`, once it is there."""
    end = time.monotonic() + 120
    while (step := max(whole_checkpoints(), default=0)) <= after:
        assert time.monotonic() < end and process.poll() is None, process.communicate()
        time.sleep(0.02)
    return step


def workers() -> list[int]:
    """Processes that train in this folder."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = path.read_bytes().split(b"\0")
        except OSError:
            continue
        if b"stages.train.nanotron.worker" in words and any(str(Path.cwd()).encode() in word for word in words):
            found.append(int(path.parent.name))
    return found


@pytest.mark.slow
@needs_nanotron
@pytest.mark.long  # test_training.py has a requeue and a dead driver
def test_a_training_that_was_killed_and_stopped_ends_with_the_same_digits(repository: Path) -> None:
    steps = {**TRAINING, "steps": 150, "batch": 4}
    set_recipe(repository, backend="nanotron", **steps, keep_last=2, keep_spacing=0.3)
    set_compute(repository, checkpoint_minutes=1e-6)
    train()
    whole, whole_weights = losses(), Path("models/train/seed-1/model.safetensors").read_bytes()
    kept = Path("models/train/seed-1/checkpoints/step-105/model.safetensors")
    whole_kept = kept.read_bytes()
    whole_metrics = Path("metrics/train.json").read_bytes()
    Path(".store").rename(".store-whole")

    process = start()
    first = wait_for_checkpoint(process)
    process.kill()  # the workers get no signal
    process.communicate()
    end = time.monotonic() + 60
    while workers():
        assert time.monotonic() < end, "workers outlive their stage"
        time.sleep(0.1)
    process = start()
    wait_for_checkpoint(process, after=max(first, *whole_checkpoints()))
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=120)
    assert process.returncode == ClusterError.status, err
    assert "stopped by a signal at step" in err and "going on from step" in err

    damaged = max(whole_checkpoints().items())[1]
    part = next(iter(sorted(damaged.glob("model/**/*.safetensors"))))
    os.truncate(part, part.stat().st_size - 8)
    with pytest.raises(
        ClusterError, match=rf"/{damaged.name}: {part.relative_to(damaged)} damaged.* goes on from step"
    ):
        train()
    shutil.rmtree(damaged)
    assert 0 < max(whole_checkpoints()) < int(damaged.name)
    summary = train()
    assert "resumed at step" in summary
    assert losses() == whole  # every digit
    assert Path("models/train/seed-1/model.safetensors").read_bytes() == whole_weights
    assert kept.read_bytes() == whole_kept != whole_weights
    assert Path("metrics/train.json").read_bytes() == whole_metrics
    assert not workers()


@pytest.mark.slow
@pytest.mark.long
@needs_nanotron
def test_a_training_goes_on_on_another_layout(repository: Path) -> None:
    recipe = {**TRAINING, "steps": 40, "batch": 4, "architecture": SHAPE | {"tied_embeddings": True}}
    set_recipe(repository, **recipe)
    train()
    one = [step[1] for step in losses()]
    set_recipe(repository, backend="nanotron", **recipe)
    before = 0
    for layout in ({"pp": 2}, {"dp": 2, "micro_batch": 2}):
        set_compute(repository, checkpoint_minutes=1e-6, layout=layout)
        process = start()
        wait_for_checkpoint(process, after=before)
        process.send_signal(signal.SIGTERM)
        _, err = process.communicate(timeout=120)
        assert process.returncode == ClusterError.status, err
        before = max(whole_checkpoints())
    set_compute(repository, layout={"tp": 2})
    summary = train()
    assert f"resumed at step {before}" in summary
    assert [step[1] for step in losses()] == pytest.approx(one, abs=1e-4)
    assert_exported()


@pytest.mark.slow
@pytest.mark.long
@needs_nanotron
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile on a CPU needs g++")
def test_compiled_kernels_change_the_losses_by_rounding_alone(repository: Path) -> None:
    set_recipe(repository, backend="nanotron", **TRAINING)
    train()
    plain = losses()
    set_compute(repository, compile=True)
    Path(".store").rename(".store-plain")
    train()
    for (step, loss, _, norm), (_, other, _, other_norm) in zip(losses(), plain, strict=True):
        assert (loss, norm) == (pytest.approx(other, abs=1e-5), pytest.approx(other_norm, abs=1e-4)), step
    assert [step[3] for step in losses()] != [step[3] for step in plain]  # other kernels did run
    assert_exported()


@pytest.mark.slow
@needs_nanotron
def test_a_loss_that_is_no_number_stops_with_the_step(repository: Path) -> None:
    set_recipe(repository, backend="nanotron", **{**TRAINING, "learning_rate": 1e38, "gradient_clip": 1e30})
    with pytest.raises(ConfigError, match=r"norm nan at step 3 of 12; look at .* lower train.learning_rate"):
        train()


PATCHES = ROOT / "tests/support/nanotron_patches.py"


@pytest.fixture(scope="module")
def without_patches(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """What happened without each patch (tests/support/nanotron_patches.py); those need $COSMO_LONG."""
    if not NANOTRON.exists():
        pytest.skip("no .nanotron; run `make nanotron`")
    folder = tmp_path_factory.mktemp("patches")
    done = subprocess.run(
        [str(NANOTRON), str(PATCHES), str(folder), *(["all"] if os.environ.get("COSMO_LONG") else [])],
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONPATH": f"{ROOT}", "OMP_NUM_THREADS": "1"},
        timeout=900,
    )
    assert done.returncode == 0, done.stderr
    return json.loads((folder / "found.json").read_text())


@pytest.mark.slow
@pytest.mark.long  # nanotron's version is pinned: they are for who raises it, or edits the patches
@pytest.mark.parametrize(
    ("left_out", "fails_with"),
    [
        ("", "well"),
        ("flash_attention", "flash_attn"),
        ("flash_rotary", "No module named 'flash_attn.layers'"),
        ("flash_norm", "No module named 'flash_attn.ops'"),
        ("cuda_calls", "_cuda_setDevice"),
        ("gloo", "CUDA was not found"),
        ("all_reduce", "requires grad"),
        ("rotary_buffer", "AssertionError"),
        ("pipeline", "CUDA"),
        ("device_names", "CUDA"),
        ("rate_after_resume", "other losses after the resume"),
        ("shard_metadata", "np.int64"),
        ("another_layout", "optimizer_pp-0-of-1_dp-0-of-2_tp-0-of-1_exp-0-of-1.pt"),
    ],
)
def test_without_a_patch_training_fails(left_out: str, fails_with: str, without_patches: dict[str, str]) -> None:
    assert fails_with in without_patches[left_out]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ("mistyped_key", "InternalError: nanotron does not recognise model_config as a Llama's: num_hiden_layers"),
        ("no_checkpoint", "ConfigError: {folder}/all/checkpoints/7 is no checkpoint of nanotron"),
    ],
)
def test_what_nanotron_would_ignore_is_refused(wrong: str, message: str, without_patches: dict[str, str]) -> None:
    assert message.partition("{folder}")[2] in without_patches[wrong]
    assert without_patches[wrong].startswith(message.partition("{folder}")[0])


def test_every_patch_is_tested() -> None:
    from stages.train.nanotron import patches

    (mark,) = (m for m in test_without_a_patch_training_fails.pytestmark if m.name == "parametrize")
    assert {name for name, _ in mark.args[1]} | {"compiled"} == {"", *patches.BEFORE, *patches.AFTER}


def test_another_version_of_nanotron_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    from stages.train.nanotron import patches

    monkeypatch.setattr(patches.importlib.metadata, "version", lambda _: "0.4")
    with pytest.raises(ConfigError, match=r"nanotron 0\.4 is installed .* made for 0\.2"):
        patches.load()
