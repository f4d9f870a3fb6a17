"""A vector for each row of a table, in ranges of rows."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa

from cosmopedia.corpus.encoder import Encoder
from cosmopedia.tables.contracts import EMBEDDING, SOURCE
from cosmopedia.tables.row_ranges import RowRangeStep
from cosmopedia.tables.vectors import table_of_vectors

NOTE_EVERY = 100  # texts between two notes of a task's progress


class EmbedTexts(RowRangeStep):
    """A vector for each SOURCE row of a range; counts the texts of `max_tokens` tokens as `full`.

    `revision` is the resolved one (of `find_model`), so that tasks on other machines cannot take another model;
    `DataError` when they would.
    """

    name = "embed"
    reads, columns, writes = SOURCE, ("row_id", "text"), EMBEDDING

    def __init__(self, source: Path, parts: Path, notes: Path, model: str, revision: str, max_tokens: int):
        super().__init__(source, parts, notes)
        self.model, self.revision, self.max_tokens = model, revision, max_tokens

    def tables(self, batches: Iterator[pa.Table], note: Path) -> Iterator[pa.Table]:
        done = 0
        with Encoder.at(self.model, self.revision, self.max_tokens) as encoder:
            for batch in batches:
                blocks = []
                for block, full in encoder.encode(batch["text"].to_pylist()):
                    blocks.append(block)
                    self.stat_update("full", value=full)
                    if (done + len(block)) // NOTE_EVERY > done // NOTE_EVERY:
                        note.write_text(str(done + len(block)))
                    done += len(block)
                yield table_of_vectors(batch["row_id"], np.concatenate(blocks))
        note.write_text(str(done))
