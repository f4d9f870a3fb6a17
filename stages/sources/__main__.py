"""sources: read, filter and normalise one source.

In: a hub dataset at a pinned revision, or a local file or folder of the same schema (profile: sources.<name>).
Out: data/sources/<name>.parquet (SOURCE), data/sources/rejected/<name>.parquet (REJECTED: every row left out, with its
reason), metrics/sources/<name>.json; for ultrachat with `concepts`: the kept questions by what they are about.
Contract: records are streamed; memory grows by about 16 bytes per row (its fingerprints).
Run: python -m stages.sources web
"""

import argparse
import sys
from collections import Counter
from itertools import islice
from pathlib import Path
from typing import Any

from cosmopedia.core.errors import ConfigError, DataError
from cosmopedia.core.params import check, load, section
from cosmopedia.core.row_counts import RowCounts, write_metrics
from cosmopedia.execution.stage_process import run_stage
from cosmopedia.records.dataset_folders import dataset_files
from cosmopedia.records.pins import is_local
from cosmopedia.records.reading import read_records
from cosmopedia.tables.contracts import REJECTED, SOURCE
from cosmopedia.tables.external_sort import SortingWriter
from cosmopedia.tables.parquet import TableWriter
from stages.sources.normalise import ReadingParams, SourceParams, checked, normalise, nothing_kept
from stages.sources.reader import reader_of, sources

OUT = Path("data/sources")
DAMAGE = ("malformed", "unreadable")  # reasons that are about the file, not about what a row says


def source_settings(source: str) -> tuple[SourceParams, Any]:
    """A source's params, and those of its own filter."""
    params = check(section(f"sources.{source}"), SourceParams, f"sources.{source}")
    if source == "web" and params.dataset is None:
        raise ConfigError(
            "sources.web.dataset is null, and topics are made from web rows; for a corpus without web prompts set"
            " prompts.styles.<preset>.web.<style>.share to 0, as sweeps/leave_one_out.yaml does"
        )
    return params, check(params.keep, reader_of(source).keep, f"sources.{source}.keep")


def settings() -> list[tuple[SourceParams, Any]]:
    """The params of every source."""
    load("sources.reading", ReadingParams)
    return [source_settings(source) for source in sources()]


def main(source: str) -> str:
    """Read one source; returns the summary line."""
    params, keep = source_settings(source)
    reader, reading = reader_of(source), load("sources.reading", ReadingParams)
    records, revision, unread = iter(()), "none", ""
    if params.dataset is not None:
        place = (params.dataset, params.subset, params.split)
        records, revision = read_records(*place, params.revision, reading.max_record_mb)
        records = reader.all_of(records, params.dataset)
        if is_local(params.dataset):
            unread = dataset_files(*place).note
    counts, concepts, seen = RowCounts(f"sources/{source}"), Counter(), Counter()
    causes: dict[str, str] = {}  # reason -> the detail of the first row left out for it
    with (
        SortingWriter(OUT / f"{source}.parquet", SOURCE) as kept,
        TableWriter(OUT / f"rejected/{source}.parquet", REJECTED) as rejected,
    ):
        taken = checked(islice(records, params.limit), reading, seen)
        for row, left_out in normalise(source, taken, params, keep, revision, counts):
            if row:
                kept.write(row)
                if reader.concepts:
                    concepts.update(reader.concepts(row, keep))
            elif left_out:
                rejected.write(left_out)
                causes.setdefault(left_out["reason"], left_out["detail"])
        if params.dataset is not None and not counts.kept:
            raise DataError(nothing_kept(params.dataset, source, counts, causes))
    warn_of_damage(source, counts, causes)
    metrics = {**counts.metrics(), "dataset": params.dataset, "revision": revision}
    metrics |= {"local": is_local(params.dataset or "."), "licence": params.licence}
    metrics |= {"control_characters": seen["control_characters"]}
    if reader.concepts:
        metrics["concepts"] = {name: concepts[name] for name in (*keep.concepts, "other")}
    write_metrics(f"metrics/sources/{source}.json", metrics)
    return summary(counts, params.dataset, seen["control_characters"], reading.control_characters) + unread


def warn_of_damage(source: str, counts: RowCounts, causes: dict[str, str]) -> None:
    """Say on stderr where the first record is that is no row of the source at all, if there is one."""
    for reason in DAMAGE:
        if counts.removed[reason]:
            print(
                f"sources {source}: warning: {counts.removed[reason]} {reason}, the first: {causes[reason]}; all of"
                f" them are in {OUT}/rejected/{source}.parquet",
                file=sys.stderr,
            )


def summary(counts: RowCounts, dataset: str | None, with_controls: int, control_characters: str) -> str:
    """The stage's line: rows kept, rows left out by reason, records with control characters."""
    line = "left out, no rows" if dataset is None else f"{counts.kept} rows from {dataset}"
    if counts.removed:
        line += "; left out: " + ", ".join(f"{count} {reason}" for reason, count in sorted(counts.removed.items()))
    if with_controls:
        line += f"; control characters in {with_controls} records ({control_characters})"
    return line


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python -m stages.sources")
    parser.add_argument("source", choices=sources())
    source_name = parser.parse_args().source
    run_stage(f"sources {source_name}", lambda: main(source_name))
