"""sources: read, filter and normalise one seed source.

In: a hub dataset at a pinned revision, or a local file or folder of the same schema (profile: sources.<name>).
Out: data/sources/<name>.parquet (SOURCE), data/sources/rejected/<name>.parquet (REJECTED: every row left out, with its
reason), metrics/sources/<name>.json.
Alone: python -m stages.sources web
"""

import argparse
import json
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

from stages.draws import content_hash
from stages.errors import ConfigError, DataError, run_stage
from stages.seeds.readers import READERS, Reader, Rejected, Seed
from stages.seeds.reading import Record, is_local, read_records
from stages.settings import Params, check, section
from stages.tables.accounting import RowAccount, write_metrics
from stages.tables.contracts import REJECTED, SOURCE
from stages.tables.parquet import write_table


class SourceParams(Params):
    """Where one source comes from (profile) and what is kept of it (params.yaml: `keep`)."""

    dataset: str | None  # hub id, file or folder; null leaves the source out (an empty table)
    subset: str | None
    split: str | None
    revision: str | None  # commit of a hub dataset; null for local files
    limit: int | None  # records read at most
    licence: str
    keep: dict[str, Any]


def seeds_of(record: Record, reader: Reader, keep: Params) -> Iterator[Seed | Rejected]:
    """A record's seed rows and rejections; a record that cannot be read is one rejection."""
    if record.problem:
        yield Rejected("unreadable", f"{record.place}: {record.problem}")
        return
    try:
        yield from reader.read(record.values, keep)
    except KeyError as error:
        yield Rejected("malformed", f"{record.place}: column {error} is missing; found {sorted(record.values)}")
    except (TypeError, AttributeError, IndexError) as error:
        yield Rejected("malformed", f"{record.place}: {error}")


def normalise(
    source: str, records: Iterator[Record], params: SourceParams, revision: str
) -> tuple[list[dict], list[dict], RowAccount]:
    """(SOURCE rows, REJECTED rows, the account). Of rows with the same id or the same content the first stays."""
    reader, account = READERS[source], RowAccount(f"sources/{source}")
    keep = check(params.keep, reader.keep, f"sources.{source}.keep")
    kept: dict[str, dict] = {}
    contents: set[str] = set()
    rejected: list[dict] = []
    for record in records:
        for found in seeds_of(record, reader, keep):
            account.rows_in += 1
            row_id = f"{source}/{found.original_id}" if isinstance(found, Seed) else ""
            if isinstance(found, Seed):
                context = json.dumps(found.context, ensure_ascii=False, sort_keys=True)
                content = content_hash(found.title, found.text, context)
                if row_id in kept or content in contents:
                    found = Rejected("duplicate_id" if row_id in kept else "duplicate_text", row_id)
            if isinstance(found, Rejected):
                account.remove(found.reason)
                raw = record.raw or json.dumps(record.values, ensure_ascii=False, default=str)
                place = f"{source}/{len(rejected):09d}"
                rejected.append({"row_id": place, "reason": found.reason, "detail": found.detail, "row": raw[:10_000]})
                continue
            contents.add(content)
            kept[row_id] = {
                "row_id": row_id,
                "source": source,
                "original_id": found.original_id,
                "title": found.title,
                "text": found.text,
                "context": context,
                "url": found.url,
                "licence": params.licence,
                "revision": revision,
            }
    account.kept = len(kept)
    return list(kept.values()), rejected, account


def main(source: str) -> str:
    """Read one source; returns the summary line."""
    if source not in READERS:
        raise ConfigError(f"unknown source {source!r}; known sources: {', '.join(READERS)}")
    params = check(section(f"sources.{source}"), SourceParams, f"sources.{source}")
    records, revision = iter(()), "none"
    if params.dataset is not None:
        records, revision = read_records(params.dataset, params.subset, params.split, params.revision)
    if params.dataset is not None and is_local(params.dataset) and not params.dataset.startswith("data/samples/"):
        print(f"note: DVC does not watch {params.dataset}; when its content changes: dvc repro -f sources@{source}")
    rows, rejected, account = normalise(source, islice(records, params.limit), params, revision)
    if params.dataset is not None and not rows:
        first = f"; the first: {rejected[0]['reason']} ({rejected[0]['detail']})" if rejected else ""
        raise DataError(f"{params.dataset}: not one of {account.rows_in} rows could be used for {source}{first}")
    write_table(Path("data/sources") / f"{source}.parquet", rows, SOURCE)
    write_table(Path("data/sources/rejected") / f"{source}.parquet", rejected, REJECTED)
    origin = {"dataset": params.dataset, "revision": revision, "local": is_local(params.dataset or ".")}
    write_metrics(f"metrics/sources/{source}.json", {**account.metrics(), **origin, "licence": params.licence})
    reasons = ", ".join(f"{count} {reason}" for reason, count in sorted(account.removed.items()))
    return f"{account.kept} rows from {params.dataset}" + (f"; set aside: {reasons}" if reasons else "")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python -m stages.sources")
    parser.add_argument("source", choices=READERS)
    chosen = parser.parse_args().source
    run_stage(f"sources {chosen}", lambda: main(chosen))
