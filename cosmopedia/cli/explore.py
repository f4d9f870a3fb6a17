"""explore: open embedding-atlas on the web pages.

docs/report.md says what it shows and what it loads.
"""

import os
import subprocess
import sys
from pathlib import Path
from typing import Annotated, Any

import polars as pl
import typer

from cosmopedia.cli.output import new_app
from cosmopedia.core.errors import ConfigError, DataError

app = new_app()
HOME = Path(".explore")  # an environment of its own; the Makefile says what is in it
DATA = Path("data")
EXCERPT = 2_000  # characters of a page
# What the atlas and its packages would fetch or report when they are imported.
OFFLINE = {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1", "LITELLM_LOCAL_MODEL_COST_MAP": "True"}
OFFLINE |= {"DO_NOT_TRACK": "1", "HF_HUB_DISABLE_TELEMETRY": "1"}


@app.command(epilog="Example: cosmo explore --port 8100")
def explore(
    port: Annotated[int, typer.Option(min=1024, max=65_535, help="On 127.0.0.1.")] = 5055,
    every: Annotated[
        bool, typer.Option("--all", help="All pages, on a new map of their vectors (UMAP, minutes per 100,000).")
    ] = False,
) -> None:
    """Open embedding-atlas on the embedded web pages.

    It has the map and the topics that the pipeline made of them.

    Its environment, .explore, is made at the first use. It listens on 127.0.0.1 only; Ctrl-C ends it.
    """
    rows = pages(every)
    if not (HOME / "installed").is_file():
        make_environment()
    table, labels = HOME / "pages.parquet", HOME / "labels.parquet"
    rows.sink_parquet(table)
    command = [str(HOME / "bin/embedding-atlas"), str(table), "--text", "text", "--duckdb", "server", "--no-mcp"]
    command += ["--host", "127.0.0.1", "--port", str(port), "--no-auto-port"]
    if every:
        command += ["--vector", "embedding"]
    else:
        names(table).write_parquet(labels)
        command += ["--x", "x", "--y", "y", "--disable-projection", "--labels", str(labels)]
    typer.echo(f"embedding-atlas on http://127.0.0.1:{port} (Ctrl-C ends it)")
    sys.stdout.flush()
    os.execve(command[0], command, os.environ | OFFLINE)  # in this process's place, so that signals reach it


def pages(every: bool) -> pl.LazyFrame:
    """Pages with text, topic and decision: the clustered sample with its places on the map, or all with vectors."""
    needed = [DATA / name for name in ("cluster/assignments.parquet", "topics/topics.parquet", "sources/web.parquet")]
    needed += [DATA / "embed/vectors.parquet"] if every else []
    if missing := [str(path) for path in needed if not path.is_file()]:
        raise DataError(f"{missing[0]} is missing; run `dvc repro topics`, or dvc pull")
    rows, topics, texts = (pl.scan_parquet(path, glob=False) for path in needed[:3])
    topics = topics.select("cluster", "topic", "decision", "educational_score")
    texts = texts.select("row_id", "title", "url", text=pl.col("text").str.slice(0, EXCERPT))
    order: Any = {"how": "left", "maintain_order": "left"}
    rows = rows.join(topics, "cluster", **order).join(texts, "row_id", **order)
    if every:
        return rows.drop("x", "y").join(pl.scan_parquet(needed[3], glob=False), "row_id", **order)
    return rows.filter("in_sample", pl.col("x").is_not_null())


def names(table: Path) -> pl.DataFrame:
    """The topics' names in the middle of their clusters, for the map."""
    rows = pl.scan_parquet(table).filter(pl.col("cluster") >= 0)
    middle = rows.group_by("cluster").agg(pl.median("x", "y"), text=pl.first("topic"), priority=pl.len())
    return middle.sort("cluster").select("x", "y", "text", "priority").collect()


def make_environment() -> None:
    """Install embedding-atlas into .explore, as `make` does."""
    done = subprocess.run(["make", "--no-print-directory", str(HOME / "installed")], check=False)
    if done.returncode:
        raise ConfigError(f"{HOME} could not be made; its versions are in requirements.lock under `# explore`")
