"""Two presets on the same source rows: what faithful and selfcheck found, row by row, with intervals.

    python -m perf.grounding                            # made-up texts, of which it is known what no source has
    python -m perf.grounding --runs PLAIN GROUNDED      # folders with data/generate, data/faithful, data/selfcheck

Texts are matched by source, style (`grounded_` taken off) and source row; only rows that both runs have are looked at.
Differences are GROUNDED minus PLAIN with a 95% interval by Student's t over rows. A text loops if it has 3.2 bytes or
more per zlib byte. Scores of self-check: higher means less supported by further samples.

Made-up texts are four sentences of data/samples/faithful/cases.yaml about one of its passages, of which 40% (plain) or
15% (grounded) say what the passage does not; further samples say what it says. They go through the stages' own
measures, so the figures show whether a known difference is found, and that none is found between two equal sides.
"""

import argparse
import sys
import zlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from scipy.stats import t as student

from cosmopedia.core.params import load
from cosmopedia.faithfulness.judge import KINDS
from cosmopedia.faithfulness.ratios import Ratio
from cosmopedia.faithfulness.settings import FaithfulParams
from perf.faithful import Case, read_cases
from stages.faithful.verdicts import verdict_row
from stages.selfcheck.scores import UnigramModel

LOOP = 3.2  # bytes per zlib byte
SCORES = ("unigram_mean", "unigram_max", "asked")
PLANTED = (0.40, 0.15)  # of the sentences of a made-up side
ROWS, SENTENCES, SAMPLES = 120, 4, 4
Row = tuple[str, str, str]  # source, style without grounded_, source row


@dataclass
class Text:
    """A document and what was found of it."""

    text: str
    faithful: dict[str, Any] = field(default_factory=dict)
    selfcheck: dict[str, float] = field(default_factory=dict)

    @property
    def loops(self) -> bool:
        data = self.text.encode()
        return len(data) / len(zlib.compress(data, 9)) >= LOOP

    @property
    def claims(self) -> int:
        return sum(self.faithful[name] for name in ("numbers", "dates", "names"))

    @property
    def unsupported(self) -> int:
        return sum(self.faithful[f"unsupported_{name}"] for name in ("numbers", "units", "dates", "names"))


def read_texts(folder: Path) -> dict[Row, Text]:
    """The texts of a run, first samples only."""
    texts, by_id = {}, {}
    for path in sorted((folder / "data/generate").glob("*-*.parquet")):
        columns = ["completion_id", "source", "style", "seed_id", "text", "sample_index"]
        for row in pl.read_parquet(path, columns=columns).filter(pl.col("sample_index") == 0).iter_rows(named=True):
            key = (row["source"], row["style"].removeprefix("grounded_"), row["seed_id"])
            texts[key] = by_id[row["completion_id"]] = Text(row["text"])
    for path in sorted((folder / "data/faithful").glob("*.parquet")):
        for row in pl.read_parquet(path).iter_rows(named=True):
            if row["completion_id"] in by_id:
                by_id[row["completion_id"]].faithful = row
    checked = pl.read_parquet(folder / "data/selfcheck/sentences.parquet")
    for row in checked.group_by("completion_id").agg(pl.col(SCORES).mean()).iter_rows(named=True):
        by_id[row.pop("completion_id")].selfcheck = {name: value for name, value in row.items() if value is not None}
    return texts


def made_texts(share: float, seed: int) -> dict[Row, Text]:
    """Texts of which `share` of the sentences say what their source does not."""
    dice, params = np.random.default_rng(seed), load("faithful", FaithfulParams)
    passages: dict[str, list[Case]] = {}
    for case in read_cases():
        passages.setdefault(case.source.text, []).append(case)
    texts, of_passage = {}, list(passages.values())
    for number in range(ROWS):
        cases = of_passage[number % len(of_passage)]
        sides = [[case for case in cases if bool(case.planted) == planted] for planted in (False, True)]
        chosen = [sides[int(dice.random() < share)] for _ in range(SENTENCES)]
        sentences = [some[dice.integers(len(some))].text for some in chosen]
        row = dict.fromkeys(("completion_id", "prompt_id", "source", "style", "topic"), "") | {
            "text": " ".join(sentences)
        }
        model = UnigramModel(row["text"], [sides[0][n].text for n in dice.integers(len(sides[0]), size=SAMPLES)])
        scores = np.mean([model.score(sentence) for sentence in sentences], axis=0)
        verdict = verdict_row(row, cases[0].source, list(KINDS), params)
        checked = dict(zip(SCORES, scores.tolist(), strict=False))
        texts["made", "up", f"{number:03d}"] = Text(row["text"], verdict, checked)
    return texts


