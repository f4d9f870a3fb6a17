"""The viewer and the map in a real Chromium: clicks, keys, permalinks, hostile texts; nothing is loaded or said."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from cosmopedia.core.files import write_text
from cosmopedia.tables.contracts import REMOVED
from cosmopedia.tables.parquet import write_table
from stages.report.facts import collect
from stages.report.figures import draw_all
from stages.report.map import render_map
from stages.report.page import render
from stages.report.viewer import Documents, drawn, marked, render_viewer, spans, strings, whole
from tests.stages.report.test_report import repository  # noqa: F401, a fixture
from tests.support.chromium import PROGRAM, Browser, chromium
from tests.support.documents import ROOT, document, write_documents

AXE = ROOT / "tests/support/axe/axe.min.js"
READY = "document.body.dataset.ready"
CELL = "document.querySelector('#pilot ~ .scroll td')"
HOSTILE = (
    '</script><script>hacked = 1</script><img src=x onerror="hacked = 2"> <a href="javascript:hacked = 3">a</a>'
    " {{ 7 }} data:text/html,<script>hacked=4</script> \u202egnp.exe\u202c \x00\x1b[31m\x07 \u2028 --> <!-- ]]> '\"`"
)
needs_chromium = pytest.mark.skipif(PROGRAM is None, reason="no chromium; apt-get install chromium")
in_chromium = [needs_chromium, pytest.mark.slow]


def shown(**values: Any) -> dict[str, Any]:
    """A row of the viewer."""
    return document(**values) | {"state": "kept", "evidence": None, "clean": values.get("text")} | values


def corpus() -> list[dict[str, Any]]:
    """40 documents: every fourth was removed, every tenth speaks of tides; the first one has lost its opening."""
    rows = []
    for number in range(40):
        text = f"Document {number} is about {'tides' if number % 10 == 0 else 'bread'}. " + "It goes on. " * 40
        values = {"completion_id": f"{number:02}-0", "text": text, "clean": text, "seed_id": f"web/{number}"}
        values |= {"source": "web" if number % 2 else "openstax", "topic": "Tides" if number % 10 == 0 else None}
        if number % 4 == 3:
            values |= {"state": "dedup: near", "evidence": '{"kept": "01-0", "matched": "IT goes; on"}', "clean": text}
        rows.append(shown(**values))
    rows[0]["text"] = "Sure, here it is: " + rows[0]["text"]
    return rows


def pages(count: int, **values: Any) -> pl.DataFrame:
    """Points of a map in a row, the first third dropped."""
    return pl.DataFrame(
        {"row_id": f"web/{n:03}", "cluster": n * 3 // count, "x": float(n), "y": float(n % 7), "source": "web"}
        | {"topic": f"Topic {n * 3 // count}", "state": "kept" if n * 3 >= count else "dropped"}
        | {"excerpt": f"Page {n} begins"}
        | values
        for n in range(count)
    )


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as one:
        yield one


@pytest.fixture
def quiet(browser: Browser) -> Iterator[Browser]:
    """The browser, of which no page may have requested or reported anything at the end."""
    browser.messages.clear()
    browser.size(1300, 850)
    browser.colours("light")
    yield browser
    assert (browser.messages, browser.requests) == ([], [])


def viewer(browser: Browser, folder: Path, rows: list[dict[str, Any]], fragment: str = "") -> None:
    write_text(folder / "viewer.html", render_viewer(Documents(rows, len(rows)), "tiny"))
    browser.open(folder / "viewer.html", fragment, READY)


def count(browser: Browser) -> str:
    return browser.run("$('count').textContent")


def elements(browser: Browser, selector: str) -> int:
    return browser.run(f"document.querySelectorAll({json.dumps(selector)}).length")


def place_of(browser: Browser, point: int) -> tuple[float, float]:
    """Where a point of the map is in the window."""
    x, y = (f"screen{axis.upper()}(points.{axis}[{point}]) / canvas.dense" for axis in "xy")
    box = browser.run("canvas.getBoundingClientRect().toJSON()")
    return browser.run(x) + box["x"], browser.run(y) + box["y"]


def faults(browser: Browser) -> list[list[str]]:
    """What axe finds on the page, the minor things too."""
    browser.run(AXE.read_text(encoding="utf-8") + ";1")
    return browser.run("axe.run().then((all) => all.violations.map((v) => [v.impact, v.id, v.nodes[0].html]))")


def choose(browser: Browser, name: str, value: str) -> None:
    """What a person does with a select: its list is no part of the page."""
    browser.run(f"$('{name}').value = {json.dumps(value)}; $('{name}').dispatchEvent(new Event('change'))")


class TestViewer:
    pytestmark = in_chromium

    def test_filters_and_search_narrow_the_list(self, quiet: Browser, tmp_path: Path):
        viewer(quiet, tmp_path, corpus())
        assert count(quiet) == "40 of 40 documents"
        choose(quiet, "state", "removed")
        assert count(quiet) == "10 of 40 documents"
        choose(quiet, "source", "web")
        choose(quiet, "state", "kept")
        assert count(quiet) == "10 of 40 documents"
        choose(quiet, "source", "")
        quiet.key("/")
        quiet.type('"about TIDES" document')
        quiet.wait("searched?.done")
        assert count(quiet) == "4 of 40 documents"  # 0, 10, 20, 30: all even, none removed
        quiet.key("Escape")  # out of the field
        quiet.key("Escape")  # clears the search
        quiet.wait("!searched")
        assert count(quiet) == "30 of 40 documents"

    def test_a_document_opens_with_what_was_cut_and_why_it_was_removed(self, quiet: Browser, tmp_path: Path):
        viewer(quiet, tmp_path, corpus())
        quiet.click(".row")
        quiet.wait("document.querySelector('#document h2')")
        assert quiet.run("document.querySelector('#document .text del').textContent") == "Sure, here it is: "
        choose(quiet, "state", "removed")
        quiet.key("j")
        quiet.wait("document.querySelector('#document mark')")
        assert quiet.run("document.querySelector('#document mark').textContent") == "It goes on"
        assert "cosmo trace web/3" not in quiet.run("$('document').textContent")  # quoted, for a shell
        assert "cosmo trace 'web/3'" in quiet.run("$('document').textContent")
        quiet.click("section.evidence a")  # the document that was kept
        quiet.wait("state.id === '01-0' && $('document').textContent.includes('Document 1 ')")

    def test_keys_walk_the_list_and_the_address_is_a_permalink(self, quiet: Browser, tmp_path: Path):
        viewer(quiet, tmp_path, corpus())
        for key in "jjjk":
            quiet.key(key)
        second = quiet.run("rows.ids[view[1]]")
        assert second in quiet.run("location.hash")
        quiet.key("Escape")
        quiet.run("$('rows').focus()")
        quiet.key("Enter")
        quiet.wait("document.activeElement === $('pane')")
        quiet.open(tmp_path / "viewer.html", f"#id={second}&source=web&q=goes", READY)
        quiet.wait("document.querySelector('#document h2') && searched?.done")
        assert second in quiet.run("$('document').textContent") and count(quiet) == "20 of 40 documents"
        assert quiet.run("document.querySelector('[aria-selected=true] .excerpt').textContent").startswith("Document")
        quiet.open(tmp_path / "viewer.html", "#id=nobody", READY)
        assert "nobody is not among" in quiet.run("$('document').textContent")

    def test_hostile_texts_are_shown_and_never_run(self, quiet: Browser, tmp_path: Path):
        values = {name: HOSTILE for name, value in document().items() if isinstance(value, str)}
        evidence = json.dumps({"items": [{"matched": HOSTILE, HOSTILE: HOSTILE}]})
        rows = [shown(**values | {"state": HOSTILE, "evidence": evidence, "clean": HOSTILE, "topic": HOSTILE})]
        rows += [shown(text="", clean=""), shown(text="w" * 1_000_000, clean="w" * 1_000_000)]
        viewer(quiet, tmp_path, rows)
        for _ in rows:
            quiet.key("j")
            quiet.wait("document.querySelector('#document h2')")
        quiet.wait("$('document').textContent.includes('950,000 more characters')")
        quiet.open(tmp_path / "viewer.html", "#" + HOSTILE[:60].replace("#", ""), READY)
        quiet.run(f"state.id = {json.dumps(HOSTILE)}; show(rows.ids.indexOf(state.id), true)")
        quiet.wait("document.querySelector('#document mark')")
        text = quiet.run("document.body.innerText")
        assert "⟨U+202E⟩gnp.exe" in text and "␀␛[31m␇" in text and "onerror" in text
        assert quiet.run("typeof hacked") == "undefined"
        assert elements(quiet, "img, iframe, [onerror], a[href^=javascript], a[href^=data]") == 0
        assert quiet.run("document.documentElement.scrollWidth") <= 1300

    def test_100_rows_are_drawn_of_many(self, quiet: Browser, tmp_path: Path):
        viewer(
            quiet,
            tmp_path,
            [shown(completion_id=f"{n:05}-0", text=f"Text {n}", clean=f"Text {n}") for n in range(5000)],
        )
        quiet.run("$('rows').focus()")
        quiet.key("End")
        quiet.wait("document.querySelector('[aria-selected=true]')")
        assert elements(quiet, ".row") < 30
        assert quiet.run("document.querySelector('[aria-selected=true]').getAttribute('aria-posinset')") == "5000"


class TestMap:
    pytestmark = in_chromium

    def open(self, browser: Browser, folder: Path, rows: pl.DataFrame, fragment: str = "") -> None:
        write_text(folder / "map.html", render_map(rows, "tiny"))
        browser.open(folder / "map.html", fragment, READY)

    def test_a_lasso_lists_what_is_inside_and_hovering_names_it(self, quiet: Browser, tmp_path: Path):
        self.open(quiet, tmp_path, pages(90))
        box = quiet.run("canvas.getBoundingClientRect().toJSON()")
        left, top, right, bottom = (box["x"] + 2, box["y"] + 2, box["right"] - 2, box["bottom"] - 2)
        middle = (left + right) / 2
        quiet.click("#lasso")
        quiet.drag([(left, top), (middle, top), (middle, bottom), (left, bottom)])
        assert quiet.run("$('chosen').textContent") == "45 inside the lasso"
        assert quiet.run("$('list').children.length") == 45
        assert quiet.run("decodeURIComponent($('list').querySelector('a').href)").endswith('viewer.html#q="web/000"')
        quiet.click("#legend button:nth-child(1)")  # switches a topic off
        quiet.click("#lasso")
        quiet.drag([(left, top), (right, top), (right, bottom), (left, bottom)])
        assert quiet.run("$('chosen').textContent") == "60 inside the lasso"
        quiet.move(*place_of(quiet, 89))
        quiet.wait("!$('tip').hidden && $('tip').textContent.includes('Page 89 begins')")
        quiet.key("Escape")
        assert quiet.run("$('list').children.length") == 0

    def test_colours_zoom_and_permalinks(self, quiet: Browser, tmp_path: Path):
        self.open(quiet, tmp_path, pages(90), "#id=web/001&colour=state")
        assert quiet.run("$('list').textContent").startswith("Page 1 begins")
        legend = "[...$('legend').children].map((b) => b.textContent)"
        assert quiet.run(legend) == ["kept 60", "dropped 30"]
        before = quiet.run("view.scale")
        quiet.click("#closer")
        assert quiet.run("view.scale") == pytest.approx(1.4 * before)
        quiet.key("0")
        assert quiet.run("view.scale") == before
        seen = "new Set(new Uint32Array(context.getImageData(0, 0, canvas.width, canvas.height).data.buffer)).size"
        quiet.run("new Promise((next) => requestAnimationFrame(() => requestAnimationFrame(next)))")
        assert quiet.run(seen) > 2  # two colours and the ground

    def test_hostile_texts_are_shown_and_never_run(self, quiet: Browser, tmp_path: Path):
        hostile = dict.fromkeys(("topic", "state", "excerpt", "source"), HOSTILE) | {"row_id": HOSTILE}
        self.open(quiet, tmp_path, pages(1, **hostile))
        quiet.move(*place_of(quiet, 0))
        quiet.wait("!$('tip').hidden")
        assert "⟨U+202E⟩gnp.exe" in quiet.run("$('tip').innerText") and quiet.run("typeof hacked") == "undefined"
        assert elements(quiet, "img, iframe, [onerror]") == 0


@pytest.mark.slow
@needs_chromium
@pytest.mark.parametrize(("width", "colours"), [(1300, "light"), (390, "dark")])
def test_axe_finds_nothing_and_no_page_is_wider_than_the_window(
    quiet: Browser, tmp_path: Path, colours: str, width: int
):
    quiet.size(width, 850)
    quiet.colours(colours)
    write_text(tmp_path / "viewer.html", render_viewer(Documents(corpus(), 40), "tiny"))
    write_text(tmp_path / "map.html", render_map(pages(90), "tiny"))
    for name, fragment in (("viewer", ""), ("viewer", "#id=03-0"), ("viewer", "#id=00-0"), ("map", "#id=web/001")):
        quiet.open(tmp_path / f"{name}.html", fragment, READY)
        quiet.wait("document.querySelector('#document h2')" if name + fragment[:4] == "viewer#id=" else "true")
        assert faults(quiet) == [], name
        assert quiet.run("document.documentElement.scrollWidth") <= width


def test_of_too_many_documents_some_are_drawn_by_id_and_each_has_its_state(tmp_path: Path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    rows = [document(completion_id=f"{n}-0", text=f"Sure: text {n}") for n in range(9)]
    write_documents(Path("data/generate/web-blogpost.parquet"), rows)
    write_documents(Path("data/clean/web-blogpost.parquet"), [row | {"text": row["text"][6:]} for row in rows[1:]])
    gone = {
        "completion_id": "0-0",
        "source": "web",
        "style": "blogpost",
        "reason": "too_short",
        "text": "Sure: text 0",
    }
    write_table("data/clean/removed/removed.parquet", [gone | {"evidence": '{"characters": 12}'}], REMOVED)
    whole_corpus, some = drawn(1, None), drawn(1, 4)
    assert (len(whole_corpus.rows), len(some.rows), some.total) == (9, 4, 9)
    assert all(row in whole_corpus.rows for row in some.rows)
    assert {row["completion_id"] for row in drawn(1, 3).rows} < {row["completion_id"] for row in some.rows}
    first, second = whole_corpus.rows[:2]
    assert (first["state"], first["clean"], second["state"], second["clean"]) == (
        "clean: too short",
        None,
        "kept",
        "text 1",
    )
    assert whole(first)["evidence"] == {"characters": 12} and whole(second)["pieces"][0] == ("-", "Sure: ")
    assert "4 documents of 9, drawn by id (report.viewer_rows)" in render_viewer(some, "tiny")


def test_matched_text_is_marked_where_the_document_has_it():
    text = "Why is the sky blue? Because air scatters blue light most. The end."
    assert strings({"items": [{"matched": "a", "ratio": 1.0}], "kept": ["b", 2]}) == ["a", "b"]
    assert [text[a:b] for a, b in spans(text, ["why is the SKY blue because air scatters"])] == [text[:41]]
    assert [text[a:b] for a, b in spans(text, ["is the sky green? Scatters, blue light"])] == [
        "is the sky", "scatters blue light"
    ]  # fmt: skip
    assert spans(text, ["as_an_ai", "the moon", ""]) == []
    assert marked([("-", "Sure. "), ("=", text[:30])], [(4, 14)]) == [
        ("-", "Sure. "), ("=", "Why "), ("!", "is the sky"), ("=", text[14:30])
    ]  # fmt: skip


@pytest.mark.slow
@needs_chromium
def test_axe_finds_nothing_in_the_report_and_a_phone_breaks_no_word_of_its_tables(quiet: Browser, repository: Path):
    facts = collect(1, 2)
    write_text(Path("index.html"), render(facts, "tiny", draw_all(facts, Path("figures")), 100))
    for width, colours in ((1300, "light"), (390, "dark")):
        quiet.size(width, 850)
        quiet.colours(colours)
        quiet.open(Path("index.html"))
        assert faults(quiet) == []
        assert quiet.run("document.documentElement.scrollWidth") <= width
        quiet.run(f"words = document.createRange(); words.selectNodeContents({CELL})")
        for name in ("pilot", "removed", "run"):  # the contents follow
            quiet.run(f"document.getElementById('{name}').scrollIntoView()")
            quiet.wait(f"getComputedStyle(document.querySelector('nav a[href=\"#{name}\"]')).fontWeight === '600'")
        assert quiet.run("words.toString()") == "web-blogpost" and quiet.run("words.getClientRects().length") <= 2
