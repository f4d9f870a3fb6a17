"""EMBEDDING rows from arrays and back."""

import numpy as np
import pyarrow as pa

from cosmopedia.core.errors import DataError


def table_of_vectors(row_ids: pa.ChunkedArray, vectors: np.ndarray) -> pa.Table:
    """EMBEDDING rows of `vectors` [rows, dimensions]."""
    offsets = np.arange(0, vectors.size + 1, vectors.shape[1], dtype=np.int32)
    lists = pa.ListArray.from_arrays(pa.array(offsets), pa.array(vectors.reshape(-1)))
    return pa.table({"row_id": row_ids, "embedding": lists})


def vectors_of(table: pa.Table) -> np.ndarray:
    """The vectors of EMBEDDING rows, float32 [rows, dimensions].

    `DataError` names a row whose vector has another length or is not finite.
    """
    column = table["embedding"].combine_chunks()
    lengths = column.value_lengths().to_numpy(zero_copy_only=False)
    odd = np.flatnonzero(lengths != lengths[0]) if len(lengths) else lengths
    if len(odd):
        raise DataError(
            f"the vector of {table['row_id'][odd[0]]} has {lengths[odd[0]]} dimensions, that of"
            f" {table['row_id'][0]} {lengths[0]}; run the embed stage again"
        )
    vectors = column.flatten().to_numpy(zero_copy_only=False).astype(np.float32).reshape(len(column), -1)
    wrong = np.flatnonzero(~np.isfinite(vectors).all(axis=1))
    if len(wrong):
        raise DataError(
            f"the vector of {table['row_id'][wrong[0]]} has a number that is not finite (as {len(wrong) - 1} more of"
            f" {len(vectors)} rows have); run the embed stage again"
        )
    return vectors
