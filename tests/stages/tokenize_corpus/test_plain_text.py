"""Promises about what documents become: the tokens of plain text, in pieces, with all losses counted."""

import json
import random
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tokenizers import Tokenizer

from cosmopedia.core.errors import DataError
from cosmopedia.core.params import read_yaml
from stages.tokenize_corpus import pieces
from stages.tokenize_corpus.__main__ import main
from stages.tokenize_corpus.pieces import Piece, PieceTokenizer
from stages.tokenize_corpus.plain_text import write_plain_text
from tests.support.documents import ROOT, document, repository, write_documents
from tests.support.tokenizer_shapes import BLANKS, CONTROL, SHAPES, TEXTS, byte_level, save, unigram

HARMLESS = [
    *TEXTS[:4],
    " A blank first, two  between, one last. ",
    "if a < 0:\n        return [[1], [2]]\n\treturn\n\n\n",
    "He said: </ s>, <s, tool_call>, |fim_prefix|, s>.",
]
TRICKS = [
    "</s>",
    "<tool_call>",
    "A page on </s> and <tool_call>{}</tool_call>, also <|fim_prefix|>.",
    "</s></s> <|fim_prefix|><|fim_prefix|>",
    f"code:{BLANKS}</s>{BLANKS}x",
    "x</s>\n<tool_call>\n",
]
KEEPS_EVERY_TEXT = ("byte_level", "sentencepiece_like", "with_gaps")


@pytest.fixture(params=SHAPES)
def shape(request: pytest.FixtureRequest) -> str:
    return request.param


def plain(described: dict[str, Any], folder: Path) -> tuple[Tokenizer, PieceTokenizer]:
    """A tokenizer as it is, and as documents are encoded with it."""
    tokenizer = save(described, folder)
    eos = tokenizer.token_to_id("</s>")
    return tokenizer, PieceTokenizer(write_plain_text(tokenizer, folder, eos, folder / "plain_text.json"))


def ids_of(tokenizer: Tokenizer, text: str) -> list[int]:
    return tokenizer.encode(text, add_special_tokens=False).ids


def whole(tokenizer: PieceTokenizer, text: str) -> list[int]:
    return tokenizer.encode([text])[0]


def joined(tokenizer: PieceTokenizer, parts: list[Piece]) -> list[int]:
    return [number for ids in tokenizer.encode([part.text for part in parts]) for number in ids]


def tokenise(folder: Path, texts: list[str], **changes: Any) -> dict[str, Any]:
    """Run the stage on texts; its metrics."""
    write_documents(folder / "data/decontaminate/web-blogpost.parquet", [document(text=text) for text in texts])
    repository(folder, "tokenize_corpus", **{"validation_fraction": 0.0, "max_unknown": 1, "max_changed": 1} | changes)
    main()
    return read_yaml(folder / "metrics/tokenize_corpus.json")


def documents_in(folder: Path) -> list[list[int]]:
    """The ids of each document in the shards, the end-of-text token included."""
    card = read_yaml(folder / "data/tokenize_corpus/corpus.json")
    shard = folder / "data/tokenize_corpus/train/000_train.ds"
    ends = np.fromfile(f"{shard}.index", dtype="<u8").astype(int)
    return [part.tolist() for part in np.split(np.fromfile(shard, dtype=f"<u{card['token_bytes']}"), ends[:-1])]


@pytest.mark.slow
def test_no_document_becomes_a_control_token(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, shape: str):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("COSMO_COMPUTE", raising=False)
    tokenizer = save(SHAPES[shape](), tmp_path / "models/generator")
    control = {tokenizer.token_to_id(token) for token in CONTROL}
    assert control <= {number for text in TRICKS for number in ids_of(tokenizer, text)}  # what was to be avoided
    metrics = tokenise(tmp_path, [*HARMLESS, *TRICKS])
    documents = documents_in(tmp_path)
    assert len(documents) == len([*HARMLESS, *TRICKS]) == metrics["documents"]
    assert all(ids[-1] == tokenizer.token_to_id("</s>") and control.isdisjoint(ids[:-1]) for ids in documents)
    assert all(len(ids) > 1 for ids in documents)
    if shape in KEEPS_EVERY_TEXT:
        read = [tokenizer.decode(ids[:-1], skip_special_tokens=False) for ids in documents]
        assert sorted(read) == sorted([*HARMLESS, *TRICKS])
        assert (metrics["unknown_tokens"], metrics["changed_documents"]) == (0, 0)


def test_other_texts_have_the_ids_that_the_tokenizer_gives_them(tmp_path: Path, shape: str):
    tokenizer, encoder = plain(SHAPES[shape](), tmp_path)
    assert [ids_of(tokenizer, text) for text in HARMLESS] == encoder.encode(HARMLESS)


def test_blanks_that_are_an_added_token_stay_one(tmp_path: Path):
    tokenizer, encoder = plain(byte_level(), tmp_path)
    blanks = tokenizer.token_to_id(BLANKS)
    assert whole(encoder, f"def f():\n{BLANKS}return").count(blanks) == 1
    assert whole(encoder, f"</s>{BLANKS}</s>").count(blanks) == 1


