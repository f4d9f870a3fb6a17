"""`cosmo view`: every stage's tables, conditions, ids, hostile texts, and memory that does not grow with the table."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from cosmopedia.cli import view
from cosmopedia.core.errors import ConfigError, DataError
from tests.support.command_line import cosmo
from tests.support.documents import ROOT
from tests.support.finished_run import KEPT, OTHER, TEXT, finished_run, made_rows, write_cell

HOSTILE = "a\x1b]0;owned\x07b\x9bc\u202egnp.exe\u200fd\re\ufeff\u2028f"


@pytest.fixture
def run(empty_folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr("cosmopedia.cli.checkout._started", empty_folder)
    finished_run(empty_folder)
    return empty_folder


def rows(*words: object) -> list[dict]:
    return json.loads(cosmo(view.app, *words, "--json"))["rows"]


def test_a_stage_has_its_table_first_and_names_the_others(run: Path) -> None:
    shown = json.loads(cosmo(view.app, "clean", "--json"))
    assert (shown["table"]["name"], shown["table"]["rows"]) == ("clean", 4) and len(shown["rows"]) == 4
    assert [table["name"] for table in shown["other_tables"]] == ["clean/removed"]
    text = cosmo(view.app, "clean", "--limit", 1)
    assert text.startswith("clean: 4 rows, 1 file") and "clean/removed: 1 rows" in text and "--- 2" not in text
    for name, first in (("topics", "topics/topics"), ("topics/web", "topics/web"), ("clean/removed", "clean/removed")):
        assert cosmo(view.app, name).startswith(f"{first}: 1 rows")
    assert "ebb-and-flow" not in cosmo(view.app, "data/generate/web-blogpost.parquet") and rows(
        "generate/web-blogpost"
    )


@pytest.mark.parametrize(
    ("words", "found"),
    [
        (["--where", f"text={TEXT}"], 2),
        (["--where", "text~THE TIDE"], 2),
        (["--where", "text_token_length>=10", "--where", "text~water"], 1),
        (["--where", "text_token_length<10", "--where", "topic!=Mills"], 1),
        (["--where", "topic_named=true", "--limit", "2"], 2),
        (["--where", "topic="], 0),
        (["--search", "cc-by-4.0"], 1),
        (["--id", OTHER[:8]], 1),
        (["--skip", "3"], 1),
    ],
)
def test_rows_that_meet_all_conditions_are_shown(run: Path, words: list[str], found: int) -> None:
    assert len(rows("clean", *words)) == found
    assert [list(row) for row in rows("clean", *words, "--columns", "text, source")] == [["text", "source"]] * found


def test_an_id_is_shown_in_full_and_other_rows_by_their_first_line(run: Path) -> None:
    long = "First line.\nSecond line. " + "word " * 100 + "end"
    write_cell(run / "data/clean", [made_rows()[KEPT] | {"text": long}])
    assert "end" not in cosmo(view.app, "clean", "--columns", "text")
    for words in (["--id", KEPT], ["--full"]):
        text = cosmo(view.app, "clean", "--columns", "text", *words)
        assert text.endswith("end") and "\n" + " " * 24 + "Second line." in text


def test_nothing_in_a_text_reaches_the_terminal_as_a_command(run: Path) -> None:
    write_cell(run / "data/clean", [made_rows()[KEPT] | {"text": HOSTILE, "topic": HOSTILE}])
    for words in ([], ["--full"], ["--json"]):
        shown = cosmo(view.app, "clean", *words)
        assert not set(shown) & set("\x1b\x07\x9b\u202e\u200f\r\ufeff\u2028")
    assert r"\u202egnp.exe" in cosmo(view.app, "clean", "--full")


def test_what_is_wrong_is_named_with_what_there_is(run: Path) -> None:
    (run / "data/clean/broken.parquet").write_bytes(b"PAR1 nothing")
    for words, error, message in [
        (["nope"], ConfigError, "no parquet file.*there are tables of clean, decontaminate"),
        (
            ["dedup", "--where", "tokens>3"],
            ConfigError,
            "dedup has no column tokens; its columns: completion_id",
        ),
        (["dedup", "--where", "text_token_length>few"], ConfigError, r"is a number \(int32\), 'few' is none"),
        (["dedup", "--where", "what"], ConfigError, "is no condition; write column=value"),
        (["dedup", "--columns", "text,words"], ConfigError, "dedup has no column words"),
        (["clean"], DataError, "broken.parquet: damaged parquet file"),
    ]:
        with pytest.raises(error, match=message):
            cosmo(view.app, *words)


@pytest.mark.slow
def test_memory_does_not_grow_with_the_table(run: Path) -> None:
    rows = pa.table({"row_id": [f"{n:06}" for n in range(20_000)], "text": [f"{n} " * 1500 for n in range(20_000)]})
    pq.write_table(rows, "data/big.parquet", row_group_size=20_000, compression="zstd")  # 180 MB of text in one group
    del rows
    script = (
        "import resource, sys; from cosmopedia.cli import view; from tests.support.command_line import cosmo\n"
        "import polars, pyarrow.parquet; from cosmopedia.cli import look\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "shown = cosmo(view.app, 'data/big.parquet', '--where', 'text~no such word')\n"
        "assert shown.endswith('no row that meets the conditions')\n"
        "print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024)"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, env=os.environ | {"PYTHONPATH": str(ROOT)}
    )
    assert done.returncode == 0 and int(done.stdout) < 100, done.stdout + done.stderr  # MB
