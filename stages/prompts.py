"""prompts: one prompt a seed row, style and audience; duplicates dropped before they cost GPU time.

In: data/sources/<source>.parquet, data/topics/web.parquet, prompts/<source>/<style>.txt.
Out: data/prompts/<source>-<style>.parquet (PROMPT) for each style of the chosen presets, data/prompts/removed/
removed.parquet (REJECTED: every duplicate), metrics/prompts.json, metrics/plots/prompts.csv (prompts and duplicates by
source, style, format and audience).
Alone: python -m stages.prompts; one cell's prompts without any stage: python -m stages.preview <source> <style>
"""

import json
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import polars as pl
from pydantic import Field

from stages.draws import content_hash, draw_u64, draw_unit
from stages.errors import ConfigError, DataError, run_stage
from stages.prompting.near_duplicates import Alikes
from stages.prompting.slots import SLOTS, slot_columns
from stages.prompting.templates import Template, read_template
from stages.settings import Params, load
from stages.tables.accounting import RowAccount, write_metrics
from stages.tables.contracts import PROMPT, REJECTED, SOURCE, TOPIC_OF_ROW
from stages.tables.parquet import read_table, write_table

OUT = Path("data/prompts")
CELL = {"source": pl.String, "style": pl.String, "format": pl.String, "audience": pl.String}
COUNTS = ("prompts", "topic_named", "duplicates", "near_duplicates")
WORST = 5  # cells that a warning names

Preset = Literal["cosmopedia", "grid", "rephrase"]


class Style(Params):
    """One cell of the prompt grid."""

    format: str  # as the published dataset names it; ready-made prompts have their own, and audience
    audience: str
    share: float = Field(ge=0, le=1)  # of the source's rows; 0 switches the style off


class PromptsParams(Params):
    """What is asked, of whom, and how often."""

    seed: int
    topic_probability: float = Field(ge=0, le=1)
    near_duplicate: float | None = Field(ge=0.5, le=1)  # similarity of two seeds from which one goes; None: off
    goal_rate: float = Field(ge=0, le=1)  # duplicates among a run's prompts above which the stage warns
    extract_chars: int = Field(ge=40)
    per_cell: int | None = Field(ge=1)
    presets: list[Preset] = Field(min_length=1)
    styles: dict[Preset, dict[str, dict[str, Style]]]

    def chosen(self) -> dict[str, dict[str, Style]]:
        """Source -> style -> the style, sorted, of the chosen presets; styles of share 0 are left out.

        `ConfigError` for an unknown source, a style that two presets have, or when nothing is left.
        """
        for _, source, name, _ in self.listed():
            owners = [preset for preset, sources in self.styles.items() if name in sources.get(source, {})]
            if len(owners) > 1:
                both = " and ".join(owners)
                raise ConfigError(f"prompts.styles has {source}.{name} in {both}; rename one, and its template")
        found: dict[str, dict[str, Style]] = {}
        for preset, source, name, style in sorted(self.listed(), key=lambda entry: entry[1:3]):
            if preset in self.presets and style.share > 0:
                found.setdefault(source, {})[name] = style
        if not found:
            raise ConfigError(f"no style of the presets {', '.join(self.presets)} has a share above 0; switch one on")
        return found

    def listed(self) -> Iterator[tuple[Preset, str, str, Style]]:
        """(preset, source, style's name, style) of every style. `ConfigError` for an unknown source."""
        for preset, sources in self.styles.items():
            for source, styles in sources.items():
                if source not in SLOTS:
                    known = ", ".join(SLOTS)
                    raise ConfigError(
                        f"prompts.styles.{preset} names the unknown source {source!r}; known sources: {known}"
                    )
                for name, style in styles.items():
                    yield preset, source, name, style


