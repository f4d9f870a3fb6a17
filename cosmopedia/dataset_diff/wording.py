"""The difference of two versions in tables, for the terminal, Markdown and HTML alike."""

import html
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cosmopedia.core.text import without_controls
from cosmopedia.pages import page_template
from cosmopedia.tracing.changes import Piece, word_diff

EXCERPT = 600  # characters of a text that are shown
BEFORE = 80  # of them, in front of the first difference
DASH = "-"
SPECIAL = re.compile(r"([\\`*_\[\]|#~])")

Row = dict[str, Any]


@dataclass(frozen=True)
class Table:
    """A table under a heading; `align` has l or r per column."""

    title: str
    head: Sequence[str]
    align: str
    rows: Sequence[Sequence[str]]


def headline(report: Row) -> str:
    """The difference in a sentence."""
    a, b, totals = report["a"]["name"], report["b"]["name"], report["totals"]
    if report["same"]:
        return f"no difference: {totals['rows_a']:,} documents of data/{report['stage']}, the same in {a} and {b}"
    kinds = ", ".join(f"{totals[kind]:,} {kind}" for kind in ("added", "removed", "changed"))
    same = totals["rows_a"] - totals["removed"] - totals["changed"]
    return (
        f"{kinds}, {same:,} the same; {totals['rows_a']:,} documents of data/{report['stage']} in {a},"
        f" {totals['rows_b']:,} in {b}; tokens {_moved(totals['tokens_a'], totals['tokens_b'])}"
    )


def tables(report: Row) -> list[Table]:
    """All tables that have rows, none where nothing differs; of cells only those that differ."""
    if report["same"]:
        return []
    names = (report["a"]["name"], report["b"]["name"])
    found = [_rows(report), _reasons(report), _whole(report, names), _lengths(report, names), _topics(report, names)]
    return [table for table in [*found, _cells(report), _mix(report)] if table.rows]


def _rows(report: Row) -> Table:
    head = ("source", "style", "audience", "before", "after", "added", "removed", "changed", "tokens")
    rows = [
        [
            *(one[name] for name in ("source", "style", "audience")),
            *(f"{one[name]:,}" for name in ("rows_a", "rows_b", "added", "removed", "changed")),
            _moved(one["tokens_a"], one["tokens_b"]),
        ]
        for one in [*report["groups"], {"source": "all", "style": "", "audience": "", **report["totals"]}]
        if one["added"] or one["removed"] or one["changed"]
    ]
    return Table("Documents", head, "lllrrrrrr", rows)


def _reasons(report: Row) -> Table:
    what = {"changed": "changed_by", "removed, now": "removed_in_b", "added, before": "added_were_in_a"}
    rows = [[kind, reason, f"{n:,}"] for kind, key in what.items() for reason, n in report[key].items()]
    return Table("Why", ("documents", "because of", "number"), "llr", rows)


def _whole(report: Row, names: tuple[str, str]) -> Table:
    rows = [[name, *map(share, pair)] for name, pair in report["rates"].items() if pair != [None, None]]
    divergence = report["topics"]["js_divergence"]
    if divergence is not None:
        rows.append(["topic drift (Jensen-Shannon, bits: 0 to 1)", "", f"{divergence:.4f}"])
    return Table("Rates", ("of all documents", *names), "lrr", rows)


def _lengths(report: Row, names: tuple[str, str]) -> Table:
    rows = [[q, *(DASH if n is None else f"{n:,}" for n in pair)] for q, pair in report["lengths"].items()]
    return Table("Lengths in tokens", ("quantile", *names), "rrr", rows)


def _topics(report: Row, names: tuple[str, str]) -> Table:
    rows = [[one["topic"], share(one["a"]), share(one["b"])] for one in report["topics"]["moved"]]
    return Table("Topics that moved most", ("topic", *names), "lrr", rows)


