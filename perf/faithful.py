"""How much of what a text says beyond its source `cosmopedia.faithfulness` finds, and what it takes for that wrongly.

    python -m perf.faithful                     # data/samples/faithful/cases.yaml
    python -m perf.faithful --cases FILE        # others, in the same form
    python -m perf.faithful --part held         # those alone that nothing was tuned on
    python -m perf.faithful --show              # with each case that went wrong

Next to it a plain rule, exact strings: numbers in digits, and capitals within sentences, that the source lacks.
Printed are, by kind of case, how many planted words are in a span, and in how many cases a span is over none; then
precision and recall of spans, and CPU seconds per MB of text.
"""

import argparse
import re
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import yaml

from cosmopedia.faithfulness.judge import Source, judge

CASES = Path("data/samples/faithful/cases.yaml")
REPEATS = 3
Judge = Callable[[str, Source], list[tuple[int, int]]]


class Case(NamedTuple):
    """A text, its source, and the words in it that the source does not support."""

    part: str
    kind: str
    source: Source
    text: str
    planted: list[str]

    @property
    def places(self) -> list[tuple[int, int]]:
        return [(self.text.index(words), self.text.index(words) + len(words)) for words in self.planted]


class Outcome(NamedTuple):
    """Planted words that are in a span, planted words, spans that are over none."""

    found: int
    planted: int
    wrong: int


def read_cases(path: Path = CASES) -> Iterator[Case]:
    """The cases of a file."""
    for passage in yaml.safe_load(path.read_text(encoding="utf-8")):
        source = Source(passage["source"])
        for kind, text, *planted in passage["cases"]:
            yield Case(passage["part"], kind, source, text, planted)


def ours(text: str, source: Source) -> list[tuple[int, int]]:
    return [(span.start, span.end) for span in judge(text, source).spans]


def exact_strings(text: str, source: Source) -> list[tuple[int, int]]:
    """What a short script would do: numbers in digits, and words with a capital that begin no sentence."""
    capitals = r"(?<=[a-z,;] )[A-Z]\w+"
    return [match.span() for match in re.finditer(rf"\d[\d.,]*\d|\d|{capitals}", text) if match[0] not in source.text]


def outcome(case: Case, rule: Judge) -> Outcome:
    """What a rule makes of a case."""
    spans, places = rule(case.text, case.source), case.places
    found = sum(any(start < b and a < end for start, end in spans) for a, b in places)
    wrong = sum(not any(start < b and a < end for a, b in places) for start, end in spans)
    return Outcome(found, len(places), wrong)


def totals(outcomes: list[Outcome]) -> tuple[float, float]:
    """(precision, recall) of spans."""
    found = sum(one.found for one in outcomes)
    wrong, planted = sum(one.wrong for one in outcomes), sum(one.planted for one in outcomes)
    return found / max(found + wrong, 1), found / max(planted, 1)


def table(cases: list[Case], show: bool) -> dict[str, tuple[float, float]]:
    """Print a row per kind; (precision, recall) of each rule."""
    rules: dict[str, Judge] = {"ours": ours, "exact": exact_strings}
    results = {name: [outcome(case, rule) for case in cases] for name, rule in rules.items()}
    print(f"{'kind':18}{'cases':>7}{'planted':>9}" + "".join(f"{f'found {n}':>14}{f'wrong {n}':>14}" for n in rules))
    by_kind = defaultdict[str, list[int]](list)
    for number, case in enumerate(cases):
        by_kind[case.kind].append(number)
    for kind, numbers in by_kind.items():
        row = f"{kind:18}{len(numbers):7}{sum(len(cases[n].planted) for n in numbers):9}"
        for outcomes in results.values():
            some = [outcomes[number] for number in numbers]
            row += f"{sum(one.found for one in some):14}{sum(one.wrong > 0 for one in some):14}"
        print(row)
    if show:
        for case, one in zip(cases, results["ours"], strict=True):
            if one.found < one.planted or one.wrong:
                spans = [case.text[start:end] for start, end in ours(case.text, case.source)]
                print(f"  {case.part} {case.kind}: {case.text!r} planted {case.planted} spans {spans}")
    return {name: totals(outcomes) for name, outcomes in results.items()}


def seconds_per_mb(cases: list[Case]) -> tuple[float, float]:
    """CPU seconds per MB of text, of pairs of a page and its source: (ours, exact strings), the best of several."""
    sources, texts = Counter[str](), defaultdict[str, str](str)
    for case in cases:
        sources[case.source.text] += 1
        texts[case.source.text] += case.text + " "
    size, best = sum(map(len, texts.values())) / 1e6, [float("inf")] * 2
    for _ in range(REPEATS):
        for number, rule in enumerate((ours, exact_strings)):
            start = time.process_time()
            for source in sources:
                rule(texts[source], Source(source))
            best[number] = min(best[number], time.process_time() - start)
    return best[0] / size, best[1] / size


def main() -> str:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--cases", type=Path, default=CASES)
    parser.add_argument("--part", choices=["tuned", "held"])
    parser.add_argument("--show", action="store_true", help="the cases that went wrong")
    arguments = parser.parse_args()
    cases, figures = list(read_cases(arguments.cases)), []
    for part in [arguments.part] if arguments.part else sorted({case.part for case in cases}, reverse=True):
        some = [case for case in cases if case.part == part]
        print(f"\n{part}: {len(some)} cases")
        by_rule = table(some, arguments.show)
        figures.append(f"{part} " + ", ".join(f"{rule} {p:.2f}/{r:.2f}" for rule, (p, r) in by_rule.items()))
    speed = seconds_per_mb(cases)
    return (
        f"precision/recall of spans: {'; '.join(figures)}; {speed[0]:.2f} CPU s per MB,"
        f" {speed[0] / speed[1]:.0f} times as long as exact strings"
    )


if __name__ == "__main__":
    print(f"\n{main()}")
