"""Promises of the four stages about inputs that no stage should work on: they are refused by name."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from cosmopedia.core.errors import DataError
from cosmopedia.core.params import read_yaml
from cosmopedia.corpus.pipeline import CorpusRun, check_rows
from cosmopedia.execution.compute import load_compute
from cosmopedia.tables.contracts import DOCUMENT, REMOVED
from cosmopedia.tables.parquet import read_rows, table_of, write_table
from stages.clean import __main__ as clean
from stages.decontaminate import __main__ as decontaminate
from stages.dedup import __main__ as dedup
from stages.tokenize_corpus import __main__ as tokenize_corpus
from tests.support.documents import byte_tokenizer, document, repository, write_documents, write_items, write_mix

INPUTS = {
    "clean": "data/generate", "dedup": "data/clean", "decontaminate": "data/dedup",
    "tokenize_corpus": "data/decontaminate",
}  # fmt: skip
MAINS = {
    "clean": clean.main,
    "dedup": dedup.main,
    "decontaminate": decontaminate.main,
    "tokenize_corpus": tokenize_corpus.main,
}
ITEM = "which planet of the solar system has the largest number of known moons today"
Change = Callable[[pa.Table], pa.Table]


@pytest.fixture
def folder(empty_folder: Path) -> Path:
    byte_tokenizer(empty_folder / "models/generator")
    write_items(empty_folder / "data/benchmarks", "arc", [(ITEM, "saturn")])
    return empty_folder


def table(count: int = 6) -> pa.Table:
    rows = [document(text=f"Text number {n} is about water.", completion_id=f"{n:02}") for n in range(count)]
    return table_of(rows, DOCUMENT, "rows")


def with_column(rows: pa.Table, name: str, values: Any) -> pa.Table:
    return rows.set_column(rows.column_names.index(name), name, values)


def with_value(column: str, row: int, value: object) -> Change:
    """A change of one value; bytes need not be UTF-8."""

    def change(rows: pa.Table) -> pa.Table:
        values = rows[column].to_pylist()
        values[row] = value
        if isinstance(value, bytes):
            raw = pa.array([v if isinstance(v, bytes) else v.encode() for v in values], pa.binary())
            return with_column(rows, column, pa.StringArray.from_buffers(len(raw), raw.buffers()[1], raw.buffers()[2]))
        return with_column(rows, column, pa.array(values, DOCUMENT.schema.field(column).type))

    return change


REFUSED: list[tuple[Change, str]] = [
    (lambda t: with_column(t, "text", pa.array(range(6))), r"documents\.text must be string, found int64; give"),
    (
        lambda t: with_column(t, "text", pa.array(range(6), pa.timestamp("us", "Asia/Tokyo"))),
        r"documents\.text must be string, found timestamp\[us, tz=Asia/Tokyo\]",
    ),
    (
        lambda t: with_column(t, "text_token_length", pa.array([True] * 6)),
        r"documents\.text_token_length must be int32, found bool",
    ),
    (
        lambda t: with_column(t, "text_token_length", pa.array(["7"] * 6)),
        r"documents\.text_token_length must be int32, found string",
    ),
    (
        lambda t: with_column(t, "text_token_length", pa.array([7.0, 7.0, 7.5, 7.0, 7.0, 7.0])),
        r"documents\.text_token_length must be int32, found double: .*, in row 2 \('02'\)",
    ),
    (
        with_value("text_token_length", 3, -7),
        r"documents\.text_token_length is -7, wanted 0 or more, in row 3 \('03'\); correct the row",
    ),
    (with_value("prompt_tokens", 5, -1), r"documents\.prompt_tokens is -1, wanted 0 or more, in row 5 \('05'\)"),
    (with_value("sample_index", 0, -1), r"documents\.sample_index is -1, wanted 0 or more, in row 0 \('00'\)"),
    (
        with_value("source", 2, "wikihow"),
        r"documents\.source is 'wikihow', but 'web' in the file's name, in row 2 \('02'\); correct the row, or rename",
    ),
    (
        with_value("style", 4, "story"),
        r"documents\.style is 'story', but 'blogpost' in the file's name, in row 4 \('04'\)",
    ),
    (
        with_value("text", 1, b"an emoji \xed\xa0\xbd cut in two"),
        r"documents\.text is not UTF-8 in row 1 \('01'\); .*half of a surrogate pair, U\+D83D, at byte 9",
    ),
    (lambda t: with_column(t, "text", pa.nulls(6)), r"documents\.text is null in 6 row\(s\), first in row 0 \('00'\)"),
    (
        lambda t: pa.Table.from_arrays([*t.columns, t["text"]], names=[*t.column_names, "text"]),
        r"documents has the column\(s\) text more than once; drop one",
    ),
]


@pytest.mark.parametrize("stage", MAINS)
def test_what_no_stage_should_work_on_is_refused_by_name(folder: Path, stage: str) -> None:
    repository(folder, stage)
    cell = folder / INPUTS[stage] / "web-blogpost.parquet"
    cell.parent.mkdir(parents=True)
    write_mix(folder / "data/mix/web-blogpost.parquet", {row["completion_id"]: 1 for row in table().to_pylist()})
    for change, message in REFUSED:
        pq.write_table(change(table()), cell)
        with pytest.raises(DataError, match=rf"{INPUTS[stage]}/web-blogpost\.parquet: {message}"):
            MAINS[stage]()


@pytest.mark.parametrize("stage", MAINS)
def test_no_row_at_all_is_refused_with_what_to_look_at(folder: Path, stage: str) -> None:
    repository(folder, stage)
    write_documents(folder / INPUTS[stage] / "web-blogpost.parquet", [])
    write_documents(folder / INPUTS[stage] / "web-story.parquet", [])
    before = Path(INPUTS[stage]).name
    with pytest.raises(
        DataError, match=rf"{INPUTS[stage]}: no row in 2 file\(s\).* metrics/{before}\.json .*run {before}"
    ):
        MAINS[stage]()


@pytest.mark.parametrize(
    ("kind", "stored"),
    [
        ("a dictionary", lambda text: text.combine_chunks().dictionary_encode()),
        ("long offsets", lambda text: text.cast(pa.large_string())),
        ("bytes", lambda text: text.cast(pa.binary())),
    ],
)
def test_text_that_is_stored_in_another_way_is_text(tmp_path: Path, kind: str, stored: Any) -> None:
    pq.write_table(with_column(table(), "text", stored(table()["text"])), tmp_path / "web-blogpost.parquet")
    assert list(read_rows([tmp_path / "web-blogpost.parquet"], DOCUMENT)) == table().to_pylist()


def refusal(number: int) -> dict:
    return document(text="I'm sorry, but I can't write that.", completion_id=f"r{number}")


def test_a_corpus_that_clean_removes_names_the_rule_that_took_most(folder: Path) -> None:
    repository(folder, "clean")
    write_documents(folder / "data/generate/web-blogpost.parquet", [refusal(n) for n in range(3)])
    write_documents(folder / "data/generate/web-story.parquet", [document(text=" ", completion_id="e")])
    message = r"none of 4 documents is left; 'refusal' took 3 \(75%\), for example 'r0' of web-blogpost \(evidence: {"
    with pytest.raises(DataError, match=f"{message}.*then change clean in params.yaml"):
        clean.main()
    assert len([*read_rows(["data/clean/removed/removed.parquet"], REMOVED)]) == 4  # to read, as the message says


def test_a_corpus_that_dedup_removes_names_the_rule(folder: Path) -> None:
    text = " ".join(f"word{chr(97 + n % 26)}{chr(97 + n // 26)}" for n in range(60))
    repository(folder, "dedup", max_extract_copy=0.5)
    write_documents(folder / "data/clean/web-blogpost.parquet", [document(text=text, seed_data=text)])
    with pytest.raises(DataError, match=r"none of 1 documents is left; 'copy' took 1 \(100%\)"):
        dedup.main()


def test_a_corpus_that_decontaminate_removes_names_the_rule_and_the_item(folder: Path) -> None:
    repository(folder, "decontaminate")
    write_documents(folder / "data/dedup/web-blogpost.parquet", [document(text=f"{ITEM} saturn", completion_id="c")])
    with pytest.raises(DataError, match=r"'contaminated' took 1 \(100%\), for example 'c'.*arc/000000"):
        decontaminate.main()


def test_one_row_that_is_left_is_enough(folder: Path) -> None:
    repository(folder, "clean", min_tokens=0, language=None)
    rows = [refusal(1), document(text="Water boils at a lower temperature on a mountain.", completion_id="w")]
    write_documents(folder / "data/generate/web-blogpost.parquet", rows)
    clean.main()
    assert read_yaml(Path("metrics/clean.json"))["rows_kept"] == 1


def test_the_files_of_a_cell_are_one_sorted_table(tmp_path: Path) -> None:
    cells = [tmp_path / "web-blogpost.00000.parquet", tmp_path / "web-blogpost.00001.parquet"]
    for cell, part in zip(cells, (table().slice(3), table().slice(0, 3)), strict=True):
        write_table(cell, part, DOCUMENT)
    with pytest.raises(DataError, match=r"00001\.parquet: completion_id '00' comes after '05' of the file before"):
        check_rows(cells)


@pytest.mark.parametrize(
    ("megabytes_per_second", "allowed", "wanted"), [(1e-6, 3, 3), (1e-6, 2, 2), (5.0, 3, 1), (1e9, 3, 1)]
)
def test_processes_are_started_only_for_work_that_pays(
    folder: Path, megabytes_per_second: float, allowed: int, wanted: int
) -> None:
    for cell in ("web-blogpost", "web-story", "web-wikihow"):
        rows = [document(text=f"{cell} {n}", completion_id=f"{cell}{n}") for n in range(40)]
        write_documents(folder / f"data/clean/{cell}.parquet", rows)
    repository(folder, "dedup", cluster_tasks=allowed, cluster_workers=allowed)
    run = CorpusRun("dedup", "data/clean", "data/dedup", load_compute().data, megabytes_per_second)
    assert (run.tasks, run.workers) == (wanted, wanted)
