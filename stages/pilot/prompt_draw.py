"""The prompts that the pilot tries: a few of each cell, drawn by prompt id."""

from collections import defaultdict
from itertools import groupby
from pathlib import Path
from typing import NamedTuple

import pyarrow.compute as pc

from cosmopedia.core.rng import draw_sample
from cosmopedia.tables.cell_files import cell_of, source_and_style
from cosmopedia.tables.contracts import PROMPT
from cosmopedia.tables.parquet import read_batches


class DrawnPrompt(NamedTuple):
    """A prompt to try, and its cell."""

    cell: str
    prompt_id: str
    prompt: str
    template: str

    @property
    def style(self) -> str:
        return source_and_style(self.cell)[1].partition(" (")[0]


def draw_prompts(paths: list[Path], seed: int, per_cell: int) -> list[DrawnPrompt]:
    """`per_cell` prompts of each cell; `paths` are the files of the prompt tables.

    A cell is a source, a style and an audience; it is called `<source>-<style>` when that style has one audience.
    """
    drawn = []
    for style, group in groupby(paths, key=cell_of):
        files, ids = list(group), defaultdict[str, list[str]](list)
        for table in read_batches(files, PROMPT, ["prompt_id", "audience"], batch_rows=20_000):
            for prompt_id, audience in zip(*(column.to_pylist() for column in table.columns), strict=True):
                ids[audience].append(prompt_id)
            for audience, some in ids.items():  # the draw of all is the draw of what was drawn from each batch
                ids[audience] = draw_sample(seed, "pilot", some, per_cell)
        cells = {
            prompt_id: style if len(ids) == 1 else f"{style} ({audience})"
            for audience in ids
            for prompt_id in ids[audience]
        }
        for table in read_batches(files, PROMPT, ["prompt_id", "prompt", "template"]):
            rows = table.filter(pc.field("prompt_id").isin(list(cells))).to_pylist()
            drawn += [DrawnPrompt(cells[row["prompt_id"]], **row) for row in rows]
    return drawn
