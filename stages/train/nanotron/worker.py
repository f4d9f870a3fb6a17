"""One process of a nanotron training, under torchrun: python -m stages.train.nanotron.worker <job's folder>

In: the folder's job.json and the token shards. Out: steps.csv, checkpoints, result.json (see job.py).
The batches are those of the transformers trainer, whatever the layout: the positions of a step are dealt out to the
data-parallel ranks, so that no window is seen twice or left out. Begins from the newest whole checkpoint.
"""

# pyright: reportMissingImports=false, reportAttributeAccessIssue=false
# nanotron has its own environment, which the type checker does not see

import ctypes
import json
import math
import os
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

import torch

from cosmopedia.core.errors import ConfigError, CosmoError, DataError, errors_as_sentences
from stages.train import checkpoints
from stages.train.checkpoints import LOSSES
from stages.train.init_weights import initial_weight, shapes
from stages.train.messages import is_out_of_memory, no_number
from stages.train.nanotron import patches
from stages.train.nanotron.config import check, render, write
from stages.train.nanotron.job import TrainingJob, latest_checkpoint, write_error, write_json
from stages.train.nanotron.weights import to_nanotron
from stages.train.steps import Step, read_steps, step_line, write_steps
from stages.train.windows import TokenShards, WindowOrder, read_corpus

KEPT_CHECKPOINTS = 2
PROBE = 64  # tokens of the fixed input
PROBE_FILE = "probe.safetensors"
GO_ON, SAVE, STOP = 0, 1, 2  # what rank 0 tells all processes after a step


class Stopped(Exception):
    """A checkpoint was written because the end was requested."""


def positions(step: int, job: TrainingJob, dp_rank: int, micro: int) -> range:
    """Positions in the training of one micro-batch: step from 0, data-parallel rank, number of the micro-batch."""
    start = step * job.recipe.batch + (micro * job.layout.dp + dp_rank) * job.micro_batch
    return range(start, start + job.micro_batch)


def block(windows: list[Any]) -> dict[str, torch.Tensor]:
    """A micro-batch as nanotron takes it, each [micro_batch, sequence]: ids and next tokens, without masking."""
    import numpy as np

    tokens = torch.from_numpy(np.stack(windows))
    ids, labels = tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous()
    mask = torch.ones_like(ids, dtype=torch.bool)
    return {"input_ids": ids, "input_mask": mask, "label_ids": labels, "label_mask": mask}


def batches(
    job: TrainingJob, shards: TokenShards, order: WindowOrder, dp_rank: int, first: int
) -> Iterator[dict[str, torch.Tensor]]:
    """The micro-batches of one data-parallel rank from step `first` (from 0) to the end."""
    for step in range(first, job.recipe.steps):
        for micro in range(job.accumulation):
            yield block([shards.window(order[position]) for position in positions(step, job, dp_rank, micro)])


def for_its_stage(data: dict[str, Any], trainer: Any) -> dict[str, Any]:
    """A micro-batch as one stage of a pipeline takes it: what another stage reads is a pointer to that stage."""
    from nanotron import distributed as dist
    from nanotron.parallel.pipeline_parallel.tensor_pointer import TensorPointer

    model, mine = trainer.unwrapped_model, dist.get_rank(trainer.parallel_context.pp_pg)
    readers = {"input": model.input_pp_rank, "label": model.output_pp_rank}
    stages = {name: readers[name.partition("_")[0]] for name in data}
    return {name: data[name] if stage == mine else TensorPointer(group_rank=stage) for name, stage in stages.items()}