def read_seeds(source: str) -> pl.DataFrame:
    """A source's rows; for the web only those whose topic was kept, with the topic."""
    rows = pl.DataFrame(read_table(f"data/sources/{source}.parquet", SOURCE))
    if source != "web":
        return rows.with_columns(topic=pl.lit(None, pl.String))
    topics = pl.DataFrame(read_table("data/topics/web.parquet", TOPIC_OF_ROW, ["row_id", "topic"]))
    return rows.join(topics, on="row_id", how="inner", maintain_order="left")


def drawn(rows: pl.DataFrame, style: str, share: float, limit: int | None, seed: int) -> pl.DataFrame:
    """The rows that a style takes: each with probability `share`, at most `limit`, drawn from (seed, row, style)."""
    taken = rows
    if share < 1:
        kept = [draw_unit(seed, "share", i, style) < share for i in rows["row_id"]]
        taken = rows.filter(pl.Series(kept, dtype=pl.Boolean))
    if limit is None or taken.height <= limit:
        return taken
    ranks = pl.Series("rank", [draw_u64(seed, "limit", i, style) for i in taken["row_id"]], dtype=pl.UInt64)
    return taken.with_columns(ranks).sort("rank", "row_id").head(limit).drop("rank")


def build_cell(rows: pl.DataFrame, name: str, style: Style, template: Template, params: PromptsParams) -> pl.DataFrame:
    """PROMPT rows of one cell, from rows with slot columns; the topic is named by a draw from (seed, row, style)."""
    ids = rows["row_id"].to_list()
    offers_topic = "in_topic" in template.slots
    named = [offers_topic and draw_unit(params.seed, "topic", i, name) < params.topic_probability for i in ids]
    prompt_ids = [content_hash(i, name, style.audience) for i in ids]
    known = pl.col("topic").fill_null("").str.strip_chars() != ""
    rows = rows.with_columns(
        (pl.Series(named, dtype=pl.Boolean) & known).alias("topic_named"),
        pl.Series("prompt_id", prompt_ids, pl.String),
    )
    if offers_topic:
        clause = pl.when("topic_named").then("slot.in_topic").otherwise(pl.lit(""))
        rows = rows.with_columns(clause.alias("slot.in_topic"))
    own = "own.format" in rows.columns
    seed_data = "own.seed_data" if own else "slot.extract" if "extract" in template.slots else "title"
    return rows.select(
        "prompt_id",
        template.expression().alias("prompt"),
        "source",
        pl.lit(name).alias("style"),
        (pl.col("own.format") if own else pl.lit(style.format)).alias("format"),
        (pl.col("own.audience") if own else pl.lit(style.audience)).alias("audience"),
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
    chosen = params.chosen()
    shutil.rmtree(OUT, ignore_errors=True)
    account, counts, seen, removed = RowAccount("prompts"), [], set(), []
    for source, styles in chosen.items():
        templates = {name: read_template(source, name) for name in styles}
        rows = slot_columns(source, read_seeds(source), params.extract_chars)
        if rows.is_empty():  # a source that is left out has no cells
            continue
        alikes = Alikes(rows, params.near_duplicate)
        for name, template in templates.items():
            style = styles[name]
            taken = drawn(rows, name, style.share, params.per_cell, params.seed)
            cell = build_cell(taken, name, style, template, params).sort("prompt_id")
            fresh = pl.Series([hash_not_in(content_hash(p), seen) for p in cell["prompt"]], dtype=pl.Boolean)
            same = cell.filter(~fresh).with_columns(detail=pl.lit("the same text as another prompt"))
            kept, alike = alikes.apart(cell.filter(fresh), template.slots)
            account.rows_in += rows.height
            account.kept += kept.height
            for reason, number in (
                ("not_drawn", rows.height - taken.height),
                ("duplicate_prompt", same.height),
                ("near_duplicate_prompt", alike.height),
            ):
                account.remove(reason, number)
            removed += [*rejections(same, "duplicate_prompt"), *rejections(alike, "near_duplicate_prompt")]
            write_table(OUT / f"{source}-{name}.parquet", kept.to_arrow(), PROMPT)
            named = int(kept["topic_named"].sum())
            counts.append((source, name, style.format, style.audience, kept.height, named, same.height, alike.height))
    if not counts:
        raise DataError(
            f"none of {', '.join(chosen)} has a seed row in data/sources; give one a dataset in the profile"
        )
    write_table(OUT / "removed/removed.parquet", sorted(removed, key=lambda row: row["row_id"]), REJECTED)
    table = pl.DataFrame(counts, schema={**CELL, **dict.fromkeys(COUNTS, pl.Int64)}, orient="row")
    Path("metrics/plots").mkdir(parents=True, exist_ok=True)
    table.write_csv("metrics/plots/prompts.csv")
    rates = duplicate_rates(table)
    write_metrics("metrics/prompts.json", {**account.metrics(), **rates, "goal_rate": params.goal_rate, **sums(table)})
    if rates["duplicate_rate"] + rates["near_duplicate_rate"] > params.goal_rate:
        print(f"prompts: warning: {complaint(rates, params.goal_rate)}", file=sys.stderr)
    return (
        f"{account.kept} prompts in {len(counts)} cells; {account.removed['duplicate_prompt']} duplicates and"
        f" {account.removed['near_duplicate_prompt']} near duplicates dropped"
    )


def rejections(cell: pl.DataFrame, reason: str) -> list[dict]:
    """REJECTED rows of prompts that were taken out."""
    shown = ("source", "style", "seed_id", "prompt")
    return [
        {
            "row_id": row["prompt_id"],
            "reason": reason,
            "detail": f"{row['source']}-{row['style']}, {row['seed_id']}: {row['detail']}",
            "row": json.dumps({name: row[name] for name in shown}, ensure_ascii=False)[:10_000],
        }
        for row in cell.iter_rows(named=True)
    ]


def hash_not_in(digest: str, seen: set[str]) -> bool:
    """Whether a digest is new; it is remembered."""
    if digest in seen:
        return False
    seen.add(digest)
    return True


def duplicate_rates(table: pl.DataFrame) -> dict:
    """Exact and near duplicates over the prompts drawn, in all and by cell."""
    drawn_prompts = pl.col("prompts") + pl.col("duplicates") + pl.col("near_duplicates")
    rate = pl.col("duplicates", "near_duplicates") / drawn_prompts
    whole = table.sum().select(rate.fill_nan(0.0)).row(0)
    columns = table.select(pl.concat_str("source", pl.lit("-"), "style"), rate.fill_nan(0.0))
    cells = {name: {"duplicate_rate": same, "near_duplicate_rate": near} for name, same, near in columns.iter_rows()}
    return {"duplicate_rate": whole[0], "near_duplicate_rate": whole[1], "cells": cells}


def complaint(rates: dict, goal: float) -> str:
    """What the warning says: the rate, the cells above the goal, the next action."""
    cells = {name: rate["duplicate_rate"] + rate["near_duplicate_rate"] for name, rate in rates["cells"].items()}
    worst = sorted(((-rate, name) for name, rate in cells.items() if rate > goal))
    named = ", ".join(f"{name} ({-rate:.1%})" for rate, name in worst[:WORST])
    more = f" and {len(worst) - WORST} more" if len(worst) > WORST else ""
    return (
        f"{rates['duplicate_rate']:.1%} duplicates and {rates['near_duplicate_rate']:.1%} near duplicates were drawn,"
        f" the goal is at most {goal:.1%}; most in {named}{more}; see {OUT}/removed, and filter these sources' seeds"
    )


def sums(table: pl.DataFrame) -> dict:
    """Prompts by source, format and audience."""
    return {
        f"by_{column}": dict(table.group_by(column).agg(pl.col("prompts").sum()).sort(column).iter_rows())
        for column in ("source", "format", "audience")
    }


if __name__ == "__main__":
    run_stage("prompts", main)
