"""Sources: public schemas in, one contract out, every row left out counted and kept."""

import csv
import gzip
import io
import json
import random
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pyarrow as pa
import pyarrow.csv as pa_csv
import pyarrow.parquet as pq
import pytest
import yaml
import zstandard

from cosmopedia import fingerprints as fingerprints_module
from cosmopedia.core.errors import ClusterError, ConfigError, DataError
from cosmopedia.core.params import check
from cosmopedia.core.row_counts import RowCounts
from cosmopedia.fingerprints import Fingerprints
from cosmopedia.records import reading
from cosmopedia.records.reading import read_records
from cosmopedia.tables import external_sort as sorting
from cosmopedia.tables.contracts import SOURCE, TOPIC_OF_ROW
from cosmopedia.tables.external_sort import SortingWriter
from cosmopedia.tables.parquet import read_table, write_table
from stages.sources import __main__ as sources
from stages.sources.normalise import ReadingParams, SourceParams, checked, normalise
from stages.sources.reader import reader_of
from stages.sources.reader import sources as known_sources
from stages.sources.readers.ultrachat import UltrachatFilter, concepts_of
from tests.support.own_params import SMOKE, own_params, text_of

ROOT = Path(__file__).parents[3]
RECIPE = yaml.safe_load((ROOT / "params.yaml").read_text(encoding="utf-8"))["sources"]
PAGE = {"text": "A page about basalt columns. " * 20, "id": "p1", "language": "en", "language_score": 0.9}


READING = ReadingParams(**RECIPE["reading"])


def run(source: str, path: Path, reading: ReadingParams = READING, **keep):
    settings = {**RECIPE[source]["keep"], **keep}
    params = SourceParams(
        dataset=str(path), subset=None, split=None, revision=None, limit=None, licence="CC0-1.0", keep=settings
    )
    records, revision = read_records(str(path), None, None, None, reading.max_record_mb)
    records = checked(reader_of(source).all_of(records, str(path)), reading, Counter())
    account = RowCounts(source)
    keep_params = check(settings, reader_of(source).keep, source)
    rows = list(normalise(source, records, params, keep_params, revision, account))
    return [row for row, _ in rows if row], [out for _, out in rows if out], account


def jsonl(path: Path, rows: list) -> Path:
    path.write_text("".join(r if isinstance(r, str) else json.dumps(r) + "\n" for r in rows), encoding="utf-8")
    return path


@pytest.mark.parametrize("source", known_sources())
def test_every_source_reads_its_sample_and_accounts_for_each_row(source: str) -> None:
    kept, rejected, account = run(source, ROOT / "data/samples" / source)
    assert len(kept) >= (8 if source == "ready" else 30) and len({row["row_id"] for row in kept}) == len(kept)
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
    pa_csv.write_csv(pa.Table.from_pylist(rows), tmp_path / "d.csv")
    (tmp_path / "e.json").write_text(json.dumps(rows), encoding="utf-8")
    (tmp_path / "f.jsonl.zst").write_bytes(zstandard.ZstdCompressor().compress((tmp_path / "a.jsonl").read_bytes()))
    results = [
        [(r["row_id"], r["text"]) for r in run("web", tmp_path / name)[0]]
        for name in sorted(p.name for p in tmp_path.iterdir())
    ]
    assert len(results) == 6 and all(result == results[0] and len(result) == 3 for result in results)


TEXTS = [  # beside PAGE: what is wrong with it, id, text
    ("duplicate_id", "p1", b"Another page. " * 60),
    ("duplicate_text", "p2", PAGE["text"].encode()),
    ("empty", "p3", b" "),
    ("length", "p4", b"short"),
    ("unreadable", "p5", b"A byte that is no UTF-8: \xff. " * 20),
]


def as_jsonl(rows: list[tuple[str, bytes]]) -> bytes:
    lines = [b'{"id": "%s", "text": "%s", "extra": 1}' % (i.encode(), text) for i, text in rows]
    typed = [b"5", b'["a"]', b"null", b'"\\ud800%s"' % (b" x" * 60)]
    lines += [b'{"id": "t%d", "text": %s}' % (n, value) for n, value in enumerate(typed)]
    return b"\n".join([*lines, b"{broken", b"[1]", b'{"id": %s}' % (b"9" * 60_000), b'{"text": "no id is fine"}'])


