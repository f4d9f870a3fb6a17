"""retrieve: for each source row the passages that its prompts of the preset `grounded` take their facts from.

In: data/sources/<source>.parquet (SOURCE), data/knowledge/passages.parquet (PASSAGE), data/benchmarks/<task>.parquet
(BENCHMARK).
Out: data/retrieve/<source>.parquet (RETRIEVED: rows for which there are passages), data/retrieve/rejected/
passages.parquet (REJECTED: passages that share an n-gram with a benchmark item, by decontaminate's rule),
metrics/retrieve.json. Without passages all tables are empty.
Contract: BM25 (stages/retrieve/index.py); neither tasks nor blocks change a byte. Equal scores go to the smaller row
and passage id. A killed run goes on behind its last whole task. Memory grows by 8 bytes per source row and passage of
it, and by 12 per different word of the passages.
Run: python -m stages.retrieve
"""

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from pydantic import Field

from cosmopedia.contamination.index import DecontaminateParams, Index, item_forms
from cosmopedia.core.errors import DataError
from cosmopedia.core.files import clear_folder
from cosmopedia.core.params import Params, load, section
from cosmopedia.core.row_counts import RowCounts, write_metrics
from cosmopedia.corpus.row_ranges import checked_rows
from cosmopedia.execution.compute import load_compute
from cosmopedia.execution.data_tasks import DataTasks
from cosmopedia.execution.stage_process import run_stage
from cosmopedia.tables.contracts import PASSAGE, REJECTED, RETRIEVED, SOURCE
from cosmopedia.tables.parquet import TableWriter, read_batches, read_rows, tables_in, write_table
from stages.retrieve.assignment import Assignment, assign
from stages.retrieve.passages import (
    PASSAGES,
    TASK_ROWS,
    CountWords,
    IndexBlocks,
    Rows,
    SearchRows,
    blocks_of,
    save_vocabulary,
)
from stages.retrieve.queries import Part

OUT, METRICS = Path("data/retrieve"), Path("metrics/retrieve.json")
SPARE = 4  # times `passages`: candidates of a row, so that there are others where the cap takes some
MOST_USED = 10  # passages whose share of all uses is in the metrics


class RetrieveParams(Params):
    """What is looked up, and what counts as found."""

    passages: int = Field(ge=1, le=20)  # of a row, at most
    words: int = Field(ge=20)  # of a row's passages together; the first one may have more
    min_score: float = Field(gt=0, lt=1)  # on the scale of stages/retrieve/index.py; passages below it are none
    query: list[Part] = Field(min_length=1)  # the parts of a row that it is looked up by
    query_chars: int = Field(ge=1)  # of its text
    common_words: float = Field(gt=0, le=1)  # words in more than this share of the passages do not count
    max_uses: int | None = Field(ge=1)  # rows that one passage is given to; None: any number
    exclude_benchmarks: bool  # passages that share an n-gram with a benchmark item are not used


def settings() -> tuple[RetrieveParams, DecontaminateParams]:
    """The stage's params, and the rule by which passages share an n-gram with a benchmark."""
    return load("retrieve", RetrieveParams), load("decontaminate", DecontaminateParams)


