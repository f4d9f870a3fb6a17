"""A source's rows for prompts: streamed, and on disk in the order of their prompts' ids.

1. Runs: rows as they are read, some 100,000 at a time, prepared (slots, digest) and sorted by digest.
2. Parts: the runs' rows merged, each part an equal range of digests that fits memory; what is computed about the rows
   is saved next to them.

Runs and parts are finished one by one, so a killed run goes on with the next.
"""

import json
import shutil
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Literal, cast

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.compute as pc

from cosmopedia.core.files import replacing, write_text
from cosmopedia.execution.workdir import lend
from cosmopedia.tables.contracts import RETRIEVED, SOURCE, TOPIC_OF_ROW, Contract
from cosmopedia.tables.parquet import read_batches
from stages.prompts.render import DIGEST, digests_of, order_of, prepared

Join = Literal["left", "inner"]
COLUMNS = ["row_id", "title", "text", "context", "licence", "revision"]
READ_ROWS = 8192
RUN_ROWS, RUN_BYTES = 1 << 17, 192 << 20  # a run ends with the batch that reaches one of them
PART_ROWS, PART_BYTES = 1 << 17, 192 << 20  # a part holds at most about so much
SLICE_ROWS, SLICE_BYTES = 10_000, 48 << 20  # of a part, for whoever makes something of each row


def read_source_rows(source: str, passages: Join | None = None) -> Iterator[pl.DataFrame]:
    """A source's rows in batches; for the web only those whose topic was kept, with the topic.

    `passages`: also `references` and `passages` of the stage retrieve, null where it has none ("left"), or only rows
    for which it has some ("inner").
    """
    batches = _frames(f"data/sources/{source}.parquet", SOURCE, COLUMNS)
    if source == "web":
        batches = _joined(batches, _frames("data/topics/web.parquet", TOPIC_OF_ROW, ["row_id", "topic"]), "inner")
    else:
        batches = (rows.with_columns(topic=pl.lit(None, pl.String)) for rows in batches)
    if passages:
        columns = ["row_id", "passages", "references"]
        batches = _joined(batches, _frames(f"data/retrieve/{source}.parquet", RETRIEVED, columns), passages)
    return batches


def _frames(path: str, contract: Contract, columns: list[str]) -> Iterator[pl.DataFrame]:
    """Some columns of a table, in batches in the order of the row ids; at least one batch."""
    empty = contract.narrow(columns).schema.empty_table()
    for table in chain([empty], read_batches([path], contract, columns, READ_ROWS)):
        yield cast(pl.DataFrame, pl.from_arrow(table))


def _joined(batches: Iterator[pl.DataFrame], others: Iterator[pl.DataFrame], how: Join) -> Iterator[pl.DataFrame]:
    """Batches joined with others by row id; both are in the order of these ids, and only what is needed is kept."""
    known = next(others)
    for rows in batches:
        last = rows["row_id"][-1] if rows.height else ""
        while (known.is_empty() or known["row_id"][-1] < last) and (more := next(others, None)) is not None:
            known = pl.concat([known, more])
        yield rows.join(known, on="row_id", how=how, maintain_order="left")
        known = known.filter(pl.col("row_id") > last)


@dataclass(frozen=True)
class Part:
    """A range of a source's rows, in the order of their digests; `first` is the place of the first among all."""

    folder: Path
    first: int
    rows: int

    def table(self) -> pa.Table:
        """The prepared rows, mapped: what is not used is not read."""
        return _mapped(self.folder / "rows.arrow")

    def slices(self, places: np.ndarray) -> Iterator[tuple[np.ndarray, pa.Table]]:
        """(places, rows) of some of the rows, a bounded number of rows and bytes at a time."""
        table = self.table()
        weights, begin = np.concatenate([[0], np.cumsum(_sizes(table)[places])]), 0
        whole = len(places) == table.num_rows
        while begin < len(places):
            within = int(np.searchsorted(weights, weights[begin] + SLICE_BYTES, "right")) - 1
            end = max(begin + 1, min(begin + SLICE_ROWS, within))
            some = places[begin:end]
            rows = table.slice(begin, len(some)) if whole else table.take(pa.array(some))
            yield some, rows.combine_chunks()
            begin = end

    def load(self, name: str) -> np.ndarray:
        """A column that `save` has put next to the rows, mapped."""
        return np.load(self.folder / f"{name}.npy", mmap_mode="r")

    def save(self, name: str, values: np.ndarray) -> None:
        np.save(self.folder / f"{name}.npy", values)


@dataclass(frozen=True)
class SourceRows:
    """All of a source's rows, in parts."""

    source: str
    folder: Path
    parts: list[Part]

    @property
    def rows(self) -> int:
        return sum(part.rows for part in self.parts)

    def digests(self) -> Iterator[np.ndarray]:
        """The digests of each part."""
        return (digests_of(part.table()) for part in self.parts)

    def column(self, name: str, members: np.ndarray) -> np.ndarray:
        """What was saved next to the parts' rows, of those rows that `members` (a mask) takes."""
        return np.concatenate([part.load(name)[members[part.first : part.first + part.rows]] for part in self.parts])

    def kept(self, name: str, make: Callable[[], np.ndarray]) -> Path:
        """The file of an array that is made once."""
        path = self.folder / f"{name}.npy"
        if not path.exists():
            with replacing(path) as draft, draft.open("wb") as file:
                np.save(file, make())
        return path

    def split(self, places: np.ndarray) -> Iterator[tuple[Part, np.ndarray]]:
        """(part, places within it) of ascending places among all rows."""
        for part in self.parts:
            begin, end = np.searchsorted(places, [part.first, part.first + part.rows])
            if begin < end:
                yield part, places[begin:end] - part.first

    def row_ids(self, places: np.ndarray) -> dict[int, str]:
        """The ids of the rows at some places."""
        ids = {}
        for part, some in self.split(np.unique(places)):
            names = part.table()["row_id"].take(pa.array(some)).to_pylist()
            ids.update(zip((some + part.first).tolist(), names, strict=True))
        return ids


