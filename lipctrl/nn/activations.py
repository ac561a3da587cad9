"""Activations, and what the layers may assume about them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction

import torch
from torch import Tensor, nn
from torch.nn import functional

from lipctrl.certificates.checker.graph import Node
from lipctrl.core.errors import InputError
from lipctrl.nn.network import AddNode, Tensors

Slopes = tuple[Fraction, Fraction]

_ZERO, _ONE = Fraction(0), Fraction(1)
_GELU, _SILU = Fraction(112_891, 10**5), Fraction(109_984, 10**5)  # above the greatest slopes, 1.1289041... and 1.0998393...


@dataclass(frozen=True)
class Activation:
    """A function on the last axis of a tensor, with its nodes in a Graph. All are 1-Lipschitz in the Euclidean norm.

    ``slopes``: (least, greatest) incremental slope, rounded outwards, of a function that acts coordinate by coordinate;
    ``None`` for others. ``apply`` maps (..., n) to (..., n); ``node(index)`` is the Graph node that applies the function to node
    ``index``, before a division by ``divisor``; ``module()`` a plain torch module.
    """

    name: str
    slopes: Slopes | None
    apply: Callable[[Tensor], Tensor]
    node: Callable[[int], Node]
    module: Callable[[], nn.Module]
    divisor: Fraction = _ONE

    @property
    def slope_restricted(self) -> bool:
        """Whether it acts coordinate by coordinate with slopes in [0, 1]."""
        return self.slopes is not None and self.slopes[0] >= 0 and self.slopes[1] <= 1

    @property
    def multiplier_factor(self) -> float:
        """t such that dz (dz - dv) <= t (dz - a dv)(dz - b dv) for all numbers dv and dz, with slopes a, b in [0, 1].

        Multipliers that prove a bound for slopes in [0, 1] prove it for slopes in [a, b] when multiplied by t.
        """
        if self.slopes is None or not self.slope_restricted:
            raise InputError(f"activation {self.name!r} has slopes outside [0, 1]: it has no multipliers")
        low, high = self.slopes
        return float((low + high - 2 * low * high) / (high - low) ** 2)

    def tensors(self, size: int) -> Tensors:
        """The tensors that its nodes refer to where it acts on ``size`` coordinates, float64; most have none."""
        return {}

    def multipliers(self, size: int) -> Tensor | None:
        """Multipliers, for ``size`` coordinates, of its own units where those are what keeps the norm; ``None`` for most."""
        return None

    def add_nodes(self, add: AddNode, operand: int, size: int | None = None) -> int:
        """Append this activation of node ``operand``; returns the index of its output.

        ``size`` is the length of the operand, which activations with tensors of their own need.
        """
        operand = add(self.node(operand))
        if self.divisor != 1:
            operand = add(Node("div", (operand, add(Node("constant", (), {"values": (self.divisor,)})))))
        return operand


class GroupSort(nn.Module):
    """Sorts ascending inside consecutive groups of the last axis; a leftover group is smaller. (..., n) to (..., n)."""

    def __init__(self, group_size: int) -> None:
        super().__init__()
        self.group_size = group_size

    def forward(self, x: Tensor) -> Tensor:
        """Sort: 1-Lipschitz in the Euclidean norm, and its Jacobian, a permutation, keeps the norm of gradients."""
        size = x.shape[-1]
        whole = size // self.group_size * self.group_size
        groups = x[..., :whole].reshape(*x.shape[:-1], whole // self.group_size, self.group_size)
        if self.group_size == 2:
            ranked = torch.stack([groups.amin(-1), groups.amax(-1)], dim=-1).flatten(-2)
        else:
            ranked = groups.sort(dim=-1).values.flatten(-2)
        return ranked if whole == size else torch.cat([ranked, x[..., whole:].sort(dim=-1).values], dim=-1)


class Elementwise(nn.Module):
    """The plain module of a function that torch has no module for. (..., n) to (..., n)."""

    def __init__(self, name: str, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.name, self.function = name, function

    def forward(self, x: Tensor) -> Tensor:
        """The function, coordinate by coordinate."""
        return self.function(x)

    def extra_repr(self) -> str:
        """Its name, for ``print``."""
        return self.name


def group_sort(group_size: int) -> Activation:
    """Sorting inside groups of ``group_size`` >= 2; with 2 it is MaxMin. Raises InputError for other sizes."""
    if group_size < 2:
        raise InputError(f"group_size is {group_size!r}, expected a whole number of at least 2")
    name = "maxmin" if group_size == 2 else f"group_sort({group_size})"
    sort = GroupSort(group_size)
    return Activation(
        name, None, sort, lambda index: Node("group_sort", (index,), {"group_size": group_size}), lambda: GroupSort(group_size)
    )


def leaky_relu(slope: float) -> Activation:
    """max(v, slope v), the slope rounded to float32 as it runs. Raises InputError for slopes outside [0, 1)."""
    runs = float(torch.tensor(slope, dtype=torch.float32))
    if not 0 <= runs < 1:
        raise InputError(f"slope is {slope!r}, expected a number in [0, 1)")
    exact = Fraction(runs)
    return Activation(
        f"leaky_relu({slope})",
        (exact, _ONE),
        lambda x: functional.leaky_relu(x, runs),
        lambda index: Node("leaky_relu", (index,), {"slope": exact}),
        lambda: nn.LeakyReLU(runs),
    )


def _named(name: str, slopes: Slopes, function: Callable[[Tensor], Tensor], module: Callable[[], nn.Module]) -> Activation:
    return Activation(name, slopes, function, lambda index: Node(name, (index,)), module)


def _divided(name: str, function: Callable[[Tensor], Tensor], greatest: Fraction) -> Activation:
    """A function with slopes in [1 - greatest, greatest], divided by its greatest slope."""

    def scaled(x: Tensor) -> Tensor:
        return function(x) / float(greatest)

    slopes = ((1 - greatest) / greatest, _ONE)
    full_name = f"scaled_{name}"
    return Activation(
        full_name, slopes, scaled, lambda index: Node(name, (index,)), lambda: Elementwise(full_name, scaled), divisor=greatest
    )


def _softplus(x: Tensor) -> Tensor:
    """log(1 + exp x) without the jump of torch's own at its threshold."""
    return torch.logaddexp(x, torch.zeros((), dtype=x.dtype, device=x.device))


