"""Tables: contracts hold on the way in and out, files are whole or absent, accounts balance."""

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from cosmopedia.core.errors import DataError, InternalError
from cosmopedia.core.row_counts import RowCounts
from cosmopedia.tables.contracts import TOPIC_OF_ROW
from cosmopedia.tables.parquet import TableWriter, read_batches, read_table, write_table

ROWS = [{"row_id": f"web/{n}", "cluster": n, "topic": "Geology"} for n in range(5)]


def test_rows_in_any_order_give_the_same_bytes(tmp_path: Path) -> None:
    write_table(tmp_path / "a.parquet", ROWS, TOPIC_OF_ROW)
    write_table(tmp_path / "b.parquet", ROWS[::-1], TOPIC_OF_ROW)
    assert (tmp_path / "a.parquet").read_bytes() == (tmp_path / "b.parquet").read_bytes()


def test_a_table_appears_only_when_complete(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), TableWriter(tmp_path / "t.parquet", TOPIC_OF_ROW) as writer:
        writer.write(ROWS[0])
        raise ZeroDivisionError
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.drop_columns("topic"), r"t\.parquet: web rows with topics lacks the column\(s\) topic"),
        (lambda t: t.append_column("extra", t["topic"]), r"unexpected column\(s\) extra"),
        (
            lambda t: t.set_column(2, "topic", pa.array(["a", None, "c", "d", "e"])),
            r"topic is null in 1 row\(s\), first in row 1",
        ),
        (lambda t: t.set_column(1, "cluster", pa.array(["a", "b", "c", "d", "e"])), r"cluster must be int32"),
        (lambda t: pa.concat_tables([t, t.slice(4)]), r"'web/4' occurs twice"),
        (lambda t: t.sort_by([("row_id", "descending")]), r"'web/3' comes after 'web/4'"),
    ],
)
def test_a_file_that_breaks_its_contract_is_refused_by_name(tmp_path: Path, change, message: str) -> None:
    table = change(pa.Table.from_pylist(ROWS, schema=TOPIC_OF_ROW.schema))
    pq.write_table(table.cast(pa.schema([f.with_nullable(True) for f in table.schema])), tmp_path / "t.parquet")
    with pytest.raises(DataError, match=message):
        list(read_batches([tmp_path / "t.parquet"], TOPIC_OF_ROW))


def test_a_cut_or_missing_file_is_refused_by_name(tmp_path: Path) -> None:
    path = tmp_path / "t.parquet"
    write_table(path, ROWS, TOPIC_OF_ROW)
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(DataError, match=r"t\.parquet: not a whole parquet file"):
        read_table(path, TOPIC_OF_ROW)
    with pytest.raises(DataError, match=r"gone\.parquet is missing"):
        read_table(tmp_path / "gone.parquet", TOPIC_OF_ROW)


def test_rows_out_of_order_are_our_defect(tmp_path: Path) -> None:
    with (
        pytest.raises(InternalError, match="occurs twice"),
        TableWriter(tmp_path / "t.parquet", TOPIC_OF_ROW) as writer,
    ):
        writer.write(ROWS[0])
        writer.write(ROWS[0])


def test_an_account_that_does_not_balance_is_refused() -> None:
    account = RowCounts("clean", rows_in=10, kept=7)
    account.remove("short", 2)
    with pytest.raises(InternalError, match="10 rows came in, but 7 kept \\+ 2 removed"):
        account.metrics()
    account.remove("empty")
    assert account.metrics()["removed"] == {"empty": 1, "short": 2}
