"""Training windows: the token shards that datatrove writes, read as one long sequence, and the order of the windows.

A `.ds` file is a flat array of little-endian token ids, two bytes each for vocabularies up to 65,536 and four above;
every document ends with the end-of-text token (datatrove, `pipeline/tokens/tokenizer.py`). Files are taken in the
order of their names and joined end to end, so the windows do not depend on the number of shards.
"""

import hashlib
import json
from functools import lru_cache
from pathlib import Path

import numpy as np
import pyarrow.compute as pc
import pyarrow.parquet as pq
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from cosmopedia.core.errors import ConfigError, DataError
from cosmopedia.core.rng import draw_u64
from stages.train.recipe import Shared

REMAKE = "run `dvc repro tokenize_corpus`, or dvc pull"
SCAN = 1 << 22  # tokens checked at a time


class Split(BaseModel):
    """One split of the corpus."""

    tokens: int = Field(ge=0)
    documents: int = Field(ge=0)


class Corpus(BaseModel):
    """What `data/tokenize_corpus/corpus.json` says of the shards next to it; other keys are for other readers."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    train: Split
    validation: Split
    vocab_size: int = Field(ge=1)
    token_bytes: int
    eos: int = Field(ge=0)  # id of the end-of-text token
    dataset_hash: str  # over the names and bytes of all shards
    shards: dict[str, str] = {}  # SHA-256 of each shard, by `<split>/<name>`; none: their bytes cannot be checked


def read_corpus(folder: Path) -> Corpus:
    """The corpus card of a folder of shards. `DataError` when it is missing or contradicts itself."""
    path = folder / "corpus.json"
    try:
        corpus = Corpus.model_validate(json.loads(path.read_text(encoding="utf-8")))
    except FileNotFoundError:
        raise DataError(f"{path} is missing; {REMAKE}") from None
    except (ValidationError, ValueError) as error:
        raise DataError(f"{path} is no corpus card: {' '.join(str(error).split())}; {REMAKE}") from None
    wanted = 2 if corpus.vocab_size <= 1 << 16 else 4
    if corpus.token_bytes != wanted:
        raise DataError(
            f"{path}: a vocabulary of {corpus.vocab_size} takes {wanted} bytes per token,"
            f" but token_bytes is {corpus.token_bytes}; {REMAKE}"
        )
    return corpus


class TokenShards:
    """One split's tokens, memory-mapped, as consecutive windows of `sequence` inputs and their next tokens.

    Window i holds the tokens [i * sequence, (i + 1) * sequence] of the joined shards, both ends included: neighbours
    share one token, the last target of the first and the first input of the second.
    """

    def __init__(self, folder: Path, split: Split, corpus: Corpus, sequence: int):
        self.folder, self.sequence, self.vocab_size = folder, sequence, corpus.vocab_size
        self.hashes = corpus.shards
        self._parts, starts = [], [0]
        for path in sorted(folder.glob("*.ds")):
            size = path.stat().st_size
            if size % corpus.token_bytes:
                raise DataError(
                    f"{path} is corrupt: {size} bytes are no whole number of {corpus.token_bytes}-byte tokens;"
                    f" {REMAKE}"
                )
            if size:
                self._parts.append(np.memmap(path, dtype=f"<u{corpus.token_bytes}", mode="r"))
                starts.append(starts[-1] + size // corpus.token_bytes)
        self._starts = np.array(starts)
        self.tokens = starts[-1]
        if self.tokens != split.tokens:
            raise DataError(
                f"{folder}: the shards hold {self.tokens} tokens, but corpus.json says {split.tokens};"
                f" a shard is cut short, missing or left over: {REMAKE}"
            )

    @property
    def windows(self) -> int:
        """Whole windows; the tail that does not fill one is left out."""
        return max((self.tokens - 1) // self.sequence, 0)

    def check_vocabulary(self) -> None:
        """Check all tokens in one pass, a piece at a time.

        `DataError` for a token outside the vocabulary, with its file and position, and for a shard whose SHA-256 is
        not the one in corpus.json.
        """
        for part in self._parts:
            digest = hashlib.sha256()
            for start in range(0, len(part), SCAN):
                piece = part[start : start + SCAN]
                digest.update(piece)
                wrong = np.flatnonzero(piece >= self.vocab_size)
                if wrong.size:
                    at = start + int(wrong[0])
                    raise DataError(
                        f"{part.filename}: token {at} is {part[at]}, but corpus.json declares a vocabulary of"
                        f" {self.vocab_size}; the shards were made with another tokenizer: {REMAKE}"
                    )
            wanted = self.hashes.get(f"{self.folder.name}/{Path(str(part.filename)).name}")
            if self.hashes and digest.hexdigest() != wanted:
                raise DataError(
                    f"{part.filename} is corrupt: corpus.json says SHA-256 {wanted}, its bytes have"
                    f" {digest.hexdigest()}; {REMAKE}"
                )

    def documents(self, index: int) -> list[str]:
        """Completion ids of the documents that have tokens in window `index`, in their order.

        Read from the split's `documents.parquet`; `DataError` when that is missing or no such table.
        """
        path = self.folder / "documents.parquet"
        start = index * self.sequence
        stop = start + self.sequence + 1
        ids: list[str] = []
        for part, first in zip(self._parts, map(int, self._starts), strict=False):
            begin, end = max(start - first, 0), min(stop - first, len(part))
            if begin >= end:
                continue
            number = int(Path(str(part.filename)).name.partition("_")[0])
            within = (pc.field("start") < end) & (pc.field("start") + pc.field("tokens") > begin)
            try:
                rows = pq.read_table(path, columns=["completion_id"], filters=(pc.field("shard") == number) & within)
            except FileNotFoundError:
                raise DataError(f"{path} is missing; {REMAKE}") from None
            except (ValueError, OSError) as error:  # Arrow's own errors are among them
                raise DataError(f"{path} is no table of documents: {error}; {REMAKE}") from None
            ids += rows.column("completion_id").to_pylist()
        return ids

    def span(self, start: int, stop: int) -> np.ndarray:
        """Tokens start..stop-1 of the joined shards, as int64."""
        first = int(np.searchsorted(self._starts, start, side="right")) - 1
        pieces = []
        while start < stop:
            end = min(stop, int(self._starts[first + 1]))
            offset = int(self._starts[first])
            pieces.append(self._parts[first][start - offset : end - offset])
            start, first = end, first + 1
        return np.concatenate(pieces).astype(np.int64)

    def window(self, index: int) -> np.ndarray:
        """Window `index`: sequence + 1 tokens."""
        start = index * self.sequence
        return self.span(start, start + self.sequence + 1)


def open_split(folder: Path, split: str, corpus: Corpus, sequence: int) -> TokenShards:
    """A split's shards, checked against the corpus card."""
    shards = TokenShards(folder / split, getattr(corpus, split), corpus, sequence)
    shards.check_vocabulary()
    return shards


