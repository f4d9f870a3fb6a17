"""The generator of the profile smoke: a tiny Llama and its tokenizer, trained on demonstrations in a minute.

First on the texts alone, `<s>{text}</s>`, then on the demonstrations, `<s>[INST] {prompt} [/INST]{text}</s>`: a prompt
is longer than its text, so this way the same minutes hold more passes over the texts. The loss counts only the texts'
tokens. On one kind of processor, equal demonstrations and settings give equal bytes.
"""

import contextlib
import ctypes
import math
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import Field

from cosmopedia.core.lineage import hash_files
from cosmopedia.core.params import Params
from cosmopedia.cpu_features import quick_in_bf16
from cosmopedia.execution.progress import Progress
from cosmopedia.lean_imports import import_transformers
from stages.generator.demonstrations import Example, encode, plan_batches, read_demonstrations, train_tokenizer
from stages.generator.muon import Muon

if TYPE_CHECKING:
    import torch
    from transformers import LlamaForCausalLM

IGNORED = -100  # target of a position that only fills up a shape
FINAL_STEPS = 20  # over which the final loss is averaged


class TinyLlama(Params):
    """Shape and training of the model."""

    demonstrations: str  # JSON lines {"prompt", "text"}
    seed: int
    vocabulary: int = Field(ge=261)  # 256 bytes and the five special tokens at least
    hidden: int = Field(ge=8)
    intermediate: int = Field(ge=8)
    layers: int = Field(ge=1)
    heads: int = Field(ge=1)
    kv_heads: int = Field(ge=1)
    text_epochs: int = Field(ge=0)  # passes over the texts alone
    epochs: int = Field(ge=1)  # passes over the demonstrations, after that
    batch_tokens: int = Field(ge=64)
    learning_rate: float = Field(gt=0)  # of the layers' matrices (Muon)
    muon_iterations: int = Field(ge=1)  # Newton-Schulz iterations per step
    embedding_learning_rate: float = Field(gt=0)
    warmup: float = Field(ge=0, lt=1)
    weight_decay: float = Field(ge=0)


def train(settings: TinyLlama, max_length: int, out: Path) -> tuple[str, dict[str, Any], list[float]]:
    """Train tokenizer and model into `out`; (revision, metrics, loss of each step)."""
    rows = read_demonstrations(settings.demonstrations)
    tokenizer = train_tokenizer(rows, settings.vocabulary, max_length)
    batches = plan_training(encode(rows, tokenizer, max_length), settings)
    tokens = sum(len(example.ids) for batch in batches for example in batch)
    with Progress("generator", tokens, "tokens") as progress:
        model, losses = train_model(
            batches,
            tokenizer,
            settings,
            max_length,
            lambda batch, loss: progress.advance(sum(len(e.ids) for e in batch), loss=f"{loss:.2f}"),
        )
    tokenizer.save_pretrained(out)
    model.save_pretrained(out)
    final = losses[-FINAL_STEPS:]
    metrics = {
        "parameters": sum(p.numel() for p in model.parameters()),
        "vocabulary": len(tokenizer),
        "demonstrations": len(rows),
        "steps": len(losses),
        "tokens": tokens,
        "text_tokens": sum(len(e.ids) - e.start for batch in batches for e in batch),
        "final_loss": sum(final) / len(final),
    }
    return hash_files([out / "model.safetensors", out / "tokenizer.json"]), metrics, losses


def plan_training(examples: list[Example], settings: TinyLlama) -> list[list[Example]]:
    """The batches of the whole training, in order: the texts alone, then the demonstrations with their prompts."""
    texts = [Example([example.ids[0], *example.ids[example.start :]], 1) for example in examples]
    batches = []
    for epoch in range(settings.text_epochs + settings.epochs):
        rows = texts if epoch < settings.text_epochs else examples
        indices = plan_batches([len(row.ids) for row in rows], settings.batch_tokens, settings.seed, epoch)
        batches += [[rows[i] for i in batch] for batch in indices]
    return batches


def collate(examples: list[Example], pad: int) -> "tuple[torch.Tensor, torch.Tensor]":
    """(ids, which of them belong to a text), both of shape [rows, longest], rounded up."""
    import torch

    longest = _rounded_up(max(len(example.ids) for example in examples), 32)
    ids = torch.full((len(examples), longest), pad)
    counted = torch.zeros(len(examples), longest, dtype=torch.bool)
    for row, example in enumerate(examples):
        ids[row, : len(example.ids)] = torch.tensor(example.ids)
        counted[row, example.start : len(example.ids)] = True
    return ids, counted


