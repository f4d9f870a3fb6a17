"""preview: a few prompts of a cell as they will be sent, and what a server makes of them; no stage need have run.

In: prompts/<source>/<style>.txt, params.yaml and the profile; data/sources/<source>.parquet and data/topics/
web.parquet where they exist, else the first records of the profile's dataset and a topic of curation/topics.yaml.
Out: text on stdout; nothing is written, nothing is stored.
Alone: python -m stages.prompts.cosmo_preview web wikihow -k 3 [--seed 7] [--chat] [--endpoint http://gpu1:8080]
       python -m stages.prompts.cosmo_preview --list
"""

import argparse
import asyncio
import re
import sys
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import polars as pl

from cosmopedia.errors import ClusterError, ConfigError, DataError, run_stage
from cosmopedia.execution.client import http as client
from cosmopedia.execution.compute import EndpointSpec
from cosmopedia.generation.complete import GenerationModel, PromptRequests
from cosmopedia.generation.requests import Sampling
from cosmopedia.params import check, load, read_yaml, section
from cosmopedia.records import read_records
from cosmopedia.rng import draw_sample
from cosmopedia.tables.contracts import SOURCE
from cosmopedia.tables.parquet import read_table, table_of
from cosmopedia.tables.row_counts import RowCounts
from stages.prompts.render import Cell, prepared, prompts_of
from stages.prompts.slots import SLOTS
from stages.prompts.source_rows import read_source_rows
from stages.prompts.styles import PromptsParams, Style
from stages.prompts.templates import read_template
from stages.sources.__main__ import SourceParams, normalise
from stages.sources.readers import READERS

READ = 200  # rows of a dataset that are drawn from, when the sources stage has not run
TIMEOUT_S = 600.0  # of a completion
CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")  # what a terminal would obey


def style_of(params: PromptsParams, source: str, name: str) -> Style:
    """A style, whether its preset is on or not. `ConfigError` names the sources or styles there are."""
    styles = {entry[2]: entry[3] for entry in params.listed() if entry[1] == source}
    if source not in SLOTS:
        raise ConfigError(f"unknown source {source!r}; known sources: {', '.join(SLOTS)}")
    if name not in styles:
        known = ", ".join(sorted(styles)) or "none"
        raise ConfigError(f"{source} has no style {name!r} under prompts.styles; its styles: {known}")
    return styles[name]


def table(params: PromptsParams) -> str:
    """Every cell: source, style, preset, whether it is on, share, format, audience, template."""
    rows = [("source", "style", "preset", "on", "share", "format", "audience", "template")]
    for preset, source, name, style in sorted(params.listed(), key=lambda entry: entry[1:3]):
        on = "yes" if preset in params.presets and style.share else "no"
        path = Path("prompts") / source / f"{name}.txt"
        file = path.as_posix() if path.is_file() else f"{path.as_posix()} (missing)"
        rows.append((source, name, preset, on, f"{style.share:g}", style.format, style.audience, file))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join("  ".join(f"{v:{w}}" for v, w in zip(row, widths, strict=True)).rstrip() for row in rows)


def seed_rows(source: str, count: int, seed: int) -> pl.DataFrame:
    """`count` rows with a `topic`, drawn by the seed from `candidates`, whatever their batches."""
    taken = pl.DataFrame()
    for batch in candidates(source):
        taken = pl.concat([taken, batch], how="diagonal_relaxed")
        taken = taken.filter(pl.col("row_id").is_in(draw_sample(seed, "preview", taken["row_id"], count)))
    return taken


def candidates(source: str) -> Iterator[pl.DataFrame]:
    """Rows with a `topic`, of the stages' tables where they exist, else of the dataset; says on stderr which."""
    made = Path(f"data/sources/{source}.parquet").is_file()
    if made and (source != "web" or Path("data/topics/web.parquet").is_file()):
        yield from read_source_rows(source)
        return
    rows = pl.DataFrame(read_table(f"data/sources/{source}.parquet", SOURCE)) if made else first_rows(source)
    if source != "web":
        yield rows.with_columns(topic=pl.lit(None, pl.String))
        return
    entries = read_yaml(Path("curation/topics.yaml"))["topics"]
    topic = next(entry["topic"] for entry in entries if entry["decision"] == "keep")
    note(f"the topics stage has not run: {topic!r} stands for every page's topic")
    yield rows.with_columns(topic=pl.lit(topic))


