"""What in the corpus comes from a source, a template, a source row, a licence or a topic, and a corpus without it.

One scan of a few narrow columns, which parquet stores as dictionaries: seconds for 30 million rows. Tokens are those
of the documents' text as the generation model counted them.
"""

from collections.abc import Mapping
from difflib import get_close_matches
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import polars as pl
import pyarrow.parquet as pq

from cosmopedia.core.errors import ConfigError, DataError
from cosmopedia.core.files import replacing
from cosmopedia.core.params import read_yaml
from cosmopedia.tracing.corpus import DOCUMENTS, Corpus, collect, scan
from cosmopedia.tracing.forward import models

# What can be asked for -> the column that has it.
COLUMNS = {
    "source": "source",
    "template": "template",
    "source_row": "seed_id",
    "licence": "seed_licence",
    "topic": "topic",
}
SAMPLES = 5
KNOWN = 12  # values that are named when one is not found

Filters = Mapping[str, str]
Row = dict[str, Any]


def template_path(name: str) -> str:
    """A template's path, from that, or from `web/wikihow`."""
    path = name if name.startswith("prompts/") else f"prompts/{name}"
    return path if path.endswith(".txt") else f"{path}.txt"


def frame_of(corpus: Corpus, stage: str, filters: Filters) -> pl.LazyFrame | None:
    """The rows of a stage's documents that all filters let through; of the files that can have some."""
    source = filters.get("source") or filters.get("source_row", "").partition("/")[0] or None
    cells = corpus.cells(f"data/{stage}", source=source)
    if not cells:
        return None
    wanted = {**filters, "template": template_path(filters["template"])} if "template" in filters else filters
    return scan(cells.values()).filter(*(pl.col(COLUMNS[name]) == value for name, value in wanted.items()))


def affected(corpus: Corpus, filters: Filters) -> Row:
    """Completions, documents and tokens by source and style, sample ids, and the models that were trained on them."""
    final = corpus.final()
    if final is None:
        raise DataError(f"no document table is here; {' or '.join(corpus.missing.values())} brings them")
    stages = [final] if final == "generate" else ["generate", final]
    counts = {stage: _by_cell(corpus, stage, filters) for stage in stages}
    cells = [
        {
            "source": source,
            "style": style,
            "generated": counts.get("generate", {}).get((source, style), (None, None))[0],
            **dict(zip(("documents", "tokens"), counts[final].get((source, style), (0, 0)), strict=True)),
        }
        for source, style in sorted(set().union(*counts.values()))
    ]
    if not cells:
        raise ConfigError(_nothing(corpus, final, filters))
    frame = frame_of(corpus, final, filters)
    samples = [] if frame is None else collect(frame.select("completion_id").head(SAMPLES))["completion_id"].to_list()
    documents, tokens = (sum(cell[name] for cell in cells) for name in ("documents", "tokens"))
    return {
        "filters": dict(filters),
        "stage": final,
        "cells": cells,
        "generated": sum(cell["generated"] or 0 for cell in cells) if "generate" in counts else None,
        "documents": documents,
        "tokens": tokens,
        "in_the_mix": mixed(corpus, filters) if final == DOCUMENTS[-1] else None,
        "sample_ids": samples,
        "models": models(corpus) if documents else [],
    }


def mixed(corpus: Corpus, filters: Filters) -> Row | None:
    """Documents and tokens that the mix takes of them, each as often as it is taken; None without a mix.

    Where the mix takes every document once, which its row groups' statistics say, nothing is joined.
    """
    mix, frame = corpus.cells("data/mix"), frame_of(corpus, DOCUMENTS[-1], filters)
    if not mix or frame is None:
        return None
    copies = scan(mix.values()).select("completion_id", "copies")
    rows, most = collect(copies.select(pl.len(), most=pl.col("copies").max())).row(0)
    everything = sum(pq.read_metadata(path).num_rows for path in corpus.cells(f"data/{DOCUMENTS[-1]}").values())
    times = pl.lit(1)
    if rows != everything or most != 1:
        frame, times = frame.join(copies, on="completion_id"), pl.col("copies").cast(pl.Int64)
    tokens = (pl.col("text_token_length").cast(pl.Int64) * times).sum()
    documents, tokens = collect(frame.select(documents=pl.len(), tokens=tokens)).row(0)
    return {"documents": documents, "tokens": tokens}


def _by_cell(corpus: Corpus, stage: str, filters: Filters) -> dict[tuple[str, str], tuple[int, int]]:
    """(documents, tokens) by source and style."""
    frame = frame_of(corpus, stage, filters)
    if frame is None:
        return {}
    tokens = pl.col("text_token_length").cast(pl.Int64).sum()
    table = collect(frame.group_by("source", "style").agg(pl.len(), tokens))
    return {(source, style): (rows, tokens) for source, style, rows, tokens in table.iter_rows()}


