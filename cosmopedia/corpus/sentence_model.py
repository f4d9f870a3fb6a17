"""The sentence model of embed's section, for other stages that want vectors: all have one model."""

from typing import NamedTuple

from pydantic import ConfigDict, Field

from cosmopedia.core.params import Params
from cosmopedia.corpus.encoder import Encoder, find_model


class SentenceModel(Params):
    """What is read of embed's section."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    model: str
    revision: str | None
    max_tokens: int = Field(ge=8)

    def find(self) -> "Model":
        """The model at its resolved revision."""
        return Model(self.model, find_model(self.model, self.revision)[1], self.max_tokens)


class Model(NamedTuple):
    """A sentence model at a resolved revision."""

    name: str
    revision: str
    max_tokens: int

    def encoder(self) -> Encoder:
        return Encoder.at(*self)
