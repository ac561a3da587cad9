"""What a family of Lipschitz layers provides: a stack of free parameters that becomes plain weight matrices.

To add a family, write one module with a subclass of :class:`Stack` and name it in ``lipctrl.nn.mlp.LAYERS``.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor, nn

Gain = float | Tensor  #: a positive number, or a float64 tensor () where the bound is learnt


class Stack(nn.Module, ABC):
    """Free parameters of l + 1 weight matrices for the sizes (n_0, n_1, ..., n_l, n_out), with l >= 0 hidden layers.

    The network made of these matrices, any biases and the activation is ``gain``-Lipschitz in the Euclidean norm, over the
    reals, for every value of the parameters. Matrices are materialised in float64, whatever the parameters' dtype.
    Parameters start from ``generator``, on the CPU.
    """

    #: whether the activation must act coordinate by coordinate with slopes in [0, 1]
    needs_slope_restriction: ClassVar[bool]

    def __init__(self, sizes: Sequence[int], generator: torch.Generator | None = None) -> None:
        super().__init__()
        self.sizes = tuple(sizes)

    @abstractmethod
    def materialise(self, gain: Gain) -> list[Tensor]:
        """The weights, (n_k+1, n_k) each, float64; differentiable in the parameters."""

    def multipliers(self, gain: float) -> list[Tensor] | None:
        """Known multipliers (n_k,) of each hidden layer that prove ``gain`` over the reals, for the form of the checker's
        ``lipschitz-bound``; ``None`` where the product of the layers' norms proves it."""
        return None