def as_csv(rows: list[tuple[str, bytes]]) -> bytes:
    lines = [b'%s,"%s",1,0.9' % (i.encode(), text) for i, text in rows]
    return b"\n".join([b"id,text,extra,language_score", *lines, b"t0", b"t1,a,1,0.9,too,many", b"t2,a,1,much"])


def as_parquet(rows: list[tuple[str, bytes]]) -> bytes:
    texts = pa.array([*(text for _, text in rows), None], pa.binary())
    column = pa.StringArray.from_buffers(len(texts), texts.buffers()[1], texts.buffers()[2], texts.buffers()[0])
    table = pa.table({"id": [*(i for i, _ in rows), "t0"], "text": column, "extra": pa.array([1] * len(texts))})
    pq.write_table(table, sink := io.BytesIO())
    return sink.getvalue()


BUILDERS = {  # with what each adds of its own
    ".jsonl": (as_jsonl, {"malformed": 3, "unreadable": 4, "length": 1}),
    ".csv": (as_csv, {"malformed": 2, "unreadable": 1}),
    ".parquet": (as_parquet, {"malformed": 1}),
}


@pytest.mark.parametrize(
    "name", [".jsonl", ".jsonl.gz", ".jsonl.zst", ".csv", ".csv.gz", ".csv.zst", ".parquet"], ids="web{}".format
)
def test_each_kind_of_bad_row_is_counted_in_each_format(tmp_path: Path, name: str) -> None:
    packing = Path(f"web{name}").suffix
    build, more = BUILDERS[name.removesuffix(packing) or packing]
    content = build([("p1", PAGE["text"].encode()), *((i, text) for _, i, text in TEXTS)])
    pack = {".gz": gzip.compress, ".zst": zstandard.ZstdCompressor().compress}.get(packing, bytes)
    (path := tmp_path / f"web{name}").write_bytes(pack(content))
    kept, rejected, account = run("web", path)
    assert [row["original_id"] for row in kept] == ["p1"]
    wanted = dict.fromkeys((reason for reason, _, _ in TEXTS), 1)
    assert account.removed == {r: wanted.get(r, 0) + more.get(r, 0) for r in wanted | more}
    assert len(rejected) == account.metrics()["rows_removed"]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["web.jsonl.gz", "web.jsonl.zst", "web.csv.gz", "web.csv.zst", "web.parquet"])
def test_a_file_that_is_cut_off_or_damaged_is_named(tmp_path: Path, name: str) -> None:
    rows = [{"id": str(n), "text": " ".join(random.Random(n).choices("abcdefgh", k=80))} for n in range(2000)]
    text = io.StringIO()
    writer = csv.DictWriter(text, ["id", "text"])
    writer.writeheader()
    writer.writerows(rows)
    plain = text.getvalue() if ".csv" in name else "".join(json.dumps(row) + "\n" for row in rows)
    pq.write_table(pa.Table.from_pylist(rows), parquet := io.BytesIO())
    packed = {
        ".gz": gzip.compress(plain.encode()),
        ".zst": zstandard.ZstdCompressor(write_checksum=True).compress(plain.encode()),
        ".parquet": parquet.getvalue(),
    }[Path(name).suffix]
    middle = len(packed) // 2
    for content in (packed[:middle], packed[:middle] + b"\0" * 64 + packed[middle + 64 :]):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(DataError, match=rf"{name}: (cut off or damaged|not a whole parquet file)"):
            run("web", tmp_path / name)


def repository(folder: Path, source: str, **profile: object) -> None:
    """What `sources` reads, with other values in the profile's entry of one source."""
    (folder / "params.yaml").write_text(text_of("params.yaml"), encoding="utf-8")
    (folder / "profiles").mkdir()
    content = own_params(SMOKE)
    content["sources"][source] |= profile
    (folder / SMOKE).write_text(yaml.safe_dump(content), encoding="utf-8")


def test_a_column_that_no_row_has_is_named_with_those_found(empty_folder: Path) -> None:
    path = jsonl(empty_folder / "pages.jsonl", ["{broken\n", *({"content": "a b c", "id": n} for n in range(9))])
    repository(empty_folder, "web", dataset=str(path))
    found = r"9 malformed, the first: .*pages.jsonl:2: column 'text' is missing; found \['content', 'id'\]"
    with pytest.raises(DataError, match=found):
        sources.main("web")
    assert not list(empty_folder.glob("data/**/*.parquet*"))


