"""Feed-forward LDL^T networks (Juston et al., 2025): complete for what one multiplier per unit can prove, in plain weights."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from lipctrl.nn.contraction import cholesky, conditioned, from_lower
from lipctrl.nn.scales import MultiplierStack, end_factor, rescale
from lipctrl.nn.starts import uniform


class _Chain(torch.autograd.Function):
    """C_i = f_i W_i S_(i-1)^-T with W_i = S_i^-1 V_i, S_i S_i^T = V_i V_i^T + I, S_0 = I, then Psi_i^-1 C_i Psi_(i-1).

    The gradient needs no factorisation again: with G the gradient at C, the products that it is made of are G_i C_i^T (from
    W_i) and G_(i+1)^T C_(i+1) (from S_i), and their diagonals are the gradients at log Psi.
    """

    @staticmethod
    def forward(ctx: Any, count: int, *arguments: Tensor) -> tuple[Tensor, ...]:
        free, scales = arguments[:count], arguments[count:]
        roots = [cholesky(matrix) for matrix in free]
        contractions = [torch.linalg.solve_triangular(root, matrix, upper=False) for root, matrix in zip(roots, free, strict=True)]
        weights = []
        for i, matrix in enumerate(contractions):
            right = torch.linalg.solve_triangular(roots[i - 1].mT, matrix, upper=True, left=False) if i else matrix
            weights.append(end_factor(i, count) * right)
        ctx.save_for_backward(*roots, *contractions, *weights, *scales)
        return tuple(rescale(weights, scales))

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        count = len(gradients)
        roots, contractions, weights = (ctx.saved_tensors[k * count : (k + 1) * count] for k in range(3))
        scales = ctx.saved_tensors[3 * count :]
        gradients = tuple(rescale(gradients, scales))
        at_free, at_scales = [], []
        for i, gradient in enumerate(gradients):
            half = gradient @ weights[i].mT
            if i + 1 < count:
                right = gradients[i + 1].mT @ weights[i + 1]
                at_scales.append((right.diagonal() - half.diagonal()) / scales[i])
                half += right
            change = torch.linalg.solve_triangular(roots[i - 1], gradient, upper=False, left=False) if i else gradient
            change = torch.addmm(change, from_lower(half), contractions[i], beta=end_factor(i, count), alpha=-1)
            at_free.append(torch.linalg.solve_triangular(roots[i].mT, change, upper=True))
        return None, *at_free, *at_scales


def ldlt_weights(free: Sequence[Tensor], scales: Sequence[Tensor] | None = None) -> list[Tensor]:
    """The weights of a 1-Lipschitz network from free matrices (n_k+1, n_k) and scales (n_k,) of hidden units; once differentiable.

    They satisfy, strictly, the matrix inequality with multipliers 2 Psi_k^2; every network that does is reached. Rounding
    errors grow with 1 + |V|^2, see :func:`lipctrl.nn.contraction.conditioned`.
    """
    if scales is None:
        scales = [torch.ones(len(matrix), dtype=matrix.dtype, device=matrix.device) for matrix in free[:-1]]
    return list(_Chain.apply(len(free), *free, *scales))  # type: ignore[no-untyped-call]


class LDLTStack(MultiplierStack):
    """C_1 = sqrt(2 gain) Psi_1^-1 W_1, C_i = 2 Psi_i^-1 W_i S_(i-1)^-T Psi_(i-1), the last sqrt(2 gain) W S^-T Psi.

    Needs activations with slopes in [0, 1]. One Cholesky factorisation of each layer's width, forward and backward together.
    """

    def __init__(self, sizes: Sequence[int], generator: torch.Generator | None = None) -> None:
        super().__init__(sizes)
        self.raw_weight = uniform(sizes, generator)

    def scaled(self, scales: list[Tensor]) -> list[Tensor]:
        """The weights for gain 1, float64."""
        return ldlt_weights([conditioned(raw.double()) for raw in self.raw_weight], scales)
