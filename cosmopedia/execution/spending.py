"""What completing a set of requests has cost so far, over all attempts: killed, stopped and finished ones.

Each attempt keeps a small file of its own up to date, `<store root>/runs/spent/<stage>-<set>-<attempt>.json`, so that
neither a kill nor another process loses a figure. The set is the hash of all its keys: resumed work is the same set,
another experiment's is not.
"""

import json
import sys
from dataclasses import asdict, dataclass
from uuid import uuid4

from cosmopedia.core.files import write_text
from cosmopedia.core.lineage import store_root


@dataclass(frozen=True)
class Spent:
    """Of one attempt, or of several. GPU hours count from a server's first answer until it is given back."""

    completions: int = 0
    tokens: int = 0
    prompt_tokens: int = 0
    instance_hours: float = 0.0
    gpu_hours: float = 0.0
    money: float | None = None  # at the prices that the compute file stated; None: none was stated
    attempts: int = 1

    def __add__(self, other: "Spent") -> "Spent":
        money = None if self.money is None and other.money is None else (self.money or 0) + (other.money or 0)
        names = ("completions", "tokens", "prompt_tokens", "instance_hours", "gpu_hours", "attempts")
        return Spent(**{name: getattr(self, name) + getattr(other, name) for name in names}, money=money)

    def figures(self) -> dict[str, float]:
        """For records: no money where no price was stated."""
        return {name: value for name, value in asdict(self).items() if value is not None}


class Ledger:
    """The attempts at one set of requests; this process's attempt is one of them."""

    def __init__(self, stage: str, requests: str):
        self._folder, self._set = store_root() / "runs/spent", f"{stage}-{requests}"
        self._path = self._folder / f"{self._set}-{uuid4().hex[:12]}.json"

    def write(self, spent: Spent) -> None:
        """What this attempt has cost so far."""
        try:
            write_text(self._path, json.dumps(asdict(spent)) + "\n")
        except OSError as error:  # a full disk is reported by the store, which matters more
            print(f"warning: {self._path}: {error.strerror}", file=sys.stderr, flush=True)

    def total(self) -> Spent:
        """Over all attempts; zero attempts where nothing was ever sent."""
        total = Spent(attempts=0)
        for path in self._folder.glob(f"{self._set}-*.json"):
            try:
                total += Spent(**json.loads(path.read_text(encoding="utf-8")))
            except (OSError, ValueError, TypeError) as error:
                print(f"warning: {path} is damaged ({error}); its attempt is not counted", file=sys.stderr, flush=True)
        return total
