"""Multilayer perceptrons with a Lipschitz bound that holds for every value of their parameters."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from lipctrl.core.errors import InputError
from lipctrl.nn.activations import Activation, activation
from lipctrl.nn.orthogonal import OrthogonalStack
from lipctrl.nn.sandwich import SandwichStack
from lipctrl.nn.stack import Stack

LAYERS: dict[str, type[Stack]] = {
    "sandwich": SandwichStack,
    "cayley": OrthogonalStack,
}  #: families of layers by name

Layers = list[tuple[Tensor, Tensor]]


class LipschitzMLP(nn.Module):
    """x (..., input_size) -> (..., output_size), ``lipschitz``-Lipschitz in the Euclidean norm.

    ``hidden`` lists the widths. ``layer`` is ``"sandwich"`` (tightest; activations with slopes in [0, 1]) or ``"cayley"``
    (orthogonal; also MaxMin and GroupSort). Free parameters are float32 by default; weights are materialised in float64
    and used in the dtype of the input. The network is built for a bound smaller by a factor 1 - 1e-4 or so, so that the
    weights *rounded to float32* still keep ``lipschitz``: that is what ``LipschitzPolicy.lipschitz`` proves.

    Every forward outside ``with net.materialised():`` materialises afresh. Seeds: pass a ``generator`` (on the CPU).
    Raises InputError for sizes, bounds, layers or activations that do not fit together.
    """

    def __init__(
        self,
        input_size: int,
        hidden: Sequence[int],
        output_size: int,
        lipschitz: float = 1.0,
        layer: str = "sandwich",
        activation: str | Activation = "relu",
        *,
        generator: torch.Generator | None = None,
        device: torch.device | str | None = None,
    ) -> None:
        super().__init__()
        sizes = (input_size, *hidden, output_size)
        _check_sizes(sizes)
        if not 0 < lipschitz < math.inf:
            raise InputError(f"lipschitz is {lipschitz!r}, expected a positive number")
        if layer not in LAYERS:
            raise InputError(f"layer is {layer!r}, expected one of {', '.join(LAYERS)}")
        self.lipschitz = float(lipschitz)
        self.activation = _chosen(layer, activation)
        self.stack = LAYERS[layer](sizes, generator)
        self.hidden_bias = nn.ParameterList(2 * torch.rand(n, generator=generator) - 1 for n in sizes[1:-1])
        self.output_bias = nn.Parameter(torch.zeros(output_size))
        self._scope: _Scope | None = None
        if device is not None:
            self.to(device)

    @property
    def sizes(self) -> tuple[int, ...]:
        """Input size, hidden widths, output size."""
        return self.stack.sizes

    @property
    def built_for(self) -> float:
        """The bound that the materialised weights keep over the reals: ``lipschitz`` less room for rounding to float32."""
        depth = len(self.sizes) - 1
        return self.lipschitz * (1 - max(1e-4, 9 * 2.0**-24 * depth * math.sqrt(max(self.sizes))))

    def materialise(self) -> Layers:
        """Plain (weight, bias) of each affine map, float64, differentiable in the parameters; never cached."""
        weights = self.stack.materialise(self.built_for)
        biases = [*self.hidden_bias, self.output_bias]
        return [(weight.contiguous(), bias.double()) for weight, bias in zip(weights, biases, strict=True)]

    @contextmanager
    def materialised(self) -> Iterator[LipschitzMLP]:
        """Materialise once; forwards inside the ``with`` block share the weights.

        Open one scope for each optimiser step (forwards, then one ``backward``; step after the block) or for each rollout
        (under ``torch.no_grad()``). Weights inside the block do not follow changes of the parameters.
        """
        outer, self._scope = self._scope, _Scope(self.materialise())
        try:
            yield self
        finally:
            self._scope = outer

    def forward(self, x: Tensor) -> Tensor:
        """The network's output, (..., output_size), in the dtype of ``x``."""
        scope = self._scope if self._scope is not None else _Scope(self.materialise())
        *hidden, (weight, bias) = scope.layers(x.dtype)
        for hidden_weight, hidden_bias in hidden:
            x = self.activation.apply(functional.linear(x, hidden_weight, hidden_bias))
        return functional.linear(x, weight, bias)

    @torch.no_grad()
    def plain(self, dtype: torch.dtype = torch.float32) -> nn.Sequential:
        """The same network as ``nn.Linear`` layers and activations, weights rounded once to ``dtype``."""
        modules: list[nn.Module] = []
        for weight, bias in self.materialise():
            linear = nn.Linear(weight.shape[1], weight.shape[0], dtype=dtype, device=weight.device)
            linear.weight.copy_(weight)
            linear.bias.copy_(bias)
            modules += [linear, self.activation.module()]
        return nn.Sequential(*modules[:-1])

    @torch.no_grad()
    def multipliers(self) -> list[np.ndarray] | None:
        """Multipliers of each hidden layer that prove ``lipschitz`` for the weights rounded to float32, or ``None`` where the
        product of the layers' norms does.

        Graded: those that prove ``built_for`` grow by a constant factor from each layer to the one before, which leaves
        every block of the matrix room for rounding, at any depth.
        """
        known = self.stack.multipliers(self.built_for)
        if known is None:
            return None
        factor = (self.lipschitz / self.built_for) ** (2 / (len(known) + 1))
        return [values.cpu().numpy() * factor ** (len(known) - k) for k, values in enumerate(known)]

    def extra_repr(self) -> str:
        """Sizes, bound and activation, for ``print``."""
        return f"{'-'.join(map(str, self.sizes))}, lipschitz={self.lipschitz}, activation={self.activation.name}"


class _Scope:
    """Weights materialised once, and their casts."""

    def __init__(self, layers: Layers) -> None:
        self._casts = {torch.float64: layers}

    def layers(self, dtype: torch.dtype) -> Layers:
        if dtype not in self._casts:
            self._casts[dtype] = [(weight.to(dtype), bias.to(dtype)) for weight, bias in self._casts[torch.float64]]
        return self._casts[dtype]


def _check_sizes(sizes: tuple[int, ...]) -> None:
    if not all(n >= 1 for n in sizes):
        raise InputError(f"sizes are {sizes}, expected at least 1 for each")


def _chosen(layer: str, choice: str | Activation) -> Activation:
    chosen = activation(choice)
    if LAYERS[layer].needs_slope_restriction and not chosen.slope_restricted:
        raise InputError(
            f"layer {layer!r} needs an activation that acts coordinate by coordinate with slopes in [0, 1] (relu, tanh), "
            f"got {chosen.name!r}: use layer='cayley' for it"
        )
    return chosen
