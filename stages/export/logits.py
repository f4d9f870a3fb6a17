"""Whether the exported model is the trained one: the logits of both on a fixed input."""

from pathlib import Path

import torch

from cosmopedia.core.errors import InternalError

TOLERANCE = 1e-4  # largest difference of a logit, both models in fp32 on the same machine
TRAINER_LOGITS = "probe.safetensors"  # from nanotron: ids [2, tokens], logits [2, tokens, vocabulary] in fp32
PROBE = 2 * 64  # tokens of the fixed input: two sequences


def logits(folder: Path, probe: torch.Tensor) -> torch.Tensor:
    """The logits of the model in a folder on the probe, in fp32."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    with torch.no_grad():
        return model(input_ids=probe, use_cache=False).logits


def compare_logits(trained: Path, out: Path, vocabulary: int) -> float:
    """The largest difference of a logit between the trained and the exported model. `InternalError` above 1e-4."""
    from safetensors.torch import load_file

    if (trained / TRAINER_LOGITS).is_file():
        known = load_file(trained / TRAINER_LOGITS)
        probe, expected = known["ids"], known["logits"]
    else:
        generator = torch.Generator().manual_seed(0)
        probe = torch.randint(0, vocabulary, (PROBE,), generator=generator).view(2, -1)
        expected = logits(trained, probe)
    difference = (expected - logits(out, probe)).abs().max().item()
    if not difference <= TOLERANCE:
        raise InternalError(
            f"{out}: a logit differs from {trained}'s by {difference:.2g}, more than {TOLERANCE:g};"
            " the exported weights are not the trained ones: please report it"
        )
    return difference
