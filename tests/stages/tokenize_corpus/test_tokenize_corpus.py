"""Promises of the tokenize_corpus stage."""

import json
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from tokenizers import Tokenizer

from cosmopedia.core.errors import DataError, InternalError
from cosmopedia.core.params import read_yaml
from cosmopedia.corpus.components import original_id
from stages.tokenize_corpus.__main__ import main
from stages.tokenize_corpus.shards import SPLITS, check_shards, is_validation, write_documents_table
from stages.train.windows import TokenShards, read_corpus
from tests.support.documents import (
    byte_tokenizer,
    bytes_of,
    document,
    natural_document,
    repository,
    write_documents,
    write_mix,
)  # fmt: skip

EOS = 1
TEXTS = [f"Document {i} says that {i} and {i} make {2 * i}, caf\u00e9." for i in range(60)]
TRICK = "A text that spells </s> out, and <s> too."


@pytest.fixture
def corpus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("COSMO_COMPUTE", raising=False)
    byte_tokenizer(tmp_path / "models/generator")
    rows = [document(text=text, audience=f"audience{i % 3}") for i, text in enumerate([*TEXTS, TRICK])]
    write_documents(tmp_path / "data/decontaminate/web-blogpost.parquet", rows[:40])
    write_documents(tmp_path / "data/decontaminate/wikihow-article.parquet", rows[40:])
    write_documents(tmp_path / "data/decontaminate/openstax-college.parquet", [])
    return tmp_path


def tokenise(folder: Path, tasks: int = 1, **changes: Any) -> dict:
    changes.setdefault("validation_fraction", 0.2)
    repository(folder, "tokenize_corpus", tasks, **changes)
    main()
    return read_yaml(folder / "data/tokenize_corpus/corpus.json")


def documents_of(split: str) -> list[str]:
    """The texts in a split's shards, in their order, checked to end with </s>."""
    tokenizer, texts = Tokenizer.from_file("data/tokenize_corpus/tokenizer.json"), []
    for shard in sorted(Path("data/tokenize_corpus", split).glob("*.ds")):
        tokens, ends = np.fromfile(shard, dtype="<u2"), np.fromfile(f"{shard}.index", dtype="<u8")
        for part in np.split(tokens, ends[:-1].astype(int)):
            assert part[-1] == EOS and EOS not in part[:-1]
            texts.append(tokenizer.decode(part[:-1].tolist()))
    return texts


def test_every_document_is_there_once_and_ends_with_the_end_of_text(corpus: Path):
    tokenise(corpus)
    train, validation = documents_of("train"), documents_of("validation")
    assert sorted(train + validation) == sorted([*TEXTS, TRICK])
    expected = {text for text in [*TEXTS, TRICK] if is_validation(41, document(text=text)["completion_id"], 0.2)}
    assert set(validation) == expected and 3 < len(expected) < 25


def test_a_document_is_there_as_often_as_in_the_mix_with_an_id_for_each_copy(corpus: Path):
    pages = [natural_document(f"Page {i} is about rivers.") for i in range(9)]
    write_documents(corpus / "data/decontaminate/web-natural.parquet", pages)
    copies = {row["completion_id"]: number % 3 for number, row in enumerate(pages)}
    write_mix(corpus / "data/mix/web-natural.parquet", {name: number for name, number in copies.items() if number})
    write_mix(corpus / "data/mix/wikihow-article.parquet", {})
    counts = tokenise(corpus)
    assert counts["documents"] == 49
    tables = {split: pq.read_table(f"data/tokenize_corpus/{split}/documents.parquet") for split in SPLITS}
    ids = {split: table["completion_id"].to_pylist() for split, table in tables.items()}
    both = [*ids["train"], *ids["validation"]]
    assert len(set(both)) == len(both) == 49  # no id twice
    assert {name: sum(original_id(one) == name for one in both) for name in copies} == copies
    for split, names in ids.items():  # all copies of a document are on one side
        assert {is_validation(41, original_id(name), 0.2) for name in names} == {split == "validation"}
    texts = documents_of("train") + documents_of("validation")
    assert sorted(texts) == sorted(
        TEXTS[:40] + [page["text"] for page in pages for _ in range(copies[page["completion_id"]])]
    )
    by = read_yaml(corpus / "metrics/tokenize_corpus.json")["tokens_by"]
    assert by["component"] == {"synthetic": by["style"]["blogpost"], "web": by["style"]["natural"]}


def test_a_mix_of_another_corpus_is_refused(corpus: Path):
    write_mix(corpus / "data/mix/web-blogpost.parquet", {"zz-0": 1})
    with pytest.raises(
        DataError, match=r"data/mix/web-blogpost.parquet: 'zz-0' is not in data/decontaminate/web-blog"
    ):
        tokenise(corpus)
    Path("data/mix/web-blogpost.parquet").unlink()
    with pytest.raises(DataError, match=r"data/mix/web-blogpost.parquet is missing \(documents of the mix\); run"):
        tokenise(corpus)


def test_a_special_token_in_a_text_stays_text(corpus: Path):
    tokenise(corpus, validation_fraction=0.0)
    assert TRICK in documents_of("train")


