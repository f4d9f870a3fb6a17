"""One file as records: marks, packings, hostile JSON, and the bound of a record, in every format."""

import bz2
import gzip
import json
import lzma
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard

from cosmopedia.core.errors import DataError
from cosmopedia.records.formats import Record, file_records

ROOT = Path(__file__).parents[3]
BOM = b"\xef\xbb\xbf"
LIMIT = 1000
PACKINGS: dict[str, Callable[[bytes], bytes]] = {
    "": bytes,
    ".gz": gzip.compress,
    ".zst": zstandard.ZstdCompressor().compress,
    ".bz2": bz2.compress,
    ".xz": lzma.compress,
}
ROWS = [{"text": "one"}, {"text": "two, \u00e9"}, {"text": "three"}]
LINES = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in ROWS).encode()
CONTENTS = {
    ".jsonl": LINES,
    ".ndjson": LINES.replace(b"\n", b"\r\n"),
    ".json": json.dumps(ROWS, indent=2).encode(),
    ".csv": 'text\none\n"two, é"\nthree\n'.encode(),
    ".txt": "one\ntwo, é\r\nthree".encode(),
}


def read(path: Path, content: bytes, limit: int = LIMIT) -> list[Record]:
    path.write_bytes(content)
    return list(file_records(path, limit))


@pytest.mark.parametrize("packing", PACKINGS)
@pytest.mark.parametrize("kind", CONTENTS)
def test_a_byte_order_mark_costs_no_record_in_any_format(tmp_path: Path, kind: str, packing: str) -> None:
    for content in (CONTENTS[kind], BOM + CONTENTS[kind]):
        records = read(tmp_path / f"a{kind}{packing}", PACKINGS[packing](content))
        assert [(record.values, record.problem) for record in records] == [(row, None) for row in ROWS]


def test_files_that_were_joined_have_a_mark_each_and_packings_several_parts(tmp_path: Path) -> None:
    assert [r.values for r in read(tmp_path / "a.jsonl", (BOM + LINES) * 2)] == ROWS * 2
    for packing, pack in PACKINGS.items():
        assert len(read(tmp_path / f"b.jsonl{packing}", pack(LINES) * 2)) == 6, packing


@pytest.mark.parametrize("kind", CONTENTS)
def test_utf16_is_named(tmp_path: Path, kind: str) -> None:
    with pytest.raises(DataError, match=rf"a{kind} is UTF-16; save it as UTF-8"):
        read(tmp_path / f"a{kind}", CONTENTS[kind].decode().encode("utf-16"))


