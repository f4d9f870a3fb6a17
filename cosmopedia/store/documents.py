"""Completions in tables outside the store, which fill a store that lacks them.

label, pilot and generate hand such tables on. They have the columns of COMPLETION, as a table of documents does among
others. Keys are 32 hex characters.
"""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from cosmopedia.core.errors import DataError
from cosmopedia.generation.answers import with_thought
from cosmopedia.generation.requests import Completion, Failure
from cosmopedia.tables.contracts import COMPLETION, THOUGHT
from cosmopedia.tables.parquet import read_rows, write_table

_KEY_DIGITS = 32


class Table(NamedTuple):
    """A table with completions, and the one with the thoughts of its documents, if there is any."""

    path: Path
    thoughts: Path | None = None


def table_at(path: Path) -> Table:
    """The table in a file; its thoughts are in the file of the same name in `thoughts/`."""
    thoughts = path.parent / "thoughts" / path.name
    return Table(path, thoughts if thoughts.is_file() else None)


def write_completions(path: Path, results: Iterable[Completion | Failure]) -> None:
    """Write the completions among a stage's results as a COMPLETION table, each key once."""
    rows = {
        one.key: {
            "key": one.key,
            "text": with_thought(one.thought, one.text),
            "finish_reason": one.finish_reason,
            "text_token_length": one.tokens + one.thought_tokens,
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


def completions_in(source: Table, wanted: np.ndarray | None = None) -> Iterator[list[Completion]]:
    """The completions of a table, a row group at a time; with `wanted` only those. A thought is put before its text
    again, as the store has it.

    `wanted` has the first 16 hex digits of keys as sorted uint64, so that an unwanted row now and then is handed out
    as well. Of a row group without a wanted key only the keys are read. `DataError` when the file is damaged.
    """
    columns = [*COMPLETION.schema.names, *(["completion_id"] if source.thoughts else [])]
    thoughts = _Thoughts(source.thoughts)
    with _opened(source.path) as file:
        for group in range(file.metadata.num_row_groups):
            rows = None
            if wanted is not None:
                keys = file.read_row_group(group, ["key"], use_threads=False)
                rows = np.flatnonzero(np.isin(_prefixes(keys.column("key")), wanted))
                if not len(rows):
                    continue
            table = file.read_row_group(group, columns, use_threads=False)
            table = table if rows is None else table.take(rows)
            ids = table.column("completion_id").to_pylist() if source.thoughts else [""] * len(table)
            table = COMPLETION.conform(table.select(COMPLETION.schema.names), str(source.path))
            yield [
                _completion(row, *thoughts.of(completion_id))
                for row, completion_id in zip(table.to_pylist(), ids, strict=True)
            ]


def _completion(row: dict[str, Any], thought: str, thought_tokens: int) -> Completion:
    tokens, text = row.pop("text_token_length") + thought_tokens, with_thought(thought, row.pop("text"))
    return Completion(tokens=tokens, text=text, **row)


class _Thoughts:
    """The thoughts of a file of documents; both are sorted by completion id."""

    def __init__(self, path: Path | None):
        self._rows = read_rows([path], THOUGHT) if path else iter(())
        self._row = next(self._rows, None)

    def of(self, completion_id: str) -> tuple[str, int]:
        """A document's thought and its tokens; documents come in their order."""
        while self._row is not None and self._row["completion_id"] < completion_id:
            self._row = next(self._rows, None)
        if self._row is None or self._row["completion_id"] != completion_id:
            return "", 0
        return self._row["thought"], self._row["thought_tokens"]


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
