"""A Llama trained by transformers' Trainer, on the CPU or on one GPU, through any number of kills.

Checkpoints are outside DVC's outs, in `<store>/train/<key>`. A checkpoint counts only when its loss log, written last,
is there, so a kill during its writing costs no more than the steps since the one before. A resumed training gives the
same losses and weights as an undisturbed one: the order of the windows is a function of (seed, position), and the
optimiser, the schedule and the random state are restored.

On the CPU three things are computed differently, with the same result except for rounding: attention over short
windows as plain matrix products (`causal_products`), the loss one piece of the logits at a time (`PieceLoss`), and
each micro-batch in parts, one per thread. For a Llama of 3.4M parameters in bf16 (perf/training.py) the first two save
a quarter of the CPU time, and the third keeps the cores busy.
"""

import math
import os
import shutil
import signal
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch.nn import functional
from torch.utils.data import Dataset, SequentialSampler
from transformers import (
    AttentionInterface,
    LlamaForCausalLM,
    PrinterCallback,
    Trainer,
    TrainingArguments,
)

from cosmopedia.core.errors import ClusterError, ConfigError
from cosmopedia.core.files import replacing
from cosmopedia.cpu_features import quick_in_bf16
from cosmopedia.execution.mlflow_run import Run
from cosmopedia.execution.progress import Progress
from cosmopedia.seeds import checkpoint_folder
from stages.train import checkpoints
from stages.train.checkpoints import LOSSES
from stages.train.cpu_kernels import PieceLoss, causal_products
from stages.train.init_weights import new_model
from stages.train.messages import is_out_of_memory, no_number
from stages.train.recipe import Recipe
from stages.train.steps import Step, Trained, read_steps, write_steps
from stages.train.windows import Corpus, TokenShards, WindowOrder

CHECKPOINT_SECONDS = 20.0  # at least this long between checkpoints,
CHECKPOINT_SHARE = 0.02  # and longer where writing one takes more than this share of the time
LONGEST_PRODUCT = 512  # tokens of a window up to which the scores of all pairs cost less than flash attention's blocks


def resolve_precision(wanted: Literal["auto", "bf16", "fp32"]) -> Literal["bf16", "fp32"]:
    """bf16 autocast where it is faster (CUDA from Ampere on, CPUs: `quick_in_bf16`), else fp32."""
    if wanted != "auto":
        return wanted
    if torch.cuda.is_available():
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp32"
    return "bf16" if quick_in_bf16() else "fp32"


def token_loss(
    outputs: Any, labels: torch.Tensor, num_items_in_batch: torch.Tensor | int | None = None
) -> torch.Tensor:
    """Mean cross-entropy over the tokens of the whole batch, in nats; `labels` are the next tokens, shifted."""
    logits = outputs["logits"] if isinstance(outputs, dict) else outputs.logits
    total = functional.cross_entropy(logits.float().flatten(0, 1), labels.flatten(), reduction="sum")
    return total / (labels.numel() if num_items_in_batch is None else num_items_in_batch)


AttentionInterface.register("causal_products", causal_products)


@contextmanager
def quick_attention(model: LlamaForCausalLM, sequence: int, precision: str) -> Iterator[None]:
    """The fastest attention for windows of `sequence` tokens on the model's device; afterwards the one from before."""
    before = model.config._attn_implementation or "sdpa"
    if model.device.type == "cpu" and precision == "bf16" and sequence <= LONGEST_PRODUCT:
        model.set_attn_implementation("causal_products")
    try:
        yield
    finally:
        model.set_attn_implementation(before)