def text_loss(model: "LlamaForCausalLM", ids: "torch.Tensor", counted: "torch.Tensor") -> "torch.Tensor":
    """Summed cross-entropy of the counted tokens, in nats."""
    import torch

    hidden = model.model(input_ids=ids, use_cache=False).last_hidden_state  # right padding: causal attention is enough
    positions = counted[:, 1:].flatten().nonzero().flatten()
    targets = torch.full((_rounded_up(len(positions), 128),), IGNORED)
    targets[: len(positions)] = ids[:, 1:].flatten()[positions]
    positions = torch.cat([positions, positions.new_zeros(len(targets) - len(positions))])
    logits = model.lm_head(hidden[:, :-1].flatten(0, 1)[positions])
    return torch.nn.functional.cross_entropy(logits.float(), targets, reduction="sum", ignore_index=IGNORED)


def _rounded_up(length: int, unit: int) -> int:
    """To a multiple: oneDNN keeps compiled code for each shape that it meets, 1.3 GB of it without rounding."""
    return -(-length // unit) * unit


def keep_freed_memory() -> None:
    """Tell glibc to keep large freed blocks: fresh pages for every tensor cost a tenth of a CPU step."""
    with contextlib.suppress(AttributeError, OSError):
        libc = ctypes.CDLL(None)
        libc.mallopt(-3, 1 << 30)  # M_MMAP_THRESHOLD
        libc.mallopt(-1, (1 << 31) - 1)  # M_TRIM_THRESHOLD


def train_model(
    batches: list[list[Example]],
    tokenizer: Any,
    settings: TinyLlama,
    max_length: int,
    on_step: Callable[[list[Example], float], None],
) -> "tuple[LlamaForCausalLM, list[float]]":
    """(model in float32, loss of each step); `on_step(batch, loss)` is called after each.

    The layers' matrices learn by Muon, embedding and norms by AdamW: after 638,000 tokens Muon had a loss of 3.5 on
    the texts and AdamW of 4.9 (both untuned, and equal on held-out texts: here the texts are to be learnt by heart).
    bfloat16 autocast where that is faster.

    Each batch is split in two, and each half runs in a thread of its own on one core: operators that are spread over
    two cores wait for each other hundreds of times per step, which a busy machine turns into minutes. So the bytes do
    not depend on the number of cores.
    """
    import torch

    import_transformers()
    from transformers import LlamaConfig, LlamaForCausalLM

    keep_freed_memory()
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    torch.manual_seed(settings.seed)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=settings.hidden,
        intermediate_size=settings.intermediate,
        num_hidden_layers=settings.layers,
        num_attention_heads=settings.heads,
        num_key_value_heads=settings.kv_heads,
        max_position_embeddings=max_length,
        tie_word_embeddings=True,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        attn_implementation="eager",  # on a CPU its backward pass takes a third of the fused kernel's time
    )
    model = LlamaForCausalLM(config).train()
    replica = LlamaForCausalLM(config).train()
    for mine, other in zip(model.parameters(), replica.parameters(), strict=True):
        other.data = mine.data  # one set of weights, two sets of gradients
    matrices = [p for p in model.model.layers.parameters() if p.ndim == 2]
    others = [p for p in model.parameters() if all(p is not m for m in matrices)]
    rate = settings.embedding_learning_rate
    adam = torch.optim.AdamW(others, rate, betas=(0.9, 0.95), weight_decay=0.0, fused=True)
    muon = Muon(matrices, settings.muon_iterations, 0.95, settings.weight_decay)
    bf16 = quick_in_bf16()

    def backward(learner: LlamaForCausalLM, examples: list[Example], count: int) -> float:
        torch.set_num_threads(1)
        learner.zero_grad()
        if not examples:
            return 0.0
        ids, counted = collate(examples, tokenizer.pad_token_id)
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=bf16):
            loss = text_loss(learner, ids, counted) / count
        loss.backward()
        return loss.item()

    losses = []
    with ThreadPoolExecutor(1) as second_core:
        for step, batch in enumerate(batches):
            count = sum(len(example.ids) - example.start for example in batch)
            second_half = second_core.submit(backward, replica, batch[1::2], count)
            loss = backward(model, batch[::2], count) + second_half.result()
            if len(batch) > 1:
                for mine, other in zip(model.parameters(), replica.parameters(), strict=True):
                    mine.grad.add_(other.grad)  # type: ignore[union-attr, arg-type]
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            share = one_cycle(step / len(batches), settings.warmup)
            adam.param_groups[0]["lr"] = rate * share
            adam.step()
            muon.step(settings.learning_rate * share)
            losses.append(loss)
            on_step(batch, loss)
    torch.set_num_threads(threads)
    return model.eval(), losses


def one_cycle(done: float, warmup: float) -> float:
    """Share of the peak learning rate at a share of the training: a line up, then half a cosine down to 0."""
    if done < warmup:
        return 0.04 + 0.96 * done / warmup
    return 0.5 * (1 + math.cos(math.pi * (done - warmup) / (1 - warmup)))