@pytest.mark.slow
def test_documents_are_shuffled_across_cells_by_seed(corpus: Path):
    tokenise(corpus)
    first = documents_of("train")
    tokenise(corpus, seed=42, validation_fraction=0.0)
    second = documents_of("train")
    tokenise(corpus, validation_fraction=0.0)
    third = documents_of("train")
    assert second != third and sorted(second) == sorted(third)
    cells = [int(text.split()[1]) >= 40 for text in first if text != TRICK]
    assert cells != sorted(cells)


def test_the_counts_balance(corpus: Path):
    counts = tokenise(corpus)
    tokens = sum(len(text.encode()) + 1 for text in [*TEXTS, TRICK])
    assert counts["tokens"] == counts["train"]["tokens"] + counts["validation"]["tokens"] == tokens
    assert counts["documents"] == 61
    assert (counts["vocab_size"], counts["token_bytes"], counts["eos"]) == (258, 2, EOS)
    by = read_yaml(corpus / "metrics/tokenize_corpus.json")["tokens_by"]
    assert {group: sum(values.values()) for group, values in by.items()} == dict.fromkeys(
        ["component", "source", "style", "audience"], tokens
    )
    assert by["component"] == {"synthetic": tokens}
    assert set(by["source"]) == {"web", "wikihow"} and len(by["audience"]) == 3


@pytest.mark.slow
def test_the_bytes_do_not_depend_on_tasks_and_hold_no_foreign_path(corpus: Path, monkeypatch: pytest.MonkeyPatch):
    tokenise(corpus)
    alone = bytes_of(corpus / "data/tokenize_corpus")
    monkeypatch.setattr("cosmopedia.corpus.pipeline.WORTH_SECONDS", 0)
    tokenise(corpus, tasks=3)
    assert bytes_of(corpus / "data/tokenize_corpus") == alone
    assert alone["train/000_train.ds.metadata"].startswith(b"data/tokenize_corpus|2\n")
    assert not any(str(corpus).encode() in content for content in alone.values())


@pytest.mark.slow
def test_a_shard_ends_where_it_is_full(corpus: Path):
    counts = tokenise(corpus, shard_tokens=500, validation_fraction=0.0)
    shards = sorted((corpus / "data/tokenize_corpus/train").glob("*.ds"))
    assert len(shards) > 3 and all(500 * 2 <= shard.stat().st_size < 600 * 2 for shard in shards[:-1])
    assert check_shards(corpus / "data/tokenize_corpus/train", 2) == (counts["tokens"], 61)
    assert counts["validation"] == {"tokens": 0, "documents": 0}


@pytest.mark.slow
@pytest.mark.parametrize("shard_tokens", [500, 10_000_000])
def test_every_token_of_a_window_is_traced_to_its_document(corpus: Path, shard_tokens: int):
    tokenise(corpus, shard_tokens=shard_tokens)
    texts = {document(text=text)["completion_id"]: text for text in [*TEXTS, TRICK]}
    card, folder = read_corpus(Path("data/tokenize_corpus")), Path("data/tokenize_corpus")
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    for split in ("train", "validation"):
        shards, seen = TokenShards(folder / split, getattr(card, split), card, 100), []
        for index in range(shards.windows):
            ids = shards.documents(index)
            parts = [part.tolist() for part in split_at_eos(shards.window(index))]
            written = [text.strip("\ufffd") for text in tokenizer.decode_batch(parts)]  # a window may cut a letter
            assert len(ids) == len(written) >= 2
            assert texts[ids[0]].endswith(written[0]) and texts[ids[-1]].startswith(written[-1])
            assert [texts[i] for i in ids[1:-1]] == written[1:-1]
            seen += ids
        assert len(set(seen)) >= getattr(card, split).documents - 2  # the tail fills no window


def split_at_eos(tokens: np.ndarray) -> list[np.ndarray]:
    """The documents' parts in a window, without their end-of-text tokens; none after a last one."""
    parts = np.split(tokens, np.flatnonzero(tokens == EOS) + 1)
    return [part[part != EOS] for part in parts if part.size]


def test_the_hashes_in_the_card_are_those_of_the_shards(corpus: Path):
    counts, folder = tokenise(corpus, shard_tokens=500), corpus / "data/tokenize_corpus"
    found = {str(path.relative_to(folder)): sha256(path.read_bytes()).hexdigest() for path in folder.rglob("*.ds")}
    assert counts["shards"] == found and len(found) > 4


def test_an_order_that_does_not_fit_the_shards_is_refused(corpus: Path):
    tokenise(corpus)
    with pytest.raises(InternalError, match="the order in which datatrove shuffles has changed"):
        write_documents_table(corpus / "data/tokenize_corpus/train", [], np.empty(0, dtype=np.uint32))


def test_a_torn_shard_is_detected(corpus: Path):
    tokenise(corpus)
    shard = corpus / "data/tokenize_corpus/train/000_train.ds"
    shard.write_bytes(shard.read_bytes()[:-2])
    with pytest.raises(DataError, match=r"000_train\.ds: expected \d+ bytes by its index, got \d+"):
        check_shards(corpus / "data/tokenize_corpus/train", 2)


def test_a_tokenizer_without_an_end_of_text_is_refused(corpus: Path):
    (corpus / "models/generator/tokenizer_config.json").write_text(json.dumps({"eos_token": "<none>"}))
    with pytest.raises(DataError, match="names no eos_token of its vocabulary"):
        tokenise(corpus)