@contextmanager
def enough_memory(micro_batch: int, sequence: int) -> Iterator[None]:
    """`ConfigError` naming train.micro_batch when the block runs out of memory, on the GPU or on the CPU."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        smaller = (
            f"lower train.micro_batch (now {micro_batch})" if micro_batch > 1 else "train.micro_batch is already 1"
        )
        raise ConfigError(
            f"train: out of memory in a forward pass over {micro_batch} x {sequence} tokens"
            f" ({' '.join(str(error).split())[:160] or type(error).__name__}); {smaller}, which changes the result"
            f" only by rounding, or train.sequence (now {sequence}) or the architecture, which do change it"
        ) from None


@torch.no_grad()
def validation_loss(model: LlamaForCausalLM, shards: TokenShards, batch: int, precision: str) -> tuple[float, int]:
    """Mean loss in nats per token over every whole window of a split (nan: it has none), and the number of tokens."""
    model.eval()
    total, tokens = 0.0, 0
    device = model.device
    for start in range(0, shards.windows, batch):
        rows = np.stack([shards.window(i) for i in range(start, min(start + batch, shards.windows))])
        block = torch.from_numpy(rows).to(device)
        with (
            enough_memory(batch, shards.sequence),
            torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16"),
        ):
            logits = model(input_ids=block[:, :-1], use_cache=False).logits
            loss = functional.cross_entropy(logits.float().flatten(0, 1), block[:, 1:].flatten(), reduction="sum")
        total += loss.item()
        tokens += block[:, 1:].numel()
    return (total / tokens if tokens else math.nan), tokens


class Windows(Dataset):
    """Position in the training -> inputs and next tokens; as long as the whole training."""

    def __init__(self, shards: TokenShards, order: WindowOrder, length: int):
        self.shards, self.order, self.length = shards, order, length

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, position: int) -> dict[str, torch.Tensor]:
        tokens = torch.from_numpy(self.shards.window(self.order[position]))
        return {"input_ids": tokens[:-1], "labels": tokens[1:]}


class WindowTrainer(Trainer):
    """A Trainer that takes the data in the order given, records each step, and writes checkpoints by time."""

    def __init__(self, recipe: Recipe, run: Run, steps: list[Step], kept: tuple[int, ...], **kwargs: Any):
        super().__init__(**kwargs)
        self.recipe, self.run, self.steps, self.kept = recipe, run, steps, kept
        self.first, self.terminated = len(steps), False
        self.began = self.saved = time.monotonic()
        self.interval = CHECKPOINT_SECONDS
        self.progress = Progress("train", recipe.steps - self.first, "steps")
        self._sum = 0.0
        parts = 1 if self.args.device.type != "cpu" else min(recipe.cpu_threads, recipe.micro_batch)
        self._parts = ThreadPoolExecutor(parts, initializer=lambda: torch.set_num_threads(1)) if parts > 1 else None

    @property
    def tokens_per_second(self) -> float:
        """Of this process."""
        done = (self.state.global_step - self.first) * self.recipe.batch * self.recipe.sequence
        return done / max(time.monotonic() - self.began, 1e-9)

    def _get_train_sampler(self, train_dataset: Any = None) -> SequentialSampler:
        return SequentialSampler(self.train_dataset if train_dataset is None else train_dataset)  # type: ignore[arg-type]

    def compute_loss(
        self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """`token_loss`; on the CPU without ever holding the logits of the whole batch."""
        if self.args.device.type != "cpu" or return_outputs:
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        llama, labels = self.accelerator.unwrap_model(model), inputs["labels"]
        dtype = torch.bfloat16 if self.args.bf16 else torch.float32
        with torch.autocast("cpu", torch.bfloat16, enabled=self.args.bf16):
            hidden = llama.model(input_ids=inputs["input_ids"], use_cache=False).last_hidden_state
        with torch.autocast("cpu", enabled=False):
            total = PieceLoss.apply(hidden, llama.lm_head.weight, labels, dtype)
        return total / (labels.numel() if num_items_in_batch is None else num_items_in_batch)

    def get_decay_parameter_names(self, model: Any) -> list[str]:
        """All weights decay, as in nanotron."""
        return [name for name, _ in model.named_parameters()]

    def training_step(self, model: Any, inputs: dict[str, Any], num_items_in_batch: Any = None) -> torch.Tensor:
        """One micro-batch. Its loss is a share of the step's: `token_loss` divides by all tokens of the batch."""
        if self._parts is None:
            loss = super().training_step(model, inputs, num_items_in_batch)
        else:
            loss = self._in_parts(self._parts, model, self._prepare_inputs(inputs), num_items_in_batch)
        self._sum += float(loss)
        return loss

    def _in_parts(
        self, pool: ThreadPoolExecutor, model: Any, inputs: dict[str, Any], num_items_in_batch: Any
    ) -> torch.Tensor:
        """A part of the micro-batch for each thread, computed on one core, and the sum of their gradients.

        So threads wait for each other once per micro-batch. When they share every operation they wait a thousand
        times: asleep, that takes a third of the time; spinning, they starve as soon as another process wants a core.
        """
        model.train()
        parameters = list(model.parameters())
        count = pool._max_workers

        def part(block: tuple[torch.Tensor, torch.Tensor]) -> tuple[torch.Tensor, tuple[torch.Tensor, ...]]:
            ids, labels = block
            loss = self.compute_loss(model, {"input_ids": ids, "labels": labels}, False, num_items_in_batch)
            return loss.detach(), torch.autograd.grad(loss, parameters)

        if num_items_in_batch is None:
            num_items_in_batch = inputs["labels"].numel()
        blocks = zip(inputs["input_ids"].chunk(count), inputs["labels"].chunk(count), strict=True)
        losses, gradients = zip(*pool.map(part, blocks), strict=True)
        for parameter, *parts in zip(parameters, *gradients, strict=True):
            total = parts[0]
            for gradient in parts[1:]:  # in the order of the parts, whichever was done first
                total = total.add_(gradient)
            parameter.grad = total if parameter.grad is None else parameter.grad.add_(total)
        return torch.stack(losses).sum()

    def _maybe_log_save_evaluate(self, tr_loss: Any, grad_norm: Any, *args: Any, **kwargs: Any) -> None:
        """Called after every optimiser step, and once more at the end of the data."""
        number = self.state.global_step
        if len(self.steps) == number:
            return
        loss, norm, rate = self._sum, float(grad_norm), float(kwargs["learning_rate"])
        self._sum = 0.0
        if not (math.isfinite(loss) and math.isfinite(norm)):
            data: Any = self.train_dataset
            raise ConfigError(no_number(self.recipe, data.shards, data.order, number, loss, norm))
        step = Step(number, loss, rate, norm, tokens_per_second=self.tokens_per_second)
        self.steps.append(step)
        self.progress.advance(1, **step.shown(self.recipe.steps))
        self.run.metrics(step.figures, step=number)
        if number in self.kept:  # before a checkpoint, so that a training that goes on from there has these weights
            self._keep(number)
        if self.terminated or (time.monotonic() - self.saved >= self.interval and number < self.recipe.steps):
            self.control.should_save = True
            self.control.should_training_stop |= self.terminated
        super()._maybe_log_save_evaluate(tr_loss, grad_norm, *args, **kwargs)

    def _keep(self, step: int) -> None:
        """Write the weights alone; after a kill the same bytes again."""
        model: Any = self.model
        with replacing(checkpoint_folder(Path(str(self.args.output_dir)), step)) as draft:
            model.save_pretrained(draft, safe_serialization=True)

    def _save_checkpoint(self, *args: Any, **kwargs: Any) -> None:
        started = time.monotonic()
        super()._save_checkpoint(*args, **kwargs)
        folder = Path(str(self.args.output_dir)) / f"checkpoint-{self.state.global_step}"
        checkpoints.write_contents(folder, checkpoints.hashes(folder, checkpoints.names(folder)))
        write_steps(folder / LOSSES, self.steps)
        self.saved = time.monotonic()
        self.interval = max(CHECKPOINT_SECONDS, (self.saved - started) / CHECKPOINT_SHARE)


