"""`cosmo diff`: every planted difference is counted where it is, equal corpora have none, texts do no harm."""

import hashlib
import json
import random
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import yaml
from scipy.spatial.distance import jensenshannon

from cosmopedia.cli import diff, trace
from cosmopedia.core.errors import ConfigError, DataError
from cosmopedia.dataset_diff.compare import QUANTILES, js_divergence, quantiles
from cosmopedia.dataset_diff.merge import ID, aligned, batches
from tests.support.command_line import cosmo
from tests.support.finished_run import (
    CELL,
    COPY,
    KEPT,
    LEAKED,
    OTHER,
    SHORT,
    TEXT,
    finished_run,
    made_rows,
    write_cell,
)

BAD = "\x1b]0;owned\x07<script>alert(1)</script> | a **b** ``` [x](http://x.example) \u202eend"


@pytest.fixture
def two(empty_folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two equal runs, a and b."""
    monkeypatch.setattr("cosmopedia.cli.checkout._started", empty_folder)
    for name in "ab":
        finished_run(empty_folder / name)
    return empty_folder


def compared(*words: object) -> dict[str, Any]:
    return json.loads(cosmo(diff.app, *words, "--json"))


def edited(folder: Path, *removed: str, **changes: dict[str, object]) -> None:
    """Write a run's corpus anew, without some documents, and with values changed by prompt id."""
    rows = {i: row | {"text": TEXT} if i == KEPT else row for i, row in made_rows().items() if i in (KEPT, OTHER)}
    rows |= {i: made_rows()[i] for i in (SHORT, COPY, LEAKED) if i in changes}
    rows = {i: row | changes.get(i, {}) for i, row in rows.items() if i not in removed}
    write_cell(folder / "data/decontaminate", list(rows.values()))


def test_equal_corpora_have_no_difference(two: Path) -> None:
    report = compared("a", "b")
    assert report["same"] and not report["samples"] and report["totals"]["rows_b"] == 2
    assert cosmo(diff.app, "a", "b") == "no difference: 2 documents of data/decontaminate, the same in a and b"
    shutil.rmtree("b")
    Path("b").symlink_to("a")  # the very same files are not read row by row, and count the same
    assert compared("a", "b") == report


def test_added_removed_and_changed_documents_are_counted_where_they_are(two: Path) -> None:
    edited(
        two / "b", OTHER, **{KEPT: {"text": f"{TEXT} More.", "text_token_length": 20}, COPY: {"audience": "children"}}
    )
    report = compared("a", "b")
    general = {"source": "web", "style": "blogpost", "audience": "general", "rows_a": 2, "rows_b": 1}
    general |= {"added": 0, "removed": 1, "changed": 1, "tokens_a": 28, "tokens_b": 20}
    children = {"source": "web", "style": "blogpost", "audience": "children", "rows_a": 0, "rows_b": 1}
    children |= {"added": 1, "removed": 0, "changed": 0, "tokens_a": 0, "tokens_b": 17}
    assert report["groups"] == [children, general]
    back = compared("b", "a")["totals"]
    assert (back["added"], back["removed"], back["changed"]) == (1, 1, 1)
    kinds = {sample["kind"]: sample for sample in report["samples"]}
    assert kinds["changed"]["a"] == TEXT and kinds["changed"]["b"] == f"{TEXT} More."
    assert (kinds["removed"]["id"], kinds["removed"]["b"]) == (f"{OTHER}-0", None)
    assert report["added_were_in_a"] == {"dedup: exact": 1}  # a had it, and dedup removed it
    assert report["removed_in_b"] == {"no document": 1}


def test_two_mixes_of_the_same_documents_differ(two: Path) -> None:
    for name, copies in (("a", 1), ("b", 3)):
        (two / name / "data/mix").mkdir()
        pl.DataFrame({ID: [f"{KEPT}-0"], "copies": [copies]}).write_parquet(two / name / "data/mix" / CELL)
    report = compared("a", "b")
    assert not report["same"] and report["totals"]["changed"] == 0
    assert report["mix"] == [{"cell": "web-blogpost", "documents": [1, 1], "copies": [1, 3]}]
    assert "What the mix takes" in cosmo(diff.app, "a", "b")


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({}, "cleaning"),
        ({"key": "k", "template_hash": "h", "prompt": "p"}, "template"),
        ({"key": "k", "prompt": "p"}, "prompt"),
        ({"key": "k", "sampling": "s"}, "model or sampling"),
        ({"key": "k"}, "written anew"),
    ],
)
def test_a_changed_document_says_what_changed_it(two: Path, change: dict, why: str) -> None:
    edited(two / "b", **{KEPT: {"text": "Another text.", **change}})
    assert compared("a", "b")["changed_by"] == {why: 1}


