"""The rehearsal's generator: a tiny Llama and its tokenizer, trained on demonstrations in about a minute.

First the distinct texts alone, `<s>{text}</s>`, then the demonstrations, `<s>[INST] {prompt} [/INST]{text}</s>`: a
prompt is as long as its text, so the same minute holds more passes over the texts this way. The loss counts the texts'
tokens only. Batches hold rows of nearly one length, so that little is padding. On one machine with one thread count,
equal demonstrations and settings give equal bytes.
"""

import contextlib
import ctypes
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pydantic import Field

from stages.draws import draw_u64
from stages.errors import DataError
from stages.seeds.reading import read_records
from stages.settings import Params

if TYPE_CHECKING:
    import torch
    from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

BOS, EOS, PAD, OPEN, CLOSE = SPECIAL = ("<s>", "</s>", "<pad>", "[INST]", "[/INST]")
CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}"
    "{% if message['role'] == 'user' %}{{ '[INST] ' + message['content'] + ' [/INST]' }}"
    "{% elif message['role'] == 'assistant' %}{{ message['content'] + eos_token }}"
    "{% else %}{{ raise_exception('only the roles user and assistant are known') }}{% endif %}"
    "{% endfor %}"
)


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
    text_epochs: float = Field(ge=0)  # passes over the distinct texts alone
    epochs: float = Field(gt=0)  # passes over the demonstrations, after that
    batch_tokens: int = Field(ge=64)
    learning_rate: float = Field(gt=0)  # of the layers' matrices (Muon)
    muon_iterations: int = Field(ge=1)  # Newton-Schulz iterations of a step
    embedding_learning_rate: float = Field(gt=0)
    warmup: float = Field(ge=0, lt=1)
    weight_decay: float = Field(ge=0)


@dataclass(frozen=True)
class Demonstration:
    """A prompt, the text that answers it, and where it stands ("file:line")."""

    place: str
    prompt: str
    text: str


@dataclass(frozen=True)
class Example:
    """Token ids of a demonstration; the text's begin at `start`."""

    ids: list[int]
    start: int


def read_demonstrations(path: str) -> list[Demonstration]:
    """The rows of a JSONL file. `DataError` names the file and line of a malformed one."""
    rows = []
    for record in read_records(path, None, None, None)[0]:
        if record.problem:
            raise DataError(f"{record.place}: {record.problem}; mend the line or remove it")
        for key in ("prompt", "text"):
            value = record.values.get(key)
            if not isinstance(value, str) or not value.strip():
                found = repr(value)[:60] if key in record.values else "no such key"
                raise DataError(
                    f"{record.place}: wanted a text under {key!r}, found {found}; mend the line or remove it"
                )
        rows.append(Demonstration(record.place, record.values["prompt"], record.values["text"]))
    if not rows:
        raise DataError(f"{path} holds no demonstration; wanted rows of prompt and text")
    return rows


def train_tokenizer(rows: list[Demonstration], vocabulary: int, max_length: int) -> "PreTrainedTokenizerFast":
    """A byte-level BPE tokenizer of `vocabulary` tokens, for any Unicode text, with the chat template."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)  # type: ignore[assignment]
    tokenizer.decoder = decoders.ByteLevel()  # type: ignore[assignment]
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=list(SPECIAL),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    texts = sorted({row.text for row in rows}) + sorted({row.prompt for row in rows})
    tokenizer.train_from_iterator(texts, trainer)
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=BOS,
        eos_token=EOS,
        pad_token=PAD,
        additional_special_tokens=[OPEN, CLOSE],
        model_max_length=max_length,
        model_input_names=["input_ids", "attention_mask"],
        clean_up_tokenization_spaces=False,
    )
    fast.chat_template = CHAT_TEMPLATE
    return fast


def encode(rows: list[Demonstration], tokenizer: Any, max_length: int) -> list[Example]:
    """Token ids of each row. `DataError` for one that does not fit into the model's positions."""
    bodies = [(f"{BOS}{OPEN} {row.prompt} {CLOSE}", row.text + EOS) for row in rows]
    prompts = tokenizer([prompt for prompt, _ in bodies], add_special_tokens=False)["input_ids"]
    texts = tokenizer([text for _, text in bodies], add_special_tokens=False)["input_ids"]
    examples = []
    for row, prompt, text in zip(rows, prompts, texts, strict=True):
        ids = list(prompt) + list(text)
        if len(ids) > max_length:
            raise DataError(
                f"{row.place}: prompt and text take {len(ids)} tokens, more than generator.max_length {max_length};"
                " shorten them"
            )
        examples.append(Example(ids, len(prompt)))
    return examples


def plan_batches(lengths: list[int], batch_tokens: int, epochs: float, seed: int) -> Iterator[list[int]]:
    """Indices of the rows of each batch: at most `batch_tokens` with padding, rows of like length, drawn anew each
    epoch; a part of an epoch takes the first batches of its order."""
    for epoch in range(math.ceil(epochs)):
        order = sorted(range(len(lengths)), key=lambda i: (lengths[i] + draw_u64(seed, "jitter", epoch, i) % 33, i))
        batches: list[list[int]] = []
        for index in order:
            longest = max((lengths[i] for i in batches[-1]), default=0) if batches else 0
            if not batches or max(longest, lengths[index]) * (len(batches[-1]) + 1) > batch_tokens:
                batches.append([])
            batches[-1].append(index)
        batches = sorted(batches, key=lambda batch: draw_u64(seed, "batch", epoch, *batch))
        yield from batches[: math.ceil(len(batches) * min(1.0, epochs - epoch))]