def train(
    recipe: Recipe,
    model: LlamaForCausalLM,
    shards: TokenShards,
    folder: Path,
    precision: str,
    run: Run,
    kept: tuple[int, ...] = (),
) -> Trained:
    """Train `model` on `shards` for the recipe's steps, from the newest checkpoint in `folder` on.

    The weights after the `kept` steps are written to `folder` too.

    `ConfigError` when the loss stops being a number or memory runs out, `ClusterError` for a damaged checkpoint and
    after a SIGTERM, which writes a checkpoint first.
    """
    torch.set_num_threads(recipe.cpu_threads)
    checkpoint = checkpoints.latest(folder.glob("checkpoint-*"))
    if checkpoint:
        checkpoints.check(checkpoint)
    steps = read_steps(checkpoint / LOSSES) if checkpoint else []
    if checkpoint:
        print(f"train: going on from step {len(steps)} of {recipe.steps} ({checkpoint})", file=sys.stderr, flush=True)
    for step in steps:  # what the killed process had not sent to MLflow yet
        run.metrics(step.figures, step=step.step)
    order = WindowOrder(shards.windows, recipe.seed)
    trainer = WindowTrainer(
        recipe,
        run,
        steps,
        kept,
        model=model,
        args=arguments(recipe, folder, precision),
        train_dataset=Windows(shards, order, recipe.steps * recipe.batch),
        compute_loss_func=token_loss,
    )
    trainer.remove_callback(PrinterCallback)
    before = signal.signal(signal.SIGTERM, lambda *_: setattr(trainer, "terminated", True))
    try:
        memory = enough_memory(recipe.micro_batch, recipe.sequence)
        with trainer.progress, memory, quick_attention(model, recipe.sequence, precision):
            trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    finally:
        signal.signal(signal.SIGTERM, before)
    if trainer.terminated and trainer.state.global_step < recipe.steps:
        raise ClusterError(
            f"stopped by SIGTERM at step {trainer.state.global_step} of {recipe.steps}; run it again to go on"
        )
    return Trained(steps, trainer.first, trainer.tokens_per_second)


