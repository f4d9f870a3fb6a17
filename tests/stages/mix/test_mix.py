"""Promises of the stage mix: shares of tokens are met, drawn by (seed, id), and what cannot be is refused."""

from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cosmopedia.core.errors import ConfigError, DataError
from cosmopedia.core.params import read_yaml
from cosmopedia.tables.contracts import DOCUMENT, MIXED
from cosmopedia.tables.parquet import read_rows, write_table
from stages.mix import __main__ as mix
from stages.mix.draws import threshold
from tests.support.documents import bytes_of, document, natural_document, write_documents
from tests.support.own_params import OWN_MIX, write_params

CELLS = {"web-blogpost": 40, "stanford-textbook": 60}
PAGES = 300


@pytest.fixture
def folder(empty_folder: Path) -> Path:
    """100 completions of 10 tokens in two cells, an empty cell, and 300 pages of 5 to 14 tokens."""
    (empty_folder / "profiles").mkdir()
    for cell, count in {**CELLS, "wikihow-article": 0}.items():
        rows = [document(text=f"{cell} {i}", text_token_length=10) for i in range(count)]
        write_documents(empty_folder / f"data/decontaminate/{cell}.parquet", rows)
    pages = [natural_document(f"page {i}", text_token_length=5 + i % 10) for i in range(PAGES)]
    write_documents(empty_folder / "data/decontaminate/web-natural.parquet", pages)
    return empty_folder


def draw(shares: dict[str, float] | str, **changes: Any) -> dict[str, int]:
    """Run the stage with these shares; the copies of each document."""
    recipe, profile = map(dict, OWN_MIX)
    recipe["preset"] = shares if isinstance(shares, str) else "own"
    if not isinstance(shares, str):
        recipe["presets"] = recipe["presets"] | {"own": shares}
    for key, value in changes.items():
        (recipe if key in recipe else profile)[key] = value
    write_params({"profile": "smoke", "mix": recipe}, {"mix": profile})
    mix.main()
    return {row["completion_id"]: row["copies"] for row in read_rows(sorted(Path("data/mix").glob("*")), MIXED)}


def component(name: str) -> dict[str, Any]:
    return read_yaml(Path("metrics/mix.json"))["components"][name]


def test_the_default_takes_every_completion_once_and_nothing_else(folder: Path):
    copies = draw("synthetic")
    ids = {row["completion_id"] for cell in CELLS for row in rows(cell)}
    assert copies == dict.fromkeys(ids, 1) and len(ids) == 100
    assert sorted(path.name for path in Path("data/mix").iterdir()) == sorted(
        path.name for path in Path("data/decontaminate").iterdir()
    )


def rows(cell: str) -> list[dict[str, Any]]:
    return [*read_rows([f"data/decontaminate/{cell}.parquet"], DOCUMENT)]


def test_a_component_has_the_licences_of_its_own_documents(folder: Path):
    pages = [natural_document(f"page {i}", text_token_length=9, seed_licence="ODC-By-1.0") for i in range(PAGES)]
    write_documents(folder / "data/decontaminate/web-natural.parquet", pages)
    draw({"synthetic": 0.5, "web": 0.5})
    assert [component(name)["licences"] for name in ("synthetic", "web")] == [["CC0-1.0"], ["ODC-By-1.0"]]


def test_shares_are_of_tokens_and_the_scarcest_component_is_taken_whole(folder: Path):
    copies = draw("third")
    synthetic, web = component("synthetic"), component("web")
    assert synthetic["tokens"] == 1000 and synthetic["distinct_documents"] == 100
    assert web["share"] == pytest.approx(2 / 3, abs=0.002)  # to a document
    assert web["documents"] == web["distinct_documents"] < PAGES == web["available_documents"]
    tokens = {row["completion_id"]: row["text_token_length"] for row in rows("web-natural")}
    assert web["tokens"] == sum(tokens[name] for name in copies if name in tokens)
    assert set(copies.values()) == {1} and synthetic["copies"] == web["copies"] == 1


def test_the_control_has_no_completion(folder: Path):
    assert draw("web") == {row["completion_id"]: 1 for row in rows("web-natural")}


