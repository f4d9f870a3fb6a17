"""Row accounting and metrics files: rows in = rows kept + rows removed by reason, in every stage."""

import json
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cosmopedia.errors import InternalError


@dataclass
class RowCounts:
    """Counts a stage's rows; `metrics` refuses an account that does not balance."""

    stage: str
    rows_in: int = 0
    kept: int = 0
    removed: Counter[str] = field(default_factory=Counter)

    def remove(self, reason: str, rows: int = 1) -> None:
        """Count rows taken out, by reason."""
        self.removed[reason] += rows

    def metrics(self) -> dict[str, Any]:
        """`rows_in`, `rows_kept`, `rows_removed`, `removed.<reason>`. `InternalError` when they do not add up."""
        gone = sum(self.removed.values())
        if self.rows_in != self.kept + gone:
            raise InternalError(
                f"{self.stage}: {self.rows_in} rows came in, but {self.kept} kept + {gone} removed"
                f" = {self.kept + gone}; a row was lost or counted twice"
            )
        return {
            "rows_in": self.rows_in,
            "rows_kept": self.kept,
            "rows_removed": gone,
            "removed": dict(sorted(self.removed.items())),
        }


def write_metrics(path: Path | str, metrics: dict[str, Any]) -> None:
    """Write a stage's metrics as JSON: keys in the order given, floats at six significant digits."""
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(json.dumps(_rounded(metrics), indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _rounded(value: Any) -> Any:
    if isinstance(value, float):
        return float(f"{value:.6g}")
    if isinstance(value, dict):
        return {str(k): _rounded(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_rounded(v) for v in value]
    return value
