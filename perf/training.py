"""What a step of the transformers trainer costs on the CPU, next to transformers' plain Trainer and a bare loop.

In: params.yaml (the preset `rehearsal`: 3.4M parameters, 8 x 256 tokens per step); tokens are drawn at random.
Out: a table of tokens/s and CPU seconds per thousand tokens, medians over the steps of several interleaved runs, and
one line with the key figures. A missed goal is printed and changes no status, since machines differ.
Run: python -m perf.training (about a minute on 2 cores), or smaller: python -m perf.training --runs 1 --steps 4
"""

import stages  # noqa: F401, I001 - before torch: it lets OpenMP's threads sleep, as they do in the stage

import argparse
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn import functional
from transformers import LlamaForCausalLM, Trainer, TrainerCallback, TrainingArguments

from cosmopedia.core.params import read_yaml
from stages.train import cpu_kernels, transformers_trainer
from stages.train.init_weights import new_model
from stages.train.recipe import Recipe, Shared
from stages.train.windows import Corpus, Split, TokenShards, WindowOrder

VOCABULARY = 4096
GOAL = 8000  # tokens/s of our trainer on two quiet cores
WARM = 2  # steps of every run that are not counted: memory is taken, kernels are chosen
TRAIN = read_yaml(Path("params.yaml"))["train"]
PRESET = TRAIN["presets"]["rehearsal"]
RECIPE: dict[str, Any] = {
    **{name: TRAIN[name] for name in Shared.model_fields if name in TRAIN},
    **PRESET,
    "backend": "transformers",
    "preset": None,
    "architecture": PRESET["architecture"] | {"vocabulary": VOCABULARY},
    "warmup_steps": 0,
    "seed": 1,
}
SEQUENCE, BATCH = PRESET["sequence"], PRESET["batch"]


@dataclass
class Clock:
    """Wall and CPU seconds of every step after the first `WARM`; also takes the place of the MLflow run."""

    wall: list[float] = field(default_factory=list)
    cpu: list[float] = field(default_factory=list)
    losses: list[float] = field(default_factory=list)
    _steps: int = 0
    _last: tuple[float, float] = (0.0, 0.0)

    def begin(self) -> None:
        """A new run."""
        self._steps = 0

    def metrics(self, values: dict[str, float], step: int = 0) -> None:
        """The end of a step."""
        now = (time.perf_counter(), time.process_time())
        self._steps += 1
        if self._steps > WARM:
            self.wall.append(now[0] - self._last[0])
            self.cpu.append(now[1] - self._last[1])
        self._last = now
        if "loss" in values:
            self.losses.append(values["loss"])


class Ticks(TrainerCallback):
    """Reports the Trainer's steps to a clock."""

    def __init__(self, clock: Clock):
        self.clock = clock

    def on_step_end(self, *_: Any, **__: Any) -> None:
        self.clock.metrics({})


def make_shards(folder: Path, steps: int) -> TokenShards:
    """Shards of random tokens, enough for `steps` steps without a repetition."""
    tokens = steps * BATCH * SEQUENCE + 1
    (folder / "train").mkdir()
    np.random.default_rng(0).integers(0, VOCABULARY, tokens).astype("<u2").tofile(folder / "train/000_train.ds")
    split = Split(tokens=tokens, documents=1)
    card = {"train": split, "validation": split, "vocab_size": VOCABULARY, "token_bytes": 2, "eos": 0}
    corpus = Corpus.model_validate(card | {"dataset_hash": ""})
    return TokenShards(folder / "train", split, corpus, SEQUENCE)


def ours(recipe: Recipe, model: LlamaForCausalLM, shards: TokenShards, folder: Path, clock: Clock) -> None:
    """The transformers trainer, with its bookkeeping."""
    precision = transformers_trainer.resolve_precision(recipe.precision)
    transformers_trainer.train(recipe, model, shards, folder, precision, clock)  # type: ignore[arg-type]


def trainer(**options: Any) -> Callable[[Recipe, LlamaForCausalLM, TokenShards, Path, Clock], None]:
    """transformers' Trainer as it comes, with the model's own loss, and with `options`."""

    def run(recipe: Recipe, model: LlamaForCausalLM, shards: TokenShards, folder: Path, clock: Clock) -> None:
        os.environ.pop("ACCELERATE_MIXED_PRECISION", None)  # a Trainer in bf16 leaves it to the next
        arguments = TrainingArguments(
            output_dir=str(folder),
            max_steps=recipe.steps,
            per_device_train_batch_size=recipe.batch,
            learning_rate=recipe.learning_rate,
            use_cpu=True,
            save_strategy="no",
            report_to=[],
            disable_tqdm=True,
            **options,
        )
        windows = [torch.from_numpy(shards.window(i)[:-1]) for i in range(shards.windows)]
        rows: Any = [{"input_ids": window, "labels": window} for window in windows]
        callbacks: Any = [Ticks(clock)]
        Trainer(model=model, args=arguments, train_dataset=rows, callbacks=callbacks).train()

    return run


