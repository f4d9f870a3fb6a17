"""Muon: momentum whose update is made orthogonal by Newton-Schulz iterations (Jordan et al., 2024), for matrices.

`torch.optim.Muon` always iterates in bfloat16. A CPU with AVX2 alone takes forty times as long in it (0.7 against 29
GFLOP/s on Zen 1), which made `make repro` take most of an hour there; so this one iterates in bfloat16 only where the
CPU is faster in it.
"""

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from cosmopedia.cpu_features import quick_in_bf16

if TYPE_CHECKING:
    import torch


class Muon:
    """Steps matrices by their gradients; those of one shape are one stack, which saves thousands of small calls.

    The size of an update is matched to AdamW's (Liu et al., 2025, arXiv:2502.16982).
    """

    def __init__(self, matrices: "Sequence[torch.Tensor]", iterations: int, momentum: float, weight_decay: float):
        import torch

        self.iterations, self.momentum, self.weight_decay = iterations, momentum, weight_decay
        self.dtype = torch.bfloat16 if quick_in_bf16() else torch.float32
        shapes = sorted({tuple(sorted(m.shape)) for m in matrices})
        self.stacks = [[m for m in matrices if tuple(sorted(m.shape)) == shape] for shape in shapes]
        self.averages = [torch.zeros(len(s), *shape) for s, shape in zip(self.stacks, shapes, strict=True)]

    def step(self, rate: float) -> None:
        """Move the matrices by their gradients."""
        import torch

        with torch.no_grad():
            for stack, average in zip(self.stacks, self.averages, strict=True):
                gradient = torch.stack([_wide(m.grad) for m in stack])
                average.lerp_(gradient, 1 - self.momentum)
                update = self._orthogonal(gradient.lerp(average, self.momentum))
                scale = 0.2 * math.sqrt(max(average.shape[1:]))
                for matrix, part in zip(stack, update, strict=True):
                    matrix.mul_(1 - rate * self.weight_decay)
                    matrix.add_(part if matrix.shape == part.shape else part.T, alpha=-rate * scale)

    def _orthogonal(self, update: "torch.Tensor") -> "torch.Tensor":
        import torch

        x = (update / (update.norm(dim=(1, 2), keepdim=True) + 1e-7)).to(self.dtype)
        for _ in range(self.iterations):
            a = x @ x.mT
            x = torch.baddbmm(x, torch.baddbmm(a, a, a, beta=-4.775, alpha=2.0315), x, beta=3.4445)
        return x.float()


def _wide(matrix: Any) -> Any:
    return matrix if matrix.shape[0] <= matrix.shape[1] else matrix.T
