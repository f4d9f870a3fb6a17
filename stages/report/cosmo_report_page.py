"""The page of `cosmo report`: two runs side by side, in figures and document by document.

The figures are those of `cosmo diff` and `cosmo compare`; the list of documents is the viewer's (browse.js). The words
that differ between two texts are found by the page when a document is opened: for 100,000 of them that would take
hours here.
"""

from collections.abc import Sequence
from dataclasses import replace
from itertools import takewhile
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

from markupsafe import Markup

from cosmopedia.cli.compare import compared
from cosmopedia.cli.diff import versions_of
from cosmopedia.core.errors import ConfigError, DataError
from cosmopedia.dataset_diff import wording as diff_wording
from cosmopedia.dataset_diff.compare import compare
from cosmopedia.dataset_diff.report import report
from cosmopedia.dataset_diff.rows import SHOWN, Differences, differences
from cosmopedia.dataset_diff.settings import Pair, inputs_that_differ, numbers_that_differ, params_that_differ
from cosmopedia.evaluation import arms, wording
from cosmopedia.execution.versions import Version
from stages.report.packed import coded, packed, script_page, text_blocks
from stages.report.page import number

FACETS = ("kind", "reason", "source", "style", "audience", "topic")
EXCERPT, BEFORE = 150, 40  # characters of a text in the list, and of them in front of the first difference
LONGEST = 200  # characters of a param that are shown
HASH = 10  # characters of a file's hash
KINDS = ("added", "removed", "changed")
Versions = tuple[Version, Version]


def compare_page(
    a: str, b: str | None, stage: str | None, limit: int, noise: str | None
) -> tuple[dict[str, Any], str]:
    """What it says in figures, and the page."""
    versions, stage = versions_of(a, b, stage)
    if versions[0].name == versions[1].name:
        raise ConfigError(f"report compares two different runs, found {a} twice")
    versions = with_short_names(versions)
    figures = report(versions, stage, compare(versions, stage, 0), 0)
    found = differences(versions, stage, limit)
    scores = score_lines(versions, noise)
    content = {"headline": diff_wording.headline(figures), "differing": found.total}
    content |= {"scores": scores["lines"], "not_compared": scores["problem"]}
    return content, render(versions, figures, found, scores)


def render(versions: Versions, figures: dict[str, Any], found: Differences, scores: dict[str, Any]) -> str:
    """The page."""
    names = [version.name for version in versions]
    starts, blocks = text_blocks(found.rows, lambda row: sum(map(len, texts(row).values())), whole)
    columns = {
        "ids": [row["id"] for row in found.rows],
        "excerpts": [excerpt(row["text"], row["text_b"]) for row in found.rows],
        "tokens": [[row["tokens_a"], row["tokens_b"]] for row in found.rows],
        "seeds": [row.get("seed_id") or row.get("seed_id_b") or "" for row in found.rows],
        "starts": starts,
        "names": names,
        "facets": {name: coded([facet(row, name) for row in found.rows]) for name in FACETS},
    }
    bound = "" if len(found.rows) == found.total else f", of {number(found.total)} drawn by id"
    return script_page(
        "cosmo_report",
        {"rows": packed(columns)} | blocks,
        browse=True,
        names=names,
        kinds=[version.kind for version in versions],
        headline=diff_wording.headline(figures),
        count=f"{number(len(found.rows))}{bound}",
        groups=group_rows(figures),
        tables=diff_wording.tables(figures)[1:],  # the first one is `groups`
        scores=scores,
        numbers=[[name, *map(value, pair)] for name, *pair in numbers_that_differ(versions)],
        params=pairs(params_that_differ(versions), LONGEST),
        inputs=pairs(inputs_that_differ(versions), HASH),
        facets=FACETS,
    )


def facet(row: dict[str, Any], name: str) -> str | None:
    """A row's value of a column that the page filters by."""
    return row[name] if row.get(name) is not None else row.get(f"{name}_b")