ACTIVATIONS = {
    "relu": _named("relu", (_ZERO, _ONE), torch.relu, nn.ReLU),
    "tanh": _named("tanh", (_ZERO, _ONE), torch.tanh, nn.Tanh),
    "maxmin": group_sort(2),
    "softplus": _named("softplus", (_ZERO, _ONE), _softplus, lambda: Elementwise("softplus", _softplus)),
    "sigmoid": _named("sigmoid", (_ZERO, Fraction(1, 4)), torch.sigmoid, nn.Sigmoid),
    "leaky_relu": leaky_relu(0.01),
    "abs": _named("abs", (-_ONE, _ONE), torch.abs, lambda: Elementwise("abs", torch.abs)),
    "scaled_gelu": _divided("gelu", functional.gelu, _GELU),
    "scaled_silu": _divided("silu", functional.silu, _SILU),
}  #: by name; ``group_sort(size)``, ``leaky_relu(slope)`` and ``householder(normal)`` make others


def activation(choice: str | Activation) -> Activation:
    """The activation of this name, or the one given. Raises InputError with the names that exist."""
    if isinstance(choice, Activation):
        return choice
    if choice not in ACTIVATIONS:
        made = "group_sort(size), leaky_relu(slope) or householder(normal)"
        raise InputError(f"activation is {choice!r}, expected one of {', '.join(ACTIVATIONS)}, {made}")
    return ACTIVATIONS[choice]
