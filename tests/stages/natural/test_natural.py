"""Promises of the stage natural: documents are whole texts with their lineage, and nothing is invented."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest

from cosmopedia.core.errors import ConfigError, DataError
from cosmopedia.core.params import read_yaml
from cosmopedia.tables.contracts import DOCUMENT, REJECTED, SOURCE
from cosmopedia.tables.parquet import read_rows, write_table
from stages.natural import __main__ as natural
from stages.natural import documents
from tests.support.own_params import OWN_MIX, write_params

PAGE = "A long page about rivers and lakes. " * 40


@pytest.fixture
def folder(empty_folder: Path) -> Path:
    """A repository with three pages of the source web."""
    (empty_folder / "profiles").mkdir()
    row = {"source": "web", "title": "", "context": "{}", "url": None, "licence": "ODC-By-1.0", "revision": "c0ffee"}
    rows = [{**row, "row_id": f"web/{i}", "original_id": str(i), "text": f"{i} {PAGE}"} for i in (1, 2, 3)]
    write_table(empty_folder / "data/sources/web.parquet", rows, SOURCE)
    return empty_folder


def choose(shares: dict[str, float], **datasets: dict[str, Any]) -> None:
    """Params in which the preset has these shares; `datasets` are the profile's."""
    recipe, profile = OWN_MIX
    mix = recipe | {"preset": "own", "presets": {"own": shares, "synthetic": {"synthetic": 1.0}}}
    sources: dict[str, Any] = {"reading": {}, "web": {}, "stanford": {}}
    write_params(
        {"profile": "smoke", "mix": mix, "sources": sources}, {"mix": profile, "natural": {"datasets": datasets}}
    )


def dataset(*records: object, name: str = "code.jsonl", **changes: object) -> dict[str, Any]:
    """The profile's entry of a dataset of these records; a string is a line as it is."""
    lines = [record if isinstance(record, str) else json.dumps(record) for record in records]
    Path(name).write_text("\n".join(lines) + "\n", encoding="utf-8")
    entry = {"dataset": name, "subset": None, "split": None, "revision": None, "text": "text", "limit": None}
    return entry | {"licence": "MIT"} | changes


def rows_of(component: str) -> list[dict[str, Any]]:
    return [*read_rows(sorted(Path("data/natural").glob(f"{component}-natural*.parquet")), DOCUMENT)]


def rejected() -> list[tuple[str, str]]:
    rows: Iterable[dict] = read_rows(["data/natural/rejected/rejected.parquet"], REJECTED)
    return [(row["reason"], row["detail"]) for row in rows]


def test_without_natural_text_in_the_mix_there_is_no_document(folder: Path):
    choose({"synthetic": 1.0, "web": 0.0})
    assert natural.main() == "the mix names no natural text"
    assert [path.name for path in sorted(Path("data/natural").rglob("*.parquet"))] == ["rejected.parquet"]
    assert read_yaml(Path("metrics/natural.json"))["components"] == {}


def test_a_page_is_a_whole_document_that_knows_where_it_is_from_and_has_nothing_else(folder: Path):
    choose({"synthetic": 0.5, "web": 0.5})
    natural.main()
    rows = rows_of("web")
    assert sorted(row["text"] for row in rows) == [f"{i} {PAGE}" for i in (1, 2, 3)]
    assert {row["seed_id"] for row in rows} == {"web/1", "web/2", "web/3"}
    lineage = {"source": "web", "style": "natural", "seed_revision": "c0ffee", "seed_licence": "ODC-By-1.0"}
    own = {"completion_id", "text", "seed_id"}
    for row in rows:
        assert row == documents.BLANK | lineage | {name: row[name] for name in own}
        assert row["completion_id"].startswith("web/") and row["prompt"] == "" and row["text_token_length"] == 0


def test_the_order_of_the_records_changes_no_document(folder: Path):
    records = [{"id": i, "text": f"{i} {PAGE}"} for i in range(5)] + [{"text": "A text without an id."}]
    found = []
    for order in (records, records[::-1]):
        choose({"code": 1.0}, code=dataset(*order))
        natural.main()
        found.append([row | {"seed_revision": ""} for row in rows_of("code")])  # the file is another
    ids = [row["completion_id"] for row in found[0]]
    assert ids == sorted(ids) and len(ids) == 6 and found[0] == found[1]


