"""Orthogonal layers by the iteration of Björck and Bowie, sound after every step and not only at its limit."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from lipctrl.nn.starts import glorot
from lipctrl.nn.unit_norm import UnitNormStack

STEPS = 8


def norm_bound(matrix: Tensor) -> Tensor:
    """An upper bound of the spectral norm, differentiable: the Frobenius norm of a power of the Gram matrix, or row and
    column sums where those are smaller."""
    gram = matrix.mT @ matrix if matrix.shape[0] >= matrix.shape[1] else matrix @ matrix.mT
    greatest = _one_for_zero(gram.detach().abs().amax())  # powers of gram / greatest neither overflow nor underflow
    power = (gram / greatest) @ (gram / greatest)
    by_power = _one_for_zero(power.square().sum()) ** 0.125 * greatest.sqrt()
    entries = matrix.abs()
    by_sums = _one_for_zero(entries.sum(0).amax() * entries.sum(1).amax()).sqrt()
    return torch.minimum(by_power, by_sums)


def _one_for_zero(value: Tensor) -> Tensor:
    return torch.where(value > 0, value, torch.ones_like(value))


def bjorck(matrix: Tensor, steps: int) -> Tensor:
    """``steps`` times X -> X (3 I - X^T X) / 2: singular values in [0, 2] go to [-1, 1], and towards 1."""
    if matrix.shape[0] < matrix.shape[1]:
        return bjorck(matrix.mT, steps).mT
    for _ in range(steps):
        matrix = 1.5 * matrix - 0.5 * matrix @ (matrix.mT @ matrix)
    return matrix


class BjorckStack(UnitNormStack):
    """Free matrices divided by an upper bound of their norm, then made almost orthogonal.

    Singular values stay in [0, 1] in every step, so the bound does not need convergence.
    """

    def __init__(self, sizes: Sequence[int], generator: torch.Generator | None = None) -> None:
        super().__init__(sizes)
        self.raw_weight = glorot(sizes, generator)
        with torch.no_grad():
            for raw in self.raw_weight:
                start = raw.double() if raw.shape[0] >= raw.shape[1] else raw.double().mT
                frame = torch.linalg.qr(start).Q
                raw.copy_(frame if raw.shape[0] >= raw.shape[1] else frame.mT)

    def matrices(self) -> list[Tensor]:
        """Matrices of norm at most 1, float64."""
        weights = [raw.double() for raw in self.raw_weight]
        return [bjorck(weight / norm_bound(weight), STEPS) for weight in weights]
