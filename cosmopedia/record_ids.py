"""What a record of a dataset is called."""

from typing import Any

from cosmopedia.core.rng import content_hash


def row_id(values: dict[str, Any], text: str) -> str:
    """The row's own id, or the hash of its text where it has none; NaN, as text or number, is none. `TypeError` for an
    id that is a list or an object."""
    own = values.get("id")
    if isinstance(own, list | dict):
        raise TypeError(f"id must be text or a number, found {type(own).__name__}")
    return content_hash(text) if own is None or str(own).casefold() in ("", "nan") else str(own)