def test_rows_that_are_no_document_are_counted_and_kept_with_the_reason(folder: Path):
    records = [
        {"id": 1, "text": PAGE}, {"id": 1, "text": "Another text."}, {"id": 2, "text": " "}, {"id": 3, "text": None},
        {"id": 4}, "{broken", {"id": [5], "text": PAGE}, '{"id": 6, "text": "half \\ud83d"}',
    ]  # fmt: skip
    choose({"code": 1.0}, code=dataset(*records))
    assert natural.main() == "1 of 8 rows for code"
    assert [reason for reason, _ in rejected()] == [
        *("duplicate_id", "empty", "malformed", "malformed", "unreadable", "malformed", "unreadable"),
    ]
    assert rejected()[2][1] == "code.jsonl:4: text must be text or a list of turns, found NoneType"
    assert rejected()[3][1] == "code.jsonl:5: column 'text' is missing; found ['id']"
    counts = read_yaml(Path("metrics/natural.json"))
    assert counts["removed"] == {"duplicate_id": 1, "empty": 1, "malformed": 3, "unreadable": 2}
    assert counts["components"]["code"]["licence"] == "MIT"


def test_a_component_without_the_column_is_refused_with_what_was_found(folder: Path):
    choose({"code": 1.0}, code=dataset({"content": PAGE}))
    with pytest.raises(DataError, match=r"none of 1 records .* column 'text' is missing; found \['content'\]"):
        natural.main()


def test_a_conversation_becomes_a_text_with_the_marks_of_llama_2(folder: Path):
    turns = [{"role": "user", "content": "Why? "}, {"role": "assistant", "content": "Because."}]
    choose({"chat": 1.0}, chat=dataset({"turns": turns}, {"turns": ["How?", "So."]}, text="turns"))
    natural.main()
    assert {row["text"] for row in rows_of("chat")} == {"[INST] Why? [/INST]\nBecause.", "[INST] How? [/INST]\nSo."}


def test_a_large_component_is_several_files_in_the_order_of_ids(folder: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(documents, "SHARD_ROWS", 2)
    choose({"code": 1.0}, code=dataset(*({"text": f"{i} {PAGE}"} for i in range(5))))
    natural.main()
    names = [path.name for path in sorted(Path("data/natural").glob("*.parquet"))]
    assert names == [f"code-natural.{i:05d}.parquet" for i in range(3)]
    ids = [row["completion_id"] for row in rows_of("code")]
    assert len(ids) == 5 and ids == sorted(ids)


@pytest.mark.parametrize(
    ("shares", "datasets", "message"),
    [
        ({"code": 0.25, "web": 0.75}, [], r"takes 25\.0% of its tokens from 'code', for which .*smoke.yaml names no"),
        ({"stanford": 1.0}, ["stanford"], "natural.datasets.stanford: the name is taken"),
        ({"stanford": 1.0}, [], "natural.datasets.stanford: the name is taken"),
        ({"web": 1.0}, ["web"], "natural.datasets.web: the name is taken"),
        ({"synthetic": 1.0}, ["synthetic"], "natural.datasets.synthetic: the name is taken"),
        ({"web": 0.5, "synthetic": 0.4}, [], r"must sum to 1, found (.*) \+ (.*) = 0\.9; correct"),
        ({"web": -0.5, "a": 1.5}, [], r"mix.presets.own.(a|web): a share of tokens is 0-1"),
        ({"a-b": 1.0}, [], "a component's name is of a-z, 0-9 and _, found 'a-b'"),
    ],
)
def test_a_mix_that_cannot_be_read_is_refused(
    folder: Path, shares: dict[str, float], datasets: list[str], message: str
):
    choose(shares, **{name: dataset({"text": PAGE}) for name in datasets})
    with pytest.raises(ConfigError, match=message):
        natural.settings()


def test_a_sample_that_nothing_watches_is_refused(folder: Path):
    choose({"code": 1.0}, code=dataset({"text": PAGE}) | {"dataset": "data/samples/heldout/maths.jsonl"})
    with pytest.raises(ConfigError, match=r"datasets\.code: DVC does not watch data/samples/heldout/maths\.jsonl"):
        natural.settings()


def test_an_unknown_preset_is_refused_with_the_known_ones(folder: Path):
    choose({"web": 1.0})
    Path("params.yaml").write_text(Path("params.yaml").read_text().replace("preset: own", "preset: thirds"))
    with pytest.raises(ConfigError, match=r"mix.preset 'thirds' is not known; choose one of own, synthetic"):
        natural.settings()


def test_a_component_may_be_named_like_a_style(folder: Path):
    choose({"story": 1.0}, story=dataset({"text": PAGE}))
    natural.main()
    assert rows_of("story")[0]["completion_id"].startswith("story/")
