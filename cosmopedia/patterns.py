"""Regular expressions of params: checked when they are read, stopped when one takes too long on a text.

They run in the `regex` module, whose matching can be given a time limit; `re` has none. The limit ends a stage with an
error that names the pattern; it never decides what becomes of a text.
"""

from typing import Any

import regex

from cosmopedia.core.errors import ConfigError

SECONDS = 10.0  # CPU time of one pattern on one text; a linear one needs about 0.1 s for 10 MB


class Pattern:
    """A compiled pattern, case ignored, that knows where it comes from: `key` is named when it is wrong or too slow.

    `lists` are named lists of words: `\\L<document>` in the pattern matches any entry of `lists["document"]`.
    """

    def __init__(self, key: str, pattern: str, lists: dict[str, list[str]] | None = None):
        self.key, self.pattern = key, pattern
        self.compiled = compiled(pattern, lists)

    def match(self, text: str) -> "regex.Match[str] | None":
        """The match at the start of `text`. `ConfigError` when the pattern takes longer than the limit."""
        return self._timed(self.compiled.match, text)

    def search(self, text: str) -> "regex.Match[str] | None":
        """The first match in `text`. `ConfigError` when the pattern takes longer than the limit."""
        return self._timed(self.compiled.search, text)

    def _timed(self, method: Any, text: str) -> Any:
        try:
            return method(text, timeout=SECONDS)
        except TimeoutError:
            raise ConfigError(
                f"{self.key}: {self.pattern!r} takes more than {SECONDS:g} s on a text of {len(text):,} characters"
                f" that begins {text[:60]!r}; rewrite it so that repeated parts (.*, \\s+) cannot match the same"
                " characters, or limit them ({0,200})"
            ) from None


def compiled(pattern: str, lists: dict[str, list[str]] | None = None) -> "regex.Pattern[str]":
    """`pattern` as `regex` compiles it, case ignored. `ValueError`, as validators want it, when it is not one."""
    lists = lists or {}
    named: Any = lists
    try:
        return regex.compile(pattern, regex.IGNORECASE, ignore_unused=True, **named)
    except (regex.error, KeyError, TypeError, ValueError) as error:
        known = f"; lists: {', '.join(sorted(lists))}" if lists else ""
        raise ValueError(f"{pattern!r} is no regular expression: {error}{known}") from None
