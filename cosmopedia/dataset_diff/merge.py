"""Two sorted tables side by side, a range of ids at a time: memory does not grow with the rows."""

from collections.abc import Iterable, Iterator
from pathlib import Path

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq

from cosmopedia.core.errors import DataError

ID = "completion_id"
BATCH = 2_000  # rows of one side; with texts of 3 kB a comparison takes 240 MB, however many rows there are


def batches(paths: Iterable[Path], columns: list[str], batch_rows: int = BATCH) -> Iterator[pl.DataFrame]:
    """The rows of a cell's files, in the order of their ids; of `columns` those that there are.

    `DataError` for a damaged file, or ids that do not ascend.
    """
    last = ""
    for path in paths:
        try:
            file = pq.ParquetFile(path, pre_buffer=False)
            wanted = [name for name in columns if name in file.schema_arrow.names]
            if ID not in wanted:
                raise DataError(
                    f"{path} has no column {ID}, so its rows cannot be matched; diff takes document tables"
                )
            for batch in file.iter_batches(batch_size=batch_rows, columns=wanted):
                rows = pl.DataFrame(batch)
                ids = rows[ID]
                if rows.height and (ids[0] <= last or not ids.is_sorted()):
                    raise DataError(f"{path}: ids do not ascend after {last!r}; run the stage that writes it again")
                last = ids[-1] if rows.height else last
                yield rows
        except (pa.ArrowInvalid, OSError) as error:
            raise DataError(f"{path}: damaged parquet file: {error}; run the stage that writes it again") from None


def aligned(
    one: Iterator[pl.DataFrame], two: Iterator[pl.DataFrame]
) -> Iterator[tuple[pl.DataFrame | None, pl.DataFrame | None]]:
    """The rows of both sides by ranges of ids: all that one side has of a range, and all that the other has.

    None stands for no rows.
    """
    sides, rest = (one, two), [next(one, None), next(two, None)]
    while rest[0] is not None or rest[1] is not None:
        present = [rows for rows in rest if rows is not None and rows.height]
        if present:
            bound = min(rows[ID][-1] for rows in present)
            cuts = [_cut(rows, bound) for rows in rest]
            yield cuts[0][0], cuts[1][0]
            rest = [cut[1] for cut in cuts]
        rest = [
            next(side, None) if rows is None or not rows.height else rows
            for rows, side in zip(rest, sides, strict=True)
        ]


def _cut(rows: pl.DataFrame | None, bound: str) -> tuple[pl.DataFrame | None, pl.DataFrame | None]:
    """The rows up to an id, and those behind it."""
    if rows is None or not rows.height:
        return None, rows
    at = rows.height if rows[ID][-1] <= bound else int(rows[ID].search_sorted(bound, side="right"))
    return rows[:at] if at else None, rows[at:]