@pytest.mark.parametrize("packing", [".bz2", ".xz"])
def test_a_packed_file_that_is_cut_off_is_named(tmp_path: Path, packing: str) -> None:
    packed = PACKINGS[packing](LINES * 1000)
    for content in (packed[: len(packed) // 2], b"no packed file"):
        with pytest.raises(DataError, match=rf"a\.jsonl\{packing}: cut off or damaged"):
            read(tmp_path / f"a.jsonl{packing}", content)


LONG = "x" * LIMIT
TOO_LONG = r"longer than 0\.000953674 MB \(sources\.reading\.max_record_mb\)"


@pytest.mark.parametrize("packing", PACKINGS)
def test_a_line_above_the_limit_is_one_bad_row(tmp_path: Path, packing: str) -> None:
    lines = [b'{"text": "a"}', json.dumps({"text": LONG}).encode(), b'{"text": "b"}', b"x" * 3 * (1 << 20)]
    for kind, good in ((".jsonl", [0, 2]), (".txt", [0, 2])):
        records = read(tmp_path / f"a{kind}{packing}", PACKINGS[packing](b"\n".join(lines)))
        assert [n for n, record in enumerate(records) if not record.problem] == good and len(records) == 4
        assert {record.problem for record in records if record.problem} == {
            "longer than 0.000953674 MB (sources.reading.max_record_mb)"
        }
    just = json.dumps({"text": "x" * (LIMIT - 12)}).encode()
    assert len(just) == LIMIT and not read(tmp_path / "b.jsonl", just + b"\n")[0].problem


def test_a_record_above_the_limit_is_named_where_the_next_cannot_be_found(tmp_path: Path) -> None:
    for rows in ([ROWS[0], {"text": LONG}], [ROWS[0], {"text": LONG * 3000}]):
        with pytest.raises(DataError, match=rf"a\.json:\[1\]: {TOO_LONG}"):
            read(tmp_path / "a.json", json.dumps(rows).encode())
    open_quote, two_fields = 'text\nok\n"' + "open\n" * 300, "a,b\n" + "x" * 600 + ',"' + "y\n" * 300 + '"\n'
    for text in (f"text\nok\n{LONG}x\n", open_quote, two_fields):
        with pytest.raises(DataError, match=rf"a\.csv:\d+: a record is {TOO_LONG}; is a quote left open"):
            read(tmp_path / "a.csv", text.encode())
    assert len(read(tmp_path / "a.csv", b"text\n" + b"a row of some length\n" * 300)) == 300


def test_a_parquet_row_above_the_limit_is_one_bad_row(tmp_path: Path) -> None:
    table = pa.table({"text": ["a", LONG, "b", "c"], "turns": [["x"], ["y"], ["z"] * 400, ["w"]]})
    pq.write_table(table, tmp_path / "a.parquet")
    records = list(file_records(tmp_path / "a.parquet", LIMIT))
    assert [(record.values.get("text"), bool(record.problem)) for record in records] == [
        ("a", False), (None, True), (None, True), ("c", False),
    ]  # fmt: skip
    assert records[1].place.endswith("a.parquet:1")


MEASURE = """
import resource, sys
from pathlib import Path
from cosmopedia.records.formats import file_records
from cosmopedia.core.errors import DataError
try:
    print(sum(1 for _ in file_records(Path("warm.jsonl"), 1 << 20)))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    print(sum(1 for _ in file_records(Path(sys.argv[1]), 1 << 20)))
except DataError as error:
    assert "longer than 1 MB" in str(error), error
after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
assert after - before < 60_000, (before, after)  # kB
"""


@pytest.mark.slow
@pytest.mark.parametrize("name", ["a.jsonl.gz", "a.txt.gz", "a.json.gz", "a.csv.zst", "a.parquet"])
def test_the_memory_does_not_grow_with_a_record(empty_folder: Path, name: str) -> None:
    Path("warm.jsonl").write_bytes(LINES)
    begin = {"a.jsonl.gz": b'{"text": "', "a.json.gz": b'[{"text": "', "a.csv.zst": b'text\n"'}.get(name, b"")
    content = begin + b"x" * (150 << 20)
    if name == "a.parquet":  # one text, stored once and used by every row
        column = pa.DictionaryArray.from_arrays(pa.array([0] * 2000), pa.array(["x" * 900_000]))
        pq.write_table(pa.table({"text": column}), name)
    else:
        packed = gzip.compress(content, 1) if name.endswith(".gz") else PACKINGS[".zst"](content)
        Path(name).write_bytes(packed)
    command = [sys.executable, "-c", MEASURE, name]
    done = subprocess.run(command, env={"PYTHONPATH": str(ROOT), "PATH": ""}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("value", "problem"),
    [("[" * 100_000, "brackets nested too deep"), ('{"a":' * 50_000, "brackets nested too deep"),
     ("9" * 5000, "a number with thousands of digits")],
    ids=["brackets", "objects", "digits"],
)  # fmt: skip
def test_hostile_json_is_one_sentence(tmp_path: Path, value: str, problem: str) -> None:
    content = f'{{"text": "a", "n": {value}'
    for text in (value, f"[{content}}}]", f"[{value}]"):
        with pytest.raises(DataError, match=rf"a\.json(:\[0\])?: .*{problem}"):
            read(tmp_path / "a.json", text.encode(), 1 << 20)
    records = read(tmp_path / "a.jsonl", f'{content}}}\n{{"text": "b"}}\n'.encode(), 1 << 20)
    assert [record.problem for record in records] == [f"no JSON: {problem}", None]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b'[{"text": "a"}, {"text": "b"', r"a\.json:\[1\]: no JSON: Expecting ',' delimiter"),
        (b'[{"text": "a"} {"text": "b"}]', r"a\.json:\[0\]: no JSON: wanted a comma or \]"),
        (b'[{"text": "a"},]', r"a\.json:\[1\]: no JSON: Expecting value"),
        (b'[{"text": "a"}] [1]', "text after the array's last bracket"),
        (b'[{"text": "\xff"}]', r"a\.json is not UTF-8"),
        (b'{"text": "a"}', "found dict; one record per line is a .jsonl"),
        (b'{\n"text": "a"}', "wanted an array of records, found no JSON"),
        (b"\n \n", "wanted an array of records, found nothing"),
    ],
)
def test_an_array_that_does_not_parse_is_named(tmp_path: Path, content: bytes, message: str) -> None:
    with pytest.raises(DataError, match=message):
        read(tmp_path / "a.json", content)


def test_arrays_are_read_at_any_length_and_lines_under_their_suffix(tmp_path: Path) -> None:
    rows = [{"id": n, "text": "x" * (n % 700)} for n in range(6000)]  # above two chunks
    for text in (json.dumps(rows), json.dumps(rows, indent=1), "".join(json.dumps(row) + "\n" for row in rows)):
        assert [record.values for record in read(tmp_path / "a.json", text.encode())] == rows
    assert read(tmp_path / "a.json", b" [ ] ") == []
    assert [bool(record.problem) for record in read(tmp_path / "a.json", b'[1, {"a": 2}, [{}]]')] == [
        True,
        False,
        True,
    ]


def test_nan_is_what_is_missing(tmp_path: Path) -> None:
    lines = b'{"id": NaN, "score": Infinity, "text": "a"}'
    assert read(tmp_path / "a.jsonl", lines)[0].values == {"id": None, "score": None, "text": "a"}
    pq.write_table(pa.table({"id": [float("nan"), 1.0]}), tmp_path / "a.parquet")
    assert [r.values for r in file_records(tmp_path / "a.parquet", LIMIT)] == [{"id": None}, {"id": 1.0}]


def test_a_column_that_is_there_twice_is_refused(tmp_path: Path) -> None:
    twice = pa.Table.from_arrays([pa.array(["a"]), pa.array(["b"])], names=["text", "text"])
    pq.write_table(twice, tmp_path / "a.parquet")
    with pytest.raises(DataError, match=r"a\.parquet: more than one column is named text; rename or drop one"):
        list(file_records(tmp_path / "a.parquet", LIMIT))
    with pytest.raises(DataError, match=r"a\.csv: more than one column is named text"):
        read(tmp_path / "a.csv", b"text,id,text\na,1,b\n")
    assert [r.problem for r in read(tmp_path / "b.csv", b"text,,\na,,\n")] == [None]  # as a spreadsheet leaves them


def test_a_time_zone_that_nobody_knows_is_a_bad_row(tmp_path: Path) -> None:
    pq.write_table(pa.table({"at": pa.array([1], pa.timestamp("us", "Mars/Base"))}), tmp_path / "a.parquet")
    assert [r.problem for r in file_records(tmp_path / "a.parquet", LIMIT)] == ["unknown time zone 'Mars/Base'"]