def test_a_limit_counts_records_and_a_source_without_a_dataset_is_an_empty_table(empty_folder: Path) -> None:
    repository(empty_folder, "wikihow", dataset=str(ROOT / "data/samples/wikihow"), limit=7)
    sources.main("wikihow")
    sources.main("ready")
    assert json.loads(Path("metrics/sources/wikihow.json").read_text(encoding="utf-8"))["rows_in"] == 7
    assert read_table("data/sources/ready.parquet", SOURCE).num_rows == 0


def test_ready_made_prompts_stay_as_they_are(tmp_path: Path) -> None:
    whole = {"prompt": " Write a story about a lamp.\n", "text": "no", "format": "story", "audience": "general"}
    bare = {"prompt": "Write a lecture about rivers and sand."}
    kept, _, account = run("ready", jsonl(tmp_path / "r.jsonl", [{**whole, "seed_data": "s"}, bare, {"prompt": "Go"}]))
    contexts = [json.loads(row["context"]) for row in kept]
    assert [row["text"] for row in kept] == [whole["prompt"], bare["prompt"]] and account.removed == {"length": 1}
    assert contexts[0] == {"seed_data": "s", "format": "story", "audience": "general"}
    assert contexts[1] == {"seed_data": "", "format": "ready_made", "audience": "general"}
    renamed = jsonl(tmp_path / "n.jsonl", [{"id": 7, "instruction": bare["prompt"]}])
    assert run("ready", renamed, prompt_column="instruction")[0][0]["row_id"] == "ready/7"


def test_a_question_counts_for_each_concept_that_it_touches() -> None:
    keep = check(RECIPE["ultrachat"]["keep"], UltrachatFilter, "ultrachat")
    assert len(keep.concepts) == 30
    assert concepts_of("Which RECIPES did medieval universities serve?", keep.concepts) == [
        "food", "education", "history",
    ]  # fmt: skip
    assert concepts_of("Why is it so?", keep.concepts) == ["other"]
    with pytest.raises(ConfigError, match=r"keep\.drop_requests\.0: .*no regular expression"):
        check({**RECIPE["ultrachat"]["keep"], "drop_requests": ["("]}, UltrachatFilter, "keep")


def test_the_subset_of_ultrachat_gives_its_first_turn(tmp_path: Path) -> None:
    question, turn = "Why do old clocks need a pendulum?", "Why do old clocks need a pendulum? It swings evenly."
    rows = [{"id": "1", "data": [question, "It swings."], "question": question, "first_turn": turn}]
    kept = run("ultrachat", jsonl(tmp_path / "u.jsonl", rows))[0]
    assert (kept[0]["text"], json.loads(kept[0]["context"])) == (turn, {"question": question})


def test_rows_whose_id_is_nan_are_no_duplicates(tmp_path: Path) -> None:
    ids = ["NaN", "NaN", '"nan"', '"NaN"', "null", '""']
    texts = [f"Page number {n} about lava. {'It flows. ' * 40}".strip() for n in range(6)]
    lines = [f'{{"id": {own}, "text": "{text}"}}\n' for own, text in zip(ids, texts, strict=True)]
    kept, _, account = run("web", jsonl(tmp_path / "a.jsonl", lines))
    assert len({row["row_id"] for row in kept}) == 6 and not account.removed
    frame = pa.table({"id": [float("nan")] * 2, "text": texts[:2], "language": [float("nan")] * 2})
    pq.write_table(frame, tmp_path / "a.parquet")
    assert [row["row_id"] for row in run("web", tmp_path / "a.parquet")[0]] == [row["row_id"] for row in kept[:2]]


def set_reading(**changes: object) -> None:
    """Change `sources.reading` in the folder's params.yaml."""
    recipe = yaml.safe_load(Path("params.yaml").read_text(encoding="utf-8"))
    recipe["sources"]["reading"] |= changes
    Path("params.yaml").write_text(yaml.safe_dump(recipe), encoding="utf-8")