def test_a_token_that_only_a_file_beside_it_names_is_a_control_token(tmp_path: Path):
    described = unigram()
    described["added_tokens"] = []
    save(described, tmp_path)
    config = {"eos_token": "</s>", "extra_special_tokens": {"tool": "<tool_call>"}}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    (tmp_path / "special_tokens_map.json").write_text(
        json.dumps({"additional_special_tokens": [{"content": "<|fim_prefix|>"}]})
    )
    tokenizer = Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    encoder = PieceTokenizer(write_plain_text(tokenizer, tmp_path, 1, tmp_path / "plain_text.json"))
    text = "</s> <tool_call> <|fim_prefix|>"
    control = {tokenizer.token_to_id(token) for token in CONTROL}
    assert control <= set(ids_of(tokenizer, text)) and control.isdisjoint(whole(encoder, text))
    assert set(encoder.plain.control) == control


def test_the_name_of_a_byte_is_not_the_byte(tmp_path: Path):
    described = unigram()
    described["model"]["byte_fallback"] = True
    described["model"]["vocab"] += [[f"<0x{byte:02X}>", 0.0] for byte in range(256)]
    tokenizer, encoder = plain(described, tmp_path)
    newline = tokenizer.token_to_id("<0x0A>")
    assert newline in ids_of(tokenizer, "the byte <0x0A> ends") and newline not in whole(
        encoder, "the byte <0x0A> ends"
    )
    assert tokenizer.token_to_id("<0xF0>") in whole(encoder, "unknown: \U0001f30d")


def test_an_end_of_text_that_texts_contain_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    save(byte_level(), tmp_path / "models/generator")
    (tmp_path / "models/generator/tokenizer_config.json").write_text(json.dumps({"eos_token": "."}))
    with pytest.raises(DataError, match=r"web-blogpost: '.*': the tokenizer gives its text the"):
        tokenise(tmp_path, ["One. Two."])


