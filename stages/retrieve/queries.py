"""What a source row is looked up by."""

import json
from collections.abc import Sequence
from typing import Any, Literal

Part = Literal["title", "context", "text"]


def query_of(row: dict[str, Any], parts: Sequence[Part], chars: int) -> str:
    """A SOURCE row's title, the names in its context (course, chapter; not what was covered before), its text's
    beginning: those of them that `parts` lists."""
    pieces = []
    if "title" in parts:
        pieces.append(row["title"])
    if "context" in parts:
        context = json.loads(row["context"])
        named = [value for name, value in context.items() if not name.startswith("covered")]
        lists = (value if isinstance(value, list) else [value] for value in named)
        pieces += [name for several in lists for name in several if isinstance(name, str)]
    if "text" in parts:
        pieces.append(row["text"][:chars])
    return "\n".join(pieces)
