"""Is there anything in a corpus that must not leave: e-mail addresses, and secrets by their form?"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cosmopedia.corpus.personal_data import find, masked
from cosmopedia.execution.redaction import RANDOM, REDACTED, SECRET_VALUE

TEXTS = ("prompt", "text", "seed_data")  # the published columns that have texts


@dataclass(frozen=True)
class Finding:
    """Something in a row; the value itself is not repeated."""

    completion_id: str
    column: str
    kind: str  # "email" | "secret"


def is_secret(value: str) -> bool:
    """Whether a match of SECRET_VALUE is more than words of that form: "bearer instruments", "Basic Understanding"."""
    if value.startswith("-----"):
        return True
    scheme, _, rest = value.partition(" ")
    return (
        bool(RANDOM.fullmatch(rest.strip())) if scheme.lower() in ("bearer", "basic") else any(map(str.isdigit, value))
    )


def kinds_in(text: str) -> list[str]:
    """What is in a text that must not leave."""
    kinds = ["email"] if find(text, ("email",)) else []
    return kinds + (["secret"] if any(is_secret(match[0]) for match in SECRET_VALUE.finditer(text)) else [])


def cleared(text: str) -> str:
    """The text without it."""
    text = masked(text, ("email",))
    return SECRET_VALUE.sub(lambda match: REDACTED if is_secret(match[0]) else match[0], text)


def findings(rows: Iterable[dict[str, Any]]) -> Iterator[Finding]:
    """Everything in rows with a completion_id and TEXTS."""
    for row in rows:
        for column in TEXTS:
            for kind in kinds_in(row[column]):
                yield Finding(row["completion_id"], column, kind)


def in_files(paths: Iterable[Path], read: Callable[[Path], str]) -> list[str]:
    """Names of text files with a secret."""
    return [path.name for path in paths if "secret" in kinds_in(read(path))]
