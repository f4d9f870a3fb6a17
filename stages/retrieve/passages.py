"""The passages that are looked up: those of the stage knowledge without a benchmark's words, in blocks.

Three pipelines, each a task per block or per range of rows: `count` reads passages and counts their words, `index`
makes an index of each block, `search` looks the rows up. Between them the counts of all blocks are added up.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
from datatrove.data import DocumentsPipeline
from datatrove.pipeline.base import PipelineStep

from cosmopedia.contamination.index import Index
from cosmopedia.corpus.row_ranges import read_range
from cosmopedia.tables.contracts import PASSAGE, REJECTED, SOURCE
from cosmopedia.tables.parquet import TableWriter, count_rows
from stages.retrieve.index import Block, Scale, Statistics, compiled_scorer, save_block, search
from stages.retrieve.queries import Part, query_of
from stages.retrieve.words import Terms, Vocabulary, terms_of, vocabulary_of

PASSAGES = Path("data/knowledge/passages.parquet")
BLOCK = 50_000  # passages of a block: an index of 30 MB where they have 100 words
READ = 2048  # passages or rows at once
TASK_ROWS = 4096  # source rows of a task: a minute at 70 queries per second
COMPILED = 200  # queries, passages in thousands: below so many of both together bm25s's plain scorer is quicker
VOCABULARY = ("hashes", "passages", "common")  # its arrays
COLUMNS = ("passage_id", "title", "text", "licence")
PAIR = np.dtype([("loss", "<f4"), ("row", "<i8"), ("passage", "<i4")])  # loss: minus the score


def blocks_of(rows: int) -> int:
    """How many blocks so many passages have."""
    return -(-rows // BLOCK)


class CountWords(PipelineStep):
    """Per block: the passages that may be used (texts.arrow), their words, and those left out (REJECTED)."""

    type = "RETRIEVE"
    name = "count"

    def __init__(self, benchmarks: Path | None, folder: Path):
        super().__init__()
        self.benchmarks, self.folder = benchmarks, folder

    def run(self, data: DocumentsPipeline = None, rank: int = 0, world_size: int = 1) -> None:  # type: ignore[override]
        index = Index.read(self.benchmarks) if self.benchmarks else None
        rows = range(rank * BLOCK, min((rank + 1) * BLOCK, count_rows(PASSAGES)))
        folder = self.folder / f"{rank:05d}"
        folder.mkdir(parents=True)
        kept, terms, lengths, first = [], [], [], 0
        with TableWriter(folder / "rejected.parquet", REJECTED) as rejected:
            for table in read_range(PASSAGES, PASSAGE, COLUMNS, rows, READ):
                table = _without_benchmarks(table, index, rejected)
                own, sizes = terms_of(_texts(table))
                terms.append(own._replace(texts=own.texts + np.int32(first)))
                lengths.append(sizes)
                kept.append(table)
                first += table.num_rows
        schema = PASSAGE.narrow(COLUMNS).schema
        texts = pa.concat_tables([schema.empty_table(), *kept])
        with pa.ipc.new_file(folder / "texts.arrow", schema) as file:
            file.write_table(texts.combine_chunks(), max_chunksize=READ)
        for name, parts in zip(Terms._fields, zip(*terms, strict=True), strict=True):
            np.save(folder / f"{name}.npy", np.concatenate(parts))
        np.save(folder / "lengths.npy", np.concatenate(lengths))


def _texts(table: pa.Table) -> list[str]:
    """What of a passage is looked at: its title and its text."""
    pairs = zip(table["title"].to_pylist(), table["text"].to_pylist(), strict=True)
    return [f"{title}\n{text}" for title, text in pairs]


def _without_benchmarks(table: pa.Table, index: Index | None, rejected: TableWriter) -> pa.Table:
    """Leave out, and write down, the passages that share an n-gram with a benchmark item."""
    if index is None:
        return table
    kept = np.ones(table.num_rows, dtype=bool)
    for number, words, hits in index.hits(_texts(table)):
        form, several = next(iter(hits.items()))
        item, hit = index.item(form), several[0]
        shared = " ".join(words[hit.at : hit.at + hit.size])
        row = {name: table[name][number].as_py() for name in COLUMNS}
        rejected.write(
            {
                "row_id": row["passage_id"],
                "reason": "benchmark_overlap",
                "detail": f"{item.item_id}: {shared}",
                "row": row["text"],
            }
        )
        kept[number] = False
    return table.filter(pa.array(kept))


class IndexBlocks(PipelineStep):
    """Per block: an index of its passages, with the statistics of all."""

    type = "RETRIEVE"
    name = "index"

    def __init__(self, counted: Path, vocabulary: Path, whole: Statistics, folder: Path):
        super().__init__()
        self.counted, self.vocabulary, self.whole, self.folder = counted, vocabulary, whole, folder

    def run(self, data: DocumentsPipeline = None, rank: int = 0, world_size: int = 1) -> None:  # type: ignore[override]
        block = self.counted / f"{rank:05d}"
        terms = Terms(*(np.load(block / f"{name}.npy", mmap_mode="r") for name in Terms._fields))
        lengths = np.load(block / "lengths.npy")
        save_block(self.folder / f"{rank:05d}", terms, lengths, read_vocabulary(self.vocabulary), self.whole)


class Rows(NamedTuple):
    """A source's rows among those of all sources."""

    source: str
    first: int
    rows: int

    @property
    def path(self) -> Path:
        return Path(f"data/sources/{self.source}.parquet")


