"""Row counts and metrics files: rows in = rows kept + rows removed by reason, in every stage."""

import json
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cosmopedia.core.errors import InternalError
from cosmopedia.core.files import write_text


@dataclass
class RowCounts:
    """A stage's rows by what became of them; `metrics` refuses counts that do not balance."""

    stage: str
    rows_in: int = 0
    kept: int = 0
    removed: Counter[str] = field(default_factory=Counter)

    def remove(self, reason: str, rows: int = 1) -> None:
        """Count rows that were removed, by reason."""
        self.removed[reason] += rows

    def metrics(self) -> dict[str, Any]:
        """`rows_in`, `rows_kept`, `rows_removed`, `removed.<reason>`. `InternalError` when they do not add up."""
        removed = sum(self.removed.values())
        if self.rows_in != self.kept + removed:
            raise InternalError(
                f"{self.stage}: {self.rows_in} rows came in, but {self.kept} kept + {removed} removed"
                f" = {self.kept + removed}; a row was lost or counted twice"
            )
        return {
            "rows_in": self.rows_in,
            "rows_kept": self.kept,
            "rows_removed": removed,
            "removed": dict(sorted(self.removed.items())),
        }


def write_metrics(path: Path | str, metrics: dict[str, Any]) -> None:
    """Write a stage's metrics as JSON: keys in the order given, floats at six significant digits."""
    write_text(Path(path), json.dumps(_rounded(metrics), indent=2, ensure_ascii=False) + "\n")


def _rounded(value: Any) -> Any:
    if isinstance(value, float):
        return float(f"{value:.6g}")
    if isinstance(value, dict):
        return {str(k): _rounded(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_rounded(v) for v in value]
    return value
