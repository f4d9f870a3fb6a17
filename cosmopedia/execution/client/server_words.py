"""A server's words, fit to be shown and stored: without tokens and control characters, and short."""

import base64
import json
from urllib.parse import quote

from cosmopedia.execution.redaction import REDACTED, redact

LONGEST = 300  # characters
SHORTEST_TOKEN = 4  # characters; a shorter one would be found in words that have nothing to do with it


def server_words(words: object, headers: dict[str, str], longest: int = LONGEST) -> str:
    """On one line, at most so long; this client's token, in any spelling, and what looks like one are hidden."""
    text = str(words)
    for spelling in _spellings(token_in(headers)):
        text = text.replace(spelling, REDACTED)
    text = redact(text)
    text = " ".join("".join(c if c.isprintable() else " " for c in text).split())
    return text if len(text) <= longest else f"{text[: longest - 3]}..."


def token_in(headers: dict[str, str]) -> str:
    """The bearer token of a client's headers, or nothing."""
    return headers.get("Authorization", "").removeprefix("Bearer ")


def _spellings(token: str) -> set[str]:
    if len(token) < SHORTEST_TOKEN:
        return set()
    return {token, quote(token, safe=""), json.dumps(token)[1:-1], base64.b64encode(token.encode()).decode()}