def first_rows(source: str) -> pl.DataFrame:
    """The first rows that the sources stage would keep. `ConfigError` when the profile leaves the source out."""
    params = check(section(f"sources.{source}"), SourceParams, f"sources.{source}")
    if params.dataset is None:
        raise ConfigError(
            f"the profile leaves {source} out (sources.{source}.dataset is null) and there is no"
            f" data/sources/{source}.parquet; give it a dataset"
        )
    note(f"the sources stage has not run: the first rows of {params.dataset}")
    keep = check(params.keep, READERS[source].keep, f"sources.{source}.keep")
    records, revision = read_records(params.dataset, params.subset, params.split, params.revision)
    account = RowCounts(f"sources/{source}")
    found = normalise(source, islice(records, params.limit), params, keep, revision, account)
    rows = list(islice((row for row, _ in found if row), READ))
    if not rows:
        raise DataError(f"{params.dataset} gives no row for {source}; run python -m stages.sources {source}")
    return pl.DataFrame(table_of(rows, SOURCE, params.dataset))


def note(text: str) -> None:
    """A remark for the person, beside the prompts."""
    print(f"note: {text}", file=sys.stderr)


def visible(text: str) -> str:
    """Text for a terminal: control characters and direction overrides are spelled out."""
    return CONTROL.sub(lambda match: match[0].encode("unicode_escape").decode(), text)


def completions(prompts: list[tuple[str, str]], url: str) -> list[str]:
    """What a server writes for prompts (id, text), asked as generate asks. `ClusterError` when it does not answer."""
    model, settings = GenerationModel.read(), section("generate")
    sampling = check(section("generate.sampling"), Sampling, "generate.sampling")
    spec = check({"url": url}, EndpointSpec, "--endpoint")
    requests = PromptRequests(prompts, model, int(settings["seed"]), 1)
    served = client.Identity(model.model, model.revision, model.max_length)

    async def ask() -> list[str]:
        async with client.session() as http:
            server = await client.connect(http, spec, sampling, served)
            asked = [client.generate(http, spec.url, server.headers, server.api, r, TIMEOUT_S) for r in requests]
            answers = await asyncio.gather(*asked)
        return [f"{a.text}\n[{a.tokens} tokens, {a.finish_reason}, {server.engine}]" for a in answers]

    try:
        return asyncio.run(ask())
    except client.RequestError as trouble:
        hint = "; is the server up?" if isinstance(trouble, client.Requeue) else ""
        raise ClusterError(f"no completion ({trouble.reason}): {trouble}{hint}") from None


def main(source: str, name: str, count: int, seed: int | None, chat: bool, endpoint: str | None) -> str:
    """Print `count` prompts of a cell; returns the summary line."""
    params = load("prompts", PromptsParams)
    style = style_of(params, source, name)
    template = read_template(source, name)
    rows = seed_rows(source, count, params.seed if seed is None else seed)
    if rows.is_empty():
        raise DataError(f"data/sources/{source}.parquet has no row to make a prompt of")
    rows = prepared(source, rows, params.extract_chars).sort_by("row_id")
    cell = prompts_of(rows, Cell(source, name, style, template), params).to_pydict()
    prompts = list(zip(cell["prompt_id"], cell["prompt"], strict=True))
    shown = [prompt for _, prompt in prompts]
    if chat:
        model = GenerationModel.read()
        shown = [model.render(prompt) for prompt in shown]
    answers = completions(prompts, endpoint) if endpoint else [None] * len(prompts)
    for prompt, seed_id, answer in zip(shown, cell["seed_id"], answers, strict=True):
        print(f"--- {visible(seed_id)}, {style.format} for {style.audience}\n{visible(prompt)}\n")
        if answer is not None:
            print(f"--- completion\n{visible(answer)}\n")
    return f"{len(prompts)} of {source}-{name}, {template.path.as_posix()} ({template.digest[:8]})"


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        prog="python -m stages.prompts.cosmo_preview", description="Prompts of a cell, as they are sent."
    )
    parser.add_argument("source", nargs="?", help="a seed source, such as web")
    parser.add_argument("style", nargs="?", help="one of its styles; --list names them")
    parser.add_argument("-k", type=int, default=3, help="how many prompts (3)")
    parser.add_argument("--seed", type=int, help="of the draw of rows (prompts.seed)")
    parser.add_argument("--chat", action="store_true", help="show them in the generation model's chat template")
    parser.add_argument("--endpoint", help="a server's URL: send them too, and show what it writes")
    parser.add_argument("--list", action="store_true", help="all cells, with their templates")
    given = parser.parse_args()
    if given.list:
        run_stage("preview", lambda: f"cells\n{table(load('prompts', PromptsParams))}")
    elif given.source is None or given.style is None or given.k < 1:
        parser.error("give a source, a style and -k of at least 1, or --list")
    else:
        run_stage("preview", lambda: main(given.source, given.style, given.k, given.seed, given.chat, given.endpoint))
