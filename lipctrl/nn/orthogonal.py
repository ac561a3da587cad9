"""Orthogonal layers by the Cayley transform."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn

from lipctrl.nn.cayley import CayleyMatrix
from lipctrl.nn.unit_norm import UnitNormStack


class OrthogonalStack(UnitNormStack):
    """Weights with orthonormal rows or columns, the first and the last multiplied by sqrt(gain).

    With MaxMin or GroupSort, whose Jacobians are permutations, gradients keep their norm through any depth.
    """

    def __init__(self, sizes: Sequence[int], generator: torch.Generator | None = None) -> None:
        super().__init__(sizes)
        self.frames = nn.ModuleList(CayleyMatrix(max(pair), min(pair), generator) for pair in pairwise(sizes))

    def matrices(self) -> list[Tensor]:
        """Matrices with orthonormal rows or columns, float64."""
        sizes = zip(self.frames, self.sizes[:-1], self.sizes[1:], strict=True)
        return [frame() if n_out >= n_in else frame().mT for frame, n_in, n_out in sizes]
