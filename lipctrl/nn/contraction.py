"""Contractions from free matrices: W = S^-1 V with S S^T = V V^T + I, and plain stacks of such W."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from lipctrl.core.errors import LipctrlError
from lipctrl.nn.starts import uniform
from lipctrl.nn.unit_norm import UnitNormStack

MAX_CONDITION = 1e4  #: |V|^2 stays below this, so that the squared condition number of S stays below it plus 1


def conditioned(free: Tensor, greatest: float = MAX_CONDITION) -> Tensor:
    """``free`` shrunk as a whole so that its squared norm is at most ``greatest``, by an upper bound of the norm.

    Rounding errors of what follows grow with 1 + |V|^2. The gradient is finite everywhere, at 0 too.
    """
    if float(torch.linalg.vector_norm(free.detach())) ** 2 <= greatest:  # nothing to do, as in most steps
        return free
    rows = free.abs()
    square = torch.minimum(free.square().sum(), rows.sum(0).amax() * rows.sum(1).amax())
    factor: Tensor = (greatest / square.clamp(min=greatest)).sqrt()
    return free * factor


def cholesky(free: Tensor) -> Tensor:
    """Lower S with S S^T = V V^T + I. Raises LipctrlError where V is not finite."""
    gram = free @ free.mT
    gram.diagonal().add_(1)
    root, info = torch.linalg.cholesky_ex(gram)
    if int(info) != 0 or not bool(torch.isfinite(root.diagonal()).all()):  # an infinite diagonal gives info 0
        raise LipctrlError("a layer's parameters are not finite: training has diverged")
    lower: Tensor = root
    return lower


def from_lower(half: Tensor) -> Tensor:
    """The symmetric matrix with the lower triangle of ``half``."""
    lower = half.tril()
    lower.diagonal().mul_(0.5)
    return lower + lower.mT


class _Contraction(torch.autograd.Function):
    """W = S^-1 V. With K symmetric and the lower triangle of (dL/dW) W^T, the gradient is S^-T (dL/dW - K W)."""

    @staticmethod
    def forward(ctx: Any, free: Tensor) -> Tensor:
        root = cholesky(free)
        contraction: Tensor = torch.linalg.solve_triangular(root, free, upper=False)
        ctx.save_for_backward(root, contraction)
        return contraction

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        root, contraction = ctx.saved_tensors
        change = gradient - from_lower(gradient @ contraction.mT) @ contraction
        result: Tensor = torch.linalg.solve_triangular(root.mT, change, upper=True)
        return result


def contraction(free: Tensor) -> Tensor:
    """W (rows, columns) with |W| < 1 from a free V of the same shape; every such W is reached.

    Factorises in the smaller dimension. Differentiable once.
    """
    rows, columns = free.shape
    result: Tensor = _Contraction.apply(free) if rows <= columns else _Contraction.apply(free.mT).mT  # type: ignore[no-untyped-call]
    return result


def free_of_contraction(matrix: Tensor) -> Tensor:
    """V with ``contraction(V)`` = ``matrix``. Raises LipctrlError where the norm of ``matrix`` is not below 1."""
    if matrix.shape[0] > matrix.shape[1]:
        return free_of_contraction(matrix.mT).mT
    eye = torch.eye(len(matrix), dtype=matrix.dtype, device=matrix.device)
    root, info = torch.linalg.cholesky_ex(eye - matrix @ matrix.mT)
    if int(info) != 0:
        raise LipctrlError("a matrix of norm 1 or more is no contraction: its parameters would be infinite")
    free: Tensor = torch.linalg.solve_triangular(root, matrix, upper=False)
    return free


class ContractionStack(UnitNormStack):
    """Every matrix is a contraction V R^-1 or S^-1 V, whichever factor is smaller."""

    def __init__(self, sizes: Sequence[int], generator: torch.Generator | None = None) -> None:
        super().__init__(sizes)
        self.raw_weight = uniform(sizes, generator, gain=10.0)

    def matrices(self) -> list[Tensor]:
        """Contractions, float64."""
        return [contraction(conditioned(raw.double())) for raw in self.raw_weight]