def _cells(report: Row) -> Table:
    head = ("cell", "median tokens", "duplicates", "contaminated", "most common opening", "its share", "topic drift")
    shown = {
        "median_tokens": lambda n: f"{n:,}",
        "duplicates": share,
        "contaminated": share,
        "opening": lambda opening: f"“{opening}”",
        "opening_share": share,
    }
    rows = []
    for cell in report["cells"]:
        if any(None not in cell[name] and cell[name][0] != cell[name][1] for name in shown):
            drift = cell["topic_divergence"]
            pairs = [[DASH if v is None else word(v) for v in cell[name]] for name, word in shown.items()]
            rows.append([cell["cell"], *map(_pair, pairs), DASH if drift is None else f"{drift:.4f}"])
    return Table("Cells that differ", head, "lrrrlrr", rows)


def _mix(report: Row) -> Table:
    rows = [[one["cell"], *(_moved(*one[name]) for name in ("documents", "copies"))] for one in report["mix"]]
    return Table("What the mix takes", ("cell", "documents", "with repeats"), "lrr", rows)


def _pair(values: Sequence[str]) -> str:
    return values[0] if values[0] == values[1] else " → ".join(values)


def _moved(a: int, b: int) -> str:
    return f"{a:,}" if a == b else f"{a:,} → {b:,}"


def share(value: float | None) -> str:
    """A share as a percentage."""
    return DASH if value is None else f"{value:.1%}"


def sides(sample: Row) -> tuple[list[Piece], list[Piece]]:
    """A sample's two texts around their first difference, in pieces: "=" and on the left "-", on the right "+"."""
    if sample["kind"] != "changed":
        kind, text = ("-", sample["a"]) if sample["b"] is None else ("+", sample["b"])
        pieces = [(kind, text)]
    else:
        pieces = word_diff(sample["a"], sample["b"])
        if pieces[0][0] == "=" and len(pieces[0][1]) > BEFORE:
            pieces[0] = ("=", f"… {pieces[0][1][-BEFORE:]}")
    left, right = ([p for p in pieces if p[0] in ("=", mine)] for mine in "-+")
    return _cut(left), _cut(right)


def _cut(pieces: list[Piece]) -> list[Piece]:
    shown, left = [], EXCERPT
    for kind, text in pieces:
        if left <= 0:
            break
        shown.append((kind, text if len(text) <= left else f"{text[:left]} …"))
        left -= len(text)
    return shown


def markdown(report: Row) -> str:
    """The difference as a Markdown page; texts are code blocks, so nothing in them is markup."""
    parts = [f"## {_md(report['b']['name'])} compared with {_md(report['a']['name'])}", _md(headline(report))]
    for table in tables(report):
        lines = [table.head, ["---" if one == "l" else "---:" for one in table.align], *table.rows]
        cells = [[*map(_md, line)] if number != 1 else line for number, line in enumerate(lines)]
        parts += [f"### {table.title}", "\n".join(f"| {' | '.join(line)} |" for line in cells)]
    for sample in report["samples"]:
        parts.append(f"### {sample['kind'].capitalize()}: {_md(sample['cell'])}, {_md(sample['id'])}")
        for side, pieces in zip("ab", sides(sample), strict=True):
            if sample[side] is not None:
                text = "".join(words for _, words in pieces)
                parts += [_md(report[side]["name"]), "\n".join(f"    {line}" for line in _lines(text))]
    return "\n\n".join(parts) + "\n"


def _lines(text: str) -> list[str]:
    return without_controls(text).splitlines() or [""]


def _md(text: str) -> str:
    """A text without markup, in one line."""
    return SPECIAL.sub(r"\\\1", html.escape(" ".join(without_controls(text).split()), quote=False))


def page(report: Row) -> str:
    """The difference as an HTML page that needs nothing else."""
    samples: list[Mapping[str, Any]] = [{**sample, "sides": sides(sample)} for sample in report["samples"]]
    template = page_template(Path(__file__).parent, "page.html.j2")
    return template.render(report=report, headline=headline(report), tables=tables(report), samples=samples)
