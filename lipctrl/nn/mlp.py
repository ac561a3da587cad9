"""Multilayer perceptrons with a Lipschitz bound that holds for every value of their parameters."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from lipctrl.certificates.checker.graph import Node
from lipctrl.core.errors import InputError
from lipctrl.nn.activations import Activation, activation
from lipctrl.nn.aol import AlmostOrthogonalStack
from lipctrl.nn.bjorck import BjorckStack
from lipctrl.nn.contraction import ContractionStack
from lipctrl.nn.ldlt import LDLTStack
from lipctrl.nn.network import AddNode, LipschitzNetwork, Tensors, graded
from lipctrl.nn.orthogonal import OrthogonalStack
from lipctrl.nn.sandwich import SandwichStack
from lipctrl.nn.stack import Stack

LAYERS: dict[str, type[Stack]] = {
    "sandwich": SandwichStack,
    "cayley": OrthogonalStack,
    "ldlt": LDLTStack,
    "bjorck": BjorckStack,
    "contraction": ContractionStack,
    "aol": AlmostOrthogonalStack,
}  #: families of layers by name

Layers = list[tuple[Tensor, Tensor]]


class LipschitzMLP(LipschitzNetwork):
    """x (..., input_size) -> (..., output_size), ``lipschitz``-Lipschitz in the Euclidean norm.

    ``hidden`` lists the widths. ``layer`` is ``"sandwich"`` or ``"ldlt"`` (tightest; activations with slopes in [0, 1]), or a
    family of matrices with norm at most 1, which every 1-Lipschitz activation fits: ``"cayley"`` and ``"bjorck"``
    (orthogonal), ``"contraction"``, ``"aol"`` (cheapest). See :class:`LipschitzNetwork` for the bound, fixed or learnt, and for
    when weights are materialised; ``LipschitzPolicy.lipschitz`` proves it for the rounded weights.

    Seeds: pass a ``generator`` (on the CPU). Raises InputError for sizes, bounds, layers or activations that do not fit together.
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
        lipschitz_range: tuple[float, float] | None = None,
        generator: torch.Generator | None = None,
        device: torch.device | str | None = None,
    ) -> None:
        sizes = (input_size, *hidden, output_size)
        super().__init__(sizes, lipschitz, lipschitz_range)
        if layer not in LAYERS:
            raise InputError(f"layer is {layer!r}, expected one of {', '.join(LAYERS)}")
        self.activation = _chosen(layer, activation)
        self.stack = LAYERS[layer](sizes, generator)
        self.hidden_bias = nn.ParameterList(2 * torch.rand(n, generator=generator) - 1 for n in sizes[1:-1])
        self.output_bias = nn.Parameter(torch.zeros(output_size))
        if device is not None:
            self.to(device)

    def materialise(self) -> Layers:
        """Plain (weight, bias) of each affine map, float64, differentiable in the parameters; never cached."""
        weights = self.stack.materialise(self._gain())
        biases = [*self.hidden_bias, self.output_bias]
        return [(weight.contiguous(), bias.double()) for weight, bias in zip(weights, biases, strict=True)]

    def tensors(self) -> Tensors:
        """``weight_0``, ``bias_0``, ``weight_1``, ...: :meth:`materialise` by name, and the activation's own tensors."""
        pairs = enumerate(self.materialise())
        tensors = {f"{kind}_{k}": tensor for k, pair in pairs for kind, tensor in zip(("weight", "bias"), pair, strict=True)}
        for width in set(self.sizes[1:-1]):
            tensors |= self.activation.tensors(width)
        return tensors

    def apply_tensors(self, x: Tensor, tensors: Tensors) -> Tensor:
        """Affine maps with activations between them."""
        for k in range(last := len(self.sizes) - 2):
            x = self.activation.apply(functional.linear(x, tensors[f"weight_{k}"], tensors[f"bias_{k}"]))
        return functional.linear(x, tensors[f"weight_{last}"], tensors[f"bias_{last}"])

    def add_nodes(self, add: AddNode, operand: int) -> int:
        """Affine nodes with activations between them."""
        for k in range(len(self.sizes) - 1):
            if k:
                operand = self.activation.add_nodes(add, operand, self.sizes[k])
            operand = add(Node("affine", (operand,), {"weight": f"weight_{k}", "bias": f"bias_{k}"}))
        return operand

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
        """Known multipliers of each hidden layer, graded; ``None`` where the product of the layers' norms proves the bound."""
        known = self.stack.multipliers(self.built_for)
        if known is None:
            own = self.multipliers_alone()
            return graded([self.built_for * torch.from_numpy(values) for values in own], self.lipschitz, self.built_for) if own else None
        return [self.activation.multiplier_factor * values for values in graded(known, self.lipschitz, self.built_for)]

    @torch.no_grad()
    def multipliers_alone(self) -> list[np.ndarray] | None:
        """Multipliers of each activation that keeps norms by its own units (Householder); ``None`` for others."""
        own = [values.cpu().numpy() for n in self.sizes[1:-1] if (values := self.activation.multipliers(n)) is not None and len(values)]
        return own or None

    def extra_repr(self) -> str:
        """Sizes, bound and activation, for ``print``."""
        return f"{super().extra_repr()}, activation={self.activation.name}"


def _chosen(layer: str, choice: str | Activation) -> Activation:
    chosen = activation(choice)
    if LAYERS[layer].needs_slope_restriction and not chosen.slope_restricted:
        raise InputError(
            f"layer {layer!r} needs an activation that acts coordinate by coordinate with slopes in [0, 1] (relu, tanh), "
            f"got {chosen.name!r}: use layer='cayley' for it"
        )
    return chosen
