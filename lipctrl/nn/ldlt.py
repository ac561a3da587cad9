"""Feed-forward LDL^T networks (Juston et al., 2025): complete for what one multiplier per unit can prove, in plain weights."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from lipctrl.nn.contraction import cholesky, conditioned, from_lower
from lipctrl.nn.stack import MAX_LOG_SCALE, Gain, Stack
from lipctrl.nn.starts import uniform


class _Chain(torch.autograd.Function):
    """C_i = f_i W_i S_(i-1)^-T with W_i = S_i^-1 V_i, S_i S_i^T = V_i V_i^T + I, S_0 = I; f is sqrt(2) at the ends, else 2.

    Two facts keep the gradient free of factorisations: for C_i = f_i W_i S_(i-1)^-T the products of gradients that it needs
    are G_i C_i^T (from W_i) and G_(i+1)^T C_(i+1) (from S_i), where G is the gradient at C.
    """

    @staticmethod
    def forward(ctx: Any, *free: Tensor) -> tuple[Tensor, ...]:
        roots = [cholesky(matrix) for matrix in free]
        contractions = [torch.linalg.solve_triangular(root, matrix, upper=False) for root, matrix in zip(roots, free, strict=True)]
        weights = []
        for i, matrix in enumerate(contractions):
            factor = _factor(i, len(free))
            right = torch.linalg.solve_triangular(roots[i - 1].mT, matrix, upper=True, left=False) if i else matrix
            weights.append(factor * right)
        ctx.save_for_backward(*roots, *contractions, *weights)
        return tuple(weights)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, ...]:
        count = len(gradients)
        roots, contractions, weights = (ctx.saved_tensors[k * count : (k + 1) * count] for k in range(3))
        result = []
        for i, gradient in enumerate(gradients):
            half = gradient @ weights[i].mT
            if i + 1 < count:
                half = half + gradients[i + 1].mT @ weights[i + 1]
            factor = _factor(i, count)
            change = torch.linalg.solve_triangular(roots[i - 1], gradient, upper=False, left=False) if i else gradient
            change = factor * change - from_lower(half) @ contractions[i]
            result.append(torch.linalg.solve_triangular(roots[i].mT, change, upper=True))
        return tuple(result)


def _factor(index: int, count: int) -> float:
    """2 between hidden layers, sqrt(2) at both ends, 1 for a single matrix."""
    return math.sqrt(2.0) ** ((index > 0) + (index < count - 1))


def ldlt_weights(free: Sequence[Tensor]) -> list[Tensor]:
    """The weights of a 1-Lipschitz network from free matrices (n_k+1, n_k), differentiable once.

    They satisfy, strictly, the matrix inequality with multiplier 2 for every hidden unit; every network that does is reached.
    Rounding errors grow with 1 + |V|^2, see :func:`lipctrl.nn.contraction.conditioned`.
    """
    return list(_Chain.apply(*free))  # type: ignore[no-untyped-call]


class LDLTStack(Stack):
    """C_1 = sqrt(2 gain) Psi_1^-1 W_1, C_i = 2 Psi_i^-1 W_i S_(i-1)^-T Psi_(i-1), the last sqrt(2 gain) W S^-T Psi.

    Needs activations with slopes in [0, 1]. One Cholesky factorisation of each layer's width, forward and backward together.
    """

    needs_slope_restriction = True

    def __init__(self, sizes: Sequence[int], generator: torch.Generator | None = None) -> None:
        super().__init__(sizes)
        self.raw_weight = uniform(sizes, generator)
        self.raw_log_scale = nn.ParameterList(torch.zeros(n) for n in sizes[1:-1])

    def _scales(self) -> list[Tensor]:
        return [raw.double().clamp(-MAX_LOG_SCALE, MAX_LOG_SCALE).exp() for raw in self.raw_log_scale]

    def materialise(self, gain: Gain) -> list[Tensor]:
        """The weights, float64."""
        weights = ldlt_weights([conditioned(raw.double()) for raw in self.raw_weight])
        if len(weights) == 1:
            return [gain * weights[0]]
        scales = self._scales()
        weights[0] = gain**0.5 * weights[0]
        weights[-1] = gain**0.5 * weights[-1]
        for k, scale in enumerate(scales):
            weights[k] = weights[k] / scale[:, None]
            weights[k + 1] = weights[k + 1] * scale
        return weights

    def multipliers(self, gain: float) -> list[Tensor]:
        """2 gain Psi_k^2 for each hidden layer: they prove ``gain`` over the reals."""
        return [2 * gain * scale**2 for scale in self._scales()]
