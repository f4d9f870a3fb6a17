"""The generator's promises: the same bytes again, any Unicode, bad rows named, a folder that servers can read."""

import json
from pathlib import Path
from typing import Any

import pytest

from cosmopedia.core.errors import ConfigError, DataError
from stages.generator.__main__ import save_tokenizer
from stages.generator.demonstrations import Demonstration, encode, plan_batches, read_demonstrations, train_tokenizer
from stages.generator.tiny_llama import TinyLlama, train

ROWS = [
    {"prompt": f"Write a line about {thing}.", "text": f"The {thing} is {kind}, and the {thing} was always {kind}."}
    for thing, kind in [("sea", "deep"), ("sky", "wide"), ("stone", "hard"), ("wind", "cold"), ("bread", "warm")]
]


def write_rows(path: Path, rows: list[Any]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def small(demonstrations: Path, **changes: Any) -> TinyLlama:
    settings = {
        "demonstrations": str(demonstrations),
        "seed": 3,
        "vocabulary": 300,
        "hidden": 16,
        "intermediate": 24,
        "layers": 1,
        "heads": 2,
        "kv_heads": 1,
        "text_epochs": 10,
        "epochs": 30,
        "batch_tokens": 256,
        "learning_rate": 0.01,
        "muon_iterations": 4,
        "embedding_learning_rate": 0.02,
        "warmup": 0.1,
        "weight_decay": 0.0,
        **changes,
    }
    return TinyLlama.model_validate(settings)


def build(settings: TinyLlama, out: Path) -> tuple[str, dict[str, Any], list[float]]:
    out.mkdir()
    return train(settings, 128, out)


@pytest.mark.slow
def test_training_learns_and_gives_the_same_bytes_again(tmp_path: Path) -> None:
    settings = small(write_rows(tmp_path / "rows.jsonl", ROWS))
    revision, metrics, losses = build(settings, tmp_path / "one")
    again, *_ = build(settings, tmp_path / "two")
    assert again == revision and len(revision) == 64
    one, two = ({p.name: p.read_bytes() for p in (tmp_path / name).iterdir()} for name in ("one", "two"))
    assert one == two
    assert {"model.safetensors", "config.json", "tokenizer.json", "chat_template.jinja"} <= one.keys()
    assert metrics["final_loss"] < losses[0] / 2 and metrics["steps"] == len(losses)
    assert build(small(tmp_path / "rows.jsonl", seed=4), tmp_path / "three")[0] != revision


@pytest.mark.slow
def test_transformers_reads_the_folder_and_the_template_is_the_form_that_was_trained(tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    build(small(write_rows(tmp_path / "rows.jsonl", ROWS), epochs=1), tmp_path / "model")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "model")
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "model").config.vocab_size == len(tokenizer)
    assert tokenizer.is_fast and tokenizer.model_input_names == ["input_ids", "attention_mask"]
    turns = [{"role": "user", "content": "Why?"}, {"role": "assistant", "content": "Because."}]
    rendered = tokenizer.apply_chat_template(turns, tokenize=False)
    assert rendered == "<s>[INST] Why? [/INST]Because.</s>"
    (example,) = encode([Demonstration("", "Why?", "Because.")], tokenizer, 128)
    assert tokenizer(rendered)["input_ids"] == example.ids
    prompt = tokenizer.apply_chat_template(turns[:1], tokenize=True, add_generation_prompt=True)
    assert prompt == example.ids[: example.start]


def test_any_unicode_text_survives_the_tokenizer() -> None:
    tokenizer = train_tokenizer([Demonstration("", row["prompt"], row["text"]) for row in ROWS], 300, 128)
    text = "Ünïcode — 日本語, ∑ x² → \U0001f30d\r\n\t done\x00"
    assert tokenizer.decode(tokenizer(text)["input_ids"]) == text


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"prompt": "a", "text": ""}', "wanted a text under 'text', got ''"),
        ('{"prompt": "a"}', "wanted a text under 'text', got no such key"),
        ('{"prompt": 7, "text": "b"}', "wanted a text under 'prompt', got 7"),
        ('{"prompt": "a", ', "no JSON"),
        ('["a", "b"]', "wanted a JSON object, found list"),
        ('{"prompt": "a", "text": "\\ud83d"}', "'text' holds half of a surrogate pair (U+D83D)"),
    ],
)
def test_a_malformed_demonstration_is_named_by_file_and_line(tmp_path: Path, line: str, message: str) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps(ROWS[0]) + "\n" + line + "\n")
    with pytest.raises(DataError) as caught:
        read_demonstrations(str(path))
    assert f"{path}:2" in str(caught.value) and message in str(caught.value)


def test_a_demonstration_that_does_not_fit_is_named(tmp_path: Path) -> None:
    path = write_rows(tmp_path / "rows.jsonl", [ROWS[0], {"prompt": "p", "text": "word " * 500}])
    with pytest.raises(DataError, match=r"rows\.jsonl:2: prompt and text take \d+ tokens"):
        build(small(path), tmp_path / "model")


def test_each_pass_holds_every_row_once_within_the_batch_limit() -> None:
    lengths = [5 + (i * 37) % 60 for i in range(50)]
    batches = plan_batches(lengths, 200, seed=1, epoch=0)
    assert sorted(i for batch in batches for i in batch) == list(range(50))
    assert all(max(lengths[i] for i in batch) * len(batch) <= 200 for batch in batches)
    assert batches == plan_batches(lengths, 200, seed=1, epoch=0) != plan_batches(lengths, 200, seed=1, epoch=1)


@pytest.mark.slow
def test_a_model_of_hub_or_folder_leaves_tokenizer_and_config_and_needs_a_chat_template(tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    build(small(write_rows(tmp_path / "rows.jsonl", ROWS), epochs=1), tmp_path / "hub")
    (tmp_path / "out").mkdir()
    save_tokenizer(str(tmp_path / "hub"), tmp_path / "out")
    names = {p.name for p in (tmp_path / "out").iterdir()}
    assert {"config.json", "tokenizer.json", "chat_template.jinja"} <= names and "model.safetensors" not in names
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "hub")
    tokenizer.chat_template = None
    (tmp_path / "hub" / "chat_template.jinja").unlink()
    tokenizer.save_pretrained(tmp_path / "hub")
    with pytest.raises(ConfigError, match="no chat template"):
        save_tokenizer(str(tmp_path / "hub"), tmp_path / "out")
