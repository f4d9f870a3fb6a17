"""What is contaminated by which items: rows of pairs, and of these metrics, a table and a Markdown report."""

import json
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

from cosmopedia.contamination.index import DETECTORS, PUBLISHED_RULE, RULES, DecontaminateParams, Findings, Match

SHOWN = 20  # n-grams, and pairs that the two rules judge differently
DASH = "–"
ACTIONS = {"remove": "removed", "report": "kept", None: "not looked for"}

# What the evidence of a removal says of an item.
EVIDENCE = ("task", "item_id", "form", "detectors", "ngram", "matched", "ratio", "window_ratio")

Row = dict[str, Any]  # a document, an item, and the rules by which the one contaminates the other


@dataclass(frozen=True)
class Common:
    """The n-grams that are in too many documents to lead to a candidate."""

    max_documents: int | None  # that an n-gram may be in; None: any number
    ngrams: int  # that are in more
    first: list[Row]  # ngram, documents, items; most documents first


def contaminated_pairs(about: dict[str, str], findings: Findings, params: DecontaminateParams) -> Iterator[Row]:
    """A row per item that contaminates a document (`about`: what it is) by any detector, or by the other ratio."""
    for _, several in groupby(findings.matches, key=lambda match: match.item.item_id):
        matches = [*several]
        by_detector = {name: [m for m in matches if name in m.detectors(params)] for name in DETECTORS}
        rules = [rule for rule in RULES if any(match.published(params, rule) for match in matches)]
        detectors = [name for name in DETECTORS if by_detector[name]]
        if detectors or rules:
            # the strictest detector's match is shown, of several forms the one that is there to the largest part
            shown = by_detector[detectors[0]] if detectors else [m for m in matches if m.published(params, rules[0])]
            best = max(shown, key=lambda match: match.plain)
            yield about | {"rules": rules, "detectors": detectors} | _evidence(best)


def _evidence(match: Match) -> Row:
    """What shows that a pair matches."""
    return {
        "task": match.item.task,
        "item_id": match.item.item_id,
        "form": match.item.form,
        "ngram": match.ngram,
        "matched": match.matched,
        "ratio": round(match.plain, 4),
        "window_ratio": round(match.window, 4),
    }


def merged_pairs(folder: Path) -> list[Row]:
    """The pairs that all tasks have left in a folder (JSON lines), by document and item."""
    lines = (line for path in folder.glob("*.jsonl") for line in path.read_text(encoding="utf-8").splitlines())
    return sorted(map(json.loads, lines), key=lambda row: (row["completion_id"], row["source"], row["item_id"]))


def contamination_table(rows: list[Row], detectors: set[str]) -> list[dict[str, Any]]:
    """Contaminated documents and distinct items by source and task, by any of some detectors."""
    documents: dict[tuple[str, str], set[str]] = defaultdict(set)
    items: dict[tuple[str, str], set[str]] = defaultdict(set)
    for row in rows:
        if detectors & {*row["detectors"]}:
            documents[row["source"], row["task"]].add(row["completion_id"])
            items[row["source"], row["task"]].add(row["item_id"])
    return [
        {"source": source, "task": task, "documents": len(documents[source, task]), "items": len(items[source, task])}
        for source, task in sorted(documents)
    ]


def side_by_side(rows: list[Row], column: str, names: tuple[str, ...]) -> dict[str, dict[str, int]]:
    """Documents and distinct items that each of `names` in a column of lists finds, and that only one of them does."""
    found = {
        count: {name: {row[key] for row in rows if name in row[column]} for name in names}
        for count, key in (("documents", "completion_id"), ("items", "item_id"))
    }
    counts = {name: {count: len(found[count][name]) for count in found} for name in names}
    for name in names:
        others = {count: set().union(*(found[count][other] for other in names if other != name)) for count in found}
        counts[f"{name}_only"] = {count: len(found[count][name] - others[count]) for count in found}
    return counts


def by_form(rows: list[Row]) -> dict[str, int]:
    """Documents by the form in which they have an item."""
    documents: dict[str, set[str]] = defaultdict(set)
    for row in rows:
        if row["detectors"]:
            documents[row["form"]].add(row["completion_id"])
    return {form: len(several) for form, several in sorted(documents.items())}