def bare(quick: bool) -> Callable[[Recipe, LlamaForCausalLM, TokenShards, Path, Clock], None]:
    """Forward, backward, clip, step: with our attention and loss, or with the model's own and torch's."""

    def run(recipe: Recipe, model: LlamaForCausalLM, shards: TokenShards, folder: Path, clock: Clock) -> None:
        precision = transformers_trainer.resolve_precision(recipe.precision)
        half, dtype = precision == "bf16", torch.bfloat16 if precision == "bf16" else torch.float32
        order = WindowOrder(shards.windows, recipe.seed)
        optimizer = torch.optim.AdamW(model.parameters(), lr=recipe.learning_rate, fused=True)
        model.train()
        with transformers_trainer.quick_attention(model, SEQUENCE if quick else sys.maxsize, precision):
            for step in range(recipe.steps):
                positions = range(step * BATCH, (step + 1) * BATCH)
                block = torch.from_numpy(np.stack([shards.window(order[position]) for position in positions]))
                with torch.autocast("cpu", torch.bfloat16, enabled=half):
                    if quick:
                        hidden = model.model(input_ids=block[:, :-1]).last_hidden_state
                    else:
                        scores = model(input_ids=block[:, :-1]).logits.float().flatten(0, 1)
                        loss = functional.cross_entropy(scores, block[:, 1:].flatten())
                if quick:
                    head, labels = model.lm_head.weight, block[:, 1:]
                    total: torch.Tensor = cpu_kernels.PieceLoss.apply(hidden, head, labels, dtype)  # type: ignore
                    loss = total / (BATCH * SEQUENCE)
                loss.backward()
                torch.nn.utils.clip_grad_norm_(model.parameters(), recipe.gradient_clip)
                optimizer.step()
                optimizer.zero_grad()
                clock.metrics({"loss": loss.item()})

    return run


WAYS: dict[str, Callable[[Recipe, LlamaForCausalLM, TokenShards, Path, Clock], None]] = {
    "ours": ours,
    "Trainer": trainer(),
    "Trainer, bf16": trainer(bf16=True),
    "bare loop": bare(quick=False),
    "bare loop, our kernels": bare(quick=True),
}


def main() -> None:
    parser = argparse.ArgumentParser(description="Tokens/s of the transformers trainer next to others, on the CPU.")
    parser.add_argument("--runs", type=int, default=3, help="interleaved runs of each (default 3)")
    parser.add_argument("--steps", type=int, default=8, help="counted steps of a run (default 8)")
    chosen = parser.parse_args()
    os.environ["CUDA_VISIBLE_DEVICES"] = ""
    recipe = Recipe.model_validate(RECIPE | {"steps": chosen.steps + WARM})
    clocks = {name: Clock() for name in WAYS}
    with tempfile.TemporaryDirectory() as scratch:
        shards = make_shards(Path(scratch), recipe.steps)
        for run in range(chosen.runs):
            for name, way in WAYS.items():
                folder = Path(scratch) / f"{run}-{name}"
                folder.mkdir()
                clocks[name].begin()
                way(recipe, new_model(recipe, 0), shards, folder, clocks[name])
    report(clocks, transformers_trainer.resolve_precision(recipe.precision))


def report(clocks: dict[str, Clock], precision: str) -> None:
    """The table and the summary."""
    tokens = BATCH * SEQUENCE
    cpu = {name: statistics.median(clock.cpu) / tokens * 1000 for name, clock in clocks.items()}
    speed = {name: tokens / statistics.median(clock.wall) for name, clock in clocks.items()}
    best = {name: tokens / min(clock.wall) for name, clock in clocks.items()}
    print(f"\n{'':24} {'tokens/s':>9} {'best step':>10} {'CPU s/1,000':>12} {'CPU, ours = 1':>14}")
    for name in clocks:
        ratio = cpu[name] / cpu["ours"]
        print(f"{name:24} {speed[name]:9,.0f} {best[name]:10,.0f} {cpu[name]:12.3f} {ratio:14.2f}")
    apart = abs(clocks["ours"].losses[0] - clocks["bare loop"].losses[0])  # the same weights, the same batch
    missed = "" if speed["ours"] >= GOAL else f" (goal {GOAL:,})"
    print(
        f"\nsummary: {precision}, {torch.get_num_threads()} threads, load {os.getloadavg()[0]:.1f}:"
        f" ours {speed['ours']:,.0f} tokens/s{missed}, {cpu['ours']:.3f} CPU s per thousand;"
        f" Trainer takes {cpu['Trainer'] / cpu['ours']:.2f} times as much, in bf16"
        f" {cpu['Trainer, bf16'] / cpu['ours']:.2f}, a bare loop {cpu['bare loop'] / cpu['ours']:.2f},"
        f" with our kernels {cpu['bare loop, our kernels'] / cpu['ours']:.2f}; first losses {apart:.1e} apart"
    )


if __name__ == "__main__":
    main()