class SearchRows(PipelineStep):
    """Per range of rows: their best passages, as PAIRs in the order of their scores."""

    type = "RETRIEVE"
    name = "search"

    def __init__(
        self,
        sources: list[Rows],
        index: Path,
        vocabulary: Path,
        whole: Statistics,
        query: tuple[list[Part], int],
        wanted: tuple[int, float],
        folder: Path,
        notes: Path,
    ):
        super().__init__()
        self.sources, self.index, self.vocabulary, self.whole = sources, index, vocabulary, whole
        self.query, self.wanted, self.folder, self.notes = query, wanted, folder, notes

    def run(self, data: DocumentsPipeline = None, rank: int = 0, world_size: int = 1) -> None:  # type: ignore[override]
        vocabulary = read_vocabulary(self.vocabulary)
        scale = Scale(vocabulary, self.whole)
        total = self.sources[-1].first + self.sources[-1].rows
        begin, end = (total * n // world_size for n in (rank, rank + 1))
        blocks = read_blocks(self.index, end - begin)
        pairs, done = [np.empty(0, PAIR)], 0
        for first, texts in self._queries(begin, end):
            queries = vocabulary.queries(texts)
            for row, (passages, scores) in enumerate(search(blocks, queries, scale, *self.wanted), start=first):
                own = np.empty(len(passages), PAIR)
                own["loss"], own["row"], own["passage"] = -scores, row, passages
                pairs.append(own)
            done += len(texts)
            (self.notes / str(rank)).write_text(str(done))
        self.folder.mkdir(parents=True, exist_ok=True)
        np.save(self.folder / f"{rank:05d}.npy", np.sort(np.concatenate(pairs), order=PAIR.names))

    def _queries(self, begin: int, end: int) -> Iterator[tuple[int, list[str]]]:
        """(number of the first row, the queries of some rows) of the rows in a range of all."""
        for source in self.sources:
            rows = range(max(begin - source.first, 0), min(end - source.first, source.rows))
            first = source.first + rows.start
            columns = ("row_id", "title", "text", "context")
            for table in read_range(source.path, SOURCE, columns, rows, READ) if len(rows) else ():
                yield first, [query_of(row, *self.query) for row in table.to_pylist()]
                first += table.num_rows


def read_blocks(folder: Path, queries: int) -> list[Block]:
    """The indexes in a folder, for about so many queries."""
    sizes = [int(np.load(path / "passages.npy")) for path in sorted(folder.iterdir())]
    scorer = compiled_scorer() if queries * sum(sizes) > COMPILED * 1_000_000 else None
    firsts = np.cumsum([0, *sizes])
    return [Block(path, int(first), scorer) for path, first in zip(sorted(folder.iterdir()), firsts, strict=False)]


def save_vocabulary(counted: Path, common: float, folder: Path) -> Statistics:
    """Add up the words of all blocks, and leave out those in more than a share `common` of the passages."""
    blocks = sorted(counted.iterdir())
    lengths = [np.load(block / "lengths.npy") for block in blocks]
    passages, words = sum(map(len, lengths)), sum(int(sizes.sum()) for sizes in lengths)
    whole = vocabulary_of(np.load(block / "words.npy") for block in blocks)
    kept = whole.without_common(max(1, int(common * passages)))
    folder.mkdir(parents=True)
    for name in VOCABULARY:
        np.save(folder / f"{name}.npy", getattr(kept, name))
    return Statistics(passages, max(words, 1) / max(passages, 1))


def read_vocabulary(folder: Path) -> Vocabulary:
    """What `save_vocabulary` wrote, mapped."""
    return Vocabulary(*(np.load(folder / f"{name}.npy", mmap_mode="r") for name in VOCABULARY))
