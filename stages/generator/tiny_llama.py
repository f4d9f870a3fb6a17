"""The rehearsal's generator: a tiny Llama and its tokenizer, trained on demonstrations in a minute or two.

First the texts alone, `<s>{text}</s>`, then the demonstrations, `<s>[INST] {prompt} [/INST]{text}</s>`: a prompt is
longer than its text, so the same minutes hold more passes over the texts this way. The loss counts the texts' tokens
only. Batches hold rows of nearly one length, so that little is padding. On one kind of processor, equal
demonstrations and settings give equal bytes.
"""

import contextlib
import ctypes
import math
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pydantic import Field

from cosmopedia.cpu_features import quick_in_bf16
from cosmopedia.errors import DataError
from cosmopedia.params import Params
from cosmopedia.records import read_records
from cosmopedia.rng import draw_u64

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
IGNORED = -100  # target of a position that only fills up a shape


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


def plan_lessons(examples: list[Example], params: TinyLlama) -> list[list[Example]]:
    """The batches of the whole training, in order: the texts alone, then the demonstrations with their prompts."""
    lessons = []
    alone = [Example([row.ids[0], *row.ids[row.start :]], 1) for row in examples]
    for epoch in range(params.text_epochs + params.epochs):
        rows = alone if epoch < params.text_epochs else examples
        lengths = [len(row.ids) for row in rows]
        batches = plan_batches(lengths, params.batch_tokens, params.seed, epoch)
        lessons += [[rows[i] for i in batch] for batch in batches]
    return lessons


def plan_batches(lengths: list[int], batch_tokens: int, seed: int, epoch: int) -> list[list[int]]:
    """Indices of the rows of each batch of one pass: rows of like length, at most `batch_tokens` with padding (a
    longer row stands alone), in an order drawn anew each pass."""
    order = sorted(range(len(lengths)), key=lambda i: (lengths[i] + draw_u64(seed, "jitter", epoch, i) % 33, i))
    batches: list[list[int]] = []
    longest = 0
    for index in order:
        longest = max(longest, lengths[index])
        if not batches or longest * (len(batches[-1]) + 1) > batch_tokens:
            batches.append([])
            longest = lengths[index]
        batches[-1].append(index)
    return sorted(batches, key=lambda batch: draw_u64(seed, "batch", epoch, *batch))


def collate(examples: list[Example], pad: int) -> "tuple[torch.Tensor, torch.Tensor]":
    """(ids, which of them belong to a text), both of shape [rows, longest], rounded up."""
    import torch

    longest = _rounded(max(len(example.ids) for example in examples), 32)
    ids, counted = torch.full((len(examples), longest), pad), torch.zeros(len(examples), longest, dtype=torch.bool)
    for row, example in enumerate(examples):
        ids[row, : len(example.ids)] = torch.tensor(example.ids)
        counted[row, example.start : len(example.ids)] = True
    return ids, counted


def text_loss(model: "LlamaForCausalLM", ids: "torch.Tensor", counted: "torch.Tensor") -> "torch.Tensor":
    """Summed cross-entropy of the counted tokens, in nats."""
    import torch

    hidden = model.model(input_ids=ids, use_cache=False).last_hidden_state  # right padding: causal attention is enough
    places = counted[:, 1:].flatten().nonzero().flatten()
    targets = torch.full((_rounded(len(places), 128),), IGNORED)
    targets[: len(places)] = ids[:, 1:].flatten()[places]
    places = torch.cat([places, places.new_zeros(len(targets) - len(places))])
    logits = model.lm_head(hidden[:, :-1].flatten(0, 1)[places])
    return torch.nn.functional.cross_entropy(logits.float(), targets, reduction="sum", ignore_index=IGNORED)


