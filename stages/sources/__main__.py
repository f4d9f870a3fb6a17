"""sources: read, filter and normalise one source.

In: a hub dataset at a pinned revision, or a local file or folder of the same schema (profile: sources.<name>).
Out: data/sources/<name>.parquet (SOURCE), data/sources/rejected/<name>.parquet (REJECTED: every row left out, with its
reason), metrics/sources/<name>.json; for ultrachat with `concepts`: the kept questions by what they are about.
Contract: records are streamed; memory grows by about 16 bytes per row (its fingerprints).
Run: python -m stages.sources web
"""

import argparse
import json
from collections import Counter
from itertools import islice
from pathlib import Path
from typing import Any

from cosmopedia.errors import ConfigError, DataError
from cosmopedia.execution.stage_process import run_stage
from cosmopedia.params import check, section
from cosmopedia.records import is_local, read_records
from cosmopedia.tables.contracts import REJECTED, SOURCE
from cosmopedia.tables.external_sort import SortingWriter
from cosmopedia.tables.parquet import TableWriter
from cosmopedia.tables.row_counts import RowCounts, write_metrics
from stages.sources.normalise import SourceParams, normalise, nothing_kept
from stages.sources.readers import READERS, UltrachatFilter, concepts_of

OUT = Path("data/sources")


def source_settings(source: str) -> tuple[SourceParams, Any]:
    """A source's params, and those of its own filter."""
    params = check(section(f"sources.{source}"), SourceParams, f"sources.{source}")
    return params, check(params.keep, READERS[source].keep, f"sources.{source}.keep")


def settings() -> list[tuple[SourceParams, Any]]:
    """The params of every source."""
    return [source_settings(source) for source in READERS]


def main(source: str) -> str:
    """Read one source; returns the summary line."""
    if source not in READERS:
        raise ConfigError(f"unknown source {source!r}; known sources: {', '.join(READERS)}")
    params, keep = source_settings(source)
    records, revision = iter(()), "none"
    if params.dataset is not None:
        records, revision = read_records(params.dataset, params.subset, params.split, params.revision)
        if is_local(params.dataset) and not params.dataset.startswith("data/samples/"):
            print(f"note: DVC does not watch {params.dataset}; run dvc repro -f sources@{source} when it changes")
    counts, concepts = RowCounts(f"sources/{source}"), Counter()
    causes: dict[str, str] = {}  # reason -> the detail of the first row left out for it
    with (
        SortingWriter(OUT / f"{source}.parquet", SOURCE) as kept,
        TableWriter(OUT / f"rejected/{source}.parquet", REJECTED) as rejected,
    ):
        for row, left_out in normalise(source, islice(records, params.limit), params, keep, revision, counts):
            if row:
                kept.write(row)
                if isinstance(keep, UltrachatFilter):
                    question = json.loads(row["context"]).get("question", row["text"])
                    concepts.update(concepts_of(question, keep.concepts))
            elif left_out:
                rejected.write(left_out)
                causes.setdefault(left_out["reason"], left_out["detail"])
        if params.dataset is not None and not counts.kept:
            raise DataError(nothing_kept(params.dataset, source, counts, causes))
    metrics = {**counts.metrics(), "dataset": params.dataset, "revision": revision}
    metrics |= {"local": is_local(params.dataset or "."), "licence": params.licence}
    if isinstance(keep, UltrachatFilter):
        metrics["concepts"] = {name: concepts[name] for name in (*keep.concepts, "other")}
    write_metrics(f"metrics/sources/{source}.json", metrics)
    reasons = ", ".join(f"{count} {reason}" for reason, count in sorted(counts.removed.items()))
    return f"{counts.kept} rows from {params.dataset}" + (f"; left out: {reasons}" if reasons else "")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python -m stages.sources")
    parser.add_argument("source", choices=READERS)
    source_name = parser.parse_args().source
    run_stage(f"sources {source_name}", lambda: main(source_name))
