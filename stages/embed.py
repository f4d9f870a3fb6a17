"""embed: a sentence vector for each web row.

In: data/sources/web.parquet.
Out: data/embed/vectors.parquet (EMBEDDING: vectors of length 1), metrics/embed.json.
Contract: on a CPU a vector depends on its row's text and the model alone, whatever rows stand beside it.
Alone: python -m stages.embed
"""

import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
from pydantic import Field

from stages.clustering.embedding import Encoder
from stages.errors import DataError, run_stage
from stages.progress import Progress
from stages.settings import Params, load
from stages.tables.accounting import write_metrics
from stages.tables.contracts import EMBEDDING, SOURCE
from stages.tables.parquet import TableWriter, count_rows, read_batches

WEB, OUT = Path("data/sources/web.parquet"), Path("data/embed")


class EmbedParams(Params):
    """Which model, and how much of a text it reads."""

    model: str
    revision: str | None
    max_tokens: int = Field(ge=8)


def table_of_vectors(row_ids: pa.ChunkedArray, vectors: np.ndarray) -> pa.Table:
    """EMBEDDING rows of `vectors` [rows, dimensions]."""
    offsets = np.arange(0, vectors.size + 1, vectors.shape[1], dtype=np.int32)
    lists = pa.ListArray.from_arrays(pa.array(offsets), pa.array(vectors.reshape(-1)))
    return pa.table({"row_id": row_ids, "embedding": lists})


def main() -> str:
    """Embed the web rows batch by batch; returns the summary line."""
    params = load("embed", EmbedParams)
    shutil.rmtree(OUT, ignore_errors=True)
    batches = read_batches([WEB], SOURCE, ["row_id", "text"])
    if not WEB.is_file() or not (total := count_rows(WEB)):
        raise DataError(f"{WEB} is missing or holds no rows, and topics are made of web rows; run the sources stage")
    full = dimensions = 0
    with (
        Encoder(params.model, params.revision, params.max_tokens) as encoder,
        TableWriter(OUT / "vectors.parquet", EMBEDDING) as writer,
        Progress("embed", total, "texts") as progress,
    ):
        for batch in batches:
            blocks = []
            for block, filled in encoder.encode(batch["text"].to_pylist()):
                blocks.append(block)
                full += filled
                progress.advance(len(block))
            vectors = np.concatenate(blocks)
            dimensions = vectors.shape[1]
            writer.write_table(table_of_vectors(batch["row_id"], vectors))
    write_metrics(
        "metrics/embed.json",
        {
            "rows": writer.rows,
            "dimensions": dimensions,
            "rows_at_token_limit": full,
            "model": params.model,
            "revision": encoder.revision,
        },
    )
    return f"{writer.rows} vectors of {dimensions} dimensions from {params.model} ({encoder.revision})"


if __name__ == "__main__":
    run_stage("embed", main)
