"""embed: one sentence vector per web row.

In: data/sources/web.parquet.
Out: data/embed/vectors.parquet (EMBEDDING: vectors of length 1), metrics/embed.json.
Contract: on a CPU a vector depends on its row's text and the model alone, not on the rows next to it, and the file
has the same bytes for any number of tasks. Locally the tasks run one after the other, and the threads of each use all
cores (or all accelerators), so a run that was killed goes on behind its last whole task; on Slurm and Ray there are
`data.tasks`, and each loads the model.
Run: python -m stages.embed
"""

from pathlib import Path
from typing import Literal

from pydantic import Field

from cosmopedia.core.errors import DataError
from cosmopedia.core.files import clear_folder
from cosmopedia.core.params import Params, load
from cosmopedia.core.row_counts import write_metrics
from cosmopedia.corpus.encoder import find_model, resolve_precision
from cosmopedia.corpus.row_ranges import BATCH_ROWS, checked_rows, read_parts, tasks_for, total
from cosmopedia.execution.compute import load_compute
from cosmopedia.execution.data_tasks import DataTasks
from cosmopedia.execution.stage_process import run_stage
from cosmopedia.tables.contracts import EMBEDDING, SOURCE
from cosmopedia.tables.parquet import TableWriter
from stages.embed.texts import EmbedTexts

WEB, OUT = Path("data/sources/web.parquet"), Path("data/embed")
LOCAL_TASK = 4 * BATCH_ROWS  # rows between two points at which a local run can go on


class EmbedParams(Params):
    """Which model, and how much of a text it reads."""

    model: str
    revision: str | None
    max_tokens: int = Field(ge=8)
    precision: Literal["auto", "bf16", "fp32"]


def settings() -> EmbedParams:
    """The stage's params."""
    return load("embed", EmbedParams)


def main() -> str:
    """Embed the web rows, a range of them per task; returns the summary line."""
    params, data = settings(), load_compute().data
    clear_folder(OUT)
    rows = checked_rows(WEB, SOURCE)
    if rows == 0:
        raise DataError(
            f"{WEB} has no rows, and topics are made from web rows; metrics/sources/web.json says what was left out:"
            " change sources.web, and run the sources stage"
        )
    _, revision = find_model(params.model, params.revision)
    precision = resolve_precision(params.precision)  # here, so that all tasks have the same
    local = data.executor == "local"
    tasks = tasks_for(rows, -(-rows // LOCAL_TASK) if local else data.tasks)
    with DataTasks("embed", data, revision, precision) as arrays:
        parts, notes = arrays.workdir / "parts", arrays.notes("embed")
        step = EmbedTexts(WEB, parts, notes, params.model, revision, params.max_tokens, precision)
        stats = arrays.run("embed", [step], tasks, workers=1 if local else None, total=rows, unit="texts")
        arrays.check()
        dimensions = 0
        with TableWriter(OUT / "vectors.parquet", EMBEDDING) as writer:
            for table in read_parts(parts, EMBEDDING, tasks, rows):
                writer.write_table(table)
                dimensions = len(table["embedding"][0])
    write_metrics(
        "metrics/embed.json",
        {
            "rows": writer.rows,
            "dimensions": dimensions,
            "rows_at_token_limit": total(stats, "full"),
            "model": params.model,
            "revision": revision,
            "precision": precision,
        },
    )
    return f"{writer.rows} vectors of {dimensions} dimensions from {params.model} ({revision})"


if __name__ == "__main__":
    run_stage("embed", main)
