"""When a text is unfaithful: the limits that faithful, pilot and clean share (`faithful.limits`)."""

from pydantic import Field

from cosmopedia.faithfulness.judge import Verdict
from cosmopedia.params import Params


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
        beyond = {
            "max_unsupported": self.max_unsupported is not None and spans > self.max_unsupported,
            "max_unsupported_share": self.max_unsupported_share is not None
            and claims >= self.min_claims
            and spans > self.max_unsupported_share * claims,
            "min_word_support": self.min_word_support is not None and verdict.word_support < self.min_word_support,
            "min_ngram_support": self.min_ngram_support is not None and verdict.ngram_support < self.min_ngram_support,
        }
        return [name for name, is_beyond in beyond.items() if is_beyond]
