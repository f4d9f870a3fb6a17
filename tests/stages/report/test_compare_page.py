"""`cosmo report A B`: what the page of two runs says, and how it behaves in a real Chromium."""

import json
import random
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml

from cosmopedia.core.errors import ConfigError
from cosmopedia.dataset_diff.compare import GONE
from cosmopedia.dataset_diff.rows import differences
from cosmopedia.dataset_diff.settings import params_that_differ
from cosmopedia.execution.versions import Version
from stages.report import cosmo_report
from stages.report.cosmo_report_page import excerpt, link, score_lines
from tests.stages.report.test_pages import (
    HOSTILE,
    READY,
    browser,  # noqa: F401, a fixture
    choose,
    count,
    elements,
    faults,
    in_chromium,
    quiet,  # noqa: F401, a fixture
)
from tests.support.answers import write_arm
from tests.support.chromium import Browser
from tests.support.command_line import cosmo
from tests.support.finished_run import COPY, KEPT, OTHER, TEXT, finished_run, made_rows, write_cell


@pytest.fixture
def two(empty_folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Runs a and b: of b's corpus one document is gone, one is new, one has another prompt and text."""
    monkeypatch.setattr("cosmopedia.cli.checkout._started", empty_folder)
    (empty_folder / "profiles").mkdir()
    (empty_folder / "profiles/smoke.yaml").write_text("evaluate: {}\n")
    panels = {"early": ["arc_easy", "mmlu", "piqa"]}
    (empty_folder / "params.yaml").write_text(yaml.safe_dump({"profile": "smoke", "evaluate": {"panels": panels}}))
    for name in "ab":
        finished_run(empty_folder / name)
    edited()
    return empty_folder


def edited(**values: Any) -> None:
    rows = made_rows()
    changed = {"text": TEXT.replace("twice a day", "two times a day"), "prompt": "Another prompt.", "key": "k"}
    write_cell(Path("b/data/decontaminate"), [rows[KEPT] | changed | values, rows[COPY] | {"audience": "children"}])


def page(*words: str) -> Path:
    cosmo(cosmo_report.app, "a", "b", "--out", "page.html", *words)
    return Path("page.html")


def locked(name: str, **params: Any) -> None:
    """A dvc.lock with params of a stage."""
    content = {"stages": {"clean": {"params": {"params.yaml": {"clean": params.pop("default", {})}}, "outs": []}}}
    if params:
        content["stages"]["clean"]["params"]["profiles/smoke.yaml"] = {"clean": params}
    Path(name, "dvc.lock").write_text(yaml.safe_dump(content))


def test_each_row_that_differs_has_both_versions_and_what_became_of_it(two: Path) -> None:
    versions = (Version("a", "folder", two / "a"), Version("b", "folder", two / "b"))
    found = differences(versions, "decontaminate", 10)
    rows = {row["id"].removesuffix("-0"): row for row in found.rows}
    assert {i: (row["kind"], row["reason"]) for i, row in rows.items()} == {
        KEPT: ("changed", "prompt"), OTHER: ("removed", GONE), COPY: ("added", "dedup: exact")
    }  # fmt: skip
    assert (rows[KEPT]["prompt_b"], rows[OTHER]["text_b"], rows[COPY]["audience"]) == (
        "Another prompt.",
        None,
        "children",
    )
    some = differences(versions, "decontaminate", 2)
    assert some.total == 3 and some.rows == [row for row in found.rows if row in some.rows] and len(some.rows) == 2


def test_params_that_differ_are_those_that_the_stages_ran_with(two: Path) -> None:
    versions = (Version("a", "folder", two / "a"), Version("b", "folder", two / "b"))
    assert params_that_differ(versions) is None
    locked("a", default={"min_tokens": 50, "rules": {"short": True}})
    locked("b", default={"min_tokens": 50, "rules": {"short": False}}, min_tokens=90)  # the profile's value wins
    again = (Version("a", "folder", two / "a"), Version("b", "folder", two / "b"))
    assert params_that_differ(again) == [("clean.min_tokens", "50", "90"), ("clean.rules.short", "True", "False")]


def test_scores_have_the_verdicts_of_compare_and_the_reason_where_there_are_none(two: Path) -> None:
    assert "Not compared: " in page().read_text() and "evaluate" in page().read_text()
    write_arm(two / "a", 3, noise=0.1)
    write_arm(two / "b", 3, noise=0.1, shift=3, draw=1)
    told = json.loads(cosmo(cosmo_report.app, "a", "b", "--out", "page.html", "--json"))
    assert told["differing"] == 3 and told["scores"][0].startswith("b: held-out bits per byte, all sets: better")
    assert '<td class="n better">better</td>' in page().read_text()


def test_the_scores_of_a_revision_are_not_those_of_the_folder_that_it_is_looked_at_from(
    two: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_arm(two / "b", 3)
    monkeypatch.chdir(two / "b")
    revision, here = Version("old", "revision", commit="0" * 40), Version("workspace", "folder")
    assert score_lines((revision, here), None)["problem"].startswith("old: data/evaluate has no seed-<n>.parquet")


def test_a_run_is_not_compared_with_itself(two: Path) -> None:
    with pytest.raises(ConfigError, match="two different runs, found a twice"):
        cosmo(cosmo_report.app, "a", "a", "--out", "page.html")


def test_excerpts_show_the_first_difference_and_links_are_escaped() -> None:
    long = "word " * 100
    assert excerpt("One two", None) == "One two" and excerpt("One", "One") == "One"
    assert excerpt(f"{long}old", f"{long}new").startswith("… word") and excerpt(f"{long}old", f"{long}new").endswith(
        "new"
    )
    assert link({"style": '"><script>'}, "<b>") == '<a href="#style=%22%3E%3Cscript%3E">&lt;b&gt;</a>'


class TestInTheBrowser:
    pytestmark = in_chromium

    def test_summary_counts_lead_to_the_documents_and_a_document_to_its_two_texts(self, quiet: Browser, two: Path):
        quiet.open(page(), "", READY)
        assert quiet.run("getComputedStyle($('rows')).display !== 'none' && $('summary').offsetHeight > 0")
        quiet.click("a[href*='kind=changed']")
        quiet.wait("!document.body.classList.contains('summary')")
        assert count(quiet) == "1 of 3 documents that differ"
        quiet.key("j")
        quiet.wait("document.querySelector('#document del')")
        cut = "[...document.querySelectorAll('#document .text del')].map((one) => one.textContent.trim())"
        put = "[...document.querySelectorAll('#document .text ins')].map((one) => one.textContent.trim())"
        assert quiet.run(cut)[1:] == ["twice"] and quiet.run(put) == ["Another prompt.", "two times"]
        for number in (0, 1, 2, 3, 0):  # the key n goes from difference to difference, and round
            quiet.key("n")
            marks = "[...document.querySelectorAll('#document .text :is(del, ins)')]"
            assert quiet.run(f"{marks}.findIndex((one) => one.classList.contains('here'))") == number
        quiet.click("#to-summary")
        quiet.wait("document.body.classList.contains('summary')")
        quiet.key("/")
        quiet.type("grinds")
        quiet.wait("searched?.done")
        assert count(quiet) == "1 of 3 documents that differ"

    def test_filters_keys_and_permalinks(self, quiet: Browser, two: Path):
        file = page()
        quiet.open(file, "#view=documents", READY)
        assert count(quiet) == "3 of 3 documents that differ"
        choose(quiet, "reason", "dedup: exact")
        assert count(quiet) == "1 of 3 documents that differ"
        quiet.key("j")
        quiet.wait("document.querySelector('#document .absent')")  # the other run has no such document
        here = quiet.run("location.hash")
        quiet.open(file, here, READY)
        quiet.wait("document.querySelector('#document .absent')")
        assert COPY in here and count(quiet) == "1 of 3 documents that differ"

    def test_two_runs_with_the_same_documents_have_a_page(self, quiet: Browser, two: Path):
        shutil.copytree(two / "a/data/decontaminate", two / "b/data/decontaminate", dirs_exist_ok=True)
        quiet.open(page(), "", READY)
        assert quiet.run("$('summary').textContent").count("No document differs.") == 1
        quiet.click("#to-documents")
        quiet.key("/")
        quiet.type("grinds")
        quiet.wait("searched?.done")
        assert count(quiet) == "0 of 0 documents that differ"

    def test_the_pieces_of_two_texts_are_those_texts(self, quiet: Browser, two: Path):
        quiet.open(page(), "", READY)
        rng = random.Random(1)
        texts = ["", " ", "a", "\n", *(" ".join(rng.choices("abcd", k=rng.randrange(30))) for _ in range(40))]
        pairs = [(a, b) for a in texts for b in rng.sample(texts, 12)]
        kept = "(pieces, kind) => pieces.filter((p) => p[0] !== kind).map((p) => p[1]).join('')"
        wrong = (
            f"(() => {{ const kept = {kept}; return {json.dumps(pairs)}.filter(([a, b]) => {{"
            " const pieces = difference(a, b); return kept(pieces, '+') !== a || kept(pieces, '-') !== b; }); })()"
        )
        assert quiet.run(wrong) == []
        assert quiet.run("difference('one two three four', 'one 2 three four')") == [
            ["=", "one "], ["-", "two "], ["+", "2 "], ["=", "three four"]
        ]  # fmt: skip
        long = "[...Array(20000)].map((_, n) => n * {}).join(' ')"
        assert quiet.run(f"difference({long.format(2)}, {long.format(3)}).length") >= 2  # too different: whole

    def test_hostile_texts_and_names_are_shown_and_never_run(self, quiet: Browser, two: Path):
        edited(text=HOSTILE, prompt=HOSTILE * 2, topic=HOSTILE, audience=HOSTILE, model=HOSTILE)
        quiet.open(page(), f"#id={KEPT}-0", READY)
        quiet.wait("document.querySelector('#document ins')")
        assert quiet.run("typeof hacked") == "undefined" and elements(quiet, "img, iframe, [onerror]") == 0
        assert "⟨U+202E⟩gnp.exe" in quiet.run("$('document').innerText")
        edited(text="w" * 1_000_000)
        quiet.open(page(), f"#id={KEPT}-0", READY)
        quiet.wait("document.querySelector('#document button')")

    @pytest.mark.parametrize(("width", "colours"), [(1300, "light"), (390, "dark")])
    def test_axe_finds_nothing_and_nothing_is_wider_than_the_window(
        self, quiet: Browser, two: Path, width: int, colours: str
    ):
        write_arm(two / "a", 2)
        write_arm(two / "b", 2, shift=3, draw=1)
        locked("a", default={"min_tokens": 50})
        locked("b", default={"min_tokens": 60})
        quiet.size(width, 850)
        quiet.colours(colours)
        for fragment in ("", "#view=documents", f"#id={KEPT}-0"):
            quiet.open(page(), fragment, READY)
            assert faults(quiet) == [], fragment
            widths = "[document.body, $('summary'), $('pane')].map((one) => one.scrollWidth - one.clientWidth)"
            assert max(quiet.run(widths)) <= 0
