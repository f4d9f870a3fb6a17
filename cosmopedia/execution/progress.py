"""Progress of a long step: a bar on a terminal, a line every few seconds in a log file."""

import sys
import time
from collections.abc import Iterable, Iterator
from typing import TypeVar

from tqdm import tqdm

T = TypeVar("T")
LOG_SECONDS = 5.0


class Progress:
    """Counts units done out of a total, with rate and ETA.

    On a terminal it is a tqdm bar; elsewhere at most one line every five seconds, and one at the end, so that a log
    file stays readable: `generate: 480/960 prompts (50%), 12.1/s, ETA 0:40, cached 200, failed 0`. While `waiting`
    says for what the first unit waits, the line says that and gives no rate. `under_way` units count as half done in
    the ETA: the first of a batch of 64 that takes a minute does not stand for a minute per unit.
    """

    def __init__(self, stage: str, total: int | None, unit: str):
        self.stage, self.total, self.unit, self.done = stage, total, unit, 0
        self.notes: dict[str, object] = {}
        self.waiting: str | None = None
        self.under_way = 0
        self._start = self._shown = time.monotonic()
        self._bar = tqdm(total=total, desc=stage, unit=f" {unit}", leave=False) if sys.stderr.isatty() else None

    def advance(self, count: int = 1, **notes: object) -> None:
        """Add finished units; `notes` (name=value) follow at the end of the line."""
        self.done += count
        self.notes.update(notes)
        if self._bar is not None:
            self._bar.set_postfix_str(
                self.waiting or ", ".join(f"{k}={v}" for k, v in self.notes.items()), refresh=False
            )
            self._bar.update(count)
        elif time.monotonic() - self._shown >= LOG_SECONDS:
            self._shown = time.monotonic()
            print(self.line(), file=sys.stderr, flush=True)

    def line(self) -> str:
        """The state as one line."""
        seconds = max(time.monotonic() - self._start, 1e-9)
        share = f"/{self.total} {self.unit} ({100 * self.done // self.total}%)" if self.total else f" {self.unit}"
        parts = [f"{self.stage}: {self.done}{share}"]
        if self.waiting:
            return f"{parts[0]}, {self.waiting}"
        parts.append(f"{self.done / seconds:.1f}/s")
        if self.total:
            left = remaining_seconds(seconds, self.done, self.total, self.under_way) or 0
            parts.append(f"ETA {int(left) // 60}:{int(left) % 60:02d}")
        return ", ".join(parts + [f"{name} {value}" for name, value in self.notes.items()])

    def close(self) -> None:
        """End the bar; in a log, print a last line if the step was long enough to have shown one."""
        if self._bar is not None:
            self._bar.close()
        elif self._shown > self._start:
            print(self.line(), file=sys.stderr, flush=True)

    def __enter__(self) -> "Progress":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def remaining_seconds(seconds: float, done: int, total: int, under_way: int) -> float | None:
    """How much longer `total` units take when `done` took so long and half of `under_way` counts; None at first."""
    if not done:
        return None
    spent = min(done + under_way / 2, total)
    return (total - spent) * seconds / spent


def track(items: Iterable[T], stage: str, total: int | None, unit: str) -> Iterator[T]:
    """Yield the items and show how far along they are."""
    with Progress(stage, total, unit) as progress:
        for item in items:
            yield item
            progress.advance()
