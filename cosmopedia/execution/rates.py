"""Rates that runs have measured, for the forecasts of later ones: small JSON files of {name: rate} in the store."""

import json
from pathlib import Path
from typing import Any

from cosmopedia.core.files import write_text


def read_rates(path: Path) -> dict[str, Any]:
    """What is known; nothing where the file is missing or damaged."""
    try:
        rates = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return rates if isinstance(rates, dict) else {}


def write_rate(path: Path, name: str, rate: Any) -> None:
    """Keep one rate, instead of the one of the same name."""
    rates = read_rates(path) | {name: rate}
    write_text(path, json.dumps(rates, indent=2, sort_keys=True) + "\n")
