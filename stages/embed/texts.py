"""A vector for each row of a table, in ranges of rows."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa

from cosmopedia.core.errors import DataError
from cosmopedia.corpus.encoder import Encoder, Precision
from cosmopedia.corpus.row_ranges import RowRangeStep
from cosmopedia.corpus.vectors import table_of_vectors
from cosmopedia.tables.contracts import EMBEDDING, SOURCE

NOTE_EVERY = 100  # texts between two notes of a task's progress


class EmbedTexts(RowRangeStep):
    """A vector for each SOURCE row of a range; counts the texts of `max_tokens` tokens as `full`.

    `revision` is the resolved one (of `find_model`), so that tasks on other machines cannot take another model;
    `DataError` when they would.
    """

    name = "embed"
    reads, columns, writes = SOURCE, ("row_id", "text"), EMBEDDING

    def __init__(
        self,
        source: Path,
        parts: Path,
        notes: Path,
        model: str,
        revision: str,
        max_tokens: int,
        precision: Precision,
    ):
        super().__init__(source, parts, notes)
        self.model, self.revision, self.max_tokens = model, revision, max_tokens
        self.precision: Precision = precision

    def tables(self, batches: Iterator[pa.Table], note: Path) -> Iterator[pa.Table]:
        done = 0
        with Encoder.at(self.model, self.revision, self.max_tokens, self.precision) as encoder:
            for batch in batches:
                blocks = []
                for block, full in encoder.encode(batch["text"].to_pylist()):
                    blocks.append(block)
                    self.stat_update("full", value=full)
                    if (done + len(block)) // NOTE_EVERY > done // NOTE_EVERY:
                        note.write_text(str(done + len(block)))
                    done += len(block)
                vectors = np.concatenate(blocks)
                wrong = np.flatnonzero(~np.isfinite(vectors).all(axis=1))
                if len(wrong):
                    raise DataError(
                        f"{self.model} ({self.revision}, {self.precision}) gives no finite vector for"
                        f" {batch['row_id'][wrong[0]]}, nor for {len(wrong) - 1} more of {len(vectors)} rows; its"
                        " weights may be damaged: fetch the model again, or name another as embed.model"
                    )
                yield table_of_vectors(batch["row_id"], vectors)
        note.write_text(str(done))