def test_rates_lengths_openings_and_topics_are_on_both_sides(two: Path) -> None:
    for name, rate in (("a", 0.25), ("b", 0.5)):
        (two / name / "metrics").mkdir()
        counts = {"rows_in": 4, "rows_removed": 1, "cells": {"web-blogpost": {"rows_in": 4, "rate": rate}}}
        (two / name / "metrics/dedup.json").write_text(json.dumps({**counts, "rate": rate}))
    edited(two / "b", **{OTHER: {"topic": "Mills", "text": "One two three four"}, KEPT: {"text": "One  two\nthree."}})
    report = compared("a", "b")
    assert report["rates"]["duplicates"] == [0.25, 0.5] and report["rates"]["contaminated"] == [None, None]
    (cell,) = report["cells"]
    assert cell["duplicates"] == [0.25, 0.5] and cell["opening_share"] == [0.5, 0.5]
    assert report["topics"]["js_divergence"] == pytest.approx(jensenshannon([1, 0], [0.5, 0.5], base=2) ** 2)
    assert {row["topic"] for row in report["topics"]["moved"]} == {"Mills", "Tides"}
    assert "duplicates 25.0% 50.0%" in " ".join(cosmo(diff.app, "a", "b").split())


def test_a_folder_of_tables_is_a_version_too(two: Path) -> None:
    shutil.copytree("a/data/decontaminate", "tables", ignore=shutil.ignore_patterns("removed"))
    assert compared("tables", "b")["same"]
    assert compared("a", "b", "--stage", "clean")["totals"]["rows_a"] == 4
    with pytest.raises(ConfigError, match="'c' is no folder, git revision or DVC experiment"):
        cosmo(diff.app, "a", "c")
    with pytest.raises(ConfigError, match="--stage prompts has no documents"):
        cosmo(diff.app, "a", "b", "--stage", "prompts")
    shutil.rmtree("b/data/clean")
    with pytest.raises(DataError, match="b has no document table"):
        cosmo(diff.app, "a", "b", "--stage", "clean")


def test_the_merge_pairs_every_row_whatever_the_batches(empty_folder: Path) -> None:
    """Against a join of the whole tables, for tables of other sizes, gaps, empty files and empty sides."""
    dice = random.Random(1)
    for trial in range(12):
        sides = []
        for name in "ab":
            ids = sorted(dice.sample([f"{n:04x}" for n in range(200)], dice.choice([0, 1, 60, 150])))
            cut = dice.randint(0, len(ids))
            files = []
            for number, part in enumerate((ids[:cut], ids[cut:])):
                files.append(Path(f"{name}{trial}.{number}.parquet"))
                pl.DataFrame({ID: part}, schema={ID: pl.String}).write_parquet(files[-1])
            sides.append((ids, files))
        both = aligned(*(batches(files, [ID], dice.randint(1, 20)) for _, files in sides))
        found: set[tuple[str | None, str | None]] = set()
        for one, two in both:
            here = [set() if rows is None else set(rows[ID]) for rows in (one, two)]
            found |= {(i, i) for i in here[0] & here[1]} | {(i, None) for i in here[0] - here[1]}
            found |= {(None, i) for i in here[1] - here[0]}
        a, b = (set(ids) for ids, _ in sides)
        assert found == {(i, i) for i in a & b} | {(i, None) for i in a - b} | {(None, i) for i in b - a}


def test_rows_out_of_order_are_refused(two: Path) -> None:
    rows = pl.read_parquet(two / "b/data/decontaminate" / CELL)
    rows.reverse().write_parquet(two / "b/data/decontaminate" / CELL)
    with pytest.raises(DataError, match="ids do not ascend"):
        cosmo(diff.app, "a", "b")
    rows.drop(ID).write_parquet(two / "b/data/decontaminate" / CELL)
    with pytest.raises(DataError, match="has no column completion_id"):
        cosmo(diff.app, "a", "b")


