"""Token shards by datatrove, the same bytes for any number of workers.

One task per cell and split tokenises and shuffles its documents; datatrove's merger then interleaves the cells at
random. The number of tasks follows the cells, not the compute file, because it decides where a document lands.
"""

from collections.abc import Iterable, Iterator
from functools import cached_property
from pathlib import Path
from typing import Any, cast

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from datatrove.data import Document, DocumentsPipeline
from datatrove.pipeline.base import PipelineStep
from datatrove.pipeline.tokens.merger import DocumentTokenizerMerger
from datatrove.pipeline.tokens.tokenizer import DocumentTokenizer, TokenizedFile

from cosmopedia.core.errors import DataError, InternalError
from cosmopedia.core.rng import draw_unit
from cosmopedia.corpus.components import copy_id
from cosmopedia.corpus.pipeline import CorpusRun, as_document
from cosmopedia.tables.contracts import DOCUMENT, MIXED
from cosmopedia.tables.parquet import read_rows
from stages.tokenize_corpus.fidelity import Counts, DocumentNotes, read_counts
from stages.tokenize_corpus.pieces import Piece, PieceTokenizer
from stages.tokenize_corpus.tokenizer_files import TokenizerFiles

SPLITS = ("train", "validation")
MIX = Path("data/mix")
GROUPS = ("source", "style", "audience")
ROW_GROUP = 10_000  # documents in one row group of documents.parquet
AT_ONCE = 500_000  # characters that are encoded together

CELL_DOCUMENTS = pa.schema([("completion_id", pa.string()), ("tokens", pa.uint32())])
DOCUMENTS = pa.schema(  # in the order of the shards; `shard` is the number that a shard's name begins with
    [
        pa.field("completion_id", pa.string(), nullable=False),
        pa.field("shard", pa.int32(), nullable=False),
        pa.field("start", pa.int64(), nullable=False),  # the document's first token, counted in its shard
        pa.field("tokens", pa.uint32(), nullable=False),  # with its end-of-text token
    ]
)


def is_validation(seed: int, completion_id: str, fraction: float) -> bool:
    """Whether a document goes to the validation split: a draw from (seed, completion id)."""
    return draw_unit(seed, "validation", completion_id) < fraction


class ReadMix(PipelineStep):
    """Yields the documents of every `world_size`-th file that are in the mix, with the number of their copies."""

    type = "READER"
    name = "mix"

    def __init__(self, cells: list[Path], mix: Path):
        super().__init__()
        self.cells, self.mix = cells, mix

    def run(self, data: DocumentsPipeline = None, rank: int = 0, world_size: int = 1) -> Iterator[Document]:  # type: ignore[override]
        """Both files of a cell are sorted by id. `DataError` when the mix has a document that the cell has not."""
        for cell in self.cells[rank::world_size]:
            mixed = read_rows([self.mix / cell.name], MIXED)
            taken = next(mixed, None)
            for row in read_rows([cell], DOCUMENT):
                if taken is not None and row["completion_id"] == taken["completion_id"]:
                    document = as_document(row, cell)
                    document.metadata["copies"] = taken["copies"]
                    yield document
                    taken = next(mixed, None)
            if taken is not None:
                raise DataError(
                    f"{self.mix / cell.name}: {taken['completion_id']!r} is not in {cell}; run the mix stage again"
                )


class Repeat(PipelineStep):
    """Yields each document as often as it is in the mix, with an id of its own each time."""

    type = "FILTER"
    name = "copies"

    def run(self, data: DocumentsPipeline, rank: int = 0, world_size: int = 1) -> Iterator[Document]:  # type: ignore[override]
        for document in cast(Iterator[Document], data):
            for copy in range(1, document.metadata["copies"] + 1):
                yield Document(text=document.text, id=copy_id(document.id, copy), metadata=document.metadata)


