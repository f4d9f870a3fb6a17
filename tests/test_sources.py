"""Sources: public schemas in, one contract out, every row left out counted and kept."""

import gzip
import json
import shutil
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from stages.errors import ConfigError, DataError
from stages.seeds.readers import READERS
from stages.seeds.reading import read_records
from stages.sources import SourceParams, normalise

ROOT = Path(__file__).parents[1]
RECIPE = yaml.safe_load((ROOT / "params.yaml").read_text(encoding="utf-8"))["sources"]
PAGE = {"text": "A page about basalt columns. " * 20, "id": "p1", "language": "en", "language_score": 0.9}


def run(source: str, path: Path, **keep):
    settings = {**RECIPE[source]["keep"], **keep}
    params = SourceParams(
        dataset=str(path), subset=None, split=None, revision=None, limit=None, licence="CC0-1.0", keep=settings
    )
    records, revision = read_records(str(path), None, None, None)
    return normalise(source, records, params, revision)


def jsonl(path: Path, rows: list) -> Path:
    path.write_text("".join(r if isinstance(r, str) else json.dumps(r) + "\n" for r in rows), encoding="utf-8")
    return path


@pytest.mark.parametrize("source", READERS)
def test_every_source_reads_its_sample_and_accounts_for_each_row(source: str) -> None:
    profile = yaml.safe_load((ROOT / "profiles/rehearsal.yaml").read_text(encoding="utf-8"))["sources"][source]
    kept, rejected, account = run(source, ROOT / profile["dataset"])
    assert len(kept) >= 30 and len({row["row_id"] for row in kept}) == len(kept)
    assert account.metrics()["rows_removed"] == len(rejected) > 0


def test_bad_rows_are_set_aside_with_their_reason(tmp_path: Path) -> None:
    path = jsonl(
        tmp_path / "web.jsonl",
        [
            PAGE,
            {**PAGE, "text": "Another page. " * 40},  # the same id
            {**PAGE, "id": "p2"},  # the same text
            {**PAGE, "id": "p3", "text": None},
            {**PAGE, "id": "p4", "text": "short"},
            {**PAGE, "id": "p5", "language": "fr"},
            {"id": "p6", "content": "wrong column"},
            "{broken json\n",
            "[1, 2]\n",
        ],
    )
    with path.open("ab") as stream:
        stream.write(b'{"id": "p7", "text": "\xff\xfe"}\n')
    kept, rejected, account = run("web", path)
    assert [row["original_id"] for row in kept] == ["p1"]
    assert dict(account.removed) == {
        "duplicate_id": 1, "duplicate_text": 1, "malformed": 2, "length": 1, "language": 1, "unreadable": 3,
    }  # fmt: skip
    assert {"web.jsonl:8: no JSON", "web.jsonl:10: invalid UTF-8"} <= {
        row["detail"].removeprefix(f"{tmp_path}/")[: len(w)]
        for row in rejected
        for w in ("web.jsonl:8: no JSON", "web.jsonl:10: invalid UTF-8")
    }


def test_every_local_format_gives_the_same_rows(tmp_path: Path) -> None:
    rows = [{"text": f"Page number {n} about lava. " * 20, "id": f"p{n}"} for n in range(3)]
    jsonl(tmp_path / "a.jsonl", rows)
    (tmp_path / "b.jsonl.gz").write_bytes(gzip.compress((tmp_path / "a.jsonl").read_bytes()))
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "c.parquet")
    pa.csv = __import__("pyarrow.csv").csv
    pa.csv.write_csv(pa.Table.from_pylist(rows), tmp_path / "d.csv")
    (tmp_path / "e.json").write_text(json.dumps(rows), encoding="utf-8")
    import zstandard

    (tmp_path / "f.jsonl.zst").write_bytes(zstandard.ZstdCompressor().compress((tmp_path / "a.jsonl").read_bytes()))
    results = [
        [(r["row_id"], r["text"]) for r in run("web", tmp_path / name)[0]]
        for name in sorted(p.name for p in tmp_path.iterdir())
    ]
    assert len(results) == 6 and all(result == results[0] and len(result) == 3 for result in results)


def test_covered_units_are_those_that_come_before(tmp_path: Path) -> None:
    outline = "1.1 Basics: A\n1.2 Basics: B\n2.1 More: C\n2.2 More: D"
    path = jsonl(tmp_path / "s.jsonl", [{"course_title": "T", "course_description": "d", "outline": outline}])
    context = {row["title"]: json.loads(row["context"]) for row in run("stanford", path)[0]}
    assert context["A"]["covered_sections"] == context["A"]["covered_units"] == []
    assert context["D"]["covered_sections"] == ["Basics"] and context["D"]["covered_units"] == ["C"]


def test_chapters_are_read_to_any_depth_and_prefaces_dropped(tmp_path: Path) -> None:
    def section(title: str) -> dict:
        return {"title": title, "paragraph": f"{title} is explained at some length. " * 5, "abstract": ""}

    deep = {"title": "Deep", "chapters": [{"title": "Deeper", "sections": [section("x"), section("y")]}]}
    book = {"book_title": "B", "language": "en", "chapters": [{"title": "Preface", "sections": [section("p")]}, deep]}
    rows = run("openstax", jsonl(tmp_path / "o.jsonl", [book]))[0]
    assert [(r["title"], json.loads(r["context"])["trail"]) for r in rows] == [
        ("x", ["Deep", "Deeper"]),
        ("y", ["Deep", "Deeper"]),
    ]


@pytest.mark.parametrize(
    ("name", "content", "error", "message"),
    [
        ("gone.jsonl", None, ConfigError, "gone.jsonl does not exist"),
        ("empty.jsonl", b"", DataError, "empty.jsonl is empty"),
        ("cut.parquet", b"PAR1 nothing", DataError, "cut.parquet: not a whole parquet file"),
        ("object.json", b'{"a": 1}', DataError, "wanted an array of records, found dict"),
    ],
)
def test_an_unusable_file_is_named(tmp_path: Path, name: str, content: bytes | None, error, message: str) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(error, match=message):
        run("web", tmp_path / name)


def test_the_command_line_ends_with_one_sentence_and_no_traceback(tmp_path: Path) -> None:
    shutil.copy(ROOT / "params.yaml", tmp_path)
    (tmp_path / "profiles").mkdir()
    broken = yaml.safe_load((ROOT / "profiles/rehearsal.yaml").read_text(encoding="utf-8"))
    broken["sources"]["wikihow"]["dataset"] = "data/nowhere.txt"
    (tmp_path / "profiles/rehearsal.yaml").write_text(yaml.safe_dump(broken), encoding="utf-8")
    command = [sys.executable, "-m", "stages.sources", "wikihow"]
    result = subprocess.run(
        command, cwd=tmp_path, env={"PYTHONPATH": str(ROOT), "PATH": ""}, capture_output=True, text=True
    )
    assert result.returncode == ConfigError.status
    assert result.stderr.count("\n") == 1 and "data/nowhere.txt does not exist" in result.stderr