def main() -> str:
    """Look up all rows; returns the summary line."""
    params, rule = settings()
    clear_folder(OUT)
    passages, sources = checked_rows(PASSAGES, PASSAGE), rows_of_sources()
    if not passages:
        return without_passages(sources)
    data = load_compute().data
    with DataTasks("retrieve", data) as arrays:
        benchmarks = save_benchmarks(rule, arrays.workdir) if params.exclude_benchmarks else None
        counted, index, vocabulary = (arrays.workdir / name for name in ("counted", "index", "vocabulary"))
        arrays.run("count", [CountWords(benchmarks, counted)], blocks_of(passages))
        whole = save_vocabulary(counted, params.common_words, vocabulary)
        if not whole.passages:
            raise DataError(
                f"all {passages} passages of {PASSAGES} share an n-gram with a benchmark item; give knowledge another"
                " dataset, or set retrieve.exclude_benchmarks to false"
            )
        arrays.run("index", [IndexBlocks(counted, vocabulary, whole, index)], blocks_of(passages))
        rows = sources[-1].first + sources[-1].rows
        found, notes = arrays.workdir / "found", arrays.notes("search")
        wanted = (params.passages * (1 if params.max_uses is None else SPARE), params.min_score)
        query = (params.query, params.query_chars)
        step = SearchRows(sources, index, vocabulary, whole, query, wanted, found, notes)
        arrays.run("search", [step], max(1, -(-rows // TASK_ROWS)), total=rows, unit="rows")
        arrays.check()
        lengths = np.concatenate([np.load(block / "lengths.npy") for block in sorted(counted.iterdir())])
        limits = (params.passages, params.words, params.max_uses)
        given = assign(sorted(found.iterdir()), rows, lengths, *limits)
        texts = mapped_texts(counted)
        rejected = write_rejected(counted)
        counts = {source.source: write_source(source, given, texts) for source in sources}
    metrics = {**metrics_of(counts, given, texts), "benchmark_overlap": rejected, "indexed": whole.passages}
    write_metrics(METRICS, {"passages": passages, **metrics})
    return (
        f"{metrics['rows_kept']} of {rows} rows have passages: {metrics['distinct_passages']} of {whole.passages}"
        f" are used; {rejected['passages']} left out for a benchmark's words"
    )


def rows_of_sources() -> list[Rows]:
    """The rows of all sources, one after the other."""
    found, first = [], 0
    for source in sorted(set(section("sources")) - {"reading"}):
        path = Path(f"data/sources/{source}.parquet")
        found.append(Rows(source, first, checked_rows(path, SOURCE)))
        first += found[-1].rows
    return found


def without_passages(sources: list[Rows]) -> str:
    """Empty tables: there is nothing to look up."""
    for source in sources:
        write_table(OUT / source.path.name, [], RETRIEVED)
    write_table(OUT / "rejected/passages.parquet", [], REJECTED)
    write_metrics(METRICS, {"passages": 0})
    return "off: the stage knowledge has no passages (knowledge.dataset)"


def save_benchmarks(rule: DecontaminateParams, folder: Path) -> Path:
    """The index of the benchmark items, for the tasks: the n-grams of all forms, without edited copies."""
    forms = item_forms(tables_in("data/benchmarks"), rule.forms is None)
    index = Index(forms, rule.model_copy(update={"tolerant": None}))
    index.save(folder / "benchmarks.pickle")
    return folder / "benchmarks.pickle"


def mapped_texts(counted: Path) -> pa.Table:
    """The passages that were indexed, by their numbers; mapped, so that only what is used is read."""
    files = sorted(counted.glob("*/texts.arrow"))
    return pa.concat_tables([pa.ipc.open_file(pa.memory_map(str(file))).read_all() for file in files])


def write_rejected(counted: Path) -> dict[str, Any]:
    """Write the passages that were left out; how many, and by task."""
    tasks: Counter[str] = Counter()
    with TableWriter(OUT / "rejected/passages.parquet", REJECTED) as writer:
        for row in read_rows(sorted(counted.glob("*/rejected.parquet")), REJECTED):
            tasks[row["detail"].partition("/")[0]] += 1
            writer.write(row)
    return {"passages": writer.rows, "by_task": dict(sorted(tasks.items()))}


def write_source(source: Rows, given: Assignment, texts: pa.Table) -> RowCounts:
    """Write the passages of a source's rows; how many rows have some, and why the others have none."""
    counts, first = RowCounts(f"retrieve/{source.source}", source.rows), source.first
    with TableWriter(OUT / source.path.name, RETRIEVED) as writer:
        for table in read_batches([source.path], SOURCE, ["row_id"]):
            for row in rows_with_passages(table["row_id"].to_pylist(), first, given, texts):
                writer.write(row)
            first += table.num_rows
    none = given.passages[source.first : first, 0] < 0
    counts.kept = writer.rows
    counts.remove("used_up", int((none & given.used_up[source.first : first]).sum()))
    counts.remove("no_passage", int((none & ~given.used_up[source.first : first]).sum()))
    return counts


def rows_with_passages(row_ids: list[str], first: int, given: Assignment, texts: pa.Table) -> Iterator[dict[str, Any]]:
    """RETRIEVED rows of some rows, the first of which has the number `first`."""
    for number, row_id in enumerate(row_ids, start=first):
        numbers = given.passages[number][given.passages[number] >= 0]
        if not len(numbers):
            continue
        found = texts.take(pa.array(numbers)).to_pylist()
        scores = given.scores[number][: len(numbers)].astype(np.float64).round(4).tolist()
        yield {
            "row_id": row_id,
            "passages": [passage["passage_id"] for passage in found],
            "scores": scores,
            "references": references_of(found),
        }


def references_of(passages: list[dict[str, Any]]) -> str:
    """Passages as a prompt quotes them: "[1] Title: text", one below the other."""
    titled = (f"{one['title']}: {one['text']}" if one["title"] else one["text"] for one in passages)
    return "\n\n".join(f"[{number}] {text}" for number, text in enumerate(titled, start=1))


def metrics_of(counts: dict[str, RowCounts], given: Assignment, texts: pa.Table) -> dict[str, Any]:
    """Coverage in all and by source, how uses are spread over the passages, and under which licences they come."""
    whole = RowCounts("retrieve", sum(c.rows_in for c in counts.values()), sum(c.kept for c in counts.values()))
    for one in counts.values():
        whole.removed.update(one.removed)
    used = np.flatnonzero(given.uses)
    uses, total = given.uses[used], int(given.uses.sum())
    most = used[np.lexsort((used, -uses))][:MOST_USED]
    licences: Counter[str] = Counter()
    for begin in range(0, len(used), TASK_ROWS):
        some = used[begin : begin + TASK_ROWS]
        for licence, times in zip(texts["licence"].take(pa.array(some)).to_pylist(), given.uses[some], strict=True):
            licences[licence] += int(times)
    names = texts["passage_id"].take(pa.array(most)).to_pylist()
    return {
        **whole.metrics(),
        "coverage": whole.kept / max(whole.rows_in, 1),
        "by_source": {source: one.kept / max(one.rows_in, 1) for source, one in counts.items()},
        "uses": total,
        "distinct_passages": len(used),
        "share_of_ten_most_used": int(given.uses[most].sum()) / max(total, 1),
        "most_used": {name: int(given.uses[number]) for name, number in zip(names, most, strict=True)},
        "licences": dict(sorted(licences.items())),
    }


if __name__ == "__main__":
    run_stage("retrieve", main)
