"""Scales of hidden units and the bound, shared by the families whose multipliers are known."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from lipctrl.nn.stack import Gain, Stack

MAX_LOG_SCALE = 20.0  #: the scales of hidden units stay within exp(-20)..exp(20)


def end_factor(index: int, count: int) -> float:
    """2 between hidden layers, sqrt(2) for the first and the last of ``count`` matrices, 1 for a single one."""
    return math.sqrt(2.0) ** ((index > 0) + (index < count - 1))


class MultiplierStack(Stack):
    """1-Lipschitz weights with multiplier 2 for every hidden unit; then sqrt(gain) at both ends and free scales Psi.

    W_k is Psi_k^-1 W_k Psi_(k-1): the same network for ReLU, another one for tanh. The multipliers are
    2 gain Psi_k^2. Activations need slopes in [0, 1].
    """

    needs_slope_restriction = True

    def __init__(self, sizes: Sequence[int]) -> None:
        super().__init__(sizes)
        self.raw_log_scale = nn.ParameterList(torch.zeros(n) for n in sizes[1:-1])

    @abstractmethod
    def scaled(self, scales: list[Tensor]) -> list[Tensor]:
        """The weights for gain 1 and the scales Psi_k (n_k,), float64."""

    def _scales(self) -> list[Tensor]:
        return [raw.double().clamp(-MAX_LOG_SCALE, MAX_LOG_SCALE).exp() for raw in self.raw_log_scale]

    def materialise(self, gain: Gain) -> list[Tensor]:
        """The weights, float64."""
        weights = self.scaled(self._scales())
        if len(weights) == 1:
            return [gain * weights[0]]
        return [gain**0.5 * weights[0], *weights[1:-1], gain**0.5 * weights[-1]]

    def multipliers(self, gain: float) -> list[Tensor]:
        """2 gain Psi_k^2 for each hidden layer: they prove ``gain`` over the reals."""
        return [2 * gain * scale**2 for scale in self._scales()]


def rescale(matrices: Sequence[Tensor], scales: Sequence[Tensor]) -> list[Tensor]:
    """Psi_k^-1 M_k Psi_(k-1), where Psi is left out at both ends. Also turns gradients at the results into those at M."""
    result = []
    for k, matrix in enumerate(matrices):
        if k < len(scales):
            matrix = matrix / scales[k][:, None]
        result.append(matrix * scales[k - 1] if k else matrix)
    return result