def test_control_characters_are_removed_or_kept_by_param_and_counted(empty_folder: Path) -> None:
    raw = "Why do\x0cold clocks need a pendu\x1blum today?"
    plain = "How do plain\ttabs and\nlines stay as they are?"
    rows = [{"id": "a\x00b", "data": [raw, "\x85It swings."]}, {"id": "c", "data": [plain]}]
    repository(empty_folder, "ultrachat", dataset=str(jsonl(empty_folder / "u.jsonl", rows)))
    for choice, wanted in (("remove", ("ab", "Why do old clocks need a pendulum today?")), ("keep", ("a\x00b", raw))):
        set_reading(control_characters=choice)
        assert sources.main("ultrachat").endswith(f"; control characters in 1 records ({choice})")
        table = read_table("data/sources/ultrachat.parquet", SOURCE)
        found = zip(table["original_id"].to_pylist(), table["text"].to_pylist(), strict=True)
        assert sorted(found) == sorted([wanted, ("c", plain)])
        assert json.loads(Path("metrics/sources/ultrachat.json").read_text())["control_characters"] == 1


def test_a_record_of_nested_brackets_is_one_bad_row(tmp_path: Path) -> None:
    for depth in range(300, 1000, 50):
        nested = f'{{"text": "a", "n": {"[" * depth}{"]" * depth}}}'
        try:
            kept, rejected, _ = run("web", jsonl(tmp_path / "a.json", [f"[{nested}, {json.dumps(PAGE)}]"]))
        except DataError as error:
            assert "brackets nested too deep" in str(error)
        else:
            assert len(kept) == len(rejected) == 1


def test_the_summary_names_what_was_not_read_and_what_is_too_long(empty_folder: Path) -> None:
    (empty_folder / "pages").mkdir()
    jsonl(empty_folder / "pages/a.jsonl", [PAGE, {**PAGE, "id": "p2", "text": "A long page. " * 100_000}])
    (empty_folder / "pages/README.md").touch()
    repository(empty_folder, "web", dataset="pages")
    set_reading(max_record_mb=1)
    assert sources.main("web") == "1 rows from pages; left out: 1 unreadable; not read: README.md"
    detail = pq.read_table("data/sources/rejected/web.parquet")["detail"].to_pylist()
    assert detail == ["pages/a.jsonl:2: longer than 1 MB (sources.reading.max_record_mb)"]


def test_half_of_a_surrogate_pair_is_named_with_its_line(empty_folder: Path, capsys: pytest.CaptureFixture) -> None:
    half = json.dumps({"id": "p2", "text": PAGE["text"] + " \ud83d"}) + "\n"
    jsonl(empty_folder / "pages.jsonl", [PAGE, half, {**PAGE, "id": "\udc00", "text": "Other. " + PAGE["text"]}])
    repository(empty_folder, "web", dataset="pages.jsonl")
    assert sources.main("web") == "1 rows from pages.jsonl; left out: 2 unreadable"
    warning = "2 unreadable, the first: pages.jsonl:2: half of a surrogate pair (U+D83D), which is no text; all"
    assert warning in capsys.readouterr().err
    detail = pq.read_table("data/sources/rejected/web.parquet")["detail"].to_pylist()
    assert detail[1] == "pages.jsonl:3: half of a surrogate pair (U+DC00), which is no text"


def test_a_dataset_without_a_record_is_refused(empty_folder: Path) -> None:
    (empty_folder / "pages.jsonl").write_text(" \n\n")
    repository(empty_folder, "web", dataset="pages.jsonl")
    with pytest.raises(DataError, match=r"^pages\.jsonl holds no record; give sources\.web a dataset that has some"):
        sources.main("web")


def test_an_id_that_is_a_list_is_malformed_and_no_duplicate(tmp_path: Path) -> None:
    rows = [{**PAGE, "id": ["a"], "text": f"{n} {PAGE['text']}"} for n in range(3)]
    assert run("web", jsonl(tmp_path / "a.jsonl", [PAGE, *rows]))[2].removed == {"malformed": 3}


