"""Which measure tells corpora apart: false positives on equal corpora, power on corpora with planted faults.

    python -m perf.decide --small                                   # a handful of trainings, some minutes
    python -m perf.decide --texts FILE.parquet --folder decide      # real texts; a killed run goes on where it was
    python -m perf.decide --folder decide --table                   # trains nothing: the table of what is there

A fault is put into a share of the documents, small models are trained on the healthy and the faulty corpora with
several seeds each, and `cosmopedia.evaluation.effects` judges them as `cosmo compare` does. Printed are, for each
measure, how many equal pairs are called different, and for every fault and share, how many comparisons with
the healthy corpus are called worse and better. Pairs are drawn from the trainings at hand, so that they overlap:
the number of pairs without a common training is printed as well, and is what the figures are worth.
"""

import stages  # noqa: F401, I001 - before torch: it lets OpenMP's threads sleep, as they do in the stage

import argparse
import random
import statistics
from collections.abc import Iterator
from pathlib import Path

from cosmopedia.evaluation import readings
from cosmopedia.evaluation.arms import find
from cosmopedia.evaluation.comparison import BETTER, WORSE, verdict
from cosmopedia.evaluation.effects import Part, estimate, seed_scores
from cosmopedia.evaluation.item_scores import METRICS
from cosmopedia.evaluation.readings import ALL_SETS, HELD_OUT, Scope
from perf.planted_corpora import FAULTS, TASKS, Campaign, Settings

SHARES = (10, 30, 50, 100)
PANELS = {"early": list(TASKS), "cont.": ["continuation"]}
MEASURES = {HELD_OUT: Scope("held-out", ALL_SETS, HELD_OUT)}
MEASURES |= {f"{panel} {measure}": Scope("panel", panel, measure) for panel in PANELS for measure in METRICS}
PAIRS = 100  # drawn for a cell of the table


