"""Orthogonal layers by the Cayley transform: every matrix has norm 1, so every 1-Lipschitz activation fits."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn

from lipctrl.nn.cayley import CayleyMatrix
from lipctrl.nn.stack import Stack


class OrthogonalStack(Stack):
    """Weights with orthonormal rows or columns, the first and the last multiplied by sqrt(gain).

    With MaxMin or GroupSort, whose Jacobians are permutations, gradients keep their norm through any depth.
    """

    needs_slope_restriction = False

    def __init__(self, sizes: Sequence[int], generator: torch.Generator | None = None) -> None:
        super().__init__(sizes)
        self.frames = nn.ModuleList(CayleyMatrix(max(pair), min(pair), generator) for pair in pairwise(sizes))

    def materialise(self, gain: float) -> list[Tensor]:
        """The weights, float64."""
        weights: list[Tensor] = []
        for frame, n_in, n_out in zip(self.frames, self.sizes[:-1], self.sizes[1:], strict=True):
            weights.append(frame() if n_out >= n_in else frame().mT)
        if len(weights) == 1:
            return [gain * weights[0]]
        return [math.sqrt(gain) * weights[0], *weights[1:-1], math.sqrt(gain) * weights[-1]]
