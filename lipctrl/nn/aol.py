"""Almost orthogonal layers (Prach and Lampert, ECCV 2022): the cheapest norm bound, by diagonal dominance."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from lipctrl.nn.starts import glorot
from lipctrl.nn.unit_norm import UnitNormStack

SMALLEST = 1e-12  #: added to the row sums, which only makes the matrix smaller: a column of zeros stays one


class _RowSums(torch.autograd.Function):
    """d_i = sum_j |W^T W|_ij; with g the gradient at d, the one at W is W (s + s^T) for s_ij = g_i sign(W^T W)_ij."""

    @staticmethod
    def forward(ctx: Any, free: Tensor) -> Tensor:
        gram = free.mT @ free
        ctx.save_for_backward(free, gram.sign())
        return gram.abs_().sum(dim=1)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        free, sign = ctx.saved_tensors
        result: Tensor = free @ (sign * (gradient[:, None] + gradient))
        return result


def almost_orthogonal(free: Tensor) -> Tensor:
    """W D^-1/2 with D_ii = sum_j |W^T W|_ij: D - W^T W is diagonally dominant, so the norm is at most 1.

    Works on the side with fewer vectors, where orthonormal ones reach norm 1 exactly.
    """
    if free.shape[0] < free.shape[1]:
        return almost_orthogonal(free.mT).mT
    sums: Tensor = _RowSums.apply(free)  # type: ignore[no-untyped-call]
    return free * (sums + SMALLEST).rsqrt()


class AlmostOrthogonalStack(UnitNormStack):
    """Free matrices scaled by the row sums of their Gram matrices; training makes them almost orthogonal."""

    def __init__(self, sizes: Sequence[int], generator: torch.Generator | None = None) -> None:
        super().__init__(sizes)
        self.raw_weight = glorot(sizes, generator)

    def matrices(self) -> list[Tensor]:
        """Matrices of norm at most 1, float64."""
        return [almost_orthogonal(raw.double()) for raw in self.raw_weight]