def plan_lessons(examples: list[Example], params: TinyLlama) -> list[list[Example]]:
    """The batches of the whole training, in order."""
    bos = examples[0].ids[0]
    texts = [Example([bos, *ids], 1) for ids in sorted({tuple(e.ids[e.start :]) for e in examples})]
    lessons = []
    for rows, epochs, seed in ((texts, params.text_epochs, params.seed), (examples, params.epochs, params.seed + 1)):
        lengths = [len(row.ids) for row in rows]
        lessons += [[rows[i] for i in batch] for batch in plan_batches(lengths, params.batch_tokens, epochs, seed)]
    return lessons


def collate(examples: list[Example], pad: int) -> "tuple[torch.Tensor, torch.Tensor]":
    """(ids, which of them belong to a text), both of shape [rows, longest]."""
    import torch

    longest = max(len(example.ids) for example in examples)
    ids, counted = torch.full((len(examples), longest), pad), torch.zeros(len(examples), longest, dtype=torch.bool)
    for row, example in enumerate(examples):
        ids[row, : len(example.ids)] = torch.tensor(example.ids)
        counted[row, example.start : len(example.ids)] = True
    return ids, counted


def text_loss(model: "LlamaForCausalLM", ids: "torch.Tensor", counted: "torch.Tensor") -> "torch.Tensor":
    """Mean cross-entropy of the counted tokens, in nats."""
    import torch

    hidden = model.model(input_ids=ids, use_cache=False).last_hidden_state  # right padding: causal attention is enough
    logits = model.lm_head(hidden[:, :-1][counted[:, 1:]])
    return torch.nn.functional.cross_entropy(logits.float(), ids[:, 1:][counted[:, 1:]])


def keep_freed_memory() -> None:
    """Tell glibc to keep large freed blocks: fresh pages for every tensor cost half of a CPU training step."""
    with contextlib.suppress(AttributeError, OSError):
        libc = ctypes.CDLL(None)
        libc.mallopt(-3, 1 << 30)  # M_MMAP_THRESHOLD
        libc.mallopt(-1, (1 << 31) - 1)  # M_TRIM_THRESHOLD


def train_model(
    lessons: list[list[Example]],
    tokenizer: Any,
    params: TinyLlama,
    max_length: int,
    on_step: Callable[[list[Example], float], None],
) -> "tuple[LlamaForCausalLM, list[float]]":
    """(model in float32, loss of each step); `on_step(batch, loss)` is called after each.

    The matrices of the layers learn by Muon (Jordan, 2024), which reached a loss of 3.5 on the texts where AdamW stood
    at 4.9 after the same 638,000 tokens; embedding and norms by AdamW. Both rates follow one cycle. bfloat16 autocast
    where the processor multiplies in it.
    """
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    keep_freed_memory()
    torch.manual_seed(params.seed)
    torch.use_deterministic_algorithms(True)
    torch.utils.deterministic.fill_uninitialized_memory = False  # pyright: ignore[reportAttributeAccessIssue]
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=params.hidden,
        intermediate_size=params.intermediate,
        num_hidden_layers=params.layers,
        num_attention_heads=params.heads,
        num_key_value_heads=params.kv_heads,
        max_position_embeddings=max_length,
        tie_word_embeddings=True,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        attn_implementation="eager",  # on a CPU its backward pass takes a third of the fused kernel's time
    )
    model = LlamaForCausalLM(config).train()
    matrices = [p for p in model.model.layers.parameters() if p.ndim == 2]
    others = [p for p in model.parameters() if all(p is not m for m in matrices)]
    rates = (params.learning_rate, params.embedding_learning_rate)
    optimizers: list[torch.optim.Optimizer] = [
        torch.optim.Muon(
            matrices, rates[0], params.weight_decay, adjust_lr_fn="match_rms_adamw", ns_steps=params.muon_iterations
        ),
        torch.optim.AdamW(others, rates[1], betas=(0.9, 0.95), weight_decay=0.0, fused=True),
    ]
    schedules = [
        torch.optim.lr_scheduler.OneCycleLR(
            optimizer, rate, total_steps=len(lessons), pct_start=params.warmup, cycle_momentum=False
        )
        for optimizer, rate in zip(optimizers, rates, strict=True)
    ]
    half = torch.cpu._is_avx512_bf16_supported()
    losses = []
    for batch in lessons:
        ids, counted = collate(batch, tokenizer.pad_token_id)
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=half):
            loss = text_loss(model, ids, counted)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer, schedule in zip(optimizers, schedules, strict=True):
            optimizer.step()
            optimizer.zero_grad()
            schedule.step()
        losses.append(loss.item())
        on_step(batch, losses[-1])
    return model.eval(), losses
