"""A generator from a folder, a GGUF file or a package: the file's own ids and end of text, named by its content."""

import json
import shutil
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cosmopedia.core.errors import ConfigError
from cosmopedia.generation.gguf import CUTS, fields_of, read_gguf, tokenizer_of
from cosmopedia.generation.local_model import find_local, is_here, locate
from cosmopedia.generation.model import GenerationModel
from stages.generator import __main__ as generator
from tests.support.tiny_llama import write_model, write_tokenizer

SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
TEMPLATE = (
    "{% for message in messages %}{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n'}}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
TEXT = "It's 2024, and we don't know\n\n  why 12345 🙂 birds\tsang: naïve “quotes”. <|im_end|>"


def alphabet() -> list[str]:
    """GPT-2's printable character for each of the 256 bytes."""
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    rest = [byte for byte in range(256) if byte not in plain]
    return [chr(byte if byte in plain else 256 + rest.index(byte)) for byte in range(256)]


MERGES = ["d o", "i n", "Ġ k", "n o", "no w", "Ġk now", "do n", "2 0", "20 2", "' t", "Ċ Ċ", "Ġ Ġ", "' s", "1 2"]


def write_gguf(path: Path, pre: str = "smollm", **changes: Any) -> Path:
    """A Llama of one layer in a GGUF file."""
    from gguf import GGUFWriter, TokenType

    tokens = [*SPECIAL, *alphabet(), *(merge.replace(" ", "") for merge in MERGES), "<tool>"]
    writer = GGUFWriter(path, "llama")
    writer.add_name("Tiny")
    writer.add_license("cc0-1.0")
    writer.add_block_count(1)
    writer.add_context_length(128)
    writer.add_embedding_length(16)
    writer.add_feed_forward_length(24)
    writer.add_head_count(2)
    writer.add_head_count_kv(1)
    writer.add_rope_dimension_count(8)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_vocab_size(len(tokens))
    writer.add_tokenizer_model(changes.get("model", "gpt2"))
    writer.add_tokenizer_pre(pre)
    writer.add_token_list(tokens)
    kinds = [TokenType.CONTROL] * 3 + [TokenType.NORMAL] * (len(tokens) - 4) + [TokenType.USER_DEFINED]
    writer.add_token_types(kinds)
    writer.add_token_merges(MERGES)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_pad_token_id(0)
    if changes.get("template", True):
        writer.add_chat_template(TEMPLATE)
    random = np.random.default_rng(1)
    shapes = {
        "token_embd": (len(tokens), 16), "output_norm": (16,), "blk.0.attn_norm": (16,), "blk.0.ffn_norm": (16,),
        "blk.0.attn_q": (16, 16), "blk.0.attn_k": (8, 16), "blk.0.attn_v": (8, 16), "blk.0.attn_output": (16, 16),
        "blk.0.ffn_gate": (24, 16), "blk.0.ffn_up": (24, 16), "blk.0.ffn_down": (16, 24),
    }  # fmt: skip
    for name, shape in shapes.items():
        writer.add_tensor(f"{name}.weight", random.normal(size=shape).astype(np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def ids_by_hand(text: str, fields: dict[str, Any]) -> list[int]:
    """Byte-level BPE as its definition says: cut, then join the pair that is first in the list of merges."""
    import regex

    tokens = {token: i for i, token in enumerate(fields["tokenizer.ggml.tokens"])}
    ranks = {tuple(merge.split(" ")): rank for rank, merge in enumerate(fields["tokenizer.ggml.merges"])}
    pieces = [text]
    for cut in CUTS[fields["tokenizer.ggml.pre"]]:
        pieces = [part for piece in pieces for part in regex.split(f"({cut})", piece) if part]
    ids = []
    for piece in pieces:
        parts = [alphabet()[byte] for byte in piece.encode()]
        while pairs := [(ranks[pair], i) for i, pair in enumerate(pairwise(parts)) if pair in ranks]:
            i = min(pairs)[1]
            parts[i : i + 2] = ["".join(parts[i : i + 2])]
        ids += [tokens[part] for part in parts]
    return ids


@pytest.mark.parametrize("pre", CUTS)
def test_ids_are_those_of_the_files_vocabulary_and_merges(tmp_path: Path, pre: str) -> None:
    fields = fields_of(read_gguf(write_gguf(tmp_path / "m.gguf", pre)))
    tokenizer = tokenizer_of(fields)
    plain, end = TEXT[: -len(SPECIAL[2])], [2]
    assert tokenizer.encode(TEXT).ids == ids_by_hand(plain, fields) + end
    assert tokenizer.decode(tokenizer.encode(plain).ids) == plain
    if pre == "smollm":
        assert tokenizer.encode("2024").tokens == ["2", "0", "2", "4"]  # digits one by one, though "20" is a merge


def test_a_file_says_what_ggufs_own_reader_reads_and_ends_where_it_does(tmp_path: Path) -> None:
    from gguf import GGUFReader

    path = write_gguf(tmp_path / "m.gguf")
    ours, theirs = read_gguf(path), GGUFReader(path)
    assert fields_of(ours) == {name: field.contents() for name, field in theirs.fields.items()}
    assert [field.types for field in ours.fields.values()] == [field.types for field in theirs.fields.values()]
    for one, other in zip(ours.tensors, theirs.tensors, strict=True):
        assert one.name == other.name and np.array_equal(one.data, other.data)
    whole, merges = path.read_bytes(), theirs.fields["tokenizer.ggml.merges"]
    for end in (1, 20, merges.offset + 60, merges.offset + 70, len(whole) - 1):
        path.write_bytes(whole[:end])
        with pytest.raises(ConfigError, match="is no GGUF file, or is cut short"):
            read_gguf(path)


def make(folder: Path, model: str, revision: str | None = None) -> str:
    """The stage, in this process: what it prints on success."""
    params: dict[str, object] = {"model": model, "revision": revision, "quantisation": None, "max_length": 128}
    params |= {"system_prompt": None, "train": None}
    (folder / "profiles").mkdir(exist_ok=True)
    (folder / "params.yaml").write_text("profile: smoke\n", encoding="utf-8")
    (folder / "profiles/smoke.yaml").write_text(json.dumps({"generator": params}), encoding="utf-8")
    return generator.main()


@pytest.mark.slow
def test_a_gguf_file_becomes_a_folder_that_servers_load(empty_folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from cosmopedia.cpu_server.decoding import load_model

    path = write_gguf(empty_folder / "tiny-q.gguf")
    assert make(empty_folder, "tiny-q.gguf").startswith("tiny-q at sha256:")
    assert "not pinned" in capfd.readouterr().err
    model = GenerationModel.read()
    assert model.loaded_from == str(Path("models/generator").resolve()) and model.pinned is None
    assert model.render("Why?") == "<|im_start|>user\nWhy?<|im_end|>\n<|im_start|>assistant\n"
    served, tokenizer, ends, length = load_model("models/generator", model.model, model.revision)
    assert ends == {2} and length == 128 and tokenizer(TEXT)["input_ids"][-1] == 2
    direct = AutoModelForCausalLM.from_pretrained(path.parent, gguf_file=path.name, dtype=torch.float32)
    ids = torch.tensor([[1, 40, 41, 42]])
    with torch.inference_mode():
        assert torch.allclose(served(ids).logits, direct(ids).logits, atol=0.05)
    assert AutoTokenizer.from_pretrained("models/generator").model_input_names == ["input_ids", "attention_mask"]
    before = {file.name: file.read_bytes() for file in Path("models/generator").iterdir()}
    make(empty_folder, "tiny-q.gguf", model.revision)
    assert {file.name: file.read_bytes() for file in Path("models/generator").iterdir()} == before
    path.write_bytes(path.read_bytes()[:-16] + bytes(16))
    with pytest.raises(ConfigError, match="but the profile pins"):
        make(empty_folder, "tiny-q.gguf", model.revision)


@pytest.mark.slow
def test_a_folders_weights_stay_where_they_are_and_its_name_is_its_content(empty_folder: Path) -> None:
    from cosmopedia.cpu_server.decoding import load_model

    write_model(Path("my/model"), write_tokenizer(Path("my/model"), chat_template=TEMPLATE))
    make(empty_folder, "my/model")
    model = GenerationModel.read()
    assert model.loaded_from == str(Path("my/model").resolve()) and model.model == "model"
    assert not list(Path("models/generator").glob("*.safetensors"))
    assert load_model("models/generator", "x", "y")[0].config.vocab_size > 0
    shutil.copytree("my/model", "elsewhere/model")
    make(empty_folder, "elsewhere/model")
    assert GenerationModel.read().identity == model.identity


def test_what_is_no_whole_model_is_refused_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in (
        "two/a.gguf",
        "two/b.gguf",
        "half/model-00001-of-00002.safetensors",
        "half/config.json",
        "half/tokenizer.json",
    ):
        Path(name).parent.mkdir(exist_ok=True)
        Path(name).write_text("{}", encoding="utf-8")
    shards = {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}
    Path("half/model.safetensors.index.json").write_text(json.dumps({"weight_map": shards}), encoding="utf-8")
    for model, wanted in {
        "./nowhere": "does not exist",
        "two": "2 GGUF files are here: name one",
        "half": "has no model-00002-of-00002.safetensors",
        "package:no_such_package": "no package no_such_package is installed",
        "package:json": "package:json carries 0 GGUF files",
    }.items():
        assert is_here(model)
        for find in (locate, lambda model, key: find_local(model, None, key)):
            with pytest.raises(ConfigError, match=wanted):
                find(model, "generator.model")
    with pytest.raises(ConfigError, match="is no GGUF file, or is cut short"):
        read_gguf(Path("two/a.gguf"))
    with pytest.raises(ConfigError, match="kind llama / smollm; byte-level ones"):
        fields_of(read_gguf(write_gguf(tmp_path / "m.gguf", model="llama")))
    with pytest.raises(ConfigError, match="no chat template"):
        fields_of(read_gguf(write_gguf(tmp_path / "n.gguf", template=False)))
    assert not is_here("org/name")