def difference(pairs: Iterable[tuple[float, float]]) -> str:
    """Means of both sides, and their difference with its interval."""
    values = np.array([*pairs], float).reshape(-1, 2)
    if len(values) < 2:
        return "too few rows"
    change = values[:, 1] - values[:, 0]
    half = student.ppf(0.975, len(change) - 1) * change.std(ddof=1) / len(change) ** 0.5
    means, middle = values.mean(axis=0), change.mean()
    low, high = middle - half, middle + half
    return f"{means[0]:.3f} and {means[1]:.3f}; {middle:+.3f}, from {low:+.3f} to {high:+.3f} ({len(change)} rows)"


def claims(texts: list[Text]) -> str:
    """What of a side's texts is in no source; the interval takes texts as its units."""
    number, missing = sum(text.claims for text in texts), sum(text.unsupported for text in texts)
    some, ratio = sum(text.unsupported > 0 for text in texts), Ratio()
    for text in texts:
        ratio.add(text.unsupported, text.claims)
    interval = ratio.share_interval()
    share = f"{missing / number:.0%}, {interval[0]:.0%} to {interval[1]:.0%}" if interval else "no interval"
    return (
        f"{missing} of {number} numbers, dates and names in no source ({share}); {some} of {len(texts)} texts have one"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=Path, nargs=2, metavar=("PLAIN", "GROUNDED"), help="folders of two runs")
    options = parser.parse_args()
    if options.runs:
        plain, grounded = map(read_texts, options.runs)
        if not plain.keys() & grounded.keys():
            sys.exit(f"{' and '.join(map(str, options.runs))} share no source row: set prompts.without_passage")
        return compare(plain, grounded)
    print(f"sentences that say what the source does not: {PLANTED[0]:.0%} and {PLANTED[1]:.0%}")
    compare(made_texts(PLANTED[0], 1), made_texts(PLANTED[1], 2))
    print(f"\n{PLANTED[0]:.0%} on both sides")
    compare(made_texts(PLANTED[0], 1), made_texts(PLANTED[0], 3))


def compare(plain: dict[Row, Text], grounded: dict[Row, Text]) -> None:
    """Print what differs between the rows that both sides have, last the key figures."""
    rows = sorted(plain.keys() & grounded.keys())
    both = [(plain[row], grounded[row]) for row in rows]
    loops = [sum(pair[side].loops for pair in both) for side in (0, 1)]
    print(
        f"{len(both)} rows that both have, in {len({row[:2] for row in rows})} cells; loops: {loops[0]} and {loops[1]}"
    )
    judged = [pair for pair in both if pair[0].faithful and pair[1].faithful]
    for name in ("word_support", "ngram_support"):
        print(f"{name}: {difference((a.faithful[name], b.faithful[name]) for a, b in judged)}")
    for side, name in enumerate(("plain", "grounded")):
        print(f"{name}, without loops: {claims([pair[side] for pair in judged if not pair[side].loops])}")
    kept: dict[str, Callable[[Text, Text], bool]] = {
        "all": lambda a, b: True,
        "without loops": lambda a, b: not (a.loops or b.loops),
    }
    for title, keep in kept.items():
        for name in SCORES:
            pairs = [
                (a.selfcheck[name], b.selfcheck[name])
                for a, b in both
                if name in a.selfcheck and name in b.selfcheck and keep(a, b)
            ]
            print(f"{name}, {title}: {difference(pairs)}")
    texts = [(float(a.unsupported > 0), float(b.unsupported > 0)) for a, b in judged]
    print(f"share of texts that say what no source has, plain and grounded: {difference(texts)}")


if __name__ == "__main__":
    main()
