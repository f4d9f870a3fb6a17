"""The section `faithful` of the params: which cells are judged by what, and when a text is unfaithful."""

from fnmatch import fnmatchcase
from typing import Literal

from pydantic import Field

from cosmopedia.core.params import Params
from cosmopedia.faithfulness.judge import KINDS, Verdict


class Limits(Params):
    """A text beyond one of these is unfaithful; null: never."""

    max_unsupported: int | None = Field(ge=0)  # spans
    max_unsupported_share: float | None = Field(ge=0, le=1)  # of a text's claims
    min_claims: int = Field(ge=1)  # a text with fewer is not judged by the share
    min_word_support: float | None = Field(ge=0, le=1)
    min_ngram_support: float | None = Field(ge=0, le=1)

    def exceeded(self, verdict: Verdict) -> list[str]:
        """The limits that a text is beyond."""
        spans, claims = len(verdict.spans), verdict.claims.total()
        share = self.max_unsupported_share if claims >= self.min_claims else None
        beyond = {
            "max_unsupported": self.max_unsupported is not None and spans > self.max_unsupported,
            "max_unsupported_share": share is not None and spans > share * claims,
            "min_word_support": self.min_word_support is not None and verdict.word_support < self.min_word_support,
            "min_ngram_support": self.min_ngram_support is not None and verdict.ngram_support < self.min_ngram_support,
        }
        return [name for name, is_beyond in beyond.items() if is_beyond]


class FaithfulParams(Params):
    """What is judged."""

    enabled: bool
    cells: list[str]  # patterns of `<source>-<style>`
    invented: dict[Literal["number", "unit", "date", "name"], list[str]]  # patterns of cells that may have their own
    limits: Limits

    def judges(self, cell: str) -> bool:
        return any(fnmatchcase(cell, pattern) for pattern in self.cells)

    def kinds(self, cell: str) -> list[str]:
        """What is looked at in a cell's texts."""
        return [kind for kind in KINDS if not any(fnmatchcase(cell, one) for one in self.invented.get(kind, []))]
