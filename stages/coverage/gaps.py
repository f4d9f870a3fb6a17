"""The topics that the corpus lacks, as `cosmo topics gaps` lists them and as records of the source `taxonomy`."""

import json
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from cosmopedia.core.errors import ConfigError
from cosmopedia.core.files import write_text
from cosmopedia.core.params import profile_path
from cosmopedia.tables.contracts import COVERAGE, PROMPT, SOURCE, Contract
from cosmopedia.tables.parquet import read_table

TOPICS, ROWS = Path("data/coverage/topics.parquet"), Path("data/sources/taxonomy.parquet")
PROMPTS = Path("data/prompts")
COLUMNS = ("id", "name", "path", "keywords", "description", "documents", "seeds", "wanted", "missing")


def gaps() -> list[dict[str, Any]]:
    """The topics with fewer documents than wanted, those that lack most first. `ConfigError` when coverage is off."""
    return [row for row in _topics() if row["missing"]]


def rows_to_write() -> list[dict[str, Any]]:
    """What the source `taxonomy` is to have, as `missing`: rows for the gaps, and those that there are prompts of.

    Without these a topic that its rows have filled would lose them with the next list, and be a gap again. A topic has
    its rows in one order, so that a longer list has the shorter one's.
    """
    topics = _topics()
    ids = {row["id"] for row in topics}
    earlier = _names([ROWS] if ROWS.exists() else [], SOURCE, "row_id")
    asked = earlier & _names(PROMPTS.glob("taxonomy-*.parquet"), PROMPT, "seed_id")
    had, tried = (_by_topic(names, ids) for names in (earlier, asked))
    rows = []
    for row in topics:
        kept = had[row["id"]] if tried[row["id"]] else 0
        more = tried[row["id"]] + row["missing"] if row["missing"] else 0
        if kept or more:
            rows.append(row | {"missing": max(kept, more)})
    return rows


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


def _names(files: Iterable[Path], contract: Contract, column: str) -> set[str]:
    """The ids of source rows in tables, without "taxonomy/"."""
    tables = (read_table(file, contract, [column]) for file in files)
    return {name.removeprefix("taxonomy/") for table in tables for name in table[column].to_pylist()}


def _by_topic(names: Iterable[str], ids: set[str]) -> Counter[str]:
    """How many rows each topic has; a row's id is the topic's, or "<topic>/<keyword>"."""
    found: Counter[str] = Counter()
    for name in names:
        own = name
        while own and own not in ids:
            own = own.rpartition("/")[0]
        found[own] += 1
    return found


def write_gaps(path: Path, rows: list[dict[str, Any]]) -> None:
    """Write topics as JSON lines, which the source `taxonomy` reads."""
    write_text(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
