"""tokenize_corpus: the corpus as shuffled token shards, split into train and validation by document.

In: data/decontaminate/<source>-<style>.parquet (DOCUMENT), data/mix/<source>-<style>.parquet (MIXED: which of them and
how often), the tokenizer (models/generator/, or as params say).
Out: data/tokenize_corpus/{train,validation}/NNN_<split>.ds: little-endian uint16 or uint32 tokens, an end-of-text
token after each document; NNN_<split>.ds.index: uint64 document ends, in tokens; NNN_<split>.ds.metadata: nanotron's;
{train,validation}/documents.parquet: where each document is (completion_id, shard, start, tokens); the n-th copy of
one has `#n` behind its id; the tokenizer's files; corpus.json (what training needs to know);
metrics/tokenize_corpus.json.
Contract: the same bytes for any number of workers. In corpus.json `shards` has each shard's SHA-256; `dataset_hash` is
SHA-256 over the names and bytes of all shards and indices.
Run: python -m stages.tokenize_corpus
"""

import json
from collections import Counter
from pathlib import Path

from pydantic import Field

from cosmopedia.core.errors import DataError
from cosmopedia.core.files import write_text
from cosmopedia.core.lineage import hash_file, hash_files
from cosmopedia.core.params import Params, load
from cosmopedia.core.row_counts import write_metrics
from cosmopedia.corpus.components import component
from cosmopedia.corpus.pipeline import CorpusRun
from cosmopedia.execution.compute import load_compute
from cosmopedia.execution.stage_process import run_stage
from cosmopedia.tables.contracts import MIXED
from cosmopedia.tables.parquet import read_batches
from stages.tokenize_corpus.fidelity import Counts
from stages.tokenize_corpus.shards import GROUPS, MIX, SPLITS, check_shards, write_shards
from stages.tokenize_corpus.tokenizer_files import copy_tokenizer


class TokenizeCorpusParams(Params):
    """Which tokenizer, how the corpus is split and laid out, and how much of it may be lost."""

    tokenizer: str  # "generator", a folder or tokenizer.json, or a hub id@revision
    seed: int  # of the split and of both shuffles
    validation_fraction: float = Field(ge=0, lt=1)  # of documents
    shard_tokens: int = Field(ge=1)  # a shard ends with the document that reaches this many
    max_unknown: float = Field(ge=0, le=1)  # share of tokens
    max_changed: float = Field(ge=0, le=1)  # share of documents that their tokens do not give back


def by_group(counts: Counter[tuple[str, ...]]) -> dict[str, dict[str, int]]:
    """Tokens by component, by source, by style and by audience."""
    table: dict[str, dict[str, int]] = {group: {} for group in ("component", *GROUPS)}
    for key, tokens in sorted(counts.items()):
        for group, value in zip(table, (component(*key[:2]), *key), strict=True):
            table[group][value] = table[group].get(value, 0) + tokens
    return table


def documents_of_mix(cells: list[Path]) -> int:
    """How many documents the mix has, each copy counted."""
    tables = read_batches([MIX / cell.name for cell in cells], MIXED, batch_rows=1 << 16)
    return sum(sum(table["copies"].to_pylist()) for table in tables)


def settings() -> TokenizeCorpusParams:
    """The stage's params."""
    return load("tokenize_corpus", TokenizeCorpusParams)


def main() -> str:
    """Tokenise the corpus; returns the summary line."""
    params = settings()
    with CorpusRun("tokenize_corpus", "data/decontaminate", "data/tokenize_corpus", load_compute().data) as run:
        files = copy_tokenizer(params.tokenizer, run.out, run.scratch)
        mixed = documents_of_mix(run.cells)
        splits: dict[str, dict[str, int]] = {}
        counts = Counts()
        for split in SPLITS:
            counts.add(write_shards(run, split, files, params.seed, params.validation_fraction, params.shard_tokens))
            tokens, documents = check_shards(run.out / split, files.token_bytes)
            splits[split] = {"tokens": tokens, "documents": documents}
        if sum(split["documents"] for split in splits.values()) != mixed or splits["train"]["documents"] == 0:
            raise DataError(f"{MIX}: {mixed} documents gave {splits}; training needs at least one")
        counts.check(params.tokenizer, params.max_unknown, params.max_changed)
        shards = [path for split in SPLITS for path in (run.out / split).glob("*.ds*") if path.suffix != ".metadata"]
        corpus = {
            "tokens": sum(split["tokens"] for split in splits.values()),
            "documents": mixed,
            **splits,
            "vocab_size": files.vocab_size,
            "token_bytes": files.token_bytes,
            "eos": files.eos,
            "eos_token": files.eos_token,
            "tokenizer": params.tokenizer,
            "dataset_hash": hash_files(shards),
            "shards": {
                f"{path.parent.name}/{path.name}": hash_file(path) for path in sorted(shards) if path.suffix == ".ds"
            },
        }
        write_text(run.out / "corpus.json", json.dumps(corpus, indent=2) + "\n")
    measured = {name: value for name, value in corpus.items() if name != "shards"}
    measured |= {**counts.metrics(), "tokens_by": by_group(counts.tokens)}
    write_metrics("metrics/tokenize_corpus.json", measured)
    return (
        f"{splits['train']['tokens']} tokens of {splits['train']['documents']} documents to train on,"
        f" {splits['validation']['tokens']} of {splits['validation']['documents']} to validate"
    )


if __name__ == "__main__":
    run_stage("tokenize_corpus", main)
