"""Log-probabilities of token sequences under a causal language model, within a stated memory.

The choices of an item share their query. So sequences with the same context are packed into one row: the context, then
the branches, each of which sees the context and itself. One forward pass gives the hidden states of a batch of rows;
logits are computed only where a token is scored, and so many at a time that they stay within `logits_mb`. (256
sequences of 1,100 tokens with a vocabulary of 32,000 have 36 GB of logits in fp32.)
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from cosmopedia.core.errors import DataError
from cosmopedia.evaluation.encoding import Sequence
from cosmopedia.execution.progress import Progress
from cosmopedia.lean_imports import import_transformers

if TYPE_CHECKING:
    import torch

Dtype = Literal["float32", "bfloat16", "float16"]
PACKED = 1024  # tokens of a row of several sequences, at most: attention is quadratic in them


@dataclass
class Pack:
    """Sequences that share their context; `branches` are (number of the sequence, its scored tokens).

    A branch's last token is only predicted, and its first one is predicted from the context: a branch of n tokens has
    n - 1 inputs, which lie one after another behind the context.
    """

    context: tuple[int, ...]
    branches: list[tuple[int, tuple[int, ...]]] = field(default_factory=list)

    def inputs(self) -> tuple[int, ...]:
        """The tokens of the row."""
        return self.context + tuple(token for _, targets in self.branches for token in targets[:-1])

    def positions(self) -> list[int]:
        """The position of each token in its own sequence."""
        start = len(self.context)
        return [*range(start), *(start + i for _, targets in self.branches for i in range(len(targets) - 1))]

    def owners(self) -> list[int]:
        """Of each token, 0 for the context, n for the n-th branch."""
        branches = enumerate(self.branches, 1)
        return [0] * len(self.context) + [n for n, (_, targets) in branches for _ in targets[:-1]]

    def places(self) -> list[int]:
        """Where each scored token is predicted, in the order of the branches."""
        places, start = [], len(self.context)
        for _, targets in self.branches:
            places += [len(self.context) - 1, *range(start, start + len(targets) - 1)]
            start += len(targets) - 1
        return places


def packs(sequences: list[Sequence], shared: bool = True) -> list[Pack]:
    """The sequences in packs; one each without `shared`, or where there is little context to share."""
    done: list[Pack] = []
    by_context: dict[tuple[int, ...], Pack] = {}
    for number, sequence in enumerate(sequences):
        context, targets = sequence.ids[: -sequence.scored], sequence.ids[-sequence.scored :]
        pack = by_context.get(context) if shared and 4 * len(context) >= len(targets) else None
        if pack is None or len(pack.inputs()) + len(targets) > PACKED:
            pack = by_context[context] = Pack(context)
            done.append(pack)
        pack.branches.append((number, targets))
    return done


def batches(rows: Iterable[Pack], tokens: int) -> Iterator[list[Pack]]:
    """Rows of one forward pass: the longest first, up to `tokens` with their padding, or a single one.

    The order of the rows does not matter: in other batches, the last digits of the scores would differ.
    """
    batch: list[Pack] = []
    longest = 0
    for inputs, row in sorted(((row.inputs(), row) for row in rows), key=lambda pair: (-len(pair[0]), pair[0])):
        if batch and (len(batch) + 1) * longest > tokens:
            yield batch
            batch = []
        longest = longest if batch else len(inputs)
        batch.append(row)
    if batch:
        yield batch


class Scorer:
    """A model that scores. `untrained` gives its architecture random weights, drawn from that seed; `stage` is whose
    progress is shown."""

    def __init__(
        self,
        folder: Path,
        dtype: Dtype,
        batch_tokens: int,
        logits_mb: int,
        untrained: int | None = None,
        stage: str = "evaluate",
    ):
        import torch

        import_transformers()
        from transformers import AutoConfig, AutoModelForCausalLM

        self._torch, self.batch_tokens, self.stage = torch, batch_tokens, stage
        model: Any
        if untrained is None:
            model = AutoModelForCausalLM.from_pretrained(folder, dtype=getattr(torch, dtype))
        else:
            torch.manual_seed(untrained)
            model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(folder)).to(getattr(torch, dtype))
        self._device = "cuda" if torch.cuda.is_available() else "cpu"
        self._model = model.eval().to(self._device)
        self._head = model.get_output_embeddings()
        self.vocabulary: int = self._head.weight.shape[0]
        self._rows = max(1, logits_mb * 1_000_000 // (2 * 4 * self.vocabulary))  # 2: logsumexp takes as much again
        self._check_logits(folder)
        self.shares = self._takes_packs()

    def logprobs(self, sequences: list[Sequence], what: str) -> list[float]:
        """The summed log-probability of each sequence's scored tokens, in nats."""
        sums = [0.0] * len(sequences)
        with Progress(self.stage, len(sequences), what) as progress, self._torch.inference_mode():
            for batch in batches(packs(sequences, self.shares), self.batch_tokens):
                numbers = [number for pack in batch for number, _ in pack.branches]
                for number, value in zip(numbers, self._score(batch), strict=True):
                    sums[number] = value
                progress.advance(len(numbers))
        return sums

    def _score(self, batch: list[Pack]) -> list[float]:
        """The sums of a batch's branches, in their order."""
        torch = self._torch
        hidden = self._hidden(batch)
        width, places, targets, owners = hidden.shape[1], [], [], []
        for row, pack in enumerate(batch):
            places += [row * width + place for place in pack.places()]
        branches = [tokens for pack in batch for _, tokens in pack.branches]
        for owner, tokens in enumerate(branches):
            targets += tokens
            owners += [owner] * len(tokens)
        values = torch.cat(list(self._logprobs(hidden.flatten(0, 1), torch.tensor(places), torch.tensor(targets))))
        sums = torch.zeros(len(branches), dtype=torch.float64)
        return sums.index_add_(0, torch.tensor(owners), values.double().cpu()).tolist()

    def _hidden(self, batch: list[Pack]) -> "torch.Tensor":
        """The last hidden states, [rows, tokens, width]."""
        torch, rows = self._torch, [pack.inputs() for pack in batch]
        width = max(map(len, rows))

        def padded(values: list[Any]) -> "torch.Tensor":
            return torch.tensor([[*one, *[0] * (width - len(one))] for one in values], device=self._device)

        options: dict[str, Any] = {}
        # Padding is on the right, where a causal model does not see it: without branches no mask is needed.
        if any(len(pack.branches) > 1 for pack in batch):
            owners = padded([pack.owners() for pack in batch])
            seen = (owners[:, None, :] == 0) | (owners[:, None, :] == owners[:, :, None])
            seen &= torch.ones(width, width, dtype=torch.bool, device=self._device).tril()
            mask = torch.zeros(seen.shape, dtype=self._model.dtype, device=self._device)
            mask.masked_fill_(~seen, torch.finfo(mask.dtype).min)
            options = {"attention_mask": mask[:, None], "position_ids": padded([pack.positions() for pack in batch])}
        return self._model.base_model(padded(rows), use_cache=False, **options).last_hidden_state

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

    def _takes_packs(self) -> bool:
        """Whether the model computes the branches of a row as it computes them alone: some make their own mask."""
        one, two, three = (token % self.vocabulary for token in (1, 2, 3))
        trial = [Sequence((one, two, three, three, *end), 3) for end in ((one, two, one), (two, three, one))]
        with self._torch.inference_mode():
            try:
                (together,) = (self._score([pack]) for pack in packs(trial))
            except (RuntimeError, TypeError, ValueError):
                return False
            alone = [self._score([pack])[0] for pack in packs(trial, shared=False)]
        tolerance = 1e-3 if self._model.dtype == self._torch.float32 else 0.1
        return all(abs(a - b) <= tolerance for a, b in zip(together, alone, strict=True))
