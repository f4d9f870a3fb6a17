"""sources: read, filter and normalise one seed source.

One row after the other, in memory that grows by 25 to 50 bytes a row (its fingerprints), so ten million rows need less
than 1 GB.
In: a hub dataset at a pinned revision, or a local file or folder of the same schema (profile: sources.<name>).
Out: data/sources/<name>.parquet (SOURCE), data/sources/rejected/<name>.parquet (REJECTED: every row left out, with its
reason), metrics/sources/<name>.json; for ultrachat with `concepts`: the kept questions by what they are about.
Alone: python -m stages.sources web
"""

import argparse
import json
from collections import Counter
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

from cosmopedia.errors import ConfigError, DataError, run_stage
from cosmopedia.params import Params, check, section
from cosmopedia.records import Record, is_local, read_records
from cosmopedia.tables.contracts import REJECTED, SOURCE
from cosmopedia.tables.external_sort import SortingWriter
from cosmopedia.tables.parquet import TableWriter
from cosmopedia.tables.row_counts import RowCounts, write_metrics
from stages.sources.duplicates import Fingerprints, fingerprint
from stages.sources.readers import READERS, Reader, Rejected, Seed, UltrachatFilter, concepts_of


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
    except (TypeError, AttributeError, IndexError, ValueError) as error:
        yield Rejected("malformed", f"{record.place}: {error}")


def normalise(
    source: str, records: Iterator[Record], params: SourceParams, keep: Params, revision: str, account: RowCounts
) -> Iterator[tuple[dict | None, dict | None]]:
    """(SOURCE row, None) or (None, REJECTED row) for each row found, in the dataset's order, counted in `account`.

    Of rows with the same id or the same content the first stays; a row left out does not make a later one a duplicate.
    """
    ids, contents = Fingerprints(), Fingerprints()
    for record in records:
        raw = record.raw
        for found in seeds_of(record, READERS[source], keep):
            account.rows_in += 1
            if isinstance(found, Seed):
                row_id = f"{source}/{found.original_id}"
                context = json.dumps(found.context, ensure_ascii=False, sort_keys=True)
                try:
                    own, content = fingerprint(row_id), fingerprint(found.title, found.text, context)
                    (found.url or "").encode()
                except UnicodeEncodeError:
                    found = Rejected("unreadable", f"{record.place}: half a surrogate pair, which is no text")
                else:
                    if own in ids or content in contents:
                        found = Rejected("duplicate_id" if own in ids else "duplicate_text", row_id)
            if isinstance(found, Rejected):
                raw = raw or json.dumps(record.values, ensure_ascii=False, default=str)[:10_000]
                place = f"{source}/{sum(account.removed.values()):09d}"
                account.remove(found.reason)
                detail, row = (text.encode("utf-8", "replace").decode() for text in (found.detail, raw[:10_000]))
                yield None, {"row_id": place, "reason": found.reason, "detail": detail, "row": row}
                continue
            ids.add(own)
            contents.add(content)
            account.kept += 1
            row = {
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
            yield row, None


def main(source: str) -> str:
    """Read one source; returns the summary line."""
    if source not in READERS:
        raise ConfigError(f"unknown source {source!r}; known sources: {', '.join(READERS)}")
    params = check(section(f"sources.{source}"), SourceParams, f"sources.{source}")
    keep = check(params.keep, READERS[source].keep, f"sources.{source}.keep")
    records, revision = iter(()), "none"
    if params.dataset is not None:
        records, revision = read_records(params.dataset, params.subset, params.split, params.revision)
    if params.dataset is not None and is_local(params.dataset) and not params.dataset.startswith("data/samples/"):
        print(f"note: DVC does not watch {params.dataset}; when its content changes: dvc repro -f sources@{source}")
    account, concepts, causes = RowCounts(f"sources/{source}"), Counter(), {}
    kept_path, rejected_path = (
        Path(folder) / f"{source}.parquet" for folder in ("data/sources", "data/sources/rejected")
    )
    with SortingWriter(kept_path, SOURCE) as kept, TableWriter(rejected_path, REJECTED) as rejected:
        for row, out in normalise(source, islice(records, params.limit), params, keep, revision, account):
            if row:
                kept.write(row)
                if isinstance(keep, UltrachatFilter):
                    question = json.loads(row["context"]).get("question", row["text"])
                    concepts.update(concepts_of(question, keep.concepts))
            elif out:
                rejected.write(out)
                causes.setdefault(out["reason"], out["detail"])
        if params.dataset is not None and not account.kept:
            raise DataError(nothing_kept(params.dataset, source, account, causes))
    metrics = {**account.metrics(), "dataset": params.dataset, "revision": revision}
    metrics |= {"local": is_local(params.dataset or "."), "licence": params.licence}
    if isinstance(keep, UltrachatFilter):
        metrics["concepts"] = {name: concepts[name] for name in (*keep.concepts, "other")}
    write_metrics(f"metrics/sources/{source}.json", metrics)
    reasons = ", ".join(f"{count} {reason}" for reason, count in sorted(account.removed.items()))
    return f"{account.kept} rows from {params.dataset}" + (f"; set aside: {reasons}" if reasons else "")


def nothing_kept(dataset: str, source: str, account: RowCounts, causes: dict[str, str]) -> str:
    """The message for a dataset that gave no row: why most rows were left out, and the first of those in detail."""
    message = f"{dataset}: not one of {account.rows_in} rows could be used for {source}"
    if not account.removed:
        return message
    reason, count = account.removed.most_common(1)[0]
    return f"{message}; {count} {reason}, the first: {causes[reason]}; correct sources.{source} or the dataset"


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python -m stages.sources")
    parser.add_argument("source", choices=READERS)
    chosen = parser.parse_args().source
    run_stage(f"sources {chosen}", lambda: main(chosen))