NAMELESS = {
    "khanacademy": ("empty", {"title": "C", "subunits": [
        {"title": "U", "subunits": [{"title": "S", "lessons": [" "]}]}]}),
    "stanford": ("empty", {"course_title": " ", "outline": "1.1 A: b\n1.2 A: c"}),
    "openhermes": ("no_exchange", {"conversations": [
        {"from": "human", "value": "Why is the sky blue?"}, {"from": "gpt", "value": " "}]}),
    "openstax": ("empty", {"book_title": "B", "language": "en", "chapters": [
        {"title": "C", "sections": [{"title": " ", "paragraph": "w " * 20}]}]}),
}  # fmt: skip


@pytest.mark.parametrize("source", NAMELESS)
def test_what_is_empty_after_stripping_makes_no_row(tmp_path: Path, source: str) -> None:
    reason, record = NAMELESS[source]
    kept, _, account = run(source, jsonl(tmp_path / "a.jsonl", [record]))
    assert not kept and account.removed == {reason: 1}


def test_fingerprints_are_a_set(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fingerprints_module, "RECENT", 7000)
    drawn = random.Random(3)
    numbers = [drawn.getrandbits(64) or 1 for _ in range(60_000)] + [n << 20 for n in range(1, 100)]
    fingerprints, known = Fingerprints(), set()
    for number in (*numbers, *numbers[:500]):
        assert (number in fingerprints) == (number in known)
        fingerprints.add(number)
        known.add(number)
    assert len(fingerprints) == len(known) and all(number in fingerprints for number in known)
    assert 2**63 + 5 not in fingerprints


FILL = """
import os, random, sys
from cosmopedia.tables import external_sort as sorting
from cosmopedia.tables.contracts import TOPIC_OF_ROW
sorting.RUN_ROWS = 3000
numbers = list(range(25_000))
random.Random(5).shuffle(numbers)
with sorting.SortingWriter("t.parquet", TOPIC_OF_ROW) as writer:
    for count, n in enumerate(numbers):
        writer.write({"row_id": f"web/{n}", "cluster": n, "topic": "Geology" * (n % 9)})
        if sys.argv[1] == "kill" and count == 20_000:
            os.kill(os.getpid(), 9)
"""


@pytest.mark.slow
def test_merged_runs_are_the_bytes_of_one_sort_also_after_a_kill(empty_folder: Path) -> None:
    rows = [{"row_id": f"web/{n}", "cluster": n, "topic": "Geology" * (n % 9)} for n in range(25_000)]
    write_table("wanted.parquet", rows, TOPIC_OF_ROW)
    command, place = [sys.executable, "-c", FILL], {"PYTHONPATH": str(ROOT), "PATH": ""}
    assert subprocess.run([*command, "kill"], env=place).returncode == -9
    assert len(list(Path(".t.parquet.runs").iterdir())) == 6 and not Path("t.parquet").exists()
    assert subprocess.run([*command, "on"], env=place).returncode == 0
    assert Path("t.parquet").read_bytes() == Path("wanted.parquet").read_bytes()
    assert {path.name for path in Path().iterdir()} == {"t.parquet", "wanted.parquet"}


def test_long_rows_end_a_run_early(empty_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sorting, "RUN_CHARS", 1000)
    with SortingWriter("t.parquet", TOPIC_OF_ROW) as writer:
        for n in range(9, -1, -1):
            writer.write({"row_id": f"web/{n}", "cluster": n, "topic": "x" * 400})
        assert len(list(Path(".t.parquet.runs").iterdir())) == 3
    assert read_table("t.parquet", TOPIC_OF_ROW)["cluster"].to_pylist() == list(range(10))


def test_covered_units_are_those_that_come_before(tmp_path: Path) -> None:
    outline = "1.1 Basics: A\n1.2 Basics: B\n2.1 More: C\n2.2 More: D"
    path = jsonl(tmp_path / "s.jsonl", [{"course_title": "T", "course_description": "d", "outline": outline}])
    context = {row["title"]: json.loads(row["context"]) for row in run("stanford", path)[0]}
    assert context["A"]["covered_sections"] == context["A"]["covered_units"] == []
    assert context["D"]["covered_sections"] == ["Basics"] and context["D"]["covered_units"] == ["C"]


