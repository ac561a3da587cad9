"""Stacks of matrices of norm at most 1: every 1-Lipschitz activation fits between them."""

from __future__ import annotations

from abc import abstractmethod

from torch import Tensor

from lipctrl.nn.stack import Gain, Stack


class UnitNormStack(Stack):
    """Matrices of norm at most 1, the first and the last multiplied by sqrt(gain). The product of norms proves the bound."""

    needs_slope_restriction = False

    @abstractmethod
    def matrices(self) -> list[Tensor]:
        """Matrices (n_k+1, n_k) with norm at most 1, float64."""

    def materialise(self, gain: Gain) -> list[Tensor]:
        """The weights, float64."""
        weights = self.matrices()
        if len(weights) == 1:
            return [gain * weights[0]]
        return [gain**0.5 * weights[0], *weights[1:-1], gain**0.5 * weights[-1]]