def arguments(recipe: Recipe, folder: Path, precision: str) -> TrainingArguments:
    """The recipe in the Trainer's terms."""
    os.environ.pop("ACCELERATE_MIXED_PRECISION", None)  # the Trainer sets it, and would read it before the recipe
    gpu = torch.cuda.is_available()
    return TrainingArguments(
        output_dir=str(folder),
        max_steps=recipe.steps,
        per_device_train_batch_size=recipe.micro_batch,
        gradient_accumulation_steps=recipe.batch // recipe.micro_batch,
        learning_rate=recipe.learning_rate,
        lr_scheduler_type="cosine_with_min_lr",
        lr_scheduler_kwargs={"min_lr_rate": recipe.final_rate_share},
        warmup_steps=recipe.warmup_steps,
        optim="adamw_torch_fused",
        adam_beta1=recipe.betas[0],
        adam_beta2=recipe.betas[1],
        adam_epsilon=recipe.epsilon,
        weight_decay=recipe.weight_decay,
        max_grad_norm=recipe.gradient_clip,
        bf16=precision == "bf16",
        tf32=False if gpu else None,
        use_cpu=not gpu,
        seed=recipe.seed,
        save_strategy="no",
        save_total_limit=2,
        logging_strategy="no",
        report_to=[],
        disable_tqdm=True,
        remove_unused_columns=False,
        dataloader_pin_memory=gpu,
    )


def fit(
    recipe: Recipe,
    kept: tuple[int, ...],
    corpus: Corpus,
    shards: TokenShards,
    validation: TokenShards,
    folder: Path,
    out: Path,
    precision: str,
    run: Run,
) -> Trained:
    """Train in `folder`, from the newest checkpoint on, and write the model to `out`, with the `kept` steps."""
    model = new_model(recipe, corpus.eos)
    trained = train(recipe, model, shards, folder, precision, run, kept)
    loss, tokens = validation_loss(model, validation, recipe.micro_batch, precision)
    model.save_pretrained(out, safe_serialization=True)
    for step in kept:
        shutil.copytree(checkpoint_folder(folder, step), checkpoint_folder(out, step))
    return replace(trained, validation_loss=loss if tokens else None, validation_tokens=tokens)
