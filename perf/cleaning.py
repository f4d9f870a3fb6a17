"""Precision and recall of cleaning on labelled texts, what each pattern touches, and its cost.

    python -m perf.cleaning                            # data/samples/cleaning
    python -m perf.cleaning --passages FILE.parquet    # also real texts (column `text`): what is touched, CPU

A good text counts as touched when anything of it is gone; boilerplate as gone when exactly the document is left.
The profile's `min_tokens` does not apply.
"""

import argparse
import json
import time
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import polars as pl

from cosmopedia.core.params import check, read_yaml
from cosmopedia.corpus.chat import ChatPatterns
from stages.clean.rules import Cleaned, CleanParams, Removed, clean

TEXTS = Path("data/samples/cleaning/texts.jsonl")
SHOWN = 3  # examples of what is wrong


def read_params(profile: str, root: Path = Path()) -> CleanParams:
    """clean's params with a profile, without its shortest length."""
    values = read_yaml(root / "params.yaml")["clean"] | read_yaml(root / f"profiles/{profile}.yaml")["clean"]
    return check({**values, "min_tokens": 0, "patterns": ChatPatterns.read(root)}, CleanParams, "clean")


def judge(text: str, finish_reason: str, params: CleanParams) -> Cleaned | Removed:
    """What cleaning makes of a text; tokens are its words."""
    return clean(text, finish_reason, len(text.split()), params, lambda changed: len(changed.split()))


def is_right(row: dict[str, Any], result: Cleaned | Removed) -> bool:
    """Is exactly `keep` left of a labelled text, or, where that is nothing, is the text removed as a refusal?"""
    if isinstance(result, Removed):
        return not row["keep"] and result.reason == "refusal"
    return bool(row["keep"]) and result.text.strip() == row["keep"].strip()


def measure(rows: Iterable[dict[str, Any]], params: CleanParams) -> dict[str, dict[str, Any]]:
    """By kind: texts, how many of them are treated as labelled, and the ids of the others."""
    figures: dict[str, dict[str, Any]] = {}
    for row in rows:
        result = judge(row["before"] + row["keep"] + row["after"], row["finish_reason"], params)
        figure = figures.setdefault(row["kind"], {"texts": 0, "right": 0, "wrong": []})
        figure["texts"] += 1
        if is_right(row, result):
            figure["right"] += 1
        else:
            figure["wrong"].append(row["id"])
    return figures


def summary(figures: dict[str, dict[str, Any]]) -> dict[str, float]:
    """Shares: good texts that were touched; boilerplate gone (recall); touched texts that had some (precision)."""
    chat = [figures[kind] for kind in ("opening", "closing", "refusal")]
    gone, touched = sum(one["right"] for one in chat), len(figures["good"]["wrong"])
    return {
        "good_touched": touched / figures["good"]["texts"],
        "recall": gone / sum(one["texts"] for one in chat),
        "precision": gone / max(1, gone + touched),
        "cut_right": figures["cut"]["right"] / figures["cut"]["texts"],
    }


def passages(path: Path, params: CleanParams) -> None:
    """What the patterns touch in texts that nobody labelled, and the CPU time."""
    texts = pl.read_parquet(path, columns=["text"])["text"].to_list()
    judge(texts[0], "eos_token", params)
    counts: Counter[str] = Counter()
    start = time.process_time()
    for text in texts:
        result = judge(text, "eos_token", params)
        counts.update([f"removed: {result.reason}"] if isinstance(result, Removed) else result.changes)
    seconds = time.process_time() - start
    print(f"{path.name}: {len(texts)} texts, {1000 * seconds / len(texts):.2f} CPU s per 1,000; {dict(counts)}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--profile", default="laptop")
    parser.add_argument("--passages", type=Path)
    options = parser.parse_args()
    params = read_params(options.profile)
    rows = [json.loads(line) for line in TEXTS.read_text(encoding="utf-8").splitlines()]
    for half in ("tuned", "held_out", "later", "fresh"):
        figures = measure((row for row in rows if row["half"] == half), params)
        print(half, {name: round(share, 3) for name, share in summary(figures).items()})
        for kind, figure in figures.items():
            print(f"  {kind:8} {figure['right']:3} of {figure['texts']:3}  {' '.join(figure['wrong'][:SHOWN])}")
    if options.passages:
        passages(options.passages, params)


if __name__ == "__main__":
    main()
