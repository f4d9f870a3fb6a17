"""prompts: one prompt per source row, style and audience; duplicates dropped before they cost GPU time.

In: data/sources/<source>.parquet, data/topics/web.parquet, prompts/<source>/<style>.txt; where a template quotes
passages, data/retrieve/<source>.parquet (RETRIEVED).
Out: data/prompts/<cell>.parquet (PROMPT; a cell is <source>-<style>, a large one has several files, see
cosmopedia/tables/cell_files.py) for each style of the chosen presets, data/prompts/removed/removed.parquet
(REJECTED: every duplicate), metrics/prompts.json, metrics/plots/prompts.csv (prompts and duplicates by source, style,
format and audience); data/prompts/references/<cell>.parquet (REFERENCES: the passages that each prompt quotes) where a
template quotes some.
Contract: any order of the rows gives the same bytes. Memory does not grow with the rows, except for 70 bytes each.
What is finished is kept in the store's work/prompts until the stage has ended, so that a killed run goes on.
Run: python -m stages.prompts; one cell's prompts without any stage: cosmo preview <source> <style>
"""

import sys
from pathlib import Path

from cosmopedia.core.errors import DataError
from cosmopedia.core.files import clear_folder
from cosmopedia.core.params import load
from cosmopedia.core.row_counts import write_metrics
from cosmopedia.execution.progress import Progress
from cosmopedia.execution.stage_process import run_stage
from cosmopedia.execution.workdir import lend, work_folder
from cosmopedia.tables.cell_files import cell_of
from cosmopedia.tables.contracts import REJECTED
from cosmopedia.tables.external_sort import SortingWriter
from cosmopedia.tables.parquet import count_rows, read_rows
from stages.prompts.near_duplicates import comparison_key, save_band_keys
from stages.prompts.render import Cell, read_cell
from stages.prompts.row_counts import complaint, counts_table, duplicate_rates, row_counts_of, sums
from stages.prompts.selection import members_with_passages, select
from stages.prompts.source_rows import Part, SourceRows, on_disk, read_source_rows
from stages.prompts.styles import PromptsParams
from stages.prompts.writing import counts_in, write_shards

OUT = Path("data/prompts")


def source_rows_of(source: str, cells: list[Cell], params: PromptsParams, folder: Path) -> SourceRows:
    """A source's rows on disk, with what the search for near duplicates needs."""
    keys = {comparison_key(cell.template.slots) for cell in cells} if params.near_duplicate is not None else set()

    def index(part: Part) -> None:
        for key in keys:
            save_band_keys(part, key)

    passages = "left" if any(cell.quotes_passages for cell in cells) else None
    rows = read_source_rows(source, "inner" if params.without_passage == "skip_everywhere" else passages)
    with Progress(f"prompts: {source}", count_rows(f"data/sources/{source}.parquet"), "source rows") as progress:
        return on_disk(source, rows, params.extract_chars, folder, index, progress.advance)


def write_cells(cells: list[tuple[SourceRows, Cell]], params: PromptsParams, folder: Path) -> list[str]:
    """Write every cell's files to `folder`; their names."""
    names = []
    with Progress("prompts", sum(rows.rows for rows, _ in cells), "source rows x styles") as progress:
        for rows, cell, selection, near_duplicate_of in select(cells, params):
            names += write_shards(rows, cell, selection, near_duplicate_of, params, folder, progress.advance)
    return names


def settings() -> tuple[PromptsParams, dict[str, list[Cell]]]:
    """The stage's params, and the cells of each source with their templates."""
    params = load("prompts", PromptsParams)
    grid = {
        source: [read_cell(source, name, style, params.without_passage) for name, style in styles.items()]
        for source, styles in params.chosen().items()
    }
    return params, grid


def nothing_to_ask(grid: dict[str, list[Cell]], params: PromptsParams) -> str:
    """Why there is no cell, and what to do."""
    if params.without_passage == "skip_everywhere":
        return (
            f"retrieve has no passage for any row of {', '.join(grid)}; lower retrieve.min_score, give"
            " knowledge.dataset in the profile more articles, or set prompts.without_passage to plain"
        )
    return f"none of {', '.join(grid)} has a row in data/sources; give one a dataset in the profile"


def quoting_prompts(cells: set[str]) -> dict[str, int]:
    """How many prompts of each cell whose template quotes passages do quote some."""
    counts = dict.fromkeys(sorted(cells), 0)
    for table in (OUT / "references").glob("*.parquet"):
        counts[cell_of(table)] += count_rows(table)
    return counts


def main() -> str:
    """Build every cell; returns the summary line."""
    params, grid = settings()
    clear_folder(OUT)
    with work_folder("prompts") as scratch:
        sources = {source: source_rows_of(source, cells, params, scratch / source) for source, cells in grid.items()}
        cells = [(sources[c.source], c) for several in grid.values() for c in several if sources[c.source].rows]
        if not cells:  # a source that is left out has no cells
            raise DataError(nothing_to_ask(grid, params))
        names = write_cells(cells, params, scratch / "out")
        with SortingWriter(OUT / "removed/removed.parquet", REJECTED) as removed:
            for row in read_rows([scratch / "out/removed" / name for name in names], REJECTED):
                removed.write(row)
        table = counts_table(counts_in(scratch / "out", names, [cell for _, cell in cells]))
        quoting = {cell.name for _, cell in cells if cell.quotes_passages}
        for name in names:
            lend(scratch / "out" / name, OUT / name)
            if cell_of(name) in quoting:
                lend(scratch / "out/references" / name, OUT / "references" / name)
        without = sum(int((~members_with_passages(rows)).sum()) for rows, cell in cells if cell.skips_rows)
    row_counts = row_counts_of(table, sum(rows.rows for rows, _ in cells), without)
    Path("metrics/plots").mkdir(parents=True, exist_ok=True)
    table.write_csv("metrics/plots/prompts.csv")
    rates = duplicate_rates(table)
    metrics = {**row_counts.metrics(), **rates, "goal_rate": params.goal_rate, **sums(table)}
    metrics |= {"quoting_passages": quoting_prompts(quoting)} if quoting else {}
    write_metrics("metrics/prompts.json", metrics)
    if rates["duplicate_rate"] + rates["near_duplicate_rate"] > params.goal_rate:
        print(f"prompts: warning: {complaint(rates, params.goal_rate, f'{OUT}/removed')}", file=sys.stderr)
    return (
        f"{row_counts.kept} prompts in {len(cells)} cells; {row_counts.removed['duplicate_prompt']} duplicates and"
        f" {row_counts.removed['near_duplicate_prompt']} near duplicates dropped"
    )


if __name__ == "__main__":
    run_stage("prompts", main)
