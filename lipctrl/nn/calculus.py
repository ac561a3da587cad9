"""Lipschitz constants of compositions, from a closed list of modules: what is not on the list is refused by its name.

A subclass of a listed module may compute something else, so types must match exactly. Numbers are rounded up.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from lipctrl.certificates.checker.definite import norm_upper_bound
from lipctrl.certificates.checker.graph import GraphError
from lipctrl.certificates.checker.implicit import margin
from lipctrl.core.errors import InputError
from lipctrl.nn.activations import ACTIVATIONS, Elementwise, GroupSort
from lipctrl.nn.equilibrium import EquilibriumLayer
from lipctrl.nn.householder import Householder
from lipctrl.nn.linear_plus import LinearPlusMLP
from lipctrl.nn.mlp import LipschitzMLP
from lipctrl.nn.network import LipschitzNetwork
from lipctrl.nn.residual import ResidualMLP


class Sum(nn.Module):
    """x -> f_1(x) + ... + f_k(x): the constants add."""

    def __init__(self, *parts: nn.Module) -> None:
        super().__init__()
        self.parts = nn.ModuleList(_some(parts))

    def forward(self, x: Tensor) -> Tensor:
        """The sum of the parts."""
        total: Tensor = self.parts[0](x)
        for part in self.parts[1:]:
            total = total + _alike(part(x), total)
        return total


class Concatenate(nn.Module):
    """x -> (f_1(x), ..., f_k(x)) on the last axis: the root of the sum of squares."""

    def __init__(self, *parts: nn.Module) -> None:
        super().__init__()
        self.parts = nn.ModuleList(_some(parts))

    def forward(self, x: Tensor) -> Tensor:
        """The outputs side by side."""
        return torch.cat([part(x) for part in self.parts], dim=-1)


class Parallel(nn.Module):
    """(x_1, ..., x_k) -> (f_1(x_1), ..., f_k(x_k)), ``sizes`` long each: the greatest constant."""

    def __init__(self, sizes: Sequence[int], *parts: nn.Module) -> None:
        super().__init__()
        if len(sizes) != len(_some(parts)):
            raise InputError(f"sizes is {tuple(sizes)}, expected one for each of the {len(parts)} parts")
        self.sizes, self.parts = list(sizes), nn.ModuleList(parts)

    def forward(self, x: Tensor) -> Tensor:
        """The outputs side by side, each of its own slice of the last axis."""
        return torch.cat([part(piece) for part, piece in zip(self.parts, torch.split(x, self.sizes, dim=-1), strict=True)], dim=-1)


class Mix(nn.Module):
    """x -> (1 - share) f(x) + share g(x) for a constant ``share`` in [0, 1]: the same mean of the constants."""

    def __init__(self, first: nn.Module, second: nn.Module, share: float) -> None:
        super().__init__()
        if not 0 <= share <= 1:
            raise InputError(f"share is {share!r}, expected a number in [0, 1]")
        self.first, self.second, self.share = first, second, float(share)

    def forward(self, x: Tensor) -> Tensor:
        """The weighted mean of both."""
        first: Tensor = self.first(x)
        return torch.lerp(first, _alike(self.second(x), first), self.share)


class Scale(nn.Module):
    """x -> centre + factor x for constant vectors, such as normalisers and action scales: the greatest absolute factor."""

    factor: Tensor
    centre: Tensor

    def __init__(self, factor: Tensor | Sequence[float], centre: Tensor | Sequence[float] = (0.0,)) -> None:
        super().__init__()
        self.register_buffer("factor", torch.as_tensor(factor))
        self.register_buffer("centre", torch.as_tensor(centre))

    def forward(self, x: Tensor) -> Tensor:
        """Scaled and shifted. Raises InputError where a vector would repeat a signal of length 1."""
        for vector in (self.factor, self.centre):
            if vector.numel() not in (1, x.shape[-1]):
                raise InputError(f"a scale has {vector.numel()} numbers, expected {x.shape[-1]} or one")
        return self.centre.to(x.dtype) + self.factor.to(x.dtype) * x


class Angle(nn.Module):
    """angle -> (cos, sin), coordinate by coordinate (..., n) to (..., 2 n): an isometry of small steps, constant 1."""

    def forward(self, x: Tensor) -> Tensor:
        """Cosines, then sines."""
        return torch.cat([x.cos(), x.sin()], dim=-1)


class Repeat(nn.Module):
    """x -> (x, ..., x), ``count`` times, as frames that all show the same state: the root of ``count``."""

    def __init__(self, count: int) -> None:
        super().__init__()
        if count < 1:
            raise InputError(f"count is {count!r}, expected at least 1")
        self.count = count

    def forward(self, x: Tensor) -> Tensor:
        """The copies side by side."""
        return torch.cat([x] * self.count, dim=-1)


def lipschitz_constant(module: nn.Module) -> float:
    """An upper bound of the Euclidean Lipschitz constant of a module whose parts are all known, rounded up.

    Sequential: the product. Linear: a proved bound of the norm. Normalisers in evaluation mode only; layer and RMS norm by
    max |g| / sqrt(eps), which is large and attained. Networks of this package count as the bound that they are built for; a
    proof of it is ``LipschitzPolicy.lipschitz``. Raises InputError that names the module where one is not known, as attention,
    recurrent cells and products of two signals, which have no finite constant.
    """
    rule = _RULES.get(type(module))
    if module._forward_hooks or module._forward_pre_hooks or "forward" in vars(module):
        raise InputError(f"module {type(module).__name__!r} has hooks or a forward of its own: it may compute something else")
    if rule is None:
        raise InputError(f"module {type(module).__name__!r} has no known Lipschitz constant; known: {', '.join(known_modules())}")
    constant = rule(module)
    if math.isnan(constant):
        raise InputError(f"module {type(module).__name__!r} has parameters that are not finite")
    return constant


def known_modules() -> list[str]:
    """The names of the modules that :func:`lipschitz_constant` accepts."""
    return sorted(kind.__name__ for kind in _RULES)


def _alike(value: Tensor, other: Tensor) -> Tensor:
    """``value``, of the same shape as ``other``: adding would repeat a signal of length 1, which is another constant."""
    if value.shape != other.shape:
        raise InputError(f"parts have outputs of shapes {tuple(other.shape)} and {tuple(value.shape)}, expected equal ones")
    return value


def _some(parts: Sequence[nn.Module]) -> Sequence[nn.Module]:
    if not parts:
        raise InputError("there are no parts, expected at least one module")
    return parts


def _up(value: float) -> float:
    """Above the exact result of one or two correctly rounded operations on numbers that are not negative."""
    return math.nextafter(math.nextafter(value, math.inf), math.inf)


def _product(module: Any) -> float:
    constant = 1.0
    for part in module:
        factor = lipschitz_constant(part)
        constant = 0.0 if 0.0 in (constant, factor) else _up(constant * factor)
    return constant


def _sum(module: Any) -> float:
    total = 0.0
    for part in module.parts:
        total = _up(total + lipschitz_constant(part))
    return total


def _root_of_squares(module: Any) -> float:
    total = 0.0
    for part in module.parts:
        total = _up(math.hypot(total, lipschitz_constant(part)))
    return total


def _greatest(module: Any) -> float:
    return max(lipschitz_constant(part) for part in module.parts)


def _mean(module: Any) -> float:
    first, second = lipschitz_constant(module.first), lipschitz_constant(module.second)
    return _up(_up(_up(1 - module.share) * first) + _up(module.share * second))


def _linear(module: Any) -> float:
    weight = module.weight.detach().cpu().numpy().astype(np.float64)
    return float(norm_upper_bound(weight)) if np.isfinite(weight).all() else math.nan


def _equilibrium(module: Any) -> float:
    tensors = {name: tensor.detach().cpu().numpy() for name, tensor in module.tensors().items()}
    try:
        proved = margin(tensors["weight"], tensors["metric"])
    except GraphError:  # not finite, or so large that rounding hides the margin
        return math.nan
    return _up(norm_upper_bound(tensors["entering"]) / proved) if np.isfinite(tensors["entering"]).all() else math.nan


def _network(module: Any) -> float:
    network: LipschitzNetwork = module
    return network.lipschitz


def _batch_norm(module: Any) -> float:
    if module.training or module.running_var is None:
        raise InputError("module 'BatchNorm1d' mixes the samples of a batch while training; call eval() first")
    scale = 1.0 if module.weight is None else module.weight.detach().double().abs()
    return _up(_up(float((scale / (module.running_var.double() + module.eps).sqrt()).max())))


def _norm_layer(module: Any) -> float:
    epsilon = module.eps
    if epsilon is None:  # torch's RMSNorm then takes the rounding unit of its input
        epsilon = torch.finfo(torch.float32 if module.weight is None else module.weight.dtype).eps
    greatest = 1.0 if module.weight is None else float(module.weight.detach().double().abs().max())
    return _up(_up(greatest / math.sqrt(epsilon))) if epsilon > 0 else math.inf


def _dropout(module: Any) -> float:
    if not module.training:
        return 1.0
    return _up(1 / (1 - module.p)) if module.p < 1 else 0.0


def _slope(module: Any) -> float:
    slope = float(module.negative_slope)
    return max(1.0, abs(float(np.float32(slope))), abs(slope))


def _channel_slopes(module: Any) -> float:
    return max(1.0, float(module.weight.detach().double().abs().max()))


def _scale(module: Any) -> float:
    return float(module.factor.detach().double().abs().max())


def _elementwise(module: Any) -> float:
    if not any(module.function is made.apply for made in ACTIVATIONS.values()):
        raise InputError(f"module 'Elementwise' of {module.name!r} has no known Lipschitz constant")
    return 1.0


def _one(module: Any) -> float:
    return 1.0


_RULES: dict[type[nn.Module], Callable[[Any], float]] = {
    nn.Sequential: _product,
    nn.Linear: _linear,
    **dict.fromkeys((nn.Identity, nn.Flatten, nn.ReLU, nn.Tanh, nn.Hardtanh, nn.ReLU6, GroupSort, Householder, Angle), _one),
    Elementwise: _elementwise,
    EquilibriumLayer: _equilibrium,
    nn.Sigmoid: lambda module: 0.25,
    nn.GELU: lambda module: 1.12900,
    nn.SiLU: lambda module: 1.09984,
    nn.Mish: lambda module: 1.08850,
    nn.LeakyReLU: _slope,
    nn.PReLU: _channel_slopes,
    nn.ELU: lambda module: max(1.0, abs(module.alpha)),
    nn.BatchNorm1d: _batch_norm,
    nn.LayerNorm: _norm_layer,
    nn.RMSNorm: _norm_layer,
    nn.Dropout: _dropout,
    Sum: _sum,
    Concatenate: _root_of_squares,
    Parallel: _greatest,
    Mix: _mean,
    Scale: _scale,
    Repeat: lambda module: _up(math.sqrt(module.count)),
    **dict.fromkeys((LipschitzMLP, LinearPlusMLP, ResidualMLP), _network),
}