class SplitFilter(PipelineStep):
    """Passes the documents of one split; all copies of a document are on one side.

    `DataError` for one without text: it would be a lone end-of-text token.
    """

    type = "FILTER"
    name = "split"

    def __init__(self, split: str, seed: int, fraction: float):
        super().__init__()
        self.split, self.seed, self.fraction = split, seed, fraction

    def run(self, data: DocumentsPipeline, rank: int = 0, world_size: int = 1) -> Iterator[Document]:  # type: ignore[override]
        for document in cast(Iterator[Document], data):
            if not document.text:
                raise DataError(f"{_named(document)} has no text; the clean stage removes such rows")
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
    """datatrove's DocumentTokenizer, which encodes plain text piece by piece and also notes what it wrote.

    `<counts>/<rank>.json`: the cell's Counts; `<documents>/<rank>.parquet`: the completion ids in the order of the
    cell's shuffled tokens. The ids of one cell are in memory, as datatrove's document ends are.
    """

    def __init__(self, output_folder: Path, files: TokenizerFiles, seed: int, counts: Path, documents: Path):
        super().__init__(str(output_folder), str(files.path), seed=seed, save_filename="cell")
        self.files, self.counts, self.documents = files, counts, documents
        self.rand = RecordedDraws(seed)
        self._counts = Counts()
        self._ids: list[str] = []
        self._lengths: list[int] = []

    @cached_property
    def encoder(self) -> PieceTokenizer:
        """What a task encodes with; loaded in the task."""
        return PieceTokenizer(self.files.plain)

    @cached_property
    def token_size(self) -> int:
        """Bytes per token. datatrove's own rule counts the tokens, but a vocabulary may have gaps."""
        return self.files.token_bytes

    def write_unshuffled(self, data: Any, filename: str) -> TokenizedFile:
        """datatrove's step before the shuffle: all documents in their order, each with an end-of-text token."""
        file = TokenizedFile(
            self.output_folder,
            filename,
            tokenizer_name_or_path=self.tokenizer_name_or_path,
            save_final_metadata=True,
            token_size=self.token_size,
        )
        notes = DocumentNotes(self.files.plain, self._counts)
        for batch in batches(self._pieces(data)):
            encoded = self.encoder.encode([piece.text for _, piece in batch])
            read_back = self.encoder.decode(encoded)
            for (document, piece), ids, read in zip(batch, encoded, read_back, strict=True):
                notes.add(_named(document), piece, ids, read)
                if not piece.last:
                    file.write_bytes(self._bytes(ids), doc_ends=[])  # none ends here
                    continue
                before = len(file)
                file.write_bytes(self._bytes([*ids, self.files.eos]))
                self._note(document, len(file) - before)
        file.close()
        return file

    def _pieces(self, documents: Iterator[Document]) -> Iterator[tuple[Document, Piece]]:
        for document in documents:
            for piece in self.encoder.pieces(_named(document), document.text):
                yield document, piece

    def _note(self, document: Document, tokens: int) -> None:
        self._ids.append(document.id)
        self._lengths.append(tokens)
        self._counts.tokens[tuple(document.metadata[group] for group in GROUPS)] += tokens

    def _bytes(self, ids: list[int]) -> bytes:
        return np.array(ids, dtype=f"<u{self.token_size}").tobytes()

    def run(self, data: DocumentsPipeline, rank: int = 0, world_size: int = 1) -> None:  # type: ignore[override]
        super().run(data, rank, world_size)
        self._counts.write(self.counts / f"{rank:05d}.json")
        if self._ids:
            table = pa.table([self._ids, self._lengths], schema=CELL_DOCUMENTS).take(pa.array(self.rand.order))
            pq.write_table(table, self.documents / f"{rank:05d}.parquet", row_group_size=ROW_GROUP)


def _named(document: Document) -> str:
    """A document's place, for messages."""
    return f"{document.metadata['cell']}: {document.id!r}"


def batches(pieces: Iterable[tuple[Document, Piece]]) -> Iterator[list[tuple[Document, Piece]]]:
    """Pieces that are encoded together: up to `AT_ONCE` characters, and the piece that passes them."""
    batch: list[tuple[Document, Piece]] = []
    characters = 0
    for document, piece in pieces:
        batch.append((document, piece))
        characters += len(piece.text)
        if characters >= AT_ONCE:
            yield batch
            batch, characters = [], 0
    if batch:
        yield batch


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


def write_shards(
    run: CorpusRun, split: str, files: TokenizerFiles, seed: int, fraction: float, shard_tokens: int
) -> Counts:
    """Tokenise one split into `<out>/<split>/NNN_<split>.ds` (+ `.index`, `.metadata`) and `documents.parquet`.

    Returns what was counted.
    """
    cells, counts, documents = (run.scratch / f"{split}-{kind}" for kind in ("cells", "counts", "documents"))
    target, order = run.out / split, run.scratch / f"{split}-order.npy"
    for folder in (counts, documents, target):
        folder.mkdir()
    tokenizer = CellTokenizer(cells, files, seed, counts, documents)
    steps = [ReadMix(run.cells, MIX), SplitFilter(split, seed, fraction), Repeat(), tokenizer]
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
    return read_counts(sorted(counts.glob("*.json")))


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
