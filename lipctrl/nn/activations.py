"""Activations, and what the layers may assume about them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from lipctrl.certificates.checker.graph import Node
from lipctrl.core.errors import InputError


@dataclass(frozen=True)
class Activation:
    """A function on the last axis of a tensor, with its node in a Graph.

    ``slope_restricted``: acts coordinate by coordinate with slopes in [0, 1]. All activations here are 1-Lipschitz in the
    Euclidean norm. ``apply`` maps (..., n) to (..., n); ``node(index)`` is the Graph node that applies it to node ``index``;
    ``module()`` a plain torch module.
    """

    name: str
    slope_restricted: bool
    apply: Callable[[Tensor], Tensor]
    node: Callable[[int], Node]
    module: Callable[[], nn.Module]


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


def group_sort(group_size: int) -> Activation:
    """Sorting inside groups of ``group_size`` >= 2; with 2 it is MaxMin. Raises InputError for other sizes."""
    if group_size < 2:
        raise InputError(f"group_size is {group_size!r}, expected a whole number of at least 2")
    name = "maxmin" if group_size == 2 else f"group_sort({group_size})"
    sort = GroupSort(group_size)
    return Activation(
        name, False, sort, lambda index: Node("group_sort", (index,), {"group_size": group_size}), lambda: GroupSort(group_size)
    )


ACTIVATIONS = {
    "relu": Activation("relu", True, torch.relu, lambda index: Node("relu", (index,)), nn.ReLU),
    "tanh": Activation("tanh", True, torch.tanh, lambda index: Node("tanh", (index,)), nn.Tanh),
    "maxmin": group_sort(2),
}  #: by name; ``group_sort(size)`` makes others


def activation(choice: str | Activation) -> Activation:
    """The activation of this name, or the one given. Raises InputError with the names that exist."""
    if isinstance(choice, Activation):
        return choice
    if choice not in ACTIVATIONS:
        raise InputError(f"activation is {choice!r}, expected one of {', '.join(ACTIVATIONS)} or group_sort(size)")
    return ACTIVATIONS[choice]
