"""Sandwich layers (Wang and Manchester, ICML 2023): complete for what one multiplier per unit can prove."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from lipctrl.nn.cayley import CayleyMatrix, cayley_gradient, cayley_parts
from lipctrl.nn.scales import MultiplierStack, end_factor, rescale


class _Merged(torch.autograd.Function):
    """W_k = f_k B_k A_(k-1)^T with [A^T; B^T] = Q the Cayley transform of Z, A_(-1) = I, then Psi_k^-1 W_k Psi_(k-1).

    The products Q^T dL/dQ that the gradient needs are those of W and dL/dW, and their diagonals are the gradients at log Psi:
    nothing is multiplied twice.
    """

    @staticmethod
    def forward(ctx: Any, count: int, *arguments: Tensor) -> tuple[Tensor, ...]:
        free, scales = arguments[:count], arguments[count:]
        inverses, heads, tails = zip(*(cayley_parts(matrix) for matrix in free), strict=True)
        weights = []
        for k, tail in enumerate(tails):
            weight = tail.mT @ heads[k - 1] if k else tail.mT
            weights.append(end_factor(k, count) * weight)
        ctx.save_for_backward(*free, *inverses, *heads, *tails, *weights, *scales)
        return tuple(rescale(weights, scales))

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        count = len(gradients)
        free, inverses, heads, tails, weights = (ctx.saved_tensors[k * count : (k + 1) * count] for k in range(5))
        scales = ctx.saved_tensors[5 * count :]
        gradients = tuple(rescale(gradients, scales))
        at_free, at_scales = [], []
        for k, gradient in enumerate(gradients):
            tail = end_factor(k, count) * (heads[k - 1] @ gradient.mT if k else gradient.mT)
            inner, head = weights[k] @ gradient.mT, torch.zeros_like(inverses[k])
            if k + 1 < count:
                right = weights[k + 1].mT @ gradients[k + 1]
                at_scales.append((right.diagonal() - inner.diagonal()) / scales[k])
                inner += right
                head = end_factor(k + 1, count) * tails[k + 1] @ gradients[k + 1]
            at_free.append(cayley_gradient(free[k], inverses[k], inner, head, tail))
        return None, *at_free, *at_scales


class SandwichStack(MultiplierStack):
    """Layers h -> sqrt(2) A^T Psi phi(sqrt(2) Psi^-1 B h + b) with A A^T + B B^T = I, merged into plain weights.

    Each layer is 1-Lipschitz for any phi with slopes in [0, 1], and only for such phi. Merged:
    W_k = 2 Psi_k^-1 B_k A_(k-1)^T Psi_(k-1), the first sqrt(2 gain) Psi_0^-1 B_0, the last sqrt(2 gain) B_out A^T Psi.
    """

    def __init__(self, sizes: Sequence[int], generator: torch.Generator | None = None) -> None:
        super().__init__(sizes)
        self.frames = nn.ModuleList(CayleyMatrix(n_out + n_in, n_out, generator) for n_in, n_out in pairwise(sizes))

    def scaled(self, scales: list[Tensor]) -> list[Tensor]:
        """The merged weights for gain 1, float64."""
        free = [frame.free() for frame in self.frames if isinstance(frame, CayleyMatrix)]
        return list(_Merged.apply(len(free), *free, *scales))  # type: ignore[no-untyped-call]
