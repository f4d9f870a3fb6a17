"""What `cosmo preview` shows: prompts of a cell as they will be sent, and what a server makes of them.

In: prompts/<source>/<style>.txt, params.yaml and the profile; data/sources/<source>.parquet and data/topics/
web.parquet where they exist, else the first records of the profile's dataset and a topic of curation/topics.yaml.
"""

import asyncio
import sys
from collections import Counter
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import polars as pl

from cosmopedia.core.errors import ClusterError, ConfigError, DataError
from cosmopedia.core.params import check, load, read_yaml, section
from cosmopedia.core.rng import draw_sample
from cosmopedia.core.row_counts import RowCounts
from cosmopedia.execution.client import http as client
from cosmopedia.execution.compute import EndpointSpec
from cosmopedia.generation.complete import PromptRequests
from cosmopedia.generation.forms import SampledFrom, samplings
from cosmopedia.generation.model import GenerationModel
from cosmopedia.records.reading import read_records
from cosmopedia.tables.contracts import SOURCE
from cosmopedia.tables.parquet import count_rows, read_table, table_of
from stages.prompts.render import prepared, prompts_of, read_cell
from stages.prompts.slots import SLOTS
from stages.prompts.source_rows import Join, read_source_rows
from stages.prompts.styles import PromptsParams, Style
from stages.sources.normalise import ReadingParams, SourceParams, checked, normalise
from stages.sources.reader import reader_of

READ = 200  # rows of a dataset that are drawn from, when the sources stage has not run
TIMEOUT_S = 600.0  # of a completion


def style_of(params: PromptsParams, source: str, name: str) -> Style:
    """A style, whether its preset is on or not. `ConfigError` names the sources or styles there are."""
    styles = {entry[2]: entry[3] for entry in params.listed() if entry[1] == source}
    if not styles and source not in SLOTS:
        raise ConfigError(f"unknown source {source!r}; known sources: {', '.join(SLOTS)}")
    if name not in styles:
        known = ", ".join(sorted(styles)) or "none"
        raise ConfigError(f"{source} has no style {name!r} under prompts.styles; its styles: {known}")
    return styles[name]


def cells() -> list[dict[str, str]]:
    """Every cell: source, style, preset, whether it is on, share, format, audience, template."""
    params = load("prompts", PromptsParams)
    listed = []
    for preset, source, name, style in sorted(params.listed(), key=lambda entry: entry[1:3]):
        path = Path("prompts") / source / f"{name}.txt"
        listed.append(
            {
                "source": source,
                "style": name,
                "preset": preset,
                "on": "yes" if preset in params.presets and style.share else "no",
                "share": f"{style.share:g}",
                "format": style.format,
                "audience": style.audience,
                "template": path.as_posix() + ("" if path.is_file() else " (missing)"),
            }
        )
    return listed


def seed_rows(source: str, count: int, seed: int, passages: Join | None) -> pl.DataFrame:
    """`count` rows with a `topic`, drawn by the seed from `candidates`, whatever their batches."""
    taken = pl.DataFrame()
    for batch in candidates(source, passages):
        taken = pl.concat([taken, batch], how="diagonal_relaxed")
        taken = taken.filter(pl.col("row_id").is_in(draw_sample(seed, "preview", taken["row_id"], count)))
    return taken


def candidates(source: str, passages: Join | None) -> Iterator[pl.DataFrame]:
    """Rows with a `topic`, of the stages' tables where they exist, else of the dataset; says on stderr which.

    With `passages` as for `read_source_rows` they can only be of the tables: `ConfigError` where there are none.
    """
    table = Path(f"data/sources/{source}.parquet")
    made = table.is_file() and count_rows(table) > 0  # an empty one is of a run that left the source out
    if passages and not Path(f"data/retrieve/{source}.parquet").is_file():
        raise ConfigError(
            f"this style quotes passages, and data/retrieve/{source}.parquet is missing: dvc repro retrieve"
        )
    if made and (source != "web" or Path("data/topics/web.parquet").is_file()):
        yield from read_source_rows(source, passages)
        return
    if passages:
        raise ConfigError(
            "this style quotes passages, for which the stages before it must have run: dvc repro prompts"
        )
    rows = pl.DataFrame(read_table(table, SOURCE)) if made else first_rows(source)
    if source != "web":
        yield rows.with_columns(topic=pl.lit(None, pl.String))
        return
    entries = read_yaml(Path("curation/topics.yaml"))["topics"]
    topic = next(entry["topic"] for entry in entries if entry["decision"] == "keep")
    note(f"the topics stage has not run: {topic!r} is every page's topic here")
    yield rows.with_columns(topic=pl.lit(topic))


