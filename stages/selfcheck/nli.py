"""A natural-language-inference model as a third judge: whether a sample contradicts a sentence.

Section 5.4 of the paper: the sample is the premise, the sentence the hypothesis; of the classes entailment and
contradiction alone, P(contradiction) = exp(z_c) / (exp(z_e) + exp(z_c)); the score is the mean over samples.
"""

from collections.abc import Sequence

from pydantic import Field

from cosmopedia.core.errors import ConfigError
from cosmopedia.core.lineage import content_revision
from cosmopedia.core.params import Params
from cosmopedia.lean_imports import import_transformers
from cosmopedia.records.pins import all_files, check_pin, is_local
from cosmopedia.records.reading import resolve_revision

BATCH = 8  # pairs in one forward pass


class NliParams(Params):
    """A sequence classifier with the classes entailment and contradiction: a folder, or a hub id at a commit."""

    model: str
    revision: str | None
    max_tokens: int = Field(ge=32)  # of a pair; a longer sample is cut


class Nli:
    """A loaded model."""

    def __init__(self, params: NliParams):
        import_transformers()
        from transformers import AutoModelForSequenceClassification, AutoTokenizer

        self.params, revision = params, None
        if is_local(params.model):
            check_pin(params.model, params.revision, content_revision(all_files(params.model)))
        else:
            revision = resolve_revision("model", params.model, params.revision)
        try:
            self.tokenizer = AutoTokenizer.from_pretrained(params.model, revision=revision)
            self.model = AutoModelForSequenceClassification.from_pretrained(params.model, revision=revision).eval()
        except (OSError, ValueError) as error:
            raise ConfigError(f"selfcheck.nli.model: {params.model} is no model that can be loaded: {error}") from None
        self.entailment, self.contradiction = self._class("entail"), self._class("contradict")

    def _class(self, name: str) -> int:
        """The number of a class; `ConfigError` where the model has none of that name."""
        labels = {number: str(label) for number, label in self.model.config.id2label.items()}
        numbers = [number for number, label in labels.items() if label.lower().startswith(name)]
        if len(numbers) != 1:
            raise ConfigError(
                f"selfcheck.nli.model: {self.params.model} must have one class that begins with {name!r}; it has"
                f" {sorted(labels.values())}: name a model for natural-language inference"
            )
        return numbers[0]

    def scores(self, sentences: Sequence[str], samples: Sequence[str]) -> list[float]:
        """For each sentence, how much the samples contradict it: 0-1."""
        pairs = [(sample, sentence) for sentence in sentences for sample in samples]
        contradicted = [
            value for start in range(0, len(pairs), BATCH) for value in self._batch(pairs[start : start + BATCH])
        ]
        count = len(samples)
        return [sum(contradicted[n * count : (n + 1) * count]) / count for n in range(len(sentences))]

    def _batch(self, pairs: list[tuple[str, str]]) -> list[float]:
        import torch

        premises, hypotheses = zip(*pairs, strict=True)
        length, cut = self.params.max_tokens, "only_first"
        encoded = self.tokenizer(
            list(premises), list(hypotheses), truncation=cut, max_length=length, padding=True, return_tensors="pt"
        )
        with torch.inference_mode():
            logits = self.model(**encoded).logits[:, [self.entailment, self.contradiction]].float()
        return logits.softmax(dim=-1)[:, 1].tolist()
