"""EMBEDDING rows from arrays and back."""

import numpy as np
import pyarrow as pa


def table_of_vectors(row_ids: pa.ChunkedArray, vectors: np.ndarray) -> pa.Table:
    """EMBEDDING rows of `vectors` [rows, dimensions]."""
    offsets = np.arange(0, vectors.size + 1, vectors.shape[1], dtype=np.int32)
    lists = pa.ListArray.from_arrays(pa.array(offsets), pa.array(vectors.reshape(-1)))
    return pa.table({"row_id": row_ids, "embedding": lists})


def vectors_of(table: pa.Table) -> np.ndarray:
    """The vectors of EMBEDDING rows, float32 [rows, dimensions]."""
    column = table["embedding"].combine_chunks()
    return column.flatten().to_numpy(zero_copy_only=False).reshape(len(column), -1)
