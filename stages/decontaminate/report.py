"""What decontamination found, as metrics, as a table and as Markdown."""

from collections import defaultdict
from dataclasses import dataclass
from typing import Any

from stages.decontaminate.index import RULES, DecontaminateParams

SHOWN = 20  # n-grams, and pairs that the two rules judge differently
DASH = "–"

Row = dict[str, Any]  # of contaminated.merged_verdicts


@dataclass(frozen=True)
class Common:
    """The n-grams that stand in too many documents to lead to a candidate."""

    most: int | None  # documents that an n-gram may stand in; None: any number
    ngrams: int  # that stand in more
    first: list[Row]  # ngram, documents, items; most documents first


def contamination_table(rows: list[Row], rule: str) -> list[dict[str, Any]]:
    """Contaminated documents and distinct items by source and task, by one rule."""
    documents: dict[tuple[str, str], set[str]] = defaultdict(set)
    items: dict[tuple[str, str], set[str]] = defaultdict(set)
    for row in rows:
        if rule in row["rules"]:
            documents[row["source"], row["task"]].add(row["completion_id"])
            items[row["source"], row["task"]].add(row["item_id"])
    return [
        {"source": source, "task": task, "documents": len(documents[source, task]), "items": len(items[source, task])}
        for source, task in sorted(documents)
    ]


def side_by_side(rows: list[Row]) -> dict[str, dict[str, int]]:
    """Documents and distinct items that each rule calls contaminated, and that one of them alone does."""
    documents = {rule: {row["completion_id"] for row in rows if rule in row["rules"]} for rule in RULES}
    items = {rule: {row["item_id"] for row in rows if rule in row["rules"]} for rule in RULES}
    plain, window = RULES
    found = {rule: {"documents": len(documents[rule]), "items": len(items[rule])} for rule in RULES}
    for one, other in ((plain, window), (window, plain)):
        found[f"{one}_only"] = {
            "documents": len(documents[one] - documents[other]),
            "items": len(items[one] - items[other]),
        }
    return found


def markdown(
    metrics: dict[str, Any], rows: list[Row], rule: DecontaminateParams, tasks: list[str], common: Common
) -> str:
    """The report: the article's table, the two rules beside each other, common n-grams."""
    found, items = metrics["rules"], metrics["benchmark_items"]
    names = {"plain": "plain (published)", "window": f"window of {rule.window:g} lengths"}
    left_out = "`common_ngram` is off: every n-gram makes candidates."
    if common.most is not None:
        left_out = (
            f"{common.ngrams:,} n-grams stand in more than {common.most:,} documents and make no candidate by"
            f" themselves; {metrics['candidates']['common_only']:,} pairs share nothing else."
        )
    differ = [row for row in rows if len(row["rules"]) == 1]
    parts = [
        "# Contamination",
        f"{metrics['rows_removed']:,} of {metrics['rows_in']:,} documents removed, by the ratio `{rule.ratio}` above"
        f" {rule.max_ratio:g}. {metrics['candidates']['pairs']:,} pairs in {metrics['candidates']['documents']:,}"
        " documents shared an n-gram with an item.",
        _table(["benchmark items", "number", "found by"], "lrl", [
            [f"of {rule.ngram} words or more", items["checked"], f"any {rule.ngram} words in a row"],
            [f"of {rule.shortest_item} to {rule.ngram - 1} words", items["short"], "all their words in a row"],
            [f"of fewer than {rule.shortest_item} words", items["shortest"], "documents that are nothing else"],
        ]),
        "## Contaminated documents by source and benchmark",
        "In brackets the distinct benchmark items that they hold.",
        _by_source(contamination_table(rows, rule.ratio), tasks),
        "## The two ratios",
        _table(["by", "documents", "items", "documents by this one alone"], "lrrr", [
            [names[one], found[one]["documents"], found[one]["items"], found[f"{one}_only"]["documents"]]
            for one in RULES
        ]),
        *([
            f"Pairs that they judge differently ({len(differ):,}, at most {SHOWN} shown):",
            _table(["document", "item", "plain", "window"], "llrr", [
                [row["completion_id"], row["item_id"], f"{row['ratio']:.2f}", f"{row['window_ratio']:.2f}"]
                for row in differ[:SHOWN]
            ]),
        ] if differ else []),
        "## Common n-grams",
        left_out,
        *([_table(["n-gram", "documents", "items"], "lrr", [
            [row["ngram"], row["documents"], row["items"]] for row in common.first
        ])] if common.first else []),
    ]  # fmt: skip
    return "\n\n".join(parts) + "\n"


def _by_source(table: list[dict[str, Any]], tasks: list[str]) -> str:
    cells = {(row["source"], row["task"]): f"{row['documents']} ({row['items']})" for row in table}
    sources = sorted({row["source"] for row in table})
    rows = [[task, *(cells.get((source, task), DASH) for source in sources)] for task in tasks]
    return _table(["benchmark", *sources], "l" + "r" * len(sources), rows)


def _table(head: list[str], align: str, rows: list[list[Any]]) -> str:
    """A Markdown table; `align` has l or r for each column."""
    lines = [head, ["---" if one == "l" else "---:" for one in align]]
    lines += [
        [f"{value:,}" if isinstance(value, int) else str(value).replace("|", "\\|") for value in r] for r in rows
    ]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)
