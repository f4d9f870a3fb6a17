"""The search for settings: a tier at a time, one thing after the other, each from the best so far.

Every trial is kept in a file as soon as it ends, and the minutes of one that is running are kept too, so that a search
that was killed goes on where it was and never takes more than its minutes.
"""

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from cosmopedia.core.files import write_text
from cosmopedia.execution.tuning.knobs import Knob, Settings

MARGIN = 0.03  # that a setting must win by; less is noise
TIERS = (1, 2)


@dataclass(frozen=True)
class Trial:
    """What one set of settings did."""

    settings: dict[str, Any]
    tokens_per_second: float = 0.0  # per GPU; of all servers together where there is none
    minutes: float = 0.0  # times GPUs
    completions: int = 0
    failure: str = ""  # why it could not be measured
    whole: bool = True  # False: it ended with the minutes, and its rate is a lower bound


@dataclass
class Journal:
    """The trials of one search, in a file."""

    path: Path
    trials: list[Trial] = field(default_factory=list)
    under_way: float = 0.0  # GPU minutes of trials that were killed

    @classmethod
    def read(cls, path: Path) -> "Journal":
        """What an earlier call has tried; nothing where the file is missing or damaged."""
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            return cls(path, [Trial(**one) for one in content["trials"]], float(content["under_way"]))
        except (OSError, ValueError, TypeError, KeyError):
            return cls(path)

    @property
    def minutes(self) -> float:
        return sum(trial.minutes for trial in self.trials) + self.under_way

    def found(self, settings: Settings) -> list[Trial]:
        return [trial for trial in self.trials if trial.settings == dict(settings)]

    def note(self, minutes: float) -> None:
        """Keep what the trial that is running has taken: a killed one has taken it, too."""
        content = {"trials": [asdict(trial) for trial in self.trials], "under_way": self.under_way + minutes}
        write_text(self.path, json.dumps(content, indent=1) + "\n")

    def add(self, trial: Trial) -> None:
        self.trials.append(trial)
        self.note(0.0)


class OutOfMinutes(Exception):
    """The minutes are used up."""


Measure = Callable[[Settings, float], Trial]  # settings and the minutes that are left


@dataclass
class Search:
    """Trials within `minutes`, times GPUs; those in the journal are not made again."""

    journal: Journal
    measure: Measure
    minutes: float
    said: Callable[[str], None] = print

    def trial(self, settings: Settings, repeat: int = 0) -> Trial:
        """One trial, or the one that was made before; `repeat` counts trials of the same settings."""
        known = self.journal.found(settings)
        if len(known) > repeat:
            return known[repeat]
        left = self.minutes - self.journal.minutes
        if left <= 0:
            raise OutOfMinutes
        trial = self.measure(settings, left)
        self.journal.add(trial)
        self.said(sentence(trial))
        return trial

    def best(self, knobs: Sequence[Knob], start: Settings) -> dict[str, Any]:
        """The settings that win, beginning from those in use (`start` has the value of each knob that has one)."""
        best = dict(start)
        try:
            rate = self.trial(best).tokens_per_second
            for knob in in_tiers(knobs):
                for value in knob.values:
                    if value == best.get(knob.name):
                        continue
                    tried = {**best, knob.name: value}
                    trial = self.trial(tried)
                    if trial.whole and trial.tokens_per_second > rate * (1 + MARGIN):
                        best, rate = tried, trial.tokens_per_second
            if best != start:  # both once more: a machine that was busy for a minute must not decide
                self.trial(start, repeat=1)
                self.trial(best, repeat=1)
        except OutOfMinutes:
            self.said(f"the {self.minutes:g} minutes are used up; what was not tried stays as it is")
        return best if self.rate(best) > self.rate(start) * (1 + MARGIN) else dict(start)

    def rate(self, settings: Settings) -> float:
        """Mean over the trials of some settings."""
        rates = [trial.tokens_per_second for trial in self.journal.found(settings) if not trial.failure]
        return sum(rates) / len(rates) if rates else 0.0


def in_tiers(knobs: Sequence[Knob]) -> Iterator[Knob]:
    """The first tier's knobs, then the second's."""
    for tier in TIERS:
        yield from (knob for knob in knobs if knob.tier == tier)


def sentence(trial: Trial) -> str:
    """A trial in words: "batch_size 16, instances 2: 31.2 tokens/s (0.6 minutes)"."""
    settings = ", ".join(f"{name.removeprefix('--')} {value}" for name, value in trial.settings.items())
    if trial.failure:
        return f"{settings}: {trial.failure} ({trial.minutes:.1f} minutes)"
    low = "" if trial.whole else "at least "
    return f"{settings}: {low}{trial.tokens_per_second:,.1f} tokens/s ({trial.minutes:.1f} minutes)"