def build(job: TrainingJob, folder: Path, checkpoint: Path | None, config: str) -> Any:
    """nanotron's trainer with our initial weights, step log and checkpoints. nanotron must be loaded."""
    from nanotron import distributed as dist
    from nanotron.models.llama import LlamaForTraining
    from nanotron.trainer import DistributedTrainer

    recipe = job.recipe

    class Llama(LlamaForTraining):
        """Begins from the weights that the transformers trainer begins from, whatever the layout."""

        @torch.no_grad()
        def init_model_randomly(self, **_: Any) -> None:
            sizes = shapes(recipe.architecture)
            for name, param in self.get_named_params_with_correct_tied():
                whole = to_nanotron(
                    name, lambda part: initial_weight(recipe.seed, part, sizes[part]), recipe.architecture
                )
                if param.is_sharded:  # type: ignore[attr-defined]
                    for pair in param.get_sharded_info().local_global_slices_pairs:  # type: ignore[attr-defined]
                        param[pair.local_slices].copy_(whole[pair.global_slices])
                else:
                    param.copy_(whole)

    class Trainer(DistributedTrainer):
        """Records every step; writes checkpoints by time, on request and at the end; stops on request."""

        def post_init(self) -> None:
            check(self.config, checkpoint)
            self.steps = read_steps(checkpoint / LOSSES) if checkpoint else []
            if len(self.steps) != self.start_iteration_step:
                raise DataError(
                    f"{checkpoint} is of step {self.start_iteration_step}, but its {LOSSES} has {len(self.steps)}"
                    " steps; remove it and go on from the one before"
                )
            self.rank = dist.get_rank(self.parallel_context.world_pg)
            self.saved, self.interval = time.monotonic(), job.checkpoint_seconds
            if self.rank == self.logger_ranks[0]:
                write_steps(folder / "steps.csv", self.steps)

        def training_step(self, dataloader: Any) -> Any:
            self.rate = self.optimizer.get_base_optimizer().param_groups[0]["lr"]
            return super().training_step(dataloader)

        def train_step_logs(self, outputs: Any, loss_avg: torch.Tensor | None) -> None:
            """Called by nanotron after each step."""
            if loss_avg is not None:
                self._record(loss_avg.item())
            if order := self._decide():
                self._save()
            if order == STOP:
                raise Stopped

        def _record(self, loss: float) -> None:
            norm, seconds = float(self.grad_norm_unclipped), time.time() - self.iteration_start_time
            if not (math.isfinite(loss) and math.isfinite(norm)):
                raise NotANumber(self.iteration_step, loss, norm)
            speed = recipe.batch * recipe.sequence / seconds
            mfu = None
            if job.peak_tflops:
                mfu = speed * recipe.flops_per_token / (job.peak_tflops * 1e12 * job.layout.processes)
            step = Step(self.iteration_step, loss, self.rate, norm, seconds, speed, mfu)
            self.steps.append(step)
            if self.rank == self.logger_ranks[0]:
                with (folder / "steps.csv").open("a", encoding="utf-8") as stream:
                    stream.write(step_line(step))

        def _decide(self) -> int:
            """Whether all processes save or stop now; rank 0 decides."""
            order = GO_ON
            if self.rank == 0:
                if (folder / "stop").exists() and self.iteration_step < recipe.steps:
                    order = STOP
                elif (
                    self.iteration_step in (*job.kept, recipe.steps) or time.monotonic() - self.saved >= self.interval
                ):
                    order = SAVE
            decision = torch.tensor(order, device="cuda")
            dist.broadcast(decision, 0)
            return int(decision)

        def _save(self) -> None:
            started = time.monotonic()
            path = self.save_checkpoint()
            dist.barrier(self.parallel_context.world_pg)
            hashes = self._hashes(path)
            if self.rank == self.logger_ranks[0]:
                checkpoints.write_contents(path, hashes)
                write_steps(path / LOSSES, self.steps)
                whole = {int(path.parent.name): path for path in (folder / "checkpoints").glob("*/" + LOSSES)}
                for step in sorted(whole)[:-KEPT_CHECKPOINTS]:
                    if step not in job.kept:
                        whole[step].unlink()  # from here on the checkpoint does not count
                        shutil.rmtree(whole[step].parent)
            self.saved = time.monotonic()
            self.interval = max(job.checkpoint_seconds, 50 * (self.saved - started))  # at most 2% of the time

        def _hashes(self, path: Path) -> dict[str, str]:
            """The hash of every file of a checkpoint; each process reads its share of them."""
            world = self.parallel_context.world_pg
            names: list[Any] = [checkpoints.names(path) if self.rank == 0 else None]
            dist.broadcast_object_list(names, 0, group=world)
            parts: list[Any] = [None] * world.size()
            dist.all_gather_object(parts, checkpoints.hashes(path, names[0][self.rank :: world.size()]), group=world)
            return {name: value for part in parts for name, value in part.items()}

        def setup_log_writers(self) -> None:
            return None

    return Trainer(config, model_class=Llama)


class NotANumber(Exception):
    """The loss or the gradient is no longer a number."""

    def __init__(self, step: int, loss: float, norm: float):
        super().__init__(step, loss, norm)
        self.step, self.loss, self.norm = step, loss, norm


@torch.no_grad()
def forward(trainer: Any, ids: torch.Tensor) -> torch.Tensor:
    """Logits [batch, sequence, vocabulary] in fp32 of ids [batch, sequence], joined over tensor-parallel ranks."""
    from nanotron import distributed as dist

    ids = ids.to("cuda")
    sharded = trainer.unwrapped_model.model(input_ids=ids, input_mask=torch.ones_like(ids, dtype=torch.bool))
    group = trainer.parallel_context.tp_pg
    if group.size() > 1:
        parts = [torch.empty_like(sharded) for _ in range(group.size())]
        dist.all_gather(parts, sharded.contiguous(), group=group)
        sharded = torch.cat(parts, -1)
    return sharded.transpose(0, 1).float()


def validate(trainer: Any, job: TrainingJob, shards: TokenShards) -> tuple[float | None, int]:
    """Mean loss in nats per token over every whole window of a split (None: it has none), and the number of tokens."""
    from nanotron import distributed as dist
    from torch.nn import functional

    group = trainer.parallel_context.dp_pg
    sums = torch.zeros(2, dtype=torch.float64)
    mine = range(dist.get_rank(group), shards.windows, group.size())
    for start in range(0, len(mine), job.micro_batch):
        data = block([shards.window(i) for i in mine[start : start + job.micro_batch]])
        logits, labels = forward(trainer, data["input_ids"]), data["label_ids"].to("cuda")
        sums[0] += functional.cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction="sum").item()
        sums[1] += labels.numel()
    sums = sums.to("cuda")
    dist.all_reduce(sums, group=group)
    total, tokens = sums.tolist()
    return (total / tokens if tokens else None), int(tokens)


