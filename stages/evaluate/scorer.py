"""Log-probabilities of token sequences under a causal language model, within a stated memory.

One forward pass gives the hidden states of a batch; logits are computed only where a token is scored, and so many rows
at a time that they stay within `logits_mb`. (256 sequences of 1,100 tokens with a vocabulary of 32,000 have 36 GB of
logits in fp32.) Sequences with equal inputs, such as choices of one token, share their pass.
"""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from cosmopedia.errors import DataError
from cosmopedia.execution.progress import Progress
from stages.evaluate.encoding import Sequence

if TYPE_CHECKING:
    import torch

Dtype = Literal["float32", "bfloat16", "float16"]


class Scorer:
    """A model that scores. `untrained` gives its architecture random weights, drawn from that seed."""

    def __init__(self, folder: Path, dtype: Dtype, batch_tokens: int, logits_mb: int, untrained: int | None = None):
        import torch
        from transformers import AutoConfig, AutoModelForCausalLM

        self._torch, self.batch_tokens = torch, batch_tokens
        device = "cuda" if torch.cuda.is_available() else "cpu"
        if untrained is None:
            model = AutoModelForCausalLM.from_pretrained(folder, dtype=getattr(torch, dtype))
        else:
            torch.manual_seed(untrained)
            model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(folder)).to(getattr(torch, dtype))
        self._model = model.eval().to(device)
        self._device = device
        self._head = model.get_output_embeddings()
        self.vocabulary: int = self._head.weight.shape[0]
        self._rows = max(1, logits_mb * 1_000_000 // (2 * 4 * self.vocabulary))  # 2: logsumexp takes as much again
        self._check_logits(folder)

    def logprobs(self, sequences: list[Sequence], what: str) -> list[float]:
        """The summed log-probability of each sequence's scored tokens, in nats."""
        by_input: dict[tuple[int, ...], list[int]] = {}
        for number, sequence in enumerate(sequences):
            by_input.setdefault(sequence.ids[:-1], []).append(number)
        sums = [0.0] * len(sequences)
        with Progress("evaluate", len(sequences), what) as progress, self._torch.inference_mode():
            for inputs in batches(by_input, self.batch_tokens):
                members = [(row, number) for row, one in enumerate(inputs) for number in by_input[one]]
                for number, value in zip(
                    (n for _, n in members), self._score(inputs, members, sequences), strict=True
                ):
                    sums[number] = value
                progress.advance(len(members))
        return sums

    def _score(
        self, inputs: list[tuple[int, ...]], members: list[tuple[int, int]], sequences: list[Sequence]
    ) -> list[float]:
        """The sums of `members` (row of the batch, number of the sequence), in their order."""
        torch, width = self._torch, max(map(len, inputs))
        padded = torch.tensor([[*one, *[0] * (width - len(one))] for one in inputs], device=self._device)
        # Padding is on the right, where a causal model does not see it.
        hidden = self._model.base_model(padded, use_cache=False).last_hidden_state.flatten(0, 1)
        places: list[int] = []
        targets: list[int] = []
        owners: list[int] = []
        for owner, (row, number) in enumerate(members):
            sequence = sequences[number]
            first = len(sequence.ids) - sequence.scored
            places += range(row * width + first - 1, row * width + len(sequence.ids) - 1)
            targets += sequence.ids[first:]
            owners += [owner] * sequence.scored
        values = torch.cat(list(self._logprobs(hidden, torch.tensor(places), torch.tensor(targets))))
        sums = torch.zeros(len(members), dtype=torch.float64)
        return sums.index_add_(0, torch.tensor(owners), values.double().cpu()).tolist()

    def _logprobs(self, hidden: "torch.Tensor", places: "torch.Tensor", targets: "torch.Tensor") -> Iterator[Any]:
        for start in range(0, len(places), self._rows):
            some = places[start : start + self._rows].to(self._device)
            logits = self._head(hidden[some]).float()
            right = logits.gather(1, targets[start : start + self._rows].to(self._device)[:, None])[:, 0]
            yield right - logits.logsumexp(1)

    def _check_logits(self, folder: Path) -> None:
        """`DataError` for a model that does more to its logits than multiply by its output embeddings."""
        torch = self._torch
        with torch.inference_mode():
            ids = torch.arange(min(4, self.vocabulary), device=self._device)[None]
            wanted = self._model(ids, use_cache=False).logits
            found = self._head(self._model.base_model(ids, use_cache=False).last_hidden_state)
        if not torch.allclose(wanted.float(), found.float(), rtol=1e-3, atol=1e-3):
            kind = self._model.config.model_type
            raise DataError(
                f"{folder}: a model of type {kind} scales or caps its logits, which evaluate does not compute; models"
                " whose logits are those of the output layer (llama, mistral, qwen2, phi, gpt2) can be scored"
            )


def batches(inputs: Iterable[tuple[int, ...]], tokens: int) -> Iterator[list[tuple[int, ...]]]:
    """Inputs scored together: the longest first, up to `tokens` with their padding, or a single one.

    The order of the inputs does not matter: in other batches, the last digits of the scores would differ.
    """
    batch: list[tuple[int, ...]] = []
    for one in sorted(inputs, key=lambda ids: (-len(ids), ids)):
        if batch and (len(batch) + 1) * len(batch[0]) > tokens:
            yield batch
            batch = []
        batch.append(one)
    if batch:
        yield batch