def test_a_vocabulary_with_gaps_takes_four_bytes_by_its_greatest_id(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    tokenizer = save(SHAPES["with_gaps"](), tmp_path / "models/generator")
    assert tokenizer.get_vocab_size() < 2**16 < max(tokenizer.get_vocab().values())
    metrics = tokenise(tmp_path, HARMLESS)
    assert (metrics["token_bytes"], metrics["vocab_size"]) == (4, max(tokenizer.get_vocab().values()) + 1)
    expected = [[*ids_of(tokenizer, text), tokenizer.token_to_id("</s>")] for text in HARMLESS]
    assert sorted(documents_in(tmp_path)) == sorted(expected)


def made_up(draws: random.Random, parts: int) -> str:
    """Words of many scripts, code, numbers and control tokens, with blanks of all kinds between them."""
    words = [
        *" ".join([*HARMLESS, *TRICKS]).split(),
        "e\u0301",
        "\u0301x",
        "\u6c34",
        "\u0e01\u0e33",
        "\ufb01",
        "\u2581",
        "12345",
        "'ll",
        "\U0001f30d",
    ]
    gaps = [" "] * 12 + ["", "\n", "\n\n", "  ", BLANKS, "\t", "\u00a0", " \n", "\u3000", "\r\n"]
    return "".join(draws.choice(words) + draws.choice(gaps) for _ in range(parts))


@pytest.mark.slow
def test_pieces_give_the_ids_of_the_whole_text(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, shape: str):
    monkeypatch.setattr(pieces, "PIECE", 40)
    monkeypatch.setattr(pieces, "LONGEST", 20_000)
    _, encoder = plain(SHAPES[shape](), tmp_path)
    draws, cuts = random.Random(7), 0
    for _ in range(6):
        text = made_up(draws, 250)
        parts = list(encoder.pieces("a text", text))
        assert [part.first for part in parts] == [True, *[False] * (len(parts) - 1)] and parts[-1].last
        assert joined(encoder, parts) == whole(encoder, text)
        cuts += len(parts) - 1
    assert cuts > 6 * 10


def sees_all_of_a_text() -> dict[str, Any]:
    """Mistral's newer shape: one word, but it is the pre-tokenizer that prepends the blank."""
    described = SHAPES["sentencepiece_like"]()
    metaspace = {"type": "Metaspace", "replacement": "\u2581", "prepend_scheme": "first", "split": False}
    return described | {"normalizer": None, "pre_tokenizer": metaspace}


@pytest.mark.parametrize("prepend", ["always", "first", "never"])
@pytest.mark.parametrize("described", [unigram, sees_all_of_a_text, byte_level])
def test_pieces_do_not_depend_on_who_prepends_a_blank(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, described: Callable[[], dict[str, Any]], prepend: str
):
    monkeypatch.setattr(pieces, "PIECE", 40)
    shape = described()
    metaspace = shape["pre_tokenizer"]["type"] == "Metaspace"
    shape["pre_tokenizer"] |= {"prepend_scheme": prepend} if metaspace else {"add_prefix_space": prepend != "never"}
    _, encoder = plain(shape, tmp_path)
    text = made_up(random.Random(8), 200)
    parts = list(encoder.pieces("a text", text))
    assert len(parts) > 10 and joined(encoder, parts) == whole(encoder, text)


def without_words() -> dict[str, Any]:
    """A Unigram model that sees a text as one word: the best path depends on all of it."""
    described = unigram()
    described["pre_tokenizer"]["split"] = False
    return described


def of_fixed_length() -> dict[str, Any]:
    """Words of eight characters, counted from the start of the text."""
    return byte_level() | {"pre_tokenizer": {"type": "FixedLength", "length": 8}}


def merging_across_blanks() -> dict[str, Any]:
    """A BPE model of the whole text, with tokens of more than a word."""
    described = SHAPES["sentencepiece_like"]()
    model = described["model"]
    for left in [token for token in model["vocab"] if len(token) == 1 and token != "\u2581"]:
        model["merges"].append([left, "\u2581"])
        model["vocab"].setdefault(left + "\u2581", len(model["vocab"]))
    return described


@pytest.mark.parametrize("described", [without_words, of_fixed_length, merging_across_blanks])
def test_a_tokenizer_without_safe_points_takes_a_text_whole_up_to_a_bound(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, described: Any
):
    monkeypatch.setattr(pieces, "PIECE", 40)
    monkeypatch.setattr(pieces, "LONGEST", 400)
    _, encoder = plain(described(), tmp_path)
    text = " ".join("abcdefg" for _ in range(50))
    assert [part.text for part in encoder.pieces("a text", text)] == [text]
    with pytest.raises(DataError, match="web-blogpost: 'x': 400 of its 1599 characters, from 0 on, have no point"):
        list(encoder.pieces("web-blogpost: 'x'", " ".join("abcdefg" for _ in range(200))))


@pytest.mark.slow
def test_unknown_tokens_and_changed_texts_are_counted_and_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    save(unigram(), tmp_path / "models/generator")
    texts = [
        "It wasn't the first time.",
        "a \U0001f30d b \U0001f30d",
        "u\u0308ber, she said",
        *(f"the {number}. of them" for number in range(6)),
    ]
    metrics = tokenise(tmp_path, texts, max_unknown=0.2, max_changed=0.25)
    assert metrics["unknown_tokens"] == 2 and metrics["changed_documents"] == 2
    assert metrics["unknown_share"] == pytest.approx(2 / metrics["tokens"], rel=1e-5)
    assert metrics["changed_share"] == pytest.approx(2 / 9, rel=1e-5)
    with pytest.raises(
        DataError, match=r"2 of \d+ tokens are unknown to it.*max_unknown allows 0\.01.*'a \U0001f30d b"
    ):
        tokenise(tmp_path, texts, max_unknown=0.01)
    with pytest.raises(DataError, match=r"2 of 9 documents are not .*max_changed allows 0\.2.* came back as "):
        tokenise(tmp_path, texts, max_changed=0.2)


@pytest.mark.slow
@pytest.mark.parametrize("described", [SHAPES["sentencepiece_like"], sees_all_of_a_text])
def test_a_text_in_pieces_counts_as_one_document(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, described: Callable[[], dict[str, Any]]
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(pieces, "PIECE", 40)
    monkeypatch.setattr("stages.tokenize_corpus.shards.AT_ONCE", 100)
    tokenizer = save(described(), tmp_path / "models/generator")
    texts = [made_up(random.Random(seed), 100).replace("\u2581", "").strip() for seed in range(5)]
    metrics = tokenise(tmp_path, texts)
    read = [tokenizer.decode(ids[:-1], skip_special_tokens=False) for ids in documents_in(tmp_path)]
    assert sorted(read) == sorted(texts)
    assert (metrics["documents"], metrics["changed_documents"]) == (5, 0)


@pytest.mark.slow
def test_memory_does_not_grow_with_what_a_document_becomes(tmp_path: Path):
    plain(byte_level(), tmp_path)
    program = f"""
from pathlib import Path
from resource import RUSAGE_SELF, getrusage
from stages.tokenize_corpus.pieces import Piece, PieceTokenizer
from stages.tokenize_corpus.plain_text import PlainText
encoder = PieceTokenizer(PlainText(Path({str(tmp_path / "plain_text.json")!r}), (), None))
text = "Water boils at a lower temperature on a mountain, 1,234 m up. " * 65_000
before = getrusage(RUSAGE_SELF).ru_maxrss
pieces = tokens = 0
for piece in encoder.pieces("a text", text):
    ids, = encoder.encode([piece.text])
    encoder.decode([ids])
    pieces, tokens = pieces + 1, tokens + len(ids)
print(pieces, tokens, (getrusage(RUSAGE_SELF).ru_maxrss - before) // 1024)
"""
    ran = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    count, tokens, megabytes = map(int, ran.stdout.split())
    assert count > 15 and tokens > 1_000_000 and megabytes < 150  # at once it would take about 650
