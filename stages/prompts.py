"""prompts: one prompt a seed row, style and audience; duplicates dropped before they cost GPU time.

In: data/sources/<source>.parquet, data/topics/web.parquet, prompts/<source>/<style>.txt.
Out: data/prompts/<source>-<style>.parquet (PROMPT) for each style in params.yaml, metrics/prompts.json,
metrics/plots/prompts.csv (prompts by source, style, format and audience).
Alone: python -m stages.prompts
"""

import shutil
from pathlib import Path

import polars as pl
from pydantic import Field

from stages.draws import content_hash, draw_u64, draw_unit
from stages.errors import ConfigError, run_stage
from stages.prompting.slots import SLOTS, slot_columns
from stages.prompting.templates import Template, read_template
from stages.settings import Params, load
from stages.tables.accounting import RowAccount, write_metrics
from stages.tables.contracts import PROMPT, SOURCE, TOPIC_OF_ROW
from stages.tables.parquet import read_table, write_table

OUT = Path("data/prompts")


class Style(Params):
    """One cell of the prompt grid."""

    format: str  # as the published dataset names it
    audience: str
    share: float = Field(ge=0, le=1)  # of the source's rows; 0 switches the style off


class PromptsParams(Params):
    """What is asked, of whom, and how often."""

    seed: int
    topic_probability: float = Field(ge=0, le=1)
    extract_chars: int = Field(ge=40)
    per_cell: int | None = Field(ge=1)
    styles: dict[str, dict[str, Style]]


def read_seeds(source: str) -> pl.DataFrame:
    """A source's rows; for the web only those whose topic was kept, with the topic."""
    rows = pl.DataFrame(read_table(f"data/sources/{source}.parquet", SOURCE))
    if source != "web":
        return rows.with_columns(topic=pl.lit(None, pl.String))
    topics = pl.DataFrame(read_table("data/topics/web.parquet", TOPIC_OF_ROW, ["row_id", "topic"]))
    return rows.join(topics, on="row_id", how="inner", maintain_order="left")


def drawn(rows: pl.DataFrame, style: str, share: float, limit: int | None, seed: int) -> pl.DataFrame:
    """The rows that a style takes: each with probability `share`, at most `limit`, drawn from (seed, row, style)."""
    ids = rows["row_id"].to_list()
    taken = rows.filter(pl.Series([draw_unit(seed, "share", i, style) < share for i in ids], dtype=pl.Boolean))
    if limit is None or taken.height <= limit:
        return taken
    ranks = pl.Series("rank", [draw_u64(seed, "limit", i, style) for i in taken["row_id"]], dtype=pl.UInt64)
    return taken.with_columns(ranks).sort("rank", "row_id").head(limit).drop("rank")


def build_cell(rows: pl.DataFrame, name: str, style: Style, template: Template, params: PromptsParams) -> pl.DataFrame:
    """PROMPT rows of one cell, from rows with slot columns; the topic is named by a draw from (seed, row, style)."""
    ids = rows["row_id"].to_list()
    named = [draw_unit(params.seed, "topic", i, name) < params.topic_probability for i in ids]
    prompt_ids = [content_hash(i, name, style.audience) for i in ids]
    offers_topic = "in_topic" in template.slots
    rows = rows.with_columns(
        pl.Series("topic_named", [offers_topic and n for n in named], pl.Boolean),
        pl.Series("prompt_id", prompt_ids, pl.String),
    )
    if offers_topic:
        clause = pl.when("topic_named").then("slot.in_topic").otherwise(pl.lit(""))
        rows = rows.with_columns(clause.alias("slot.in_topic"))
    seed_data = "slot.extract" if "extract" in template.slots else "title"
    return rows.select(
        "prompt_id",
        template.expression().alias("prompt"),
        "source",
        pl.lit(name).alias("style"),
        pl.lit(style.format).alias("format"),
        pl.lit(style.audience).alias("audience"),
        "topic",
        "topic_named",
        pl.col("row_id").alias("seed_id"),
        pl.col(seed_data).alias("seed_data"),
        pl.col("revision").alias("seed_revision"),
        pl.col("licence").alias("seed_licence"),
        pl.lit(template.path.as_posix()).alias("template"),
        pl.lit(template.digest).alias("template_hash"),
    )


def main() -> str:
    """Build every cell; returns the summary line."""
    params = load("prompts", PromptsParams)
    if unknown := sorted(params.styles.keys() - SLOTS.keys()):
        raise ConfigError(f"prompts.styles names the unknown source {unknown[0]!r}; known sources: {', '.join(SLOTS)}")
    shutil.rmtree(OUT, ignore_errors=True)
    account, cells, seen = RowAccount("prompts"), [], set()
    for source, styles in sorted(params.styles.items()):
        templates = {name: read_template(source, name) for name in sorted(styles)}
        rows = slot_columns(source, read_seeds(source), params.extract_chars)
        for name, template in templates.items():
            style = styles[name]
            taken = drawn(rows, name, style.share, params.per_cell, params.seed)
            cell = build_cell(taken, name, style, template, params).sort("prompt_id")
            fresh = [hash_not_in(content_hash(prompt), seen) for prompt in cell["prompt"]]
            kept = cell.filter(pl.Series(fresh, dtype=pl.Boolean))
            account.rows_in += rows.height
            account.kept += kept.height
            account.remove("not_drawn", rows.height - taken.height)
            account.remove("duplicate_prompt", cell.height - kept.height)
            write_table(OUT / f"{source}-{name}.parquet", kept.to_arrow(), PROMPT)
            cells.append((source, name, style.format, style.audience, kept.height, int(kept["topic_named"].sum())))
    columns = ["source", "style", "format", "audience", "prompts", "topic_named"]
    table = pl.DataFrame(cells, schema=columns, orient="row")
    Path("metrics/plots").mkdir(parents=True, exist_ok=True)
    table.write_csv("metrics/plots/prompts.csv")
    drawn_rows = account.kept + account.removed["duplicate_prompt"]
    write_metrics("metrics/prompts.json", {**account.metrics(), **summary(table, account, drawn_rows)})
    return f"{account.kept} prompts in {len(cells)} cells, {account.removed['duplicate_prompt']} duplicates dropped"


def hash_not_in(digest: str, seen: set[str]) -> bool:
    """Whether a digest is new; it is remembered."""
    if digest in seen:
        return False
    seen.add(digest)
    return True


def summary(table: pl.DataFrame, account: RowAccount, drawn_rows: int) -> dict:
    """The metrics beside the row account: prompts by source, format and audience, the rate of duplicates."""
    by = {
        f"by_{column}": dict(table.group_by(column).agg(pl.col("prompts").sum()).sort(column).iter_rows())
        for column in ("source", "format", "audience")
    }
    rate = account.removed["duplicate_prompt"] / drawn_rows if drawn_rows else 0.0
    return {"duplicate_rate": rate, **by}


if __name__ == "__main__":
    run_stage("prompts", main)