def test_quantiles_and_divergence_are_those_of_numpy_and_scipy() -> None:
    lengths = np.random.default_rng(1).integers(1, 500, 1001)
    wanted = np.quantile(lengths, QUANTILES, method="inverted_cdf").tolist()
    assert quantiles(np.bincount(lengths)) == wanted
    assert quantiles(np.zeros(0, dtype=np.int64)) == [None] * len(QUANTILES)
    one, two = {"a": 3, "b": 5, "c": 0}, {"a": 4, "c": 6}
    assert js_divergence(one, two) == pytest.approx(jensenshannon([3, 5, 0], [4, 0, 6], base=2) ** 2)
    assert js_divergence(one, one) == 0 and js_divergence({"a": 1}, {"b": 1}) == 1
    assert js_divergence({}, two) is None


def test_hostile_texts_are_harmless_in_the_terminal_markdown_and_html(two: Path) -> None:
    bad = {"topic": BAD, "text": BAD, "audience": BAD}
    edited(two / "b", **{KEPT: bad, OTHER: bad, COPY: bad | {"text": f"{BAD}\n```\n<b>out</b>"}})
    printed = cosmo(diff.app, "a", "b", "--html", "page.html")
    assert not set(printed) & {"\x1b", "\x07", "\u202e"}
    page = Path("page.html").read_text()
    assert "<script" not in page and "<b>" not in page and "&lt;script&gt;alert(1)" in page and "\x1b" not in page
    assert "default-src 'none'" in page and "http" not in page.replace("http-equiv", "").replace(
        "http://x.example", ""
    )
    markdown = cosmo(diff.app, "a", "b", "--markdown").splitlines()
    outside = [line for line in markdown if not line.startswith("    ")]
    assert not any("<script" in line or "**b**" in line or "`" in line.replace("\\`", "") for line in outside)
    tables = [line for line in outside if line.startswith("|")]
    assert all(line.replace("\\|", "").count("|") in (4, 5, 8, 10) for line in tables) and tables


@pytest.mark.slow
def test_revisions_are_compared_and_traced_from_dvcs_cache(two: Path) -> None:
    """A repository made by hand: dvc.lock names the outs, the cache has their files, nothing is checked out."""

    def run(*words: str) -> str:
        return subprocess.run(words, check=True, capture_output=True, text=True).stdout.strip()

    def cached(content: bytes, suffix: str = "") -> str:
        digest = hashlib.md5(content).hexdigest() + suffix
        path = Path(".dvc/cache/files/md5", digest[:2], digest[2:])
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
        return digest

    def commit(name: str) -> None:
        outs = []
        for folder in sorted(Path(name, "data").iterdir()):
            files = [path for path in sorted(folder.rglob("*")) if path.is_file()]
            listing = [{"md5": cached(f.read_bytes()), "relpath": f.relative_to(folder).as_posix()} for f in files]
            out = {"path": f"data/{folder.name}", "md5": cached(json.dumps(listing).encode(), ".dir")}
            outs.append(out)
        Path("dvc.lock").write_text(yaml.safe_dump({"stages": {"all": {"outs": outs}}}))
        run("git", "add", "dvc.lock")
        run("git", "-c", "user.name=t", "-c", "user.email=t@t", "commit", "-q", "-m", name)
        run("git", "tag", f"at-{name}")

    edited(two / "b", OTHER, **{KEPT: {"text": "Another text.", "key": "k"}})
    run("git", "init", "-q", "-b", "main")
    run(sys.executable, "-m", "dvc", "init", "-q")
    commit("a")
    commit("b")
    report = compared("at-a", "at-b")
    assert (report["totals"]["removed"], report["changed_by"]) == (1, {"written anew": 1})
    assert compared("at-a", "a")["same"] and compared("at-a", "HEAD~1")["same"]
    (old,) = json.loads(cosmo(trace.app, f"{OTHER}-0", "--rev", "at-a", "--json"))["documents"]
    assert old["state"] == "in the corpus" and old["tokens"][0]["split"] == "validation"
    run("rm", "-r", ".dvc/cache/files")
    with pytest.raises(
        DataError, match=r"at-a: data/decontaminate is not in DVC's cache; `git checkout \w+ -- dvc.lock"
    ):
        cosmo(diff.app, "at-a", "at-b")
