"""nanotron on GPUs, in one go: correctness on a tiny model, then the 1B recipe's speed. For a bare CUDA machine.

    python -m perf.gpu_training                 # one GPU or more; about ten minutes
    python -m perf.gpu_training --wheels DIR    # packages that are missing come from wheels in DIR
    python -m perf.gpu_training --small         # every step of it on the CPU, to try the script itself

What it does, in order, each with its own line; nothing else has to be prepared:

1. what the machine has, and torch's bf16 rate on large matrices, which MFU is compared with
2. tiny: the loss falls; kill -9 after a checkpoint, resume, the losses next to an undisturbed run's; export, logits in
   fp32 next to nanotron's (1e-4)
3. the preset `1b` of params.yaml at several micro-batches, twenty steps each, and at the best of them with `compile`:
   tokens/s, MFU of the stated peak and of the measured rate
4. the best of all for `--steps` steps: loss, tokens/s (median of the second half), logits of the export

The corpus is made here (a noisy count, which a model can learn). Figures also go to `--out` as JSON; the last line is
a summary.
"""

import argparse
import importlib.util
import json
import os
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
NEEDED = (
    "nanotron==0.2",
    "dacite",
    "pydantic",
    "pyyaml",
    "numpy",
    "safetensors",
    "packaging",
    "tqdm",
    "pyarrow",
)
IMPORTED = {"nanotron==0.2": "nanotron", "pyyaml": "yaml"}
H100_TFLOPS = 989.4  # dense bf16 of an H100 SXM and an H200 (NVIDIA's data sheets)


def install(wheels: str | None, folder: Path) -> None:
    """Install what cannot be imported into a folder on the Python path."""
    missing = []
    for name in NEEDED:
        code = f"import importlib.util, sys; sys.exit(importlib.util.find_spec({IMPORTED.get(name, name)!r}) is None)"
        if subprocess.run([sys.executable, "-c", code]).returncode:
            missing.append(name)
    if missing:
        source = ["--no-index", "--find-links", wheels] if wheels else []
        options = ["--quiet", "--target", str(folder), *source]
        if "nanotron==0.2" in missing:  # it asks for a torch that is already here
            subprocess.run(
                [sys.executable, "-m", "pip", "install", "--no-deps", *options, "nanotron==0.2"], check=True
            )
            missing.remove("nanotron==0.2")
        if missing:
            subprocess.run([sys.executable, "-m", "pip", "install", *options, *missing], check=True)


def matmul_tflops(size: int, rounds: int) -> float:
    """torch's bf16 rate on square matrices, in TFLOPS."""
    import torch

    device = "cuda" if torch.cuda.is_available() else "cpu"
    a, b = (torch.randn(size, size, device=device, dtype=torch.bfloat16) for _ in range(2))

    def wait() -> None:
        if device == "cuda":
            torch.cuda.synchronize()

    for _ in range(3):
        a @ b
    wait()
    began = time.perf_counter()
    for _ in range(rounds):
        a @ b
    wait()
    return 2 * size**3 * rounds / (time.perf_counter() - began) / 1e12