def probe(vocabulary: int, sequence: int) -> torch.Tensor:
    """The fixed input on which exports are compared, [2, tokens]."""
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, vocabulary, (2, min(PROBE, sequence)), generator=generator)


def in_fp32(model: torch.nn.Module) -> None:
    """Compute in fp32 from here on: in bf16 rounding would hide a wrong order of rows."""
    from nanotron.models import llama

    for param in model.parameters():
        param.data = param.data.float()
    llama.flash_attn_varlen_func = patches.attention  # flash-attn has no fp32


def finish(trainer: Any, job: TrainingJob, folder: Path, validation: TokenShards) -> None:
    """Validation loss and the probe's logits; then result.json, which says that everything is there."""
    from safetensors.torch import save_file

    result: dict[str, Any] = {"validation_loss": None, "validation_tokens": 0, "probe": job.layout.pp == 1}
    trainer.model.eval()
    if job.layout.pp == 1:  # the stages of a pipeline cannot be run without its engine
        result["validation_loss"], result["validation_tokens"] = validate(trainer, job, validation)
        ids = probe(job.recipe.architecture.vocabulary, job.recipe.sequence)
        in_fp32(trainer.unwrapped_model)
        logits = forward(trainer, ids)
        if trainer.rank == 0:
            save_file({"ids": ids, "logits": logits.contiguous().cpu()}, folder / PROBE_FILE)
    if trainer.rank == trainer.logger_ranks[0]:
        write_json(folder / "result.json", result | {"checkpoint": f"checkpoints/{job.recipe.steps}"})


def run(folder: Path, without: Collection[str] = ()) -> str:
    """Train what job.json says; returns a line on how it went."""
    job = TrainingJob.model_validate(json.loads((folder / "job.json").read_text(encoding="utf-8")))
    threads = job.threads if torch.cuda.is_available() else job.recipe.cpu_threads
    if threads:
        torch.set_num_threads(threads)
    corpus = read_corpus(job.tokens)
    shards = TokenShards(job.tokens / "train", corpus.train, corpus, job.recipe.sequence)
    validation = TokenShards(job.tokens / "validation", corpus.validation, corpus, job.recipe.sequence)
    order = WindowOrder(shards.windows, job.recipe.seed)
    patches.load(without, job.compile)
    from nanotron import distributed as dist

    first = os.environ["RANK"] == "0"
    checkpoint = latest_checkpoint(folder, tidy=first)
    if checkpoint:
        checkpoints.check(checkpoint, int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"]))
    config = render(job, folder, corpus.eos, checkpoint)
    if first:
        write(folder / "config.yaml", config)  # for people; every process reads a copy of its own, so that none waits
    with tempfile.NamedTemporaryFile("w", suffix=".yaml") as own:
        write(Path(own.name), config)
        trainer = build(job, folder, checkpoint, own.name)
    if trainer.start_iteration_step < job.recipe.steps:
        data = batches(job, shards, order, dist.get_rank(trainer.parallel_context.dp_pg), trainer.start_iteration_step)
        try:
            trainer.train(for_its_stage(micro, trainer) for micro in data)
        except NotANumber as error:
            raise ConfigError(no_number(job.recipe, shards, order, error.step, error.loss, error.norm)) from None
        except Stopped:
            return f"stopped at step {trainer.iteration_step} of {job.recipe.steps}, with a checkpoint"
    finish(trainer, job, folder, validation)
    dist.barrier()
    return f"{job.recipe.steps} steps"


def out_of_memory(job_file: Path, error: Exception) -> ConfigError:
    """What to say when memory ran out."""
    job = TrainingJob.model_validate(json.loads(job_file.read_text(encoding="utf-8")))
    return ConfigError(
        f"out of memory with micro_batch {job.micro_batch} and sequence {job.recipe.sequence}: lower"
        " training.layout.micro_batch in the compute file (null: train.micro_batch), or raise its tp;"
        f" {' '.join(str(error).split())[:200]}"
    )


def _end_with_torchrun() -> None:
    """Die when torchrun dies, also if that is killed (1 = PR_SET_PDEATHSIG)."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)


def main() -> str:
    folder = Path(sys.argv[1])
    _end_with_torchrun()
    try:
        return run(folder)
    except CosmoError as error:
        write_error(folder, error)
        raise
    except Exception as error:
        if not is_out_of_memory(error):
            raise  # its traceback is in the log
        explained = out_of_memory(folder / "job.json", error)
        write_error(folder, explained)
        raise explained from None


if __name__ == "__main__":
    with errors_as_sentences("train: "):
        print(f"train: {main()}", flush=True)
