"""embed: one sentence vector per web row.

In: data/sources/web.parquet.
Out: data/embed/vectors.parquet (EMBEDDING: vectors of length 1), metrics/embed.json.
Contract: on a CPU a vector depends on its row's text and the model alone, not on the rows next to it, and the file
has the same bytes for any number of tasks. Locally it is one task, whose threads use all cores; on Slurm and Ray there
are `data.tasks`, and each loads the model.
Run: python -m stages.embed
"""

from pathlib import Path

from pydantic import Field

from cosmopedia.corpus.encoder import find_model
from cosmopedia.errors import DataError
from cosmopedia.execution.compute import load_compute
from cosmopedia.execution.data_tasks import DataTasks
from cosmopedia.execution.stage_process import run_stage
from cosmopedia.files import clear_folder
from cosmopedia.params import Params, load
from cosmopedia.tables.contracts import EMBEDDING, SOURCE
from cosmopedia.tables.parquet import TableWriter
from cosmopedia.tables.row_counts import write_metrics
from cosmopedia.tables.row_ranges import checked_rows, read_parts, tasks_for, total
from stages.embed.texts import EmbedTexts

WEB, OUT = Path("data/sources/web.parquet"), Path("data/embed")


class EmbedParams(Params):
    """Which model, and how much of a text it reads."""

    model: str
    revision: str | None
    max_tokens: int = Field(ge=8)


def settings() -> EmbedParams:
    """The stage's params."""
    return load("embed", EmbedParams)


def main() -> str:
    """Embed the web rows, a range of them per task; returns the summary line."""
    params, data = settings(), load_compute().data
    clear_folder(OUT)
    rows = checked_rows(WEB, SOURCE)
    if rows == 0:
        raise DataError(f"{WEB} has no rows, and topics are made from web rows; run the sources stage")
    _, revision = find_model(params.model, params.revision)
    tasks = 1 if data.executor == "local" else tasks_for(rows, data.tasks)  # here one process uses all cores
    with DataTasks("embed", data, revision) as arrays:
        parts = arrays.workdir / "parts"
        step = EmbedTexts(WEB, parts, arrays.notes("embed"), params.model, revision, params.max_tokens)
        stats = arrays.run("embed", [step], tasks, total=rows, unit="texts")
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
        },
    )
    return f"{writer.rows} vectors of {dimensions} dimensions from {params.model} ({revision})"


if __name__ == "__main__":
    run_stage("embed", main)
