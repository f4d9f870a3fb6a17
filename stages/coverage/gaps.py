"""The topics that the corpus lacks, as `cosmo topics gaps` lists them and as records of the source `taxonomy`."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

from cosmopedia.core.errors import ConfigError
from cosmopedia.core.files import write_text
from cosmopedia.core.params import profile_path
from cosmopedia.tables.contracts import COVERAGE, SOURCE
from cosmopedia.tables.parquet import read_table

TOPICS, ROWS = Path("data/coverage/topics.parquet"), Path("data/sources/taxonomy.parquet")
COLUMNS = ("id", "name", "path", "keywords", "description", "documents", "seeds", "wanted", "missing")


def gaps() -> list[dict[str, Any]]:
    """The topics with fewer documents than wanted, those that lack most first. `ConfigError` when coverage is off."""
    return [row for row in _topics() if row["missing"]]


def rows_to_write() -> list[dict[str, Any]]:
    """What the source `taxonomy` is to have: the gaps, and of each topic the rows that it has already.

    Without these a topic that its rows have filled would lose them with the next list, and be a gap again.
    """
    topics = _topics()
    earlier = _earlier_rows({row["id"] for row in topics})
    wanted = [row | {"missing": row["missing"] + earlier[row["id"]]} for row in topics]
    return [row for row in wanted if row["missing"]]


def _topics() -> list[dict[str, Any]]:
    rows = read_table(TOPICS, COVERAGE).to_pylist()
    if not rows:
        raise ConfigError(
            f"{TOPICS} is empty, since coverage is off: run"
            f" dvc exp run -S {profile_path()}:coverage.enabled=true coverage"
        )
    topics = sorted(
        (row for row in rows if row["leaf"]),
        key=lambda row: (-row["missing"], row["path"], row["name"], row["id"]),
    )
    return [{name: row[name] for name in COLUMNS} for row in topics]


def _earlier_rows(ids: set[str]) -> Counter[str]:
    """How many rows of each topic the source `taxonomy` has; a row's id is the topic's, or "<topic>/<keyword>"."""
    found: Counter[str] = Counter()
    if ROWS.exists():
        for name in read_table(ROWS, SOURCE, ["row_id"])["row_id"].to_pylist():
            own = name.removeprefix("taxonomy/")
            while own and own not in ids:
                own = own.rpartition("/")[0]
            found[own] += 1
    return found


def write_gaps(path: Path, rows: list[dict[str, Any]]) -> None:
    """Write topics as JSON lines, which the source `taxonomy` reads."""
    write_text(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