def _rounded(length: int, unit: int) -> int:
    """Up to a multiple: oneDNN keeps compiled code for each shape that it meets, 1.3 GB of it without rounding."""
    return -(-length // unit) * unit


def keep_freed_memory() -> None:
    """Tell glibc to keep large freed blocks: fresh pages for every tensor cost a tenth of a CPU step."""
    with contextlib.suppress(AttributeError, OSError):
        libc = ctypes.CDLL(None)
        libc.mallopt(-3, 1 << 30)  # M_MMAP_THRESHOLD
        libc.mallopt(-1, (1 << 31) - 1)  # M_TRIM_THRESHOLD


class Muon:
    """Momentum whose update is made orthogonal by Newton-Schulz iterations (Jordan et al., 2024), for the matrices of
    the layers; those of one shape are one stack, which spares thousands of small calls.

    The size of an update is matched to AdamW's (Liu et al., 2025, arXiv:2502.16982). The iterations run in bfloat16
    only where a CPU is the faster in it: one with AVX2 alone takes forty times as long (0.7 against 29 GFLOP/s on Zen
    1), and `torch.optim.Muon`, which knows no other type, made `make repro` take most of an hour there.
    """

    def __init__(self, matrices: "Sequence[torch.Tensor]", iterations: int, momentum: float, weight_decay: float):
        import torch

        self.half = quick_in_bf16()
        self.iterations, self.momentum, self.weight_decay = iterations, momentum, weight_decay
        shapes = sorted({tuple(sorted(m.shape)) for m in matrices})
        self.stacks = [[m for m in matrices if tuple(sorted(m.shape)) == shape] for shape in shapes]
        self.averages = [torch.zeros(len(s), *shape) for s, shape in zip(self.stacks, shapes, strict=True)]

    def step(self, rate: float) -> None:
        """Move the matrices by their gradients."""
        import torch

        with torch.no_grad():
            for stack, average in zip(self.stacks, self.averages, strict=True):
                gradient = torch.stack([_wide(m.grad) for m in stack])
                average.lerp_(gradient, 1 - self.momentum)
                update = self._orthogonal(gradient.lerp(average, self.momentum))
                scale = 0.2 * math.sqrt(max(average.shape[1:]))
                for matrix, part in zip(stack, update, strict=True):
                    matrix.mul_(1 - rate * self.weight_decay)
                    matrix.add_(part if matrix.shape == part.shape else part.T, alpha=-rate * scale)

    def _orthogonal(self, update: "torch.Tensor") -> "torch.Tensor":
        import torch

        x = update / (update.norm(dim=(1, 2), keepdim=True) + 1e-7)
        if self.half:
            x = x.bfloat16()
        for _ in range(self.iterations):
            a = x @ x.mT
            x = torch.baddbmm(x, torch.baddbmm(a, a, a, beta=-4.775, alpha=2.0315), x, beta=3.4445)
        return x.float()


def _wide(matrix: Any) -> Any:
    return matrix if matrix.shape[0] <= matrix.shape[1] else matrix.T


def train_model(
    lessons: list[list[Example]],
    tokenizer: Any,
    params: TinyLlama,
    max_length: int,
    on_step: Callable[[list[Example], float], None],
) -> "tuple[LlamaForCausalLM, list[float]]":
    """(model in float32, loss of each step); `on_step(batch, loss)` is called after each.

    The layers' matrices learn by Muon, embedding and norms by AdamW: after 638,000 tokens Muon stood at a loss
    of 3.5 on the texts and AdamW at 4.9 (both untuned, and equal on texts held out: here these texts are to be learnt
    by heart). bfloat16 autocast where it is the faster.

    Each batch is split in two, and each half runs in its own thread on one core: operators that are spread over two
    cores wait for each other hundreds of times a step, which a busy machine turns into minutes. So the bytes do
    not depend on the number of cores.
    """
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    keep_freed_memory()
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    torch.manual_seed(params.seed)
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
    twin = LlamaForCausalLM(config).train()
    for mine, other in zip(model.parameters(), twin.parameters(), strict=True):
        other.data = mine.data  # one set of weights, two sets of gradients
    matrices = [p for p in model.model.layers.parameters() if p.ndim == 2]
    others = [p for p in model.parameters() if all(p is not m for m in matrices)]
    adam = torch.optim.AdamW(others, params.embedding_learning_rate, betas=(0.9, 0.95), weight_decay=0.0, fused=True)
    muon = Muon(matrices, params.muon_iterations, 0.95, params.weight_decay)
    half = quick_in_bf16()

    def learn(pupil: LlamaForCausalLM, part: list[Example], count: int) -> float:
        torch.set_num_threads(1)
        pupil.zero_grad()
        if not part:
            return 0.0
        ids, counted = collate(part, tokenizer.pad_token_id)
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=half):
            loss = text_loss(pupil, ids, counted) / count
        loss.backward()
        return loss.item()

    losses = []
    with ThreadPoolExecutor(1) as aside:
        for step, batch in enumerate(lessons):
            count = sum(len(example.ids) - example.start for example in batch)
            other_half = aside.submit(learn, twin, batch[1::2], count)
            loss = learn(model, batch[::2], count) + other_half.result()
            if len(batch) > 1:
                for mine, other in zip(model.parameters(), twin.parameters(), strict=True):
                    mine.grad.add_(other.grad)  # type: ignore[union-attr, arg-type]
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            share = one_cycle(step / len(lessons), params.warmup)
            adam.param_groups[0]["lr"] = params.embedding_learning_rate * share
            adam.step()
            muon.step(params.learning_rate * share)
            losses.append(loss)
            on_step(batch, loss)
    torch.set_num_threads(threads)
    return model.eval(), losses


def one_cycle(done: float, warmup: float) -> float:
    """Share of the peak learning rate at a share of the training: a line up, then half a cosine down to 0."""
    if done < warmup:
        return 0.04 + 0.96 * done / warmup
    return 0.5 * (1 + math.cos(math.pi * (done - warmup) / (1 - warmup)))
