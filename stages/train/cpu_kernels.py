"""Two parts of a Llama's training step that the CPU computes differently from transformers.

Attention over short windows as plain matrix products (`causal_products`), and the loss one piece of the logits at a
time (`PieceLoss`): the same result except for rounding, in a quarter less CPU time for 3.4M parameters in bf16
(perf/training.py).
"""

import math
from typing import Any

import torch
from torch.nn import functional

from cosmopedia.core.errors import InternalError

PIECE = 256  # tokens whose logits exist at a time on the CPU: 4 MB at 4,096 entries, where the whole batch's take 32


class PieceLoss(torch.autograd.Function):
    """`token_loss` from the last hidden states, with its gradients, `PIECE` tokens at a time.

    The logits of a whole batch are by far the largest tensor of a small model: the operating system hands out and
    takes back the memory of every copy, which costs more than the sums. The idea is that of Liger Kernel's fused loss
    (Hsu et al., 2024): the gradient of a piece is known as soon as its logits are, so only one piece is in memory.
    """

    @staticmethod
    def forward(
        ctx: Any, hidden: torch.Tensor, head: torch.Tensor, labels: torch.Tensor, dtype: torch.dtype
    ) -> torch.Tensor:
        """hidden [..., width], head [vocabulary, width], labels [...]; the sum of the losses, in nats.

        Products are taken in `dtype`, the softmax in float32.
        """
        states, weights, targets = (
            hidden.reshape(-1, hidden.shape[-1]).to(dtype),
            head.to(dtype),
            labels.reshape(-1, 1),
        )
        total = torch.zeros((), device=hidden.device)
        to_states, to_head = torch.empty_like(states), torch.zeros_like(head)
        for start in range(0, len(states), PIECE):
            piece, wanted = states[start : start + PIECE], targets[start : start + PIECE]
            scores = functional.log_softmax((piece @ weights.t()).float(), dim=1)
            total -= scores.gather(1, wanted).sum()
            slope = scores.exp_().scatter_add_(1, wanted, scores.new_full((len(wanted), 1), -1.0)).to(dtype)
            to_states[start : start + PIECE] = slope @ weights
            to_head += slope.t() @ piece
        ctx.save_for_backward(to_states.to(hidden.dtype).view_as(hidden), to_head)
        return total

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        to_states, to_head = ctx.saved_tensors
        return to_states * gradients[0], to_head * gradients[0], None, None


class CausalProducts(torch.autograd.Function):
    """Causal attention as batched matrix products: one softmax over all pairs, masked by one [length, length] matrix.

    torch's flash attention on the CPU goes through blocks of queries. In bf16 whole heads at a time took a third of
    its CPU time at 128 tokens per window, 0.6 at 256 and 512, and 1.1 at 1,024; float32 gained nothing.
    """

    @staticmethod
    def forward(ctx: Any, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scale: float) -> torch.Tensor:
        """query, key, value [heads, length, head width] of one dtype; returns their shape."""
        length = query.shape[1]
        later = torch.full((length, length), -math.inf, dtype=query.dtype, device=query.device).triu_(1)
        shares = torch.baddbmm(later, query, key.transpose(1, 2), alpha=scale).softmax(-1)
        ctx.save_for_backward(query, key, value, shares)
        ctx.scale = scale
        return shares @ value

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        query, key, value, shares = ctx.saved_tensors
        (slope,) = gradients
        to_shares = slope @ value.transpose(1, 2)
        to_scores = shares * to_shares
        to_scores = to_scores.sub_(shares * to_scores.sum(-1, keepdim=True)).mul_(ctx.scale)
        return to_scores @ key, to_scores.transpose(1, 2) @ query, shares.transpose(1, 2) @ slope, None


def causal_products(
    module: Any,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float,
    **_: Any,
) -> tuple[torch.Tensor, None]:
    """`CausalProducts` for transformers: [batch, heads, length, width] in, [batch, length, heads, width] out.

    Grouped keys and values are repeated. For windows without padding: the only mask is the causal one.
    """
    if attention_mask is not None:
        raise InternalError("causal_products is for windows without padding, but was given a mask")
    batch, heads, length, width = query.shape
    if (groups := heads // key.shape[1]) > 1:
        key, value = (part.repeat_interleave(groups, dim=1) for part in (key, value))
    dtype = torch.bfloat16 if torch.is_autocast_enabled("cpu") else query.dtype
    rows = torch.contiguous_format  # the cast and the layout in one copy; without a cast `to` leaves the layout
    parts = (part.to(dtype, memory_format=rows).contiguous() for part in (query, key, value))
    flat = [part.view(batch * heads, length, width) for part in parts]
    with torch.autocast("cpu", enabled=False):
        mixed: torch.Tensor = CausalProducts.apply(*flat, scaling)  # type: ignore[assignment]
    return mixed.view(batch, heads, length, width).transpose(1, 2), None
