"""Token shards by datatrove, the same bytes for any number of workers.

One task per cell and split tokenises and shuffles its documents; datatrove's merger then interleaves the cells at
random. The number of tasks follows the cells, not the compute file, because it decides where a document lands.
"""

import json
import shutil
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, cast

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from datatrove.data import Document, DocumentsPipeline
from datatrove.pipeline.base import PipelineStep
from datatrove.pipeline.tokens.merger import DocumentTokenizerMerger
from datatrove.pipeline.tokens.tokenizer import DocumentTokenizer
from tokenizers import Tokenizer

from cosmopedia.corpus.pipeline import CorpusRun, ReadCells
from cosmopedia.errors import ConfigError, DataError, InternalError
from cosmopedia.lineage import content_revision
from cosmopedia.pins import all_files, check_pin, split_pin
from cosmopedia.rng import draw_unit

SPLITS = ("train", "validation")
GROUPS = ("source", "style", "audience")
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json")
ROW_GROUP = 10_000  # documents in one row group of documents.parquet

CELL_DOCUMENTS = pa.schema([("completion_id", pa.string()), ("tokens", pa.uint32())])
DOCUMENTS = pa.schema(  # in the order of the shards; `shard` is the number that a shard's name begins with
    [
        pa.field("completion_id", pa.string(), nullable=False),
        pa.field("shard", pa.int32(), nullable=False),
        pa.field("start", pa.int64(), nullable=False),  # the document's first token, counted in its shard
        pa.field("tokens", pa.uint32(), nullable=False),  # with its end-of-text token
    ]
)


@dataclass(frozen=True)
class TokenizerFiles:
    """A tokenizer in the stage's folder: its file, its end-of-text token, and the size of its numbers."""

    path: Path
    eos_token: str
    eos: int
    vocab_size: int  # greatest id + 1
    token_bytes: int  # 2 or 4, by datatrove's rule


def is_validation(seed: int, completion_id: str, fraction: float) -> bool:
    """Whether a document goes to the validation split: a draw from (seed, completion id)."""
    return draw_unit(seed, "validation", completion_id) < fraction


class SplitFilter(PipelineStep):
    """Passes the documents of one split. `DataError` for one without text: it would be a lone end-of-text token."""

    type = "FILTER"
    name = "split"

    def __init__(self, split: str, seed: int, fraction: float):
        super().__init__()
        self.split, self.seed, self.fraction = split, seed, fraction

    def run(self, data: DocumentsPipeline, rank: int = 0, world_size: int = 1) -> Iterator[Document]:  # type: ignore[override]
        for document in cast(Iterator[Document], data):
            if not document.text:
                cell = document.metadata["cell"]
                raise DataError(f"{cell}: {document.id!r} has no text; the clean stage removes such rows")
            if is_validation(self.seed, document.id, self.fraction) == (self.split == "validation"):
                yield document


class RecordedDraws:
    """numpy's generator of a seed, which keeps the last permutation that datatrove drew from it."""

    def __init__(self, seed: int):
        self._draws = np.random.default_rng(seed)
        self.order = np.empty(0, dtype=np.int64)

    def permutation(self, of: Any) -> np.ndarray:
        """A permutation of 0..of-1, or of an array."""
        self.order = self._draws.permutation(of)
        return self.order


class CellTokenizer(DocumentTokenizer):
    """datatrove's DocumentTokenizer, which also notes what it wrote.

    `<counts>/<rank>.json`: tokens by source, style and audience; `<documents>/<rank>.parquet`: the completion ids in
    the order of the cell's shuffled tokens. The ids of one cell are in memory, as datatrove's document ends are. The
    whole text is tokenised as text: a special token that a model wrote out does not become one, and truncation or
    padding that was saved with the tokenizer is off.
    """

    def __init__(self, output_folder: Path, files: TokenizerFiles, seed: int, counts: Path, documents: Path):
        super().__init__(
            str(output_folder),
            str(files.path),
            eos_token=files.eos_token,
            batch_size=1000,
            seed=seed,
            save_filename="cell",
        )
        self.counts, self.documents = counts, documents
        self.rand = RecordedDraws(seed)
        self._counts: Counter[tuple[str, ...]] = Counter()
        self._ids: list[str] = []
        self._lengths: list[int] = []

    @cached_property
    def tokenizer(self) -> Tokenizer:
        tokenizer = cast(Tokenizer, super().tokenizer)
        tokenizer.no_truncation()
        tokenizer.no_padding()
        tokenizer.encode_special_tokens = True
        return tokenizer

    def get_loss_values(self, document: Document, encoded: Any) -> None:
        """datatrove's hook, called for every document with its tokens."""
        self._counts[tuple(document.metadata[group] for group in GROUPS)] += len(encoded.ids)
        self._ids.append(document.id)
        self._lengths.append(len(encoded.ids))
        self.stat_update("counted")

    def run(self, data: DocumentsPipeline, rank: int = 0, world_size: int = 1) -> None:  # type: ignore[override]
        super().run(data, rank, world_size)
        rows = [[*group, tokens] for group, tokens in sorted(self._counts.items())]
        (self.counts / f"{rank:05d}.json").write_text(json.dumps(rows))
        if self._ids:
            table = pa.table([self._ids, self._lengths], schema=CELL_DOCUMENTS).take(pa.array(self.rand.order))
            pq.write_table(table, self.documents / f"{rank:05d}.parquet", row_group_size=ROW_GROUP)


