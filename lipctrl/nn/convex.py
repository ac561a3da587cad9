"""Networks that are convex, or monotone, in their input for every value of their parameters: parts of dynamics models."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional

from lipctrl.certificates.checker.graph import Node
from lipctrl.core.errors import InputError
from lipctrl.nn.activations import Activation, activation
from lipctrl.nn.network import AddNode, ShapedNetwork, Tensors
from lipctrl.nn.starts import uniform

CONVEX = ("relu", "softplus", "leaky_relu")  #: convex and nondecreasing
MONOTONE = (*CONVEX, "tanh", "sigmoid", "maxmin")  #: nondecreasing in every coordinate


class InputConvexMLP(ShapedNetwork):
    """x -> W_l z_l + A_l x + b_l with z_1 = phi(A_0 x + b_0), z_k+1 = phi(W_k z_k + A_k x + b_k), W_k >= 0, A_k free.

    Every output is a convex function of x, since phi is convex and nondecreasing: relu, softplus or leaky_relu. The weights
    W_k are softplus of free parameters. Raises InputError for other activations.
    """

    def __init__(
        self,
        input_size: int,
        hidden: Sequence[int],
        output_size: int,
        activation: str | Activation = "softplus",
        *,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__((input_size, *hidden, output_size))
        self.activation = _one_of(CONVEX, "an input-convex network", activation)
        later = self.sizes[1:]
        self.raw_skip = nn.ParameterList(uniform((input_size, n), generator)[0] for n in later)
        self.raw_weight = nn.ParameterList(uniform(pair, generator)[0] - _shift(pair[0]) for pair in pairwise(later))
        self.bias = nn.ParameterList(2 * torch.rand(n, generator=generator) - 1 for n in later)

    def tensors(self) -> Tensors:
        """``skip_k`` A_k and ``bias_k`` for every layer, ``weight_k`` W_k >= 0 for those after the first."""
        tensors = {f"skip_{k}": raw.double() for k, raw in enumerate(self.raw_skip)}
        tensors |= {f"weight_{k}": functional.softplus(raw.double()) for k, raw in enumerate(self.raw_weight, start=1)}
        return tensors | {f"bias_{k}": raw.double() for k, raw in enumerate(self.bias)}

    def apply_tensors(self, x: Tensor, tensors: Tensors) -> Tensor:
        """Every layer sees the input."""
        value = functional.linear(x, tensors["skip_0"], tensors["bias_0"])
        for k in range(1, len(self.bias)):
            inner = functional.linear(self.activation.apply(value), tensors[f"weight_{k}"])
            value = inner + functional.linear(x, tensors[f"skip_{k}"], tensors[f"bias_{k}"])
        return value

    def add_nodes(self, add: AddNode, operand: int) -> int:
        """Two affine nodes and their sum for each layer after the first."""
        value = add(Node("affine", (operand,), {"weight": "skip_0", "bias": "bias_0"}))
        for k in range(1, len(self.bias)):
            inner = add(Node("affine", (self.activation.add_nodes(add, value),), {"weight": f"weight_{k}", "bias": None}))
            skip = add(Node("affine", (operand,), {"weight": f"skip_{k}", "bias": f"bias_{k}"}))
            value = add(Node("add", (inner, skip)))
        return value


class MonotoneMLP(ShapedNetwork):
    """A multilayer perceptron, nondecreasing in the inputs with direction 1, nonincreasing in those with -1, free in those with 0.

    ``directions`` has one entry for each input, 1 everywhere if left out. Activations are nondecreasing; MaxMin, relu, tanh,
    softplus, sigmoid or leaky_relu. Weights after the first layer are softplus of free parameters, as are those of the first
    layer times the direction. Raises InputError for other activations and directions.
    """

    def __init__(
        self,
        input_size: int,
        hidden: Sequence[int],
        output_size: int,
        activation: str | Activation = "maxmin",
        *,
        directions: Sequence[int] | None = None,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__((input_size, *hidden, output_size))
        self.activation = _one_of(MONOTONE, "a monotone network", activation)
        self.directions = (1,) * input_size if directions is None else tuple(directions)
        if len(self.directions) != input_size or not set(self.directions) <= {-1, 0, 1}:
            raise InputError(f"directions is {directions!r}, expected {input_size} numbers, each -1, 0 or 1")
        if not hidden and 0 in self.directions:
            raise InputError("hidden is empty, expected at least one width where an input has direction 0")
        self.raw_weight = nn.ParameterList(uniform(pair, generator)[0] - _shift(pair[0]) for pair in pairwise(self.sizes))
        with torch.no_grad():
            self.raw_weight[0][:, [d == 0 for d in self.directions]] += _shift(input_size)
        self.bias = nn.ParameterList(2 * torch.rand(n, generator=generator) - 1 for n in self.sizes[1:])

    def tensors(self) -> Tensors:
        """``weight_k`` and ``bias_k`` for every layer."""
        first, *later = (raw.double() for raw in self.raw_weight)
        sign = torch.tensor(self.directions, dtype=torch.float64, device=first.device)
        weights = [torch.where(sign == 0, first, sign * functional.softplus(first)), *(functional.softplus(raw) for raw in later)]
        return {f"weight_{k}": weight for k, weight in enumerate(weights)} | {f"bias_{k}": raw.double() for k, raw in enumerate(self.bias)}

    def apply_tensors(self, x: Tensor, tensors: Tensors) -> Tensor:
        """Affine maps with activations between them."""
        for k in range(len(self.bias)):
            x = functional.linear(self.activation.apply(x) if k else x, tensors[f"weight_{k}"], tensors[f"bias_{k}"])
        return x

    def add_nodes(self, add: AddNode, operand: int) -> int:
        """Affine nodes with activations between them."""
        for k in range(len(self.bias)):
            operand = self.activation.add_nodes(add, operand) if k else operand
            operand = add(Node("affine", (operand,), {"weight": f"weight_{k}", "bias": f"bias_{k}"}))
        return operand


def _shift(size: int) -> float:
    """Softplus of minus this is about 1 / size, so that sums over ``size`` inputs start near their mean."""
    return -float(torch.log(torch.expm1(torch.tensor(1.0 / size, dtype=torch.float64))))


def _one_of(names: Sequence[str], what: str, choice: str | Activation) -> Activation:
    chosen = activation(choice)
    if chosen.name.partition("(")[0] not in (*names, "group_sort" if "maxmin" in names else ""):
        raise InputError(f"{what} needs one of {', '.join(names)} as its activation, got {chosen.name!r}")
    return chosen