def _nothing(corpus: Corpus, stage: str, filters: Filters) -> str:
    """Why there is no row, with the values that there are of what is not there at all."""
    cells = corpus.cells(f"data/{stage}")
    for name, value in filters.items():
        if name == "source_row":
            continue
        value = template_path(value) if name == "template" else value
        known = collect(scan(cells.values()).select(pl.col(COLUMNS[name]).unique()).drop_nulls()).to_series().to_list()
        if value not in known:
            near = get_close_matches(value, known, KNOWN) or sorted(known)[:KNOWN]
            option = name.replace("_", "-")
            return f"--{option} {value!r}: data/{stage} has none of it; it has {', '.join(map(repr, near))}"
    return f"data/{stage} has no document with {' and '.join(f'{n} {v!r}' for n, v in filters.items())} together"


def write_ids(corpus: Corpus, stage: str, filters: Filters, path: Path) -> None:
    """All ids, one per line, in the order of the cells and in each of ids."""
    frame = frame_of(corpus, stage, filters)
    if frame is None:
        raise DataError(f"data/{stage} is not here; dvc pull data/{stage} brings it")
    with replacing(path) as draft:
        frame.select("completion_id").sink_csv(draft, include_header=False)


def without(corpus: Corpus, report: Row) -> Row:
    """What a rerun without these rows would lose, reuse and do again."""
    final, filters = report["stage"], report["filters"]
    total = _by_cell(corpus, final, {})
    rows, tokens = (sum(one[n] for one in total.values()) for n in (0, 1))
    natural = {cell["style"] for cell in report["cells"]} == {"natural"}
    first, edit = ("natural", "leave the component out of mix.presets") if natural else first_stage(filters)
    generated = sum(one[0] for one in _by_cell(corpus, "generate", {}).values()) if report["generated"] else None
    return {
        "documents_lost": report["documents"],
        "tokens_lost": report["tokens"],
        "documents_left": rows - report["documents"],
        "tokens_left": tokens - report["tokens"],
        "edit": edit,
        "stages": downstream(first),
        "completions_reused": None if generated is None else generated - report["generated"],
        "new_completions_at_most": _new_prompts(corpus, report),
        "duplicates_that_may_return": _returning(corpus, report),
        "models_to_train_again": [model["model"] for model in report["models"]],
        "training_tokens": sum(model["tokens"] or 0 for model in report["models"]),
    }


def first_stage(filters: Filters) -> tuple[str, str]:
    """The first stage that reruns, and what to edit."""
    if "source_row" in filters:
        return "sources", "take the row out of the source's dataset (or reject it there)"
    if "licence" in filters:
        return "sources", "set the dataset of sources with that licence to null in the profile, or filter its rows"
    if "topic" in filters:
        return "topics", "decide drop for the topic in curation/topics.yaml"
    return "prompts", "set the share of the styles to 0 in prompts.styles (params.yaml)"


def downstream(first: str, pipeline: Path = Path("dvc.yaml")) -> list[str]:
    """A stage and all that read its outs, directly or through others, in the order of dvc.yaml."""
    stages = read_yaml(pipeline)["stages"]
    deps, outs = ({name: _paths(stage, kind) for name, stage in stages.items()} for kind in ("deps", "outs"))
    reached, new = {first}, {first}
    while new:
        made = {out for stage in new for out in outs.get(stage, ())}
        new = {name for name in stages if name not in reached and any(_reads(dep, made) for dep in deps[name])}
        reached |= new
    return [name for name in stages if name in reached]


def _paths(stage: Mapping[str, Any], kind: str) -> list[str]:
    """A stage's outs or deps; a matrix's item is any."""
    listed = stage.get(kind) or ()
    paths = [next(iter(path)) if isinstance(path, dict) else path for path in listed]
    paths = [path for path in paths if path.startswith(("data/", "models/", "metrics/"))]
    return [f"{path.partition('${')[0]}*{path.partition('}')[2]}" if "${" in path else path for path in paths]


def _reads(dep: str, outs: set[str]) -> bool:
    return any(fnmatchcase(dep, out) or dep.startswith(f"{out}/") or out.startswith(f"{dep}/") for out in outs)


def _new_prompts(corpus: Corpus, report: Row) -> int:
    """Rows that prompts.per_cell left out take the place of those that go, unless whole cells go."""
    params = (corpus.version.lock.get("prompts") or {}).get("params") or {}
    sections = [content.get("prompts") or {} for content in params.values() if isinstance(content, dict)]
    drawn = any(one.get("per_cell") for one in sections if isinstance(one, dict))
    whole = set(report["filters"]) <= {"source", "template"}
    return report["generated"] or report["documents"] if drawn and not whole else 0


def _returning(corpus: Corpus, report: Row) -> int | None:
    """Documents that dedup removed as duplicates of these; None where its table is not here."""
    removed = corpus.files("data/dedup").get("removed/removed.parquet")
    frame = frame_of(corpus, "dedup", report["filters"])
    if removed is None or frame is None:
        return None
    duplicates = scan([removed]).filter(pl.col("reason").is_in(["exact", "near"]))
    kept = duplicates.select(pl.col("evidence").str.json_path_match("$.kept").alias("completion_id"))
    return collect(kept.join(frame.select("completion_id"), on="completion_id", how="semi").select(pl.len())).item()
