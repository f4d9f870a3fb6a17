"""prompts: one prompt a seed row, style and audience; duplicates dropped before they cost GPU time.

In: data/sources/<source>.parquet, data/topics/web.parquet, prompts/<source>/<style>.txt.
Out: data/prompts/<cell>.parquet (PROMPT; a cell is <source>-<style>, a large one has several files, see
cosmopedia/tables/cell_files.py) for each style of the chosen presets, data/prompts/removed/removed.parquet
(REJECTED: every duplicate), metrics/prompts.json, metrics/plots/prompts.csv (prompts and duplicates by source, style,
format and audience).
Memory does not grow with the rows, but for 70 bytes each. What is finished lies in the store's work/prompts until the
stage has ended, so that a killed run goes on.
Alone: python -m stages.prompts; one cell's prompts without any stage: cosmo preview <source> <style>
"""

import shutil
import sys
from pathlib import Path

from cosmopedia.errors import DataError, run_stage
from cosmopedia.execution.progress import Progress
from cosmopedia.execution.workdir import lend, work_folder
from cosmopedia.params import load
from cosmopedia.tables.contracts import REJECTED
from cosmopedia.tables.external_sort import SortingWriter
from cosmopedia.tables.parquet import count_rows, read_rows
from cosmopedia.tables.row_counts import write_metrics
from stages.prompts.near_duplicates import basis_of, sketch
from stages.prompts.render import Cell
from stages.prompts.row_counts import complaint, counts_table, duplicate_rates, row_counts_of, sums
from stages.prompts.selection import fates
from stages.prompts.source_rows import Part, Seeds, on_disk, seed_batches
from stages.prompts.styles import PromptsParams
from stages.prompts.templates import read_template
from stages.prompts.writing import counts_in, write_shards

OUT = Path("data/prompts")


def seeds_of(source: str, cells: list[Cell], params: PromptsParams, folder: Path) -> Seeds:
    """A source's rows on disk, with what the search for near duplicates needs to know of them."""
    bases = {basis_of(cell.template.slots) for cell in cells} if params.near_duplicate is not None else set()

    def look(part: Part) -> None:
        for basis in bases:
            sketch(part, basis)

    with Progress(f"prompts: {source}", count_rows(f"data/sources/{source}.parquet"), "seed rows") as progress:
        return on_disk(source, seed_batches(source), params.extract_chars, folder, look, progress.advance)


def write_cells(cells: list[tuple[Seeds, Cell]], params: PromptsParams, folder: Path) -> list[str]:
    """Write every cell's files to `folder`; their names."""
    names = []
    with Progress("prompts", sum(seeds.rows for seeds, _ in cells), "seed rows x styles") as progress:
        for seeds, cell, fate, like in fates(cells, params):
            names += write_shards(seeds, cell, fate, like, params, folder, progress.advance)
    return names


def main() -> str:
    """Build every cell; returns the summary line."""
    params = load("prompts", PromptsParams)
    grid = {
        source: [Cell(source, name, style, read_template(source, name)) for name, style in styles.items()]
        for source, styles in params.chosen().items()
    }
    shutil.rmtree(OUT, ignore_errors=True)
    with work_folder("prompts") as scratch:
        found = {source: seeds_of(source, cells, params, scratch / source) for source, cells in grid.items()}
        cells = [(found[c.source], c) for several in grid.values() for c in several if found[c.source].rows]
        if not cells:  # a source that is left out has no cells
            raise DataError(
                f"none of {', '.join(grid)} has a seed row in data/sources; give one a dataset in the profile"
            )
        names = write_cells(cells, params, scratch / "out")
        with SortingWriter(OUT / "removed/removed.parquet", REJECTED) as removed:
            for row in read_rows([scratch / "out/removed" / name for name in names], REJECTED):
                removed.write(row)
        table = counts_table(counts_in(scratch / "out", names, [cell for _, cell in cells]))
        for name in names:
            lend(scratch / "out" / name, OUT / name)
    account = row_counts_of(table, sum(seeds.rows for seeds, _ in cells))
    Path("metrics/plots").mkdir(parents=True, exist_ok=True)
    table.write_csv("metrics/plots/prompts.csv")
    rates = duplicate_rates(table)
    write_metrics("metrics/prompts.json", {**account.metrics(), **rates, "goal_rate": params.goal_rate, **sums(table)})
    if rates["duplicate_rate"] + rates["near_duplicate_rate"] > params.goal_rate:
        print(f"prompts: warning: {complaint(rates, params.goal_rate, f'{OUT}/removed')}", file=sys.stderr)
    return (
        f"{account.kept} prompts in {len(cells)} cells; {account.removed['duplicate_prompt']} duplicates and"
        f" {account.removed['near_duplicate_prompt']} near duplicates dropped"
    )


if __name__ == "__main__":
    run_stage("prompts", main)