def test_chapters_are_read_to_any_depth_and_prefaces_dropped(tmp_path: Path) -> None:
    def section(title: str) -> dict:
        return {"title": title, "paragraph": f"{title} is explained at some length. " * 5, "abstract": ""}

    sections = [section("x"), section("References"), section("y")]
    deep = {"title": "Deep", "chapters": [{"title": "Deeper", "sections": sections}]}
    book = {"book_title": "B", "language": "en", "chapters": [{"title": "Preface", "sections": [section("p")]}, deep]}
    rows, _, account = run("openstax", jsonl(tmp_path / "o.jsonl", [book]))
    assert account.removed == {"dropped_chapter": 1, "dropped_section": 1}
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
    repository(tmp_path, "wikihow", dataset="data/nowhere.txt")
    command = [sys.executable, "-m", "stages.sources", "wikihow"]
    result = subprocess.run(
        command, cwd=tmp_path, env={"PYTHONPATH": str(ROOT), "PATH": ""}, capture_output=True, text=True
    )
    assert result.returncode == ConfigError.status
    assert result.stderr.count("\n") == 1 and "data/nowhere.txt does not exist" in result.stderr


class BreakingStream:
    """Ten rows of a hub dataset, in a stream that breaks off before some of them, each as often as it says."""

    def __init__(self, breaks: dict[int, int], first: int = 0):
        self.breaks, self.first = breaks, first

    def skip(self, rows: int) -> "BreakingStream":
        return BreakingStream(self.breaks, rows)

    def __iter__(self):
        for row in range(self.first, 10):
            if self.breaks.get(row, 0):
                self.breaks[row] -= 1
                raise ConnectionResetError("Connection reset by peer")
            yield {"text": f"page {row}"}


def test_a_hub_stream_that_breaks_off_goes_on_where_it_was(monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    import datasets

    monkeypatch.setattr(reading, "WAITS_S", (0.0, 0.0))
    monkeypatch.setattr(datasets, "load_dataset", lambda *_, breaks={0: 1, 4: 2, 9: 2}, **__: BreakingStream(breaks))
    records, _ = read_records("some/dataset", None, "train", "0" * 40)
    assert [record.values["text"] for record in records] == [f"page {row}" for row in range(10)]
    assert capsys.readouterr().err.count("broke off at row 4: ConnectionResetError") == 2


def test_a_hub_stream_that_keeps_breaking_off_is_a_clear_error(monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    monkeypatch.setattr(reading, "WAITS_S", (0.0, 0.0))
    monkeypatch.setattr(datasets, "load_dataset", lambda *_, breaks={4: 9}, **__: BreakingStream(breaks))
    records, _ = read_records("some/dataset", None, "train", "0" * 40)
    with pytest.raises(ClusterError, match=r"some/dataset at 0{40} broke off at row 4: .*tried 3 times"):
        list(records)


def test_a_topic_gives_a_row_for_itself_and_each_keyword_and_a_gap_as_many_as_it_lacks(tmp_path: Path) -> None:
    field = {"id": "arts", "name": "Arts"}
    poetry = {"id": "poetry", "name": "Poetry", "parent": "arts", "keywords": ["haiku", "sonnets"]}
    path = jsonl(tmp_path / "topics.jsonl", [field, poetry])
    kept, rejected, _ = run("taxonomy", path)
    assert [(row["row_id"], row["title"]) for row in kept] == [
        ("taxonomy/poetry", "Poetry"), ("taxonomy/poetry/haiku", "haiku"), ("taxonomy/poetry/sonnets", "sonnets"),
    ]  # fmt: skip
    own = {"field": "Arts", "topic": "Poetry", "subtopic": "haiku", "keywords": []}
    assert json.loads(kept[1]["context"]) == own and rejected[0]["reason"] == "has_topics_below"
    assert len(run("taxonomy", path, subtopics=False)[0]) == 1
    gap = {**poetry, "parent": None, "path": ["Arts"], "documents": 1, "wanted": 3, "missing": 2}
    lacking, _, _ = run("taxonomy", jsonl(tmp_path / "gaps.jsonl", [gap]))
    assert [row | {"revision": ""} for row in lacking] == [row | {"revision": ""} for row in kept[:2]]


def test_a_taxonomy_whose_topics_do_not_fit_together_gives_no_rows(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"topics\.jsonl:1: the parent 'arts' of 'poetry' is no topic of the file"):
        run("taxonomy", jsonl(tmp_path / "topics.jsonl", [{"id": "poetry", "name": "Poetry", "parent": "arts"}]))
