"""Demonstrations for the tiny Llama: prompts with texts, as token ids, in batches of nearly one length."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from cosmopedia.core.errors import DataError
from cosmopedia.core.rng import draw_u64
from cosmopedia.core.text import half_pair
from cosmopedia.records.pins import split_pin
from cosmopedia.records.reading import read_records

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

BOS, EOS, PAD, OPEN, CLOSE = SPECIAL = ("<s>", "</s>", "<pad>", "[INST]", "[/INST]")
CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}"
    "{% if message['role'] == 'user' %}{{ '[INST] ' + message['content'] + ' [/INST]' }}"
    "{% elif message['role'] == 'assistant' %}{{ message['content'] + eos_token }}"
    "{% else %}{{ raise_exception('only the roles user and assistant are known') }}{% endif %}"
    "{% endfor %}"
)


@dataclass(frozen=True)
class Demonstration:
    """A prompt, the text that answers it, and where it comes from ("file:line")."""

    place: str
    prompt: str
    text: str


@dataclass(frozen=True)
class Example:
    """Token ids of a demonstration; the text's begin at `start`."""

    ids: list[int]
    start: int


def read_demonstrations(path: str) -> list[Demonstration]:
    """The rows of a JSONL file, which may have its pin behind an "@".

    `DataError` names the file and line of a malformed one.
    """
    rows = []
    name, pin = split_pin(path)
    for record in read_records(name, None, None, pin)[0]:
        if record.problem:
            raise DataError(f"{record.place}: {record.problem}; fix the line or remove it")
        for key in ("prompt", "text"):
            value = record.values.get(key)
            if not isinstance(value, str) or not value.strip():
                got = repr(value)[:60] if key in record.values else "no such key"
                raise DataError(f"{record.place}: wanted a text under {key!r}, got {got}; fix the line or remove it")
            half = half_pair(value)
            if half is not None:
                raise DataError(
                    f"{record.place}: {key!r} holds half of a surrogate pair ({half}); fix the line or remove it"
                )
        rows.append(Demonstration(record.place, record.values["prompt"], record.values["text"]))
    if not rows:
        raise DataError(f"{path} has no demonstrations; wanted rows with prompt and text")
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
    """Token ids of each row. `DataError` for one that is longer than the model's positions."""
    prompts = [f"{BOS}{OPEN} {row.prompt} {CLOSE}" for row in rows]
    prompt_ids = tokenizer(prompts, add_special_tokens=False)["input_ids"]
    text_ids = tokenizer([row.text + EOS for row in rows], add_special_tokens=False)["input_ids"]
    examples = []
    for row, prompt, text in zip(rows, prompt_ids, text_ids, strict=True):
        if len(prompt) + len(text) > max_length:
            raise DataError(
                f"{row.place}: prompt and text take {len(prompt) + len(text)} tokens, more than generator.max_length"
                f" {max_length}; shorten them"
            )
        examples.append(Example([*prompt, *text], len(prompt)))
    return examples


def plan_batches(lengths: list[int], batch_tokens: int, seed: int, epoch: int) -> list[list[int]]:
    """Indices of the rows of each batch of one pass, in an order drawn anew for each pass.

    A batch holds rows of similar length, at most `batch_tokens` with padding; a longer row has a batch of its own.
    """
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