class CellMerger(DocumentTokenizerMerger):
    """datatrove's DocumentTokenizerMerger, which also saves the order in which it interleaves the cells.

    The file `order` holds for every document of the merged shards the position of its cell among the cells that have
    documents of the split.
    """

    def __init__(self, cells: Path, target: Path, split: str, shard_tokens: int, seed: int, order: Path):
        super().__init__(
            str(cells), str(target.resolve()), split, max_tokens_per_file=shard_tokens, seed=seed, progress=False
        )
        self.order = order

    def get_ordering(self, all_doc_ends: Any) -> np.ndarray:
        ordering = super().get_ordering(all_doc_ends)
        np.save(self.order, ordering.astype(np.uint32))
        return ordering


def copy_tokenizer(source: str, folder: Path) -> TokenizerFiles:
    """Bring a tokenizer into a folder: "generator", a folder, a tokenizer.json, or a hub id ("id@revision").

    Its end-of-text token is the one that tokenizer_config.json names.
    """
    for path in find_tokenizer("models/generator" if source == "generator" else source):
        shutil.copyfile(path, folder / path.name)
    config = folder / "tokenizer_config.json"
    try:
        entry = json.loads(config.read_text(encoding="utf-8-sig")).get("eos_token") if config.is_file() else None
        tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    except Exception as error:  # tokenizers raises nothing narrower
        raise DataError(f"tokenizer {source}: not readable ({error}); give a fast tokenizer's files") from None
    eos_token = entry.get("content") if isinstance(entry, dict) else entry
    eos = tokenizer.token_to_id(eos_token) if isinstance(eos_token, str) else None
    if eos is None:
        raise DataError(f"tokenizer {source}: tokenizer_config.json names no eos_token of its vocabulary ({entry!r})")
    size = max(tokenizer.get_vocab().values()) + 1
    token_bytes = 2 if tokenizer.get_vocab_size() <= 2**16 else 4
    return TokenizerFiles(folder / "tokenizer.json", cast(str, eos_token), eos, size, token_bytes)


def find_tokenizer(source: str) -> list[Path]:
    """The files of a tokenizer: those of a folder, of the folder of a tokenizer.json, or of a hub repository."""
    name, pin = split_pin(source)
    path = Path(name)
    if path.exists():
        check_pin(name, pin, content_revision(all_files(name)))
        return _tokenizer_files(path)
    if source.startswith((".", "/")) or source.endswith(".json") or source.startswith("models/"):
        raise DataError(
            f"tokenizer {source} is missing; run the stage that writes it, or set tokenize_corpus.tokenizer"
        )
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError

    from cosmopedia.records import resolve_revision

    hub_id, _, revision = source.partition("@")
    commit = resolve_revision("model", hub_id, revision or None)
    try:
        snapshot = snapshot_download(hub_id, revision=commit, allow_patterns=list(TOKENIZER_FILES))
    except (HfHubHTTPError, OSError, ValueError) as error:
        raise ConfigError(f"tokenizer {source} is not available from the hub ({type(error).__name__})") from None
    return _tokenizer_files(Path(snapshot))


def _tokenizer_files(path: Path) -> list[Path]:
    folder = path.parent if path.is_file() else path
    if not (folder / "tokenizer.json").is_file():
        raise DataError(
            f"{folder}/tokenizer.json is missing; run the generator stage, or set tokenize_corpus.tokenizer"
        )
    return [folder / name for name in TOKENIZER_FILES if (folder / name).is_file()]