def on_disk(
    source: str,
    batches: Iterable[pl.DataFrame],
    extract_chars: int,
    folder: Path,
    index: Callable[[Part], None],
    advance: Callable[[int], None],
) -> SourceRows:
    """Bring a source's rows to disk. `index` adds columns to each new part; `advance` is called with rows done."""
    finished = folder / "parts.json"
    if not finished.exists():
        runs = _runs(source, batches, extract_chars, folder / "runs", advance)
        count = _part_count(runs)
        write_text(finished, json.dumps([_part(runs, number, count, folder, index) for number in range(count)]))
        shutil.rmtree(folder / "runs")
    parts = []
    first = 0
    for number, rows in enumerate(json.loads(finished.read_text())):
        parts.append(Part(_folder(folder, number), first, rows))
        first += rows
    return SourceRows(source, folder, parts)


def _runs(
    source: str, batches: Iterable[pl.DataFrame], extract_chars: int, folder: Path, advance: Callable[[int], None]
) -> list[Path]:
    """The source's rows in sorted runs; those that are there already are not made again."""
    finished = folder / "runs.json"
    runs = sorted(folder.glob("run-*.arrow"))
    if finished.exists():
        return runs
    done = sum(_mapped(run).num_rows for run in runs)
    pending: list[pa.Table] = []

    def spill() -> None:
        runs.append(folder / f"run-{len(runs):05d}.arrow")
        rows = pa.concat_tables(pending).combine_chunks()
        pending.clear()  # one copy less in memory while they are sorted
        with replacing(runs[-1]) as draft:
            _write(rows, draft)

    for batch in batches:
        advance(batch.height)
        skipped = min(done, batch.height)
        done -= skipped
        if skipped < batch.height:
            pending.append(prepared(source, batch[skipped:], extract_chars))
        if sum(t.num_rows for t in pending) >= RUN_ROWS or sum(t.nbytes for t in pending) >= RUN_BYTES:
            spill()
    if pending:
        spill()
    write_text(finished, json.dumps(len(runs)))
    return runs


def _part_count(runs: list[Path]) -> int:
    """How many parts there are: a power of two, so that a part is within one file of a cell; 0 without rows.

    A function of the rows alone, whatever the runs were.
    """
    rows = sum(_mapped(run).num_rows for run in runs)
    size = sum(int(_sizes(_mapped(run)).sum()) for run in runs)
    count = 1 if rows else 0
    while rows > PART_ROWS * count or size > PART_BYTES * count:
        count *= 2
    return count


def _part(runs: list[Path], number: int, count: int, folder: Path, index: Callable[[Part], None]) -> int:
    """Make a part unless it is there: of `count` equal ranges of digests the one of this number; how many rows."""
    target = _folder(folder, number)
    if not target.exists():
        with replacing(target) as draft:
            draft.mkdir()
            if count == len(runs) == 1:
                lend(runs[0], draft / "rows.arrow")
            else:
                bounds = [number * (1 << 64) // count, (number + 1) * (1 << 64) // count - 1]
                tables = [_within(_mapped(run), *bounds) for run in runs]
                _write(pa.concat_tables(tables).combine_chunks(), draft / "rows.arrow")
            index(Part(draft, 0, _mapped(draft / "rows.arrow").num_rows))
    return _mapped(target / "rows.arrow").num_rows


def _within(run: pa.Table, lowest: int, highest: int) -> pa.Table:
    """The rows of a run whose digests are in a range."""
    first = run[DIGEST[0]].to_numpy()
    begin = int(np.searchsorted(first, np.uint64(lowest), "left"))
    return run.slice(begin, int(np.searchsorted(first, np.uint64(highest), "right")) - begin)


def _folder(folder: Path, number: int) -> Path:
    return folder / f"part-{number:05d}"


def _write(rows: pa.Table, path: Path) -> None:
    """Write prepared rows in order, without a whole second copy of them in memory."""
    order = order_of(rows)
    with pa.ipc.new_file(path, rows.schema) as file:
        for begin in range(0, max(len(order), 1), SLICE_ROWS):
            file.write_table(rows.take(pa.array(order[begin : begin + SLICE_ROWS])))


def _mapped(path: Path) -> pa.Table:
    return pa.ipc.open_file(pa.memory_map(str(path))).read_all()


def _sizes(table: pa.Table) -> np.ndarray:
    """Bytes of each row's texts."""
    sizes = np.zeros(table.num_rows, np.int64)
    for column in table.columns:
        if pa.types.is_large_string(column.type):
            sizes += pc.fill_null(pc.binary_length(column), 0).to_numpy()  # type: ignore[attr-defined]
    return sizes
