"""data/report/map.html: the clustered sample on its two-dimensional map, to zoom, search and pick from."""

from typing import Any

import numpy as np
import polars as pl

from stages.report.facts import ASSIGNMENTS, DATA
from stages.report.packed import coded, packed, script_page
from stages.report.page import number

EXCERPT = 160  # characters of a row
GRID = 65_535  # places along each side of the map
NOISE = "no topic"  # in no cluster


def sample() -> pl.DataFrame | None:
    """The sample's rows by id: place, topic, decision, reason and excerpt; None where no row has been clustered."""
    if not ASSIGNMENTS.is_file():
        return None
    topics, kept = (
        pl.read_parquet(DATA / "topics" / "topics.parquet"),
        pl.scan_parquet(DATA / "topics" / "web.parquet"),
    )
    rows = pl.scan_parquet(ASSIGNMENTS).filter("in_sample", pl.col("x").is_not_null()).collect()
    ids = rows["row_id"].implode()
    kept = kept.filter(pl.col("row_id").is_in(ids)).select("row_id", pl.col("topic").alias("own"), kept=True).collect()
    rows = rows.join(topics.select("cluster", "topic", "decision"), "cluster", "left").join(kept, "row_id", "left")
    state = pl.when("kept").then(pl.lit("kept")).when(pl.col("cluster") < 0).then(pl.lit(NOISE))
    return rows.select(
        "row_id",
        "cluster",
        "x",
        "y",
        source=pl.col("row_id").str.extract("^([^/]*)/"),
        topic=pl.coalesce("own", "topic", pl.lit(NOISE)),
        state=state.otherwise(pl.lit("dropped")),
        excerpt=pl.col("row_id").replace_strict(_excerpts(ids), default=""),
    ).sort("row_id")


def _excerpts(ids: pl.Series) -> dict[str, str]:
    """How each row begins, by its id. The stage embed reads this source only."""
    text = pl.col("text").str.slice(0, 4 * EXCERPT).str.replace_all(r"\s+", " ").str.slice(0, EXCERPT)
    rows = pl.scan_parquet(DATA / "sources" / "web.parquet").filter(pl.col("row_id").is_in(ids))
    return dict(rows.select("row_id", text).collect().iter_rows())


def render_map(rows: pl.DataFrame, profile: str) -> str:
    """The page."""
    places = {axis: on_grid(rows[axis].to_numpy()) for axis in ("x", "y")}
    columns = {
        "ids": rows["row_id"].to_list(),
        "excerpts": rows["excerpt"].to_list(),
        "x": places["x"].tolist(),
        "y": (GRID - places["y"]).tolist(),
        "facets": {name: coded(rows[name].to_list()) for name in ("topic", "source", "state")},
        "names": names(rows.with_columns(x=places["x"], y=GRID - places["y"])),
    }
    title = f"{number(rows.height)} web pages on a map of their topics"
    return script_page("map", {"points": packed(columns)}, profile=profile, title=title)


def on_grid(values: np.ndarray) -> np.ndarray:
    """Coordinates as places from 0 to GRID."""
    low, high = values.min(initial=np.inf), values.max(initial=-np.inf)
    return np.round((values.astype(np.float64) - low) * (GRID / max(high - low, 1e-9))).astype(np.int64)


def names(rows: pl.DataFrame) -> list[dict[str, Any]]:
    """What is written on the map: each cluster's most frequent topic over its top, the largest first."""
    clusters = (
        rows.filter(pl.col("cluster") >= 0)
        .group_by("cluster")
        .agg(
            pl.len().alias("size"),
            pl.col("topic").mode().sort().first(),
            pl.col("x").median().round().cast(pl.Int64),
            pl.col("y").quantile(0.05).round().cast(pl.Int64),
            (pl.col("state") == "kept").mean().round(2).alias("kept"),
        )
    )
    return clusters.sort(["size", "cluster"], descending=[True, False]).drop("cluster").to_dicts()