def trainings(seeds: int, equal: int, faults: list[str], shares: list[int]) -> Iterator[tuple[str, int]]:
    """(arm, seed) in an order in which a campaign that ends early has something of everything."""
    per_round = -(-equal // seeds)
    for number in range(seeds):
        for seed in range(number * per_round + 1, min((number + 1) * per_round, equal) + 1):
            yield "equal", seed
        for share in sorted(shares, reverse=True):
            for fault in faults:
                yield f"{fault}-{share}", number + 1


class Arms:
    """The trainings at hand, in the terms of `effects`."""

    def __init__(self, folder: Path):
        self.parts: dict[str, dict[Scope, list[Part]]] = {}
        self.seeds: dict[str, int] = {}
        for path in sorted(folder.glob("*/data/evaluate")):
            arm = find(path.parents[1].name, path)
            read = readings.read(arm.name, arm.answers, arm.held_out)
            scopes = readings.scopes(read, PANELS)
            scopes[MEASURES[HELD_OUT]] = list(read.sets.values())  # also where there is a single set
            self.parts[arm.name] = {scope: readings.parts(tasks, scope.measure) for scope, tasks in scopes.items()}
            self.seeds[arm.name] = len(read.seeds)

    def some(self, arm: str, scope: Scope, seeds: list[int]) -> list[Part]:
        """An arm with some of its seeds."""
        return [Part(part.sums[seeds], part.sizes) for part in self.parts[arm][scope]]

    def verdicts(self, arm: str, count: int, scope: Scope) -> list[str]:
        """What PAIRS draws of `count` seeds each, from the healthy corpus and from an arm, are called."""
        rng, found = random.Random(f"{arm} {count}"), []
        for _ in range(PAIRS):
            ours = rng.sample(range(self.seeds["equal"]), 2 * count if arm == "equal" else count)
            theirs = ours[count:] if arm == "equal" else rng.sample(range(self.seeds[arm]), count)
            a, b = self.some("equal", scope, ours[:count]), self.some(arm, scope, theirs)
            one = estimate(a, b)
            found.append(verdict(one.difference, one.p, scope.measure))
        return found

    def apart(self, arm: str, scope: Scope) -> float:
        """The difference to the healthy corpus, in standard deviations of its seeds; above 0: worse."""
        healthy, faulty = (seed_scores(self.parts[name][scope]) for name in ("equal", arm))
        sign = -1 if verdict(1.0, 0.0, scope.measure) == BETTER else 1
        return sign * float(faulty.mean() - healthy.mean()) / float(healthy.std(ddof=1))


def table(arms: Arms, count: int) -> dict[str, dict[str, float]]:
    """Print the table for `count` seeds per arm; returned are the shares by arm and measure."""
    names = ["equal", *sorted((name for name in arms.seeds if name != "equal"), key=_order)]
    names = [name for name in names if arms.seeds[name] >= (2 * count if name == "equal" else count)]
    if "equal" not in names:
        return {}
    print(f"\n{count} seeds per arm: % called worse|better")
    print(f"{'':16}" + "".join(f"{name.split()[-1][:12]:>13}" for name in MEASURES))
    print(f"{'':16}" + "".join(f"{name.split()[0] if ' ' in name else '':>13}" for name in MEASURES))
    shares: dict[str, dict[str, float]] = {}
    for name in names:
        words = {title: arms.verdicts(name, count, scope) for title, scope in MEASURES.items()}
        called = {title: (found.count(WORSE), found.count(BETTER)) for title, found in words.items()}
        print(f"{name:16}" + "".join(f"{f'{worse}|{better}':>13}" for worse, better in called.values()), flush=True)
        both = name == "equal"  # of equal corpora either word is wrong
        shares[name] = {title: (worse + better * both) / PAIRS for title, (worse, better) in called.items()}
    return shares


def _order(name: str) -> tuple[int, int]:
    fault, _, share = name.partition("-")
    return list(FAULTS).index(fault), int(share)


def report(folder: Path) -> None:
    """The tables, how far the faults are apart, and the summary."""
    arms = Arms(folder)
    counts = [count for count in (2, 3, 5) if arms.seeds.get("equal", 0) >= 2 * count]
    tables = {count: table(arms, count) for count in counts}
    print("\ndifference to the healthy corpus, in standard deviations of its seeds (above 0: worse)")
    for name in sorted((name for name in arms.seeds if name != "equal"), key=_order):
        apart = "".join(f"{arms.apart(name, scope):13.1f}" for scope in MEASURES.values())
        print(f"{name:16}{apart}")
    usable = {count: shares for count, shares in tables.items() if len(shares) > 1}
    if not usable:
        print("\nsummary: too few trainings for a table; run it again to go on")
        return
    count = max(usable)
    shares = usable[count]
    faulty = [row for name, row in shares.items() if name != "equal"]
    power = {title: statistics.mean(row[title] for row in faulty) for title in MEASURES}
    best = sorted(power, key=lambda title: -power[title])
    equal = arms.seeds["equal"]
    print(
        f"\nsummary: {equal} healthy trainings ({equal // (2 * count)} pairs of {count} and {count} without a common"
        f" one, {PAIRS} drawn), {len(faulty)} faulty corpora; with {count} seeds found of the faults: "
        + ", ".join(f"{title} {100 * power[title]:.0f}% (equal {100 * shares['equal'][title]:.0f}%)" for title in best)
    )


def main() -> None:
    parser = argparse.ArgumentParser(description="Which measure tells corpora apart.")
    parser.add_argument("--folder", type=Path, default=Path(".store/decide"), help="where the trainings are kept")
    parser.add_argument("--texts", default="samples", help="parquet with text, label, group (default: data/samples)")
    parser.add_argument("--seeds", type=int, default=3, help="of each faulty corpus (default 3)")
    parser.add_argument("--equal", type=int, default=24, help="seeds of the healthy corpus (default 24)")
    parser.add_argument("--faults", nargs="+", choices=FAULTS, default=list(FAULTS))
    parser.add_argument("--shares", nargs="+", type=int, default=list(SHARES), help="of documents, in %%")
    parser.add_argument("--documents", type=int, default=Settings.documents, help="of a corpus")
    parser.add_argument("--steps", type=int, default=Settings.steps, help="of 8 x 64 tokens")
    parser.add_argument("--layers", type=int, default=Settings.layers)
    parser.add_argument("--width", type=int, default=Settings.width)
    parser.add_argument("--rate", type=float, default=Settings.rate, help="learning rate")
    parser.add_argument("--small", action="store_true", help="words shuffled in all documents, 2 seeds, 4 healthy")
    parser.add_argument("--table", action="store_true", help="train nothing")
    chosen = parser.parse_args()
    if chosen.small:
        chosen.seeds, chosen.equal, chosen.faults, chosen.shares = 2, 4, ["words"], [100]
    if not chosen.table:
        shape = {name: getattr(chosen, name) for name in ("documents", "steps", "layers", "width", "rate")}
        campaign = Campaign(chosen.folder, Settings(texts=chosen.texts, **shape))
        for arm, seed in trainings(chosen.seeds, chosen.equal, chosen.faults, chosen.shares):
            campaign.run(arm, seed)
    report(chosen.folder)


if __name__ == "__main__":
    main()
