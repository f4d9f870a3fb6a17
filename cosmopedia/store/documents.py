"""Completions in tables outside the store, which fill a store that lacks them.

label, pilot and generate hand such tables on. They have the columns of COMPLETION, as a table of documents does among
others. Keys are 32 hex characters.
"""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from cosmopedia.errors import DataError
from cosmopedia.generation.requests import Completion, Failure
from cosmopedia.tables.contracts import COMPLETION
from cosmopedia.tables.parquet import write_table

_KEY_DIGITS = 32


def write_completions(path: Path, results: Iterable[Completion | Failure]) -> None:
    """Write the completions among a stage's results as a COMPLETION table, each key once."""
    rows = {
        one.key: {
            "key": one.key,
            "text": one.text,
            "finish_reason": one.finish_reason,
            "text_token_length": one.tokens,
            "prompt_tokens": one.prompt_tokens,
            "engine": one.engine,
        }
        for one in results
        if isinstance(one, Completion)
    }
    write_table(path, rows.values(), COMPLETION)


def has_completions(path: Path) -> bool:
    """Whether a file is a parquet table with the columns of COMPLETION."""
    try:
        return set(COMPLETION.schema.names) <= set(pq.read_schema(path).names)
    except (pa.ArrowInvalid, OSError):
        return False


def completions_in(path: Path, wanted: np.ndarray | None = None) -> Iterator[list[Completion]]:
    """The completions of a table, a row group at a time; with `wanted` only those.

    `wanted` has the first 16 hex digits of keys as sorted uint64, so that an unwanted row now and then is handed out
    as well. Of a row group without a wanted key only the keys are read. `DataError` when the file is damaged.
    """
    with _opened(path) as file:
        for group in range(file.metadata.num_row_groups):
            rows = None
            if wanted is not None:
                keys = file.read_row_group(group, ["key"], use_threads=False)
                rows = np.flatnonzero(np.isin(_prefixes(keys.column("key")), wanted))
                if not len(rows):
                    continue
            table = file.read_row_group(group, COMPLETION.schema.names, use_threads=False)
            table = COMPLETION.conform(table if rows is None else table.take(rows), str(path))
            yield [Completion(tokens=row.pop("text_token_length"), **row) for row in table.to_pylist()]


def keys_of_table(path: Path) -> Iterator[str]:
    """The keys of a table's completions. `DataError` when the file is damaged."""
    with _opened(path) as file:
        for batch in file.iter_batches(columns=["key"], use_threads=False):
            yield from batch.column("key").to_pylist()


@contextmanager
def _opened(path: Path) -> Iterator[pq.ParquetFile]:
    try:
        yield pq.ParquetFile(path, pre_buffer=False, page_checksum_verification=True)
    except (pa.ArrowInvalid, OSError) as error:
        raise DataError(f"{path}: damaged parquet file: {error}; run the stage that writes it again") from None


def _prefixes(keys: pa.ChunkedArray) -> np.ndarray:
    """The first 16 hex digits of each key, as uint64."""
    text = np.array(keys.to_numpy(zero_copy_only=False), f"S{_KEY_DIGITS}")
    digits = text.view(np.uint8).reshape(-1, _KEY_DIGITS)[:, :16].astype(np.uint64)
    values = np.where(digits >= ord("a"), digits - (ord("a") - 10), digits - ord("0"))
    shifts = np.arange(60, -1, -4, dtype=np.uint64)
    return np.bitwise_or.reduce(values << shifts, axis=1)