def check_fit(shards: TokenShards, recipe: Shared, corpus: Corpus) -> None:
    """Refuse a vocabulary that is not the corpus's, and tokens that do not fill one batch."""
    vocabulary, folder = recipe.architecture.vocabulary, shards.folder
    if vocabulary != corpus.vocab_size:
        raise ConfigError(
            f"train.architecture.vocabulary is {vocabulary}, but {folder.parent}/corpus.json has {corpus.vocab_size}"
            f" tokens; set it to {corpus.vocab_size}, or tokenise with another tokenizer"
        )
    if shards.windows < recipe.batch:
        raise DataError(
            f"{folder} holds {shards.tokens} tokens, but one batch of {recipe.batch} x {recipe.sequence} takes"
            f" {recipe.batch * recipe.sequence + 1}; generate more, or lower train.batch or train.sequence"
        )


class WindowOrder:
    """The window at each position of the training: every epoch is a permutation drawn from (seed, epoch)."""

    def __init__(self, windows: int, seed: int):
        self.windows, self.seed = windows, seed
        self._epoch = lru_cache(maxsize=2)(self._permute)

    def _permute(self, epoch: int) -> np.ndarray:
        generator = np.random.Generator(np.random.PCG64(draw_u64(self.seed, "train.order", epoch)))
        return generator.permutation(self.windows)

    def __getitem__(self, position: int) -> int:
        epoch, within = divmod(position, self.windows)
        return int(self._epoch(epoch)[within])
