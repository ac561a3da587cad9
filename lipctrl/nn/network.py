"""What every network here provides: plain tensors from free parameters, once for each optimiser step."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Self

import numpy as np
import torch
from torch import Tensor, nn

from lipctrl.certificates.checker.graph import Node
from lipctrl.core.errors import InputError
from lipctrl.nn.stack import Gain

Tensors = dict[str, Tensor]  #: plain weights and biases by the names they get in a Graph
AddNode = Callable[[Node], int]  #: appends a node to a graph under construction and returns its index


class ShapedNetwork(nn.Module, ABC):
    """x (..., n_in) -> (..., n_out) by plain tensors that are functions of free parameters.

    Free parameters are float32 by default; plain tensors are materialised in float64 and used in the dtype of the input. Every
    forward outside ``with net.materialised():`` materialises afresh. Raises InputError for sizes below 1.
    """

    def __init__(self, sizes: tuple[int, ...]) -> None:
        super().__init__()
        if not all(n >= 1 for n in sizes):
            raise InputError(f"sizes are {sizes}, expected at least 1 for each")
        self._sizes = sizes
        self._scope: _Scope | None = None

    @property
    def sizes(self) -> tuple[int, ...]:
        """Input size, hidden widths, output size."""
        return self._sizes

    @abstractmethod
    def tensors(self) -> Tensors:
        """Plain weights and biases, float64, differentiable in the parameters; never cached."""

    @abstractmethod
    def apply_tensors(self, x: Tensor, tensors: Tensors) -> Tensor:
        """The network's function with these tensors, (..., n_in) to (..., n_out)."""

    @abstractmethod
    def add_nodes(self, add: AddNode, operand: int) -> int:
        """Append the network's nodes, applied to node ``operand``; ``tensors()`` names their weights. Returns the output's."""

    @contextmanager
    def materialised(self) -> Iterator[Self]:
        """Materialise once; forwards inside the ``with`` block share the weights.

        Open one scope for each optimiser step (forwards, then one ``backward``; step after the block) or for each rollout
        (under ``torch.no_grad()``). Weights inside the block do not follow changes of the parameters.
        """
        outer, self._scope = self._scope, _Scope(self.tensors())
        try:
            yield self
        finally:
            self._scope = outer

    def forward(self, x: Tensor) -> Tensor:
        """The network's output, (..., n_out), in the dtype of ``x``."""
        scope = self._scope if self._scope is not None else _Scope(self.tensors())
        return self.apply_tensors(x, scope.cast(x.dtype))

    def extra_repr(self) -> str:
        """Sizes, for ``print``."""
        return "-".join(map(str, self.sizes))


class LipschitzNetwork(ShapedNetwork):
    """A network that is ``lipschitz``-Lipschitz in the Euclidean norm for every value of its free parameters.

    It is built for a bound smaller by a factor 1 - 1e-4 or so, so that the tensors *rounded to float32* still keep
    ``lipschitz``. The bound is fixed, or learnt in ``lipschitz_range`` = (low, high), starting from ``lipschitz``: add a
    penalty on ``log_lipschitz()`` to the loss. Raises InputError for bounds that are not positive.
    """

    def __init__(self, sizes: tuple[int, ...], lipschitz: float, lipschitz_range: tuple[float, float] | None = None) -> None:
        super().__init__(sizes)
        if not 0 < lipschitz < math.inf:
            raise InputError(f"lipschitz is {lipschitz!r}, expected a positive number")
        self._fixed, self.lipschitz_range = float(lipschitz), lipschitz_range
        if lipschitz_range is not None:
            low, high = lipschitz_range
            if not 0 < low < lipschitz < high < math.inf:
                raise InputError(f"lipschitz_range is {lipschitz_range!r}, expected positive numbers around lipschitz, {lipschitz!r}")
            share = math.log(lipschitz / low) / math.log(high / low)
            self.raw_lipschitz = nn.Parameter(torch.tensor(math.log(share / (1 - share))))

    def log_lipschitz(self) -> Tensor:
        """The logarithm of the bound, float64 (), differentiable where the bound is learnt; never stuck at an end of its range."""
        if self.lipschitz_range is None:
            return torch.tensor(math.log(self._fixed), dtype=torch.float64)
        low, high = (math.log(end) for end in self.lipschitz_range)
        return low + (high - low) * torch.sigmoid(self.raw_lipschitz.double())

    @property
    def lipschitz(self) -> float:
        """The bound, as it is now where it is learnt."""
        return self._fixed if self.lipschitz_range is None else float(self.log_lipschitz().detach().exp())

    @property
    def room(self) -> float:
        """The factor below 1 between the bound that is kept over the reals before rounding and ``lipschitz``."""
        return 1 - max(1e-4, 9 * 2.0**-24 * (len(self.sizes) - 1) * math.sqrt(max(self.sizes)))

    @property
    def built_for(self) -> float:
        """The bound that the materialised weights keep over the reals: ``lipschitz`` less room for rounding to float32."""
        return self.lipschitz * self.room

    def _gain(self) -> Gain:
        return self._fixed * self.room if self.lipschitz_range is None else self.log_lipschitz().exp() * self.room

    def multipliers(self) -> list[np.ndarray] | None:
        """Multipliers (n_k,) of each hidden layer that prove ``lipschitz`` for the tensors rounded to float32; ``None`` where
        the product of the layers' norms proves it."""
        return None

    def multipliers_alone(self) -> list[np.ndarray] | None:
        """Multipliers (groups,) of each hidden activation that prove it by itself, for proofs of one layer after the other;
        ``None`` where there is no need of them."""
        return None

    def extra_repr(self) -> str:
        """Sizes and bound, for ``print``."""
        return f"{super().extra_repr()}, lipschitz={self.lipschitz}"


class _Scope:
    """Tensors materialised once, and their casts."""

    def __init__(self, tensors: Tensors) -> None:
        self._casts = {torch.float64: tensors}

    def cast(self, dtype: torch.dtype) -> Tensors:
        if dtype not in self._casts:
            self._casts[dtype] = {name: tensor.to(dtype) for name, tensor in self._casts[torch.float64].items()}
        return self._casts[dtype]


def graded(known: list[Tensor], lipschitz: float, built_for: float) -> list[np.ndarray]:
    """Multipliers that prove ``lipschitz`` with room for rounding in every block, from those that prove ``built_for`` exactly.

    They grow by a constant factor from each layer to the one before, at any depth.
    """
    factor = (lipschitz / built_for) ** (2 / (len(known) + 1))
    return [values.cpu().numpy() * factor ** (len(known) - k) for k, values in enumerate(known)]