def first_rows(source: str) -> pl.DataFrame:
    """The first rows that the sources stage would keep. `ConfigError` when the profile leaves the source out."""
    params = check(section(f"sources.{source}"), SourceParams, f"sources.{source}")
    if params.dataset is None:
        raise ConfigError(
            f"the profile leaves {source} out (sources.{source}.dataset is null) and there is no row in"
            f" data/sources/{source}.parquet; give it a dataset"
        )
    note(f"the sources stage has not run: the first rows of {params.dataset}")
    reading = load("sources.reading", ReadingParams)
    reader = reader_of(source)
    keep = check(params.keep, reader.keep, f"sources.{source}.keep")
    place = (params.dataset, params.subset, params.split)
    records, revision = read_records(*place, params.revision, reading.max_record_mb)
    account = RowCounts(f"sources/{source}")
    taken = checked(islice(reader.all_of(records, params.dataset), params.limit), reading, Counter())
    found = normalise(source, taken, params, keep, revision, account)
    rows = list(islice((row for row, _ in found if row), READ))
    if not rows:
        raise DataError(f"{params.dataset} gives no row for {source}; run python -m stages.sources {source}")
    return pl.DataFrame(table_of(rows, SOURCE, params.dataset))


def note(text: str) -> None:
    """A remark for the person, next to the prompts."""
    print(f"note: {text}", file=sys.stderr)


def completions(prompts: list[tuple[str, str]], style: str, url: str) -> list[str]:
    """What a server writes for a style's prompts (id, text), asked as generate asks. `ClusterError` when it does not
    answer."""
    model, generation = GenerationModel.read(), load("generate", SampledFrom)
    sampling = samplings(generation.forms, generation.sampling).get(style, generation.sampling)
    spec = check({"url": url}, EndpointSpec, "--endpoint")
    requests = PromptRequests(prompts, model, generation.seed, 1)
    served = client.Identity(model.model, model.revision, model.max_length, model.loaded_from)

    async def ask() -> list[str]:
        async with client.session() as http:
            server = await client.connect(http, spec, sampling, served)
            asked = [client.generate(http, spec.url, server.headers, server.api, r, TIMEOUT_S) for r in requests]
            answers = await asyncio.gather(*asked)
        return [f"{a.text}\n[{a.tokens or '?'} tokens, {a.finish_reason}, {server.engine}]" for a in answers]

    try:
        return asyncio.run(ask())
    except client.RequestError as trouble:
        hint = "; is the server up?" if isinstance(trouble, client.Requeue) else ""
        raise ClusterError(f"no completion ({trouble.reason}): {trouble}{hint}") from None


def preview(source: str, name: str, count: int, seed: int | None, chat: bool, endpoint: str | None) -> dict[str, Any]:
    """`count` prompts of a cell, with what the endpoint writes for them; print no text of it that is not `visible`."""
    params = load("prompts", PromptsParams)
    style = style_of(params, source, name)
    cell = read_cell(source, name, style, params.without_passage)
    template = cell.template
    passages = None if not cell.quotes_passages else "left" if cell.plain else "inner"
    rows = seed_rows(source, count, params.seed if seed is None else seed, passages)
    if rows.is_empty():
        among = f"data/retrieve/{source}.parquet has passages for no row" if passages else "has no row"
        raise DataError(f"data/sources/{source}.parquet: {among} to make a prompt of")
    rows = prepared(source, rows, params.extract_chars).sort_by("row_id")
    made = prompts_of(rows, cell, params).to_pydict()
    prompts = list(zip(made["prompt_id"], made["prompt"], strict=True))
    answers = completions(prompts, name, endpoint) if endpoint else [None] * len(prompts)
    render = GenerationModel.read().render if chat else str
    return {
        "source": source,
        "style": name,
        "format": style.format,
        "audience": style.audience,
        "template": template.path.as_posix(),
        "template_digest": template.digest,
        "prompts": [
            {
                "seed_id": seed_id,
                "prompt": render(prompt),
                "completion": answer,
            }
            for seed_id, (_, prompt), answer in zip(made["seed_id"], prompts, answers, strict=True)
        ],
    }
