"""mix: which documents the model is trained on, and how often each: components with shares of the tokens.

In: data/decontaminate/<cell>.parquet (DOCUMENT; ids, token counts and licences are read, no text).
Out: data/mix/<cell>.parquet, a file for each of those (MIXED: the documents that are taken, and how often),
metrics/mix.json (per component: documents, tokens, `copies` of a document, how often it may be seen, which train
checks, and licences, which export's card names).
Contract: `synthetic` without `tokens` and `cells` takes every completion once. Whole copies go to all documents of a
cell, one more to those whose draw from (seed, id) is below a threshold. Tokens are those of the generator's tokenizer.
Memory does not grow with the documents.
Run: python -m stages.mix
"""

from collections import defaultdict
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from cosmopedia.core.errors import ConfigError
from cosmopedia.core.files import clear_folder
from cosmopedia.core.params import load, profile_path
from cosmopedia.core.row_counts import write_metrics
from cosmopedia.corpus.components import component_of, synthetic_first
from cosmopedia.corpus.mix_params import MixParams
from cosmopedia.execution.stage_process import run_stage
from cosmopedia.tables.cell_files import cell_of
from cosmopedia.tables.contracts import DOCUMENT, MIXED
from cosmopedia.tables.parquet import TableWriter, read_batches, tables_in
from stages.mix.draws import BITS, Available, bins, copies_of_cells, threshold

DOCUMENTS, OUT, METRICS = Path("data/decontaminate"), Path("data/mix"), Path("metrics/mix.json")
ID, TOKENS, LICENCE = "completion_id", "text_token_length", "seed_licence"
AT_ONCE = 1 << 16  # documents

Group = tuple[str, Fraction]  # a component, and how often its documents are taken


def settings() -> MixParams:
    """The stage's params; every component of the preset needs a limit."""
    mix = load("mix", MixParams)
    if missing := sorted(mix.weights().keys() - mix.max_repeats.keys()):
        raise ConfigError(
            f"mix.max_repeats.{missing[0]} is missing: how often may a document of {missing[0]!r} be seen? Add it to"
            f" {profile_path()}"
        )
    return mix


def available(files: list[Path]) -> dict[str, Available]:
    """What each cell has."""
    cells: dict[str, Available] = defaultdict(Available)
    for path in files:
        cells[cell_of(path)] += Available()
        for table in read_batches([path], DOCUMENT, [TOKENS], batch_rows=AT_ONCE):
            cells[cell_of(path)] += Available(table.num_rows, int(pl.Series(table[TOKENS]).sum()))
    return dict(cells)


def group_of(path: Path, copies: dict[str, Fraction]) -> Group:
    """Documents of one group have one threshold, so that small cells are not rounded one by one."""
    return component_of(path), copies.get(cell_of(path), Fraction(0))


def thresholds(files: list[Path], copies: dict[str, Fraction], seed: int) -> dict[Group, int]:
    """For each group the draw below which a document is taken once more."""
    tokens: dict[Group, np.ndarray] = {}
    for path in files:
        group = group_of(path, copies)
        if group[1].denominator == 1:  # whole copies
            continue
        sums = tokens.setdefault(group, np.zeros(1 << BITS, np.int64))
        for table in read_batches([path], DOCUMENT, [ID, TOKENS], batch_rows=AT_ONCE):
            np.add.at(sums, bins(seed, table[ID].to_pylist()), table[TOKENS].to_numpy())
    return {group: threshold(sums, group[1] % 1) for group, sums in tokens.items()}


def write_cell(path: Path, copies: Fraction, below: int, seed: int) -> tuple[Available, int]:
    """Write the documents of a file that are taken; what they come to with their copies, and how many they are."""
    taken, distinct = Available(), 0
    with TableWriter(OUT / path.name, MIXED) as writer:
        for table in read_batches([path], DOCUMENT, [ID, TOKENS], batch_rows=AT_ONCE) if copies else ():
            times = np.full(table.num_rows, int(copies), np.int32)
            if below:
                times += bins(seed, table[ID].to_pylist()) < below
            rows = pl.DataFrame({ID: table[ID], "copies": times, TOKENS: table[TOKENS]}).filter(pl.col("copies") > 0)
            writer.write_table(rows.select(ID, "copies").to_arrow())
            tokens = (rows["copies"].cast(pl.Int64) * rows[TOKENS]).sum()
            taken += Available(int(rows["copies"].sum()), int(tokens))
            distinct += rows.height
    return taken, distinct


def licences_of(files: list[Path], copies: dict[str, Fraction]) -> dict[str, list[str]]:
    """The licences of the source rows and texts behind each component, for the cards of models."""
    licences: dict[str, set[str]] = defaultdict(set)
    for path in files:
        if copies.get(cell_of(path)):
            for table in read_batches([path], DOCUMENT, [LICENCE], batch_rows=AT_ONCE):
                licences[component_of(path)] |= set(table[LICENCE].unique().to_pylist())
    return {name: sorted(own) for name, own in licences.items()}


def component_metrics(
    mix: MixParams, cells: dict[str, Available], taken: dict[str, Available], distinct: dict[str, int]
) -> dict[str, dict[str, Any]]:
    """What the mix has of each component, and what there is."""
    total = sum(own.tokens for own in taken.values())
    metrics = {}
    for name, weight in mix.weights().items():
        has = sum((own for cell, own in cells.items() if component_of(cell) == name), Available())
        metrics[name] = {
            "share": taken[name].tokens / total,
            "wanted_share": float(weight),
            "tokens": taken[name].tokens,
            "documents": taken[name].documents,
            "distinct_documents": distinct[name],
            "available_tokens": has.tokens,
            "available_documents": has.documents,
        }
    return metrics


def main() -> str:
    """Draw the mix; returns the summary line."""
    mix, files = settings(), synthetic_first(tables_in(DOCUMENTS))
    cells = available(files)
    copies = copies_of_cells(mix, cells)
    below = thresholds(files, copies, mix.seed)
    clear_folder(OUT)
    taken: dict[str, Available] = defaultdict(Available)
    distinct: dict[str, int] = defaultdict(int)
    for path in files:
        group = group_of(path, copies)
        own, documents = write_cell(path, group[1], below.get(group, 0), mix.seed)
        taken[component_of(path)] += own
        distinct[component_of(path)] += documents
    components = component_metrics(mix, cells, taken, distinct)
    licences = licences_of(files, copies)
    for name, row in components.items():
        times = [copies[cell] for cell in copies if component_of(cell) == name and cells[cell].tokens]
        row |= {"copies": float(max(1, *times)), "max_repeats": mix.max_repeats[name]}
        row["licences"] = licences.get(name, [])
    total = sum((row for row in taken.values()), Available())
    write_metrics(METRICS, {"tokens": total.tokens, "documents": total.documents, "components": components})
    shares = ", ".join(f"{name} {row['share']:.1%}" for name, row in components.items())
    return f"{total.documents} documents of {total.tokens} tokens ({mix.preset}): {shares}"


if __name__ == "__main__":
    run_stage("mix", main)
