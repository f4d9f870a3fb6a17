"""Generators side by side as tables and sentences, which the terminal, Markdown and JSON share."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from cosmopedia.generators.sides import CellResult, Generator, Measure, more_figures

ALL = "(all cells)"
# Column -> the pilot's figure, in the order in which they are shown; shares in percent.
SHARES = {
    "failed": "failed_share",
    "refused": "refused_share",
    "truncated": "truncated_share",
    "unfinished": "unfinished_share",
    "short": "short_share",
    "repeated": "repeated_share",
    "copied": "copied_share",
    "openings": "openings_share",
    "closings": "closings_share",
    "name": "name_share",
    "number": "number_share",
}
NUMBERS = {"distinct-2": "distinct_2", "compression": "compression_ratio"}
TABLE_HEAD = ("cell", "generator", "prompts", "words", "tokens", *SHARES, *NUMBERS)
COST_HEAD = ("generator", "model", "completions", "tokens", "thoughts", "kept", "tokens/s", "GPUs", "measured with")
COST_HEAD += ("hours per billion tokens", "money per billion", "per billion kept")


class Table(NamedTuple):
    """A table under a title; all but the first `left` columns are aligned to the right."""

    title: str
    head: Sequence[str]
    rows: Sequence[Sequence[str]]
    left: int = 1


def compared(generators: Sequence[Generator], cells: list[CellResult], measure: Measure) -> dict[str, Any]:
    """Everything that is known, for --json: figures per cell and generator, those of all cells together, costs."""
    names = [one.name for one in generators]
    pooled = []
    for number in range(len(names)):
        tried = [one for cell in cells for one in cell.tried[number]]
        thoughts = [tokens for cell in cells for tokens in cell.thoughts[number]]
        pooled.append({**measure(tried), **more_figures(tried, thoughts)})
    return {
        "generators": [{"name": one.name, **one.model} for one in generators],
        "prompts": sum(len(cell.tried[0]) for cell in cells),
        "reworded": sum(cell.reworded for cell in cells),
        "cells": {cell.cell: dict(zip(names, cell.figures, strict=True)) for cell in cells},
        "all": dict(zip(names, pooled, strict=True)),
    }


def cost(one: Generator, figures: Mapping[str, Any], compute: str, price: float | None) -> dict[str, Any]:
    """What a billion tokens of a generator take, at its last measured rate; None: not known.

    `compute` and `price` are those of the compute file in use: another file's rate has no price.
    """
    rate, kept = one.rate(), one.kept()
    speed, gpus = rate.get("tokens_per_second"), rate.get("gpus")
    hours = 1e9 / speed / 3600 * max(gpus, 1) if speed and gpus is not None else None
    paid = price if rate.get("compute") == compute and gpus else None
    return {
        "model": f"{one.model['model']} at {one.model['revision'].removeprefix('sha256:')[:10]}",
        "completions": figures["completions"],
        "tokens": round(figures["mean_tokens"] * figures["completions"]),
        "thoughts": figures["thoughts"],
        "thought_tokens": figures["thought_tokens"],
        "kept": kept,
        "tokens_per_second": speed,
        "gpus": gpus,
        "saturated": rate.get("saturated"),
        "compute": rate.get("compute"),
        "hours_per_billion": hours,
        "money_per_billion": hours * paid if hours is not None and paid is not None else None,
        "hours_per_billion_kept": hours / kept if hours is not None and kept else None,
    }


def tables(report: Mapping[str, Any], beyond: Mapping[str, Mapping[str, set[str]]]) -> list[Table]:
    """The table of cells, that of trust where it was measured, and that of costs.

    `beyond` has, per cell and generator, the figures that exceed the pilot's thresholds; they are marked by "!".
    """
    rows = []
    for cell, figures in [*report["cells"].items(), (ALL, report["all"])]:
        for number, (name, one) in enumerate(figures.items()):
            marked = beyond.get(cell, {}).get(name, set())
            rows.append(["" if number else cell, name, *cells_of(one, marked)])
    found = [Table("Texts on the same prompts", TABLE_HEAD, rows, 2)]
    if trusted := trust_table(report["cells"]):
        found.append(trusted)
    return [*found, Table("Cost", COST_HEAD, [cost_cells(name, one) for name, one in report["costs"].items()], 2)]


def cells_of(figures: Mapping[str, Any], marked: set[str]) -> list[str]:
    """A generator's figures of one cell under TABLE_HEAD."""
    shares = [f"{figures[key]:.0%}{'!' * (key in marked)}" for key in SHARES.values()]
    numbers = [f"{figures[key]:.2f}{'!' * (key in marked)}" for key in NUMBERS.values()]
    counts = [figures["requests"], figures["median_words"], figures["mean_tokens"]]
    return [*(f"{count:,.0f}" for count in counts), *shares, *numbers]


