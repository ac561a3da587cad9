"""Orthonormal columns from free parameters: the Cayley transform."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn


def cayley_parts(matrix: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """For Z = [U; V] (n + p, n): the inverse Y of I + S with S = U - U^T + V^T V, and Q = [2 Y - I; -2 V Y] in two parts."""
    n = matrix.shape[-1]
    upper, lower = matrix[:n], matrix[n:]
    system = torch.addmm(upper - upper.mT, lower.mT, lower)
    system.diagonal().add_(1)
    inverse = torch.linalg.inv(system)
    head = 2 * inverse
    head.diagonal().sub_(1)
    return inverse, head, -2 * lower @ inverse


def cayley_gradient(matrix: Tensor, inverse: Tensor, inner: Tensor, head: Tensor, tail: Tensor) -> Tensor:
    """The gradient at Z from those at the parts of Q, ``head`` and ``tail``; ``inner`` is Q^T times both together, (n, n)."""
    n = matrix.shape[-1]
    system = torch.mm(inner + head, inverse.mT).neg_()  # the gradient at S
    result = torch.empty_like(matrix)
    torch.sub(system, system.mT, out=result[:n])
    torch.mm(tail, inverse.mT, out=result[n:])
    result[n:].mul_(-2).addmm_(matrix[n:], system + system.mT)
    return result


class _Cayley(torch.autograd.Function):
    """Forward and backward with one inverse."""

    @staticmethod
    def forward(ctx: Any, matrix: Tensor) -> Tensor:
        inverse, head, tail = cayley_parts(matrix)
        frame = torch.cat([head, tail])
        ctx.save_for_backward(matrix, inverse, frame)
        return frame

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        matrix, inverse, frame = ctx.saved_tensors
        n = matrix.shape[-1]
        return cayley_gradient(matrix, inverse, frame.mT @ gradient, gradient[:n], gradient[n:])


def cayley(matrix: Tensor) -> Tensor:
    """Map a free matrix (n + p, n) to Q (n + p, n) with Q^T Q = I, through one inverse of order n. Differentiable once.

    With Z = [U; V] and S = U - U^T + V^T V: Q = [(I + S)^-1 (I - S); -2 V (I + S)^-1]. I + S is always invertible, its
    singular values are at least 1.
    """
    frame: Tensor = _Cayley.apply(matrix)  # type: ignore[no-untyped-call]
    return frame


class CayleyMatrix(nn.Module):
    """A matrix (rows, columns), rows >= columns, with orthonormal columns; the direction and the norm of Z are free.

    Z starts Gaussian with variance 2 / (rows + columns).
    """

    def __init__(self, rows: int, columns: int, generator: torch.Generator | None = None) -> None:
        super().__init__()
        start = torch.randn(rows, columns, generator=generator) * math.sqrt(2 / (rows + columns))
        self.raw_direction = nn.Parameter(start)
        self.raw_norm = nn.Parameter(start.norm().clone())

    def free(self) -> Tensor:
        """Z (rows, columns), float64. Scaled in the dtype of the parameters, since any Z will do."""
        norm = torch.linalg.vector_norm(self.raw_direction)
        safe = torch.where(norm > 0, norm, torch.ones_like(norm))  # Z = 0 stays 0
        return (self.raw_direction * (self.raw_norm / safe)).double()

    def forward(self) -> Tensor:
        """Q (rows, columns), float64."""
        return cayley(self.free())