def markdown(
    metrics: dict[str, Any], rows: list[Row], rule: DecontaminateParams, tasks: list[str], common: Common
) -> str:
    """The report: the article's table, the detectors and the two ratios next to each other, common n-grams."""
    by_rule, found = metrics["rules"], metrics["detectors"]
    items = metrics["benchmark_items"]
    names = {"plain": "plain (published)", "window": f"window of {rule.window:g} lengths"}
    left_out = "`common_ngram` is off: every n-gram makes candidates."
    if common.max_documents is not None:
        left_out = (
            f"{common.ngrams:,} n-grams stand in more than {common.max_documents:,} documents and make no candidate by"
            f" themselves; {metrics['candidates']['common_only']:,} pairs share nothing else."
        )
    forms = ", ".join(f"{form} {count:,}" for form, count in metrics["forms"].items())
    differ = [row for row in rows if len(row["rules"]) == 1]
    what = {PUBLISHED_RULE: f"published, by the ratio `{rule.ratio}` above {rule.max_ratio:g}"}
    what |= {"forms": "forms, by the window's ratio or part by part", "tolerant": "tolerant, edited copies"}
    parts = [
        "# Contamination",
        f"{metrics['rows_removed']:,} of {metrics['rows_in']:,} documents removed."
        f" {metrics['candidates']['pairs']:,} pairs in {metrics['candidates']['documents']:,}"
        " documents shared an n-gram with an item.",
        _table(["detector", "its documents are", "documents", "items", "documents by this one alone"], "llrrr", [
            [what[name], ACTIONS[getattr(rule, name)], *found[name].values(), found[f"{name}_only"]["documents"]]
            for name in DETECTORS
        ]),
        f"Documents by the form of the item: {forms or DASH}.",
        _table(["published rule: items", "number", "found by"], "lrl", [
            [f"of {rule.ngram} words or more", items["checked"], f"any {rule.ngram} words in a row"],
            [f"of {rule.shortest_item} to {rule.ngram - 1} words", items["short"], "all their words in a row"],
            [f"of fewer than {rule.shortest_item} words", items["shortest"], "documents that are nothing else"],
        ]),
        "## Contaminated documents by source and benchmark",
        "In brackets the distinct benchmark items that they hold.",
        _by_source(contamination_table(rows, rule.removing()), tasks),
        "## Paraphrases",
        _paraphrases(metrics["paraphrases"], rule.paraphrases),
        "## The two ratios of the published rule",
        _table(["by", "documents", "items", "documents by this one alone"], "lrrr", [
            [names[one], *by_rule[one].values(), by_rule[f"{one}_only"]["documents"]] for one in RULES
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


def _paraphrases(counts: dict[str, int], action: str) -> str:
    """The section about what the stage paraphrases has found."""
    if not counts["documents"]:
        return "None: the stage `paraphrases` is off (`paraphrases.enabled`), or the model judged no pair to be one."
    return (
        f"The generation model finds paraphrases in {counts['documents']:,} documents, of {counts['items']:,} items;"
        f" {counts['documents_of_detectors_too']:,} of these documents are found by a detector too. The others are"
        f" {ACTIONS[action]}; `data/paraphrases/pairs.parquet` has the passages."
    )


def _by_source(table: list[dict[str, Any]], tasks: list[str]) -> str:
    cells = {(row["source"], row["task"]): f"{row['documents']} ({row['items']})" for row in table}
    sources = sorted({row["source"] for row in table})
    rows = [[task, *(cells.get((source, task), DASH) for source in sources)] for task in tasks]
    return _table(["benchmark", *sources], "l" + "r" * len(sources), rows)


def _table(head: list[str], align: str, rows: list[list[Any]]) -> str:
    """A Markdown table; `align` has l or r per column."""
    lines = [head, ["---" if one == "l" else "---:" for one in align]]
    lines += [
        [f"{value:,}" if isinstance(value, int) else str(value).replace("|", "\\|") for value in r] for r in rows
    ]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)