def trust_table(cells: Mapping[str, Mapping[str, Mapping[str, Any]]]) -> Table | None:
    """Figures of the stages `faithful` and `selfcheck`, cell by cell."""
    keys = sorted({key for cell in cells.values() for one in cell.values() for key in one if "." in key})
    rows = [
        [cell, name, *(f"{one[key]:.3g}" if key in one else "-" for key in keys)]
        for cell, generators in cells.items()
        for name, one in generators.items()
        if any(key in one for key in keys)
    ]
    return Table("Faithfulness and self-check", ("cell", "generator", *keys), rows, 2) if rows else None


def cost_cells(name: str, one: Mapping[str, Any]) -> list[str]:
    """A generator under COST_HEAD."""

    def number(key: str, form: str) -> str:
        return "-" if one[key] is None else format(one[key], form)

    thoughts = f"{one['thoughts']:,} ({one['thought_tokens']:,} tokens)" if one["thoughts"] else "0"
    counts = [f"{one['completions']:,}", f"{one['tokens']:,}", thoughts, number("kept", ".0%")]
    low = "" if one["saturated"] in (True, None) else "at least "
    speed = [low + number("tokens_per_second", ",.0f"), number("gpus", "d"), one["compute"] or "-"]
    hours = [number("hours_per_billion", ",.0f"), number("money_per_billion", ",.2f")]
    return [name, one["model"], *counts, *speed, *hours, number("hours_per_billion_kept", ",.0f")]


def notes(report: Mapping[str, Any]) -> list[str]:
    """What a reader must know about the figures."""
    lines = []
    if report["reworded"]:
        lines.append(
            f"{report['reworded']} of {report['prompts']} prompts are not worded alike: labels, and with them topics,"
            " are the generator's own; fix them with curation/topics.yaml, or read only the other cells"
        )
    if len({one["sampling"] for one in report["generators"]}) > 1:
        sampling = "; ".join(f"{one['name']}: {one['sampling']}" for one in report["generators"])
        lines.append(f"sampling differs, and the figures with it: {sampling}")
    if cut := {n: one["failed_by_reason"]["truncated_thought"] for n, one in report["all"].items()
               if "truncated_thought" in one["failed_by_reason"]}:  # fmt: skip
        lines.append(
            f"thoughts that were cut, each a failure: {', '.join(f'{n} {count}' for n, count in cut.items())}"
        )
    if any(one["gpus"] == 0 for one in report["costs"].values()):
        lines.append("0 GPUs: hours are those of one CPU server")
    if None in [one["tokens_per_second"] for one in report["costs"].values()]:
        lines.append(
            "no rate of a generator is in this store (rates.json): generate or tune it with this compute file"
        )
    lines.append('tokens are each model\'s own; words are comparable. "!" is beyond pilot.thresholds')
    return lines


def markdown(title: str, report_tables: Sequence[Table], lines: Sequence[str]) -> str:
    """The comparison as a page."""
    parts = [f"## {title}", "\n".join(f"* {line}" for line in lines)]
    for table in report_tables:
        align = ["---" if column < table.left else "--:" for column in range(len(table.head))]
        body = [table.head, align, *([cell.replace("|", "\\|") for cell in row] for row in table.rows)]
        parts.append(f"### {table.title}\n\n" + "\n".join(f"| {' | '.join(line)} |" for line in body))
    return "\n\n".join(parts) + "\n"
