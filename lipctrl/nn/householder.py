"""Householder activations: each group of coordinates, where it lies behind a mirror, is reflected to its front (Singla et al., 2022)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from lipctrl.certificates.checker.graph import Node
from lipctrl.core.errors import InputError
from lipctrl.nn.activations import Activation
from lipctrl.nn.network import AddNode, Tensors


class Householder(nn.Module):
    """z -> z + 2 v relu(-v^T z) / v^T v in consecutive groups of len(v) coordinates; the rest passes. (..., n) to (..., n)."""

    normal: Tensor

    def __init__(self, normal: Sequence[float]) -> None:
        super().__init__()
        self.register_buffer("normal", torch.tensor(normal, dtype=torch.float32))

    def forward(self, x: Tensor) -> Tensor:
        """Reflect: an isometry on both sides of the mirror, so gradients keep their norm."""
        normal, group = self.normal.to(x.device, x.dtype), len(self.normal)
        whole = x.shape[-1] // group * group
        groups = x[..., :whole].reshape(*x.shape[:-1], whole // group, group)
        behind = torch.relu(-(groups @ normal))
        reflected = groups + behind[..., None] * (2 * normal / (normal @ normal))
        return torch.cat([reflected.flatten(-2), x[..., whole:]], dim=-1)


@dataclass(frozen=True)
class Reflection(Activation):
    """A Householder activation with the ``normal`` v of its mirror; in a Graph it is affine, relu, affine, add: one relu a group."""

    normal: tuple[float, ...] = ()

    def tensors(self, size: int) -> Tensors:
        """``mirror_SIZE`` -V (groups, size) and ``reflect_SIZE`` 2 V^T / v^T v (size, groups), float64."""
        v = torch.tensor(self.normal, dtype=torch.float64)
        groups = size // len(v)
        if not groups:
            return {}
        mirror = torch.zeros(groups, size, dtype=torch.float64)
        for k in range(groups):
            mirror[k, k * len(v) : (k + 1) * len(v)] = v
        return {f"mirror_{size}": -mirror, f"reflect_{size}": (2 / (v @ v) * mirror.mT).contiguous()}

    def multipliers(self, size: int) -> Tensor:
        """m for each group with |phi(z) - phi(w)|^2 - |z - w|^2 = m dr (dr - dq), where q = -v^T z and r = relu(q)."""
        v = torch.tensor(self.normal, dtype=torch.float64)
        return (4 / (v @ v)).expand(size // len(v))

    def add_nodes(self, add: AddNode, operand: int, size: int | None = None) -> int:
        """Append this activation of node ``operand``, ``size`` long."""
        if size is None or size < len(self.normal):
            return operand
        behind = add(Node("relu", (add(Node("affine", (operand,), {"weight": f"mirror_{size}", "bias": None})),)))
        return add(Node("add", (operand, add(Node("affine", (behind,), {"weight": f"reflect_{size}", "bias": None})))))


def householder(normal: Sequence[float] = (1.0, -1.0)) -> Reflection:
    """The Householder activation of this mirror, rounded to float32; (1, -1) sorts pairs in descending order.

    The normal need not be a unit vector. Raises InputError where it is shorter than 2, zero, or not finite.
    """
    runs = tuple(torch.tensor(list(normal), dtype=torch.float32).tolist())
    if len(runs) < 2 or not 0 < math.hypot(*runs) < math.inf:
        raise InputError(f"normal is {tuple(normal)!r}, expected at least two numbers, finite and not all zero")
    module = Householder(runs)
    name = "householder" if runs == (1.0, -1.0) else f"householder({', '.join(map(repr, runs))})"
    return Reflection(name, None, module, lambda index: Node("relu", (index,)), lambda: Householder(runs), normal=runs)