def test_tokens_decide_the_size_and_whole_copies_go_to_all(folder: Path):
    copies = draw({"synthetic": 1.0}, tokens=2500)
    assert set(copies.values()) == {2, 3} and sum(copies.values()) == 250
    assert component("synthetic")["tokens"] == 2500 and component("synthetic")["copies"] == 2.5


def test_a_document_is_drawn_by_seed_and_id_alone(folder: Path):
    first, again, other = draw("third"), draw("third"), draw("third", seed=44)
    assert first == again and first.keys() != other.keys()
    pages = rows("web-natural")  # in two files, and next to other cells
    Path("data/decontaminate/web-natural.parquet").unlink()
    for number, part in enumerate((pages[:100], pages[100:])):
        write_table(Path(f"data/decontaminate/web-natural.{number:05d}.parquet"), part, DOCUMENT)
    assert draw("third") == first


def test_the_same_params_give_the_same_bytes(folder: Path):
    draw("third")
    before = bytes_of(Path("data/mix"))
    draw("third")
    assert bytes_of(Path("data/mix")) == before


def test_any_cell_is_weighted_next_to_the_others_of_its_component(folder: Path):
    copies = draw("synthetic", cells={"web-blogpost": 2.0, "stanford-textbook": 0.5})
    blogs, textbooks = ([copies.get(row["completion_id"], 0) for row in rows(cell)] for cell in CELLS)
    assert set(blogs) == {2} and (sum(textbooks), set(textbooks)) == (30, {0, 1})
    assert component("synthetic")["copies"] == 2
    assert not draw("synthetic", cells={"web-blogpost": 0.0}).keys() & {
        r["completion_id"] for r in rows("web-blogpost")
    }


def test_a_repeat_above_the_limit_is_refused_with_what_would_fit(folder: Path):
    message = (
        r"mix.preset 'own' wants 2,000 tokens of 'synthetic', but data/decontaminate has 1,000: each document 2\.00"
        r" times, and mix.max_repeats.synthetic allows 1\.5; set mix.tokens to at most 3,000,"
    )
    with pytest.raises(ConfigError, match=message):
        draw({"synthetic": 0.5, "web": 0.5}, tokens=4000, max_repeats={"synthetic": 1.5, "web": 9})
    draw({"synthetic": 0.5, "web": 0.5}, tokens=3000, max_repeats={"synthetic": 1.5, "web": 9})
    with pytest.raises(ConfigError, match=r"each document in web-blogpost \(mix.cells\) 51\.00 times"):
        draw("synthetic", cells={"web-blogpost": 51.0})


def test_a_component_without_documents_is_refused(folder: Path):
    write_documents(Path("data/decontaminate/web-natural.parquet"), [])
    with pytest.raises(
        DataError, match=r"takes 66\.7% of its tokens from 'web', but data/decontaminate has no document"
    ):
        draw("third")


@pytest.mark.parametrize(
    ("shares", "changes", "message"),
    [
        (
            "synthetic",
            {"cells": {"web-blogposts": 2.0}},
            "mix.cells.web-blogposts: no such cell .* web-blogpost, web-",
        ),
        ("synthetic", {"cells": {"web-blogpost": -1.0}}, "mix.cells.web-blogpost: wanted 0 or more, found -1"),
        ("third", {"max_repeats": {"synthetic": 1}}, "mix.max_repeats.web is missing: how often may"),
        ({"synthetic": 0.9}, {}, "must sum to 1"),
    ],
)
def test_params_that_fit_no_corpus_are_refused(folder: Path, shares: Any, changes: dict[str, Any], message: str):
    with pytest.raises(ConfigError, match=message):
        draw(shares, **changes)


def test_a_share_is_met_over_small_cells_together(folder: Path):
    for number in range(20):
        row = document(text=f"lesson {number}", text_token_length=10)
        write_documents(Path(f"data/decontaminate/openstax-style{number:02}.parquet"), [row])
    draw({"synthetic": 1.0}, tokens=600)
    assert component("synthetic")["tokens"] == 600  # a threshold per cell would round each document by itself


def test_a_threshold_is_as_near_as_whole_documents_allow():
    tokens = np.array([0, 4, 0, 6, 10])
    found = [threshold(tokens, Fraction(share, 20)) for share in (0, 1, 3, 9, 15, 20)]
    assert [int(tokens[:place].sum()) for place in found] == [0, 0, 4, 10, 10, 20]
