"""The topics that the corpus lacks, as `cosmo topics gaps` lists them and as records of the source `taxonomy`."""

import json
from pathlib import Path
from typing import Any

from cosmopedia.core.errors import ConfigError
from cosmopedia.core.files import write_text
from cosmopedia.core.params import profile_path
from cosmopedia.tables.contracts import COVERAGE
from cosmopedia.tables.parquet import read_table

TOPICS = Path("data/coverage/topics.parquet")
COLUMNS = ("id", "name", "path", "keywords", "description", "documents", "seeds", "wanted", "missing")


def gaps() -> list[dict[str, Any]]:
    """The topics with fewer documents than wanted, those that lack most first. `ConfigError` when coverage is off."""
    rows = read_table(TOPICS, COVERAGE).to_pylist()
    if not rows:
        raise ConfigError(
            f"{TOPICS} is empty, since coverage is off: run"
            f" dvc exp run -S {profile_path()}:coverage.enabled=true coverage"
        )
    lacking = [row for row in rows if row["leaf"] and row["missing"]]
    lacking.sort(key=lambda row: (-row["missing"], row["path"], row["name"], row["id"]))
    return [{name: row[name] for name in COLUMNS} for row in lacking]


def write_gaps(path: Path, rows: list[dict[str, Any]]) -> None:
    """Write the gaps as JSON lines, which the source `taxonomy` reads."""
    write_text(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