def write_corpus(folder: Path, vocabulary: int, tokens: int) -> None:
    """Shards as the tokenise stage writes them."""
    import numpy as np

    size = 2 if vocabulary <= 1 << 16 else 4
    for split, count in (("train", tokens), ("validation", tokens // 50)):
        (folder / split).mkdir(parents=True)
        text = np.cumsum(np.random.default_rng(len(split)).integers(1, 4, count)) % vocabulary
        text.astype(f"<u{size}").tofile(folder / split / "00000_corpus.ds")
    splits = {s: {"tokens": n, "documents": 1} for s, n in (("train", tokens), ("validation", tokens // 50))}
    card = splits | {"vocab_size": vocabulary, "token_bytes": size, "eos": 0, "dataset_hash": "0" * 64}
    (folder / "corpus.json").write_text(json.dumps(card))


class Trial:
    """Trainings in a scratch folder."""

    def __init__(self, scratch: Path, packages: Path, processes: int, precision: str):
        self.scratch, self.processes, self.precision = scratch, processes, precision
        path = os.pathsep.join([str(ROOT), str(packages), *filter(None, [os.environ.get("PYTHONPATH")])])
        self.environment = os.environ | {"PYTHONPATH": path, "CUDA_DEVICE_MAX_CONNECTIONS": "1"}

    def prepare(
        self,
        name: str,
        preset: str,
        changes: dict[str, Any],
        checkpoint_seconds: float = 1e9,
        compiled: bool = False,
    ) -> Path:
        """A job's folder."""
        from cosmopedia.core.params import read_yaml
        from cosmopedia.execution.compute import Layout
        from stages.train.nanotron.job import TrainingJob
        from stages.train.recipe import Recipe, Shared

        train = read_yaml(ROOT / "params.yaml")["train"]
        preset_values = train["presets"][preset]
        shape = preset_values["architecture"] | {"vocabulary": 32000} | changes.pop("architecture", {})
        tokens = self.scratch / f"tokens-{shape['vocabulary']}"
        if not tokens.exists():
            write_corpus(tokens, shape["vocabulary"], changes.pop("corpus", 20_000_000))
        changes.pop("corpus", None)
        shared = {name: train[name] for name in Shared.model_fields if name in train}
        shared |= {"backend": "nanotron", "preset": None, "seed": 1, "precision": self.precision}
        recipe = Recipe(**(shared | preset_values | changes | {"architecture": shape}))
        folder = self.scratch / name
        folder.mkdir()
        job = TrainingJob(
            recipe=recipe,
            layout=Layout(dp=self.processes),
            tokens=tokens,
            precision=self.precision,  # type: ignore[arg-type]
            checkpoint_seconds=checkpoint_seconds,
            peak_tflops=H100_TFLOPS,
            compile=compiled,
        )
        (folder / "job.json").write_text(job.model_dump_json())
        return folder

    def start(self, folder: Path) -> "subprocess.Popen[bytes]":
        command = [
            sys.executable,
            "-m",
            "torch.distributed.run",
            "--standalone",
            "--nproc-per-node",
            str(self.processes),
        ]
        with (folder / "log.txt").open("ab") as log:
            return subprocess.Popen(
                [*command, "-m", "stages.train.nanotron.worker", str(folder)],
                stdout=log,
                stderr=log,
                env=self.environment,
                start_new_session=True,
            )

    def run(self, folder: Path, may_fail: bool = False) -> bool:
        """Train to the end."""
        status = self.start(folder).wait()
        if status and not may_fail:
            text = (folder / "log.txt").read_text(errors="replace").splitlines()
            raise SystemExit(f"{folder.name} failed with status {status}:\n" + "\n".join(text[-40:]))
        return not status

    def kill_after_checkpoint(self, folder: Path) -> int:
        """Start, wait for a checkpoint, kill -9; the checkpoint's step."""
        process = self.start(folder)
        while not (checkpoints := list((folder / "checkpoints").glob("*/losses.csv"))):
            if process.poll() is not None:
                raise SystemExit(
                    f"{folder.name} ended before its first checkpoint:\n{(folder / 'log.txt').read_text()[-3000:]}"
                )
            time.sleep(0.05)
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        time.sleep(5)  # the workers die with it; the GPU's memory is given back
        return int(checkpoints[0].parent.name)


def steps_of(folder: Path) -> list[Any]:
    from stages.train.steps import read_steps

    return read_steps(folder / "steps.csv")


def median_speed(folder: Path) -> float:
    """Tokens/s, median over the second half of the steps."""
    steps = steps_of(folder)
    return statistics.median(step.tokens_per_second for step in steps[len(steps) // 2 :])


def logits_difference(folder: Path) -> float | None:
    """The exported model's logits against nanotron's, in fp32; None without transformers."""
    import torch
    from safetensors.torch import load_file

    from stages.train.init_weights import new_model
    from stages.train.nanotron.job import TrainingJob
    from stages.train.nanotron.weights import read_checkpoint

    if importlib.util.find_spec("transformers") is None:
        return None
    job = TrainingJob.model_validate_json((folder / "job.json").read_text())
    model = new_model(job.recipe, eos=0).eval()
    weights = read_checkpoint(folder / f"checkpoints/{job.recipe.steps}", job.recipe.architecture)
    model.load_state_dict({name: weight.float() for name, weight in weights.items()}, strict=False)
    known = load_file(folder / "probe.safetensors")
    with torch.no_grad():
        return (model(input_ids=known["ids"]).logits - known["logits"]).abs().max().item()


def tiny(trial: Trial, steps: int) -> dict[str, Any]:
    """Correctness on a model of a few million parameters."""
    shape = {"architecture": {"vocabulary": 4096, "heads": 4, "kv_heads": 2, "width": 256}, "steps": steps}
    shape |= {"corpus": 400_000, "warmup_steps": steps // 10}
    whole = trial.prepare("tiny-whole", "rehearsal", dict(shape))
    trial.run(whole)
    broken = trial.prepare("tiny-killed", "rehearsal", dict(shape), checkpoint_seconds=1e-3)
    at = trial.kill_after_checkpoint(broken)
    trial.run(broken)
    one, two = steps_of(whole), steps_of(broken)
    result = {
        "loss_first": one[0].loss,
        "loss_last": one[-1].loss,
        "killed_after_step": at,
        "largest_loss_difference_after_resume": max(abs(a.loss - b.loss) for a, b in zip(one, two, strict=True)),
        "logits_difference": logits_difference(broken),
    }
    assert one[-1].loss < one[0].loss - 0.5, "the loss did not fall"
    return result


def size(
    trial: Trial, preset: str, changes: dict[str, Any], micro: int, compiled: bool, rate: float
) -> dict[str, Any]:
    """Speed at a micro-batch; without figures where it does not fit."""
    from stages.train.nanotron.job import TrainingJob

    name = f"micro-{micro}{'-compiled' if compiled else ''}"
    batch = micro * trial.processes * 4
    shape = {"steps": 20, "warmup_steps": 5, "batch": batch, "micro_batch": micro, **changes}
    folder = trial.prepare(name, preset, shape, compiled=compiled)
    result: dict[str, Any] = {"micro_batch": micro, "compile": compiled}
    title = f"3. micro-batch {micro}{', compiled' if compiled else ''}"
    if trial.run(folder, may_fail=True):
        job = TrainingJob.model_validate_json((folder / "job.json").read_text())
        speed = median_speed(folder)
        tflops = speed * job.recipe.flops_per_token / trial.processes / 1e12
        result |= {"tokens_per_second": speed, "tflops": tflops}
        result |= {"mfu_stated": tflops / H100_TFLOPS, "mfu_measured": tflops / rate}
        mfu = f"MFU {tflops / H100_TFLOPS:.1%} of the stated peak, {tflops / rate:.1%} of the measured rate"
        print(f"{title}: {speed:,.0f} tokens/s, {tflops:.3g} TFLOPS per GPU, {mfu}", flush=True)
    else:
        end = "\n".join((folder / "log.txt").read_text(errors="replace").splitlines()[-5:])
        print(f"{title}: does not fit or fails: {end}", flush=True)
    shutil.rmtree(folder / "checkpoints", ignore_errors=True)
    return result


def fastest(sizes: list[dict[str, Any]]) -> dict[str, Any]:
    """The size with the most tokens/s."""
    return max(sizes, key=lambda one: one.get("tokens_per_second", 0))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--wheels", help="a folder of wheels, for a machine without a registry")
    parser.add_argument("--steps", type=int, default=200, help="of the 1B recipe (200)")
    parser.add_argument("--micro-batches", default="2,4,8,16", help="to try (2,4,8,16)")
    parser.add_argument("--processes", type=int, help="GPUs (all)")
    parser.add_argument("--out", type=Path, help="figures as JSON")
    parser.add_argument("--small", action="store_true", help="a tiny model in place of 1B, on the CPU if need be")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="gpu-training-") as name:
        scratch = Path(name)
        install(options.wheels, scratch / "packages")
        sys.path.insert(0, str(scratch / "packages"))
        import torch

        cuda = torch.cuda.is_available()
        if not cuda and not options.small:
            raise SystemExit("torch sees no GPU; --small tries the script on the CPU")
        processes = options.processes or (torch.cuda.device_count() if cuda else 1)
        device = torch.cuda.get_device_name(0) if cuda else "CPU"
        rate = statistics.median(matmul_tflops(8192 if cuda else 512, 50 if cuda else 5) for _ in range(3))
        print(f"1. {processes} x {device}, torch {torch.__version__}; bf16 matrices: {rate:.4g} TFLOPS", flush=True)
        trial = Trial(scratch, scratch / "packages", processes, "bf16")
        figures: dict[str, Any] = {
            "device": device,
            "processes": processes,
            "torch": torch.__version__,
            "tflops": rate,
        }
        figures["tiny"] = tiny(trial, 60 if options.small else 200)
        print(
            "2. tiny: " + ", ".join(f"{k} {v:.4g}" if v is not None else f"{k} -" for k, v in figures["tiny"].items()),
            flush=True,
        )
        preset, changes = ("rehearsal", {"architecture": {"vocabulary": 4096}}) if options.small else ("1b", {})
        micro = [1, 2] if options.small else [int(size) for size in options.micro_batches.split(",")]
        figures["sizes"] = [size(trial, preset, dict(changes), one, False, rate) for one in micro]
        if "tokens_per_second" not in (best := fastest(figures["sizes"])):
            raise SystemExit("no micro-batch could be trained; see above")
        figures["sizes"].append(size(trial, preset, dict(changes), best["micro_batch"], True, rate))
        best = fastest(figures["sizes"])
        steps = 20 if options.small else options.steps
        batch = best["micro_batch"] * processes * 8
        folder = trial.prepare(
            "long",
            preset,
            {
                "steps": steps,
                "warmup_steps": steps // 5,
                "batch": batch,
                "micro_batch": best["micro_batch"],
                **changes,
            },
            compiled=best["compile"],
        )
        trial.run(folder)
        one = steps_of(folder)
        speed = median_speed(folder)
        mfu = best["mfu_stated"] * speed / best["tokens_per_second"]
        figures["long"] = {
            "steps": steps,
            "loss_first": one[0].loss,
            "loss_last": one[-1].loss,
            "tokens_per_second": speed,
            "mfu_stated": mfu,
            "logits_difference": logits_difference(folder),
        }
        print(
            "4. " + ", ".join(f"{k} {v:.4g}" if v is not None else f"{k} -" for k, v in figures["long"].items()),
            flush=True,
        )
        if options.out:
            options.out.write_text(json.dumps(figures, indent=2) + "\n")
        what = "tiny" if options.small else "1B"
        logits = figures["tiny"]["logits_difference"] or 0
        print(
            f"summary: {what} on {processes} x {device}, micro-batch {best['micro_batch']}"
            f"{', compiled' if best['compile'] else ''}: {speed:,.0f} tokens/s, MFU {mfu:.1%} of {H100_TFLOPS:g}"
            f" TFLOPS, loss {one[0].loss:.2f} -> {one[-1].loss:.2f}, logits within {logits:.1g}"
        )


if __name__ == "__main__":
    main()