def write_shards(
    run: CorpusRun, split: str, files: TokenizerFiles, seed: int, fraction: float, shard_tokens: int
) -> Counter[tuple[str, ...]]:
    """Tokenise one split into `<out>/<split>/NNN_<split>.ds` (+ `.index`, `.metadata`) and `documents.parquet`.

    Returns tokens by (source, style, audience).
    """
    cells, counts, documents = (run.scratch / f"{split}-{kind}" for kind in ("cells", "counts", "documents"))
    target, order = run.out / split, run.scratch / f"{split}-order.npy"
    for folder in (counts, documents, target):
        folder.mkdir()
    tokenizer = CellTokenizer(cells, files, seed, counts, documents)
    steps = [ReadCells(run.cells), SplitFilter(split, seed, fraction), tokenizer]
    run.run(f"tokenise {split}", steps, tasks=len(run.cells), total=run.rows)
    for index in sorted(cells.glob("*.ds.index")):
        if index.stat().st_size == 0:  # a cell without documents of this split
            for leftover in cells.glob(f"{index.name.removesuffix('.index')}*"):
                run.arrays.put_away(leftover)
                leftover.unlink()
    if any(cells.glob("*.ds")):
        merger = CellMerger(cells, target, split, shard_tokens, seed, order)
        run.run(f"merge {split}", [merger], tasks=1)
    run.arrays.check()
    cell_order = np.load(order, mmap_mode="r") if order.exists() else np.empty(0, dtype=np.uint32)
    write_documents_table(target, sorted(documents.glob("*.parquet")), cell_order)
    for metadata in target.glob("*.metadata"):  # its first line must name a folder that holds the tokenizer
        _, *rest = metadata.read_text(encoding="utf-8").split("\n")
        metadata.write_text("\n".join([f"{run.out}|{files.token_bytes}", *rest]), encoding="utf-8")
    totals: Counter[tuple[str, ...]] = Counter()
    for part in sorted(counts.glob("*.json")):
        for *group, tokens in json.loads(part.read_text()):
            totals[tuple(group)] += tokens
    return totals


def write_documents_table(folder: Path, cells: list[Path], order: np.ndarray) -> None:
    """Write `<folder>/documents.parquet` (DOCUMENTS): where each completion is in the split's shards.

    `cells` are CELL_DOCUMENTS files, `order[i]` the position in it of document i's cell. Memory does not grow with the
    documents. `InternalError` when a document's length is not what the shards' indices say.
    """
    rows = [_rows(cell) for cell in cells]
    with pq.ParquetWriter(folder / "documents.parquet", DOCUMENTS, compression="zstd", compression_level=3) as writer:
        pending: list[tuple[str, int, int, int]] = []
        position = 0
        for shard in sorted(folder.glob("*.ds"), key=shard_number):
            start = 0
            for end in map(int, np.memmap(f"{shard}.index", dtype="<u8", mode="r")):
                completion_id, tokens = next(rows[order[position]], ("", -1)) if position < len(order) else ("", -1)
                if tokens != end - start:
                    raise InternalError(
                        f"{shard}: document {completion_id!r} of {tokens} tokens does not fit {start}-{end};"
                        " the order in which datatrove shuffles has changed"
                    )
                pending.append((completion_id, shard_number(shard), start, tokens))
                start = end
                position += 1
                if len(pending) == ROW_GROUP:
                    writer.write_table(_documents_table(pending))
                    pending = []
        if pending:
            writer.write_table(_documents_table(pending))


def _rows(path: Path) -> Iterator[tuple[str, int]]:
    for batch in pq.ParquetFile(path).iter_batches(batch_size=1000, use_threads=False):
        yield from zip(*(column.to_pylist() for column in batch.columns), strict=True)


def _documents_table(rows: Iterable[tuple[str, int, int, int]]) -> pa.Table:
    return pa.table([list(column) for column in zip(*rows, strict=True)], schema=DOCUMENTS)


def shard_number(path: Path) -> int:
    """The number that a shard's name begins with: 7 for `007_train.ds`."""
    return int(path.name.partition("_")[0])


def check_shards(folder: Path, token_bytes: int) -> tuple[int, int]:
    """(tokens, documents) of a split's shards. `DataError` when a shard and its index do not fit together."""
    tokens = documents = 0
    for shard in sorted(folder.glob("*.ds")):
        index = Path(f"{shard}.index").read_bytes()
        last = int.from_bytes(index[-8:], "little")
        if shard.stat().st_size != last * token_bytes:
            raise DataError(
                f"{shard}: expected {last * token_bytes} bytes by its index, got {shard.stat().st_size};"
                " run the stage again"
            )
        tokens, documents = tokens + last, documents + len(index) // 8
    return tokens, documents
