"""Orthonormal columns from free parameters: the Cayley transform."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn


def cayley(matrix: Tensor) -> Tensor:
    """Map a free matrix (n + p, n) to Q (n + p, n) with Q^T Q = I, through one inverse of order n.

    With Z = [U; V] and S = U - U^T + V^T V: Q = [(I + S)^-1 (I - S); -2 V (I + S)^-1]. I + S is always invertible, its
    singular values are at least 1.
    """
    n = matrix.shape[-1]
    upper, lower = matrix[..., :n, :], matrix[..., n:, :]
    identity = torch.eye(n, dtype=matrix.dtype, device=matrix.device)
    inverse = torch.linalg.inv(identity + upper - upper.mT + lower.mT @ lower)
    return torch.cat([2 * inverse - identity, -2 * lower @ inverse], dim=-2)


class CayleyMatrix(nn.Module):
    """A matrix (rows, columns), rows >= columns, with orthonormal columns; the direction and the norm of Z are free.

    Z starts Gaussian with variance 2 / (rows + columns).
    """

    def __init__(self, rows: int, columns: int, generator: torch.Generator | None = None) -> None:
        super().__init__()
        start = torch.randn(rows, columns, generator=generator) * math.sqrt(2 / (rows + columns))
        self.raw_direction = nn.Parameter(start)
        self.raw_norm = nn.Parameter(start.norm().clone())

    def forward(self) -> Tensor:
        """Q (rows, columns), float64."""
        direction = self.raw_direction.double()
        norm = torch.linalg.matrix_norm(direction)
        safe = torch.where(norm > 0, norm, torch.ones_like(norm))  # Z = 0 stays 0
        return cayley(direction * (self.raw_norm.double() / safe))