def texts(row: dict[str, Any]) -> dict[str, str]:
    """All texts of a row."""
    return {name: row[name] for name in ("prompt", "prompt_b", "text", "text_b") if row.get(name)}


def whole(row: dict[str, Any]) -> list[dict[str, Any] | None]:
    """A document as the page shows it: of each version what it has of it, None for nothing."""
    there = (row["kind"] != "added", row["kind"] != "removed")
    return [
        {name: row.get(f"{name}{end}") for name in ("text", *SHOWN)} if is_there else None
        for end, is_there in zip(("", "_b"), there, strict=True)
    ]


def excerpt(one: str | None, two: str | None) -> str:
    """How a text begins; of a changed one the part around the first difference."""
    if one is None or two is None:
        return " ".join((one or two or "")[: 4 * EXCERPT].split())[:EXCERPT]
    same = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(one, two, strict=False)))
    start = max(two.rfind(" ", 0, max(same - BEFORE, 0)), 0)
    return f"{'… ' if start else ''}{' '.join(two[start : start + 4 * EXCERPT].split())}"[:EXCERPT]


def group_rows(figures: dict[str, Any]) -> list[list[str]]:
    """Documents by source, style and audience where something differs; a count is a link to these documents."""
    rows = []
    total = {"source": "", "style": "", "audience": "", **figures["totals"]}
    for one in [*figures["groups"], total]:
        if not any(one[kind] for kind in KINDS):
            continue
        wanted = {name: one[name] for name in ("source", "style", "audience") if one[name]}
        links = [link(wanted | {"kind": kind}, f"{one[kind]:,}") if one[kind] else number(one[kind]) for kind in KINDS]
        tokens = number(one["tokens_b"] - one["tokens_a"])
        words = [one["source"] or "all", one["style"].replace("_", " "), one["audience"].replace("_", " ")]
        rows.append([*words, number(one["rows_a"]), number(one["rows_b"]), *links, tokens])
    return rows


def link(wanted: dict[str, str], text: str) -> Markup:
    """A link to the documents with these values; both parts are escaped."""
    return Markup('<a href="#{}">{}</a>').format(urlencode(wanted), text)


def value(one: Any) -> str:
    """A param, a number or a hash; a dash for none."""
    return "–" if one is None else number(one)


def pairs(found: list[Pair] | None, longest: int) -> list[list[str]] | None:
    """Settings as rows of a table."""
    if found is None:
        return None
    rows = [[name, *map(value, pair)] for name, *pair in found]
    return [[cell if len(cell) <= longest else f"{cell[:longest]}…" for cell in row] for row in rows]


def score_lines(versions: Versions, noise: str | None) -> dict[str, Any]:
    """What `cosmo compare` says of the two: sentences, and its table; where they cannot be compared, why not."""
    try:
        _, readings, rows = compared([arms.arm_of(version) for version in versions], noise)
    except DataError as error:
        return {"lines": [], "head": [], "rows": [], "problem": str(error)}
    shown = [row for row in rows if row.scope.measure in wording.SHOWN]
    arm = wording.HEAD.index("arm")  # the column that says the same in every row here
    cells = [without(wording.cells(row), arm) for row in shown]
    head = without([names_of(versions).get(name, name) for name in wording.HEAD], arm)
    lines = [*wording.headlines(rows), *wording.notes(readings, rows)]
    return {"lines": lines, "head": head, "rows": cells, "problem": ""}


def without(cells: Sequence[str | None], place: int) -> list[str | None]:
    return [*cells[:place], *cells[place + 1 :]]


def names_of(versions: Versions) -> dict[str, str]:
    return {"baseline": versions[0].name, "arm's": versions[1].name}


def with_short_names(versions: Versions) -> Versions:
    """Folders by the last part of their names, where the two are then still different."""
    folders = [version.kind == "folder" and version.folder != Path() for version in versions]
    names = [v.folder.resolve().name if is_one else v.name for v, is_one in zip(versions, folders, strict=True)]
    one, two = (replace(version, name=name) for version, name in zip(versions, names, strict=True))
    return (one, two) if one.name != two.name else versions
