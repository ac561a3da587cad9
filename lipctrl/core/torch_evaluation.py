"""Graphs in torch: batched, differentiable, on any device."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from fractions import Fraction
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from lipctrl.certificates.checker.graph import Graph
from lipctrl.core.compilation import compile_steps
from lipctrl.core.errors import InputError
from lipctrl.core.fixed_point import implicit_layer
from lipctrl.core.implicit_solver import ImplicitSolver
from lipctrl.core.rationals import floats


def compile_torch(
    graph: Graph, dtype: torch.dtype = torch.float64, device: torch.device | str | None = None
) -> Callable[..., dict[str, Tensor]]:
    """Compile a graph to ``function(**inputs) -> {output: tensor}``.

    Inputs are tensors of shape (..., n), by name, of the given dtype and device; outputs have the common leading shape.
    Gradients flow to the inputs; weights are constants. The function raises InputError where an input is missing or its
    last dimension differs.
    """
    sizes, output_sizes = graph.input_sizes, graph.output_sizes
    run = compile_steps(graph, TorchOperations(dtype, device))

    def function(**inputs: Tensor) -> dict[str, Tensor]:
        if inputs.keys() != sizes.keys():
            raise InputError(f"got inputs {sorted(inputs)}, expected {sorted(sizes)}")
        for name, value in inputs.items():
            if value.ndim == 0 or value.shape[-1] != sizes[name]:
                raise InputError(f"input {name!r} has shape {tuple(value.shape)}, expected (..., {sizes[name]})")
        lead = _common_shape(*inputs.values())
        return {name: value.expand(*lead, output_sizes[name]) for name, value in run(inputs).items()}

    return function


def evaluate_torch(graph: Graph, inputs: Mapping[str, Tensor], dtype: torch.dtype | None = None) -> dict[str, Tensor]:
    """Evaluate a graph once, in ``dtype`` (default: that of the first input), on the device of the inputs.

    For repeated evaluation use :func:`compile_torch`, which converts the constants once.
    """
    first = next(iter(inputs.values()))
    dtype = first.dtype if dtype is None else dtype
    return compile_torch(graph, dtype, first.device)(**{name: value.to(dtype) for name, value in inputs.items()})


def _common_shape(*tensors: Tensor) -> tuple[int, ...]:
    return np.broadcast_shapes(*(tuple(tensor.shape[:-1]) for tensor in tensors))


def _concatenate(*parts: Tensor) -> Tensor:
    lead = _common_shape(*parts)
    return torch.cat([part.expand(*lead, part.shape[-1]) for part in parts], dim=-1)


def _softplus(x: Tensor) -> Tensor:
    return torch.logaddexp(x, torch.zeros((), dtype=x.dtype, device=x.device))


def _group_sort(x: Tensor, group_size: int) -> Tensor:
    whole = x.shape[-1] // group_size * group_size
    groups = x[..., :whole].reshape(*x.shape[:-1], -1, group_size)
    # a pair needs no sort, and min and max have their gradient at less cost
    pair = group_size == 2
    result = (torch.stack([groups.amin(-1), groups.amax(-1)], dim=-1) if pair else groups.sort(dim=-1).values).flatten(-2)
    return result if whole == x.shape[-1] else torch.cat([result, x[..., whole:].sort(dim=-1).values], dim=-1)


class TorchOperations:
    """One attribute per operation, see ``compilation``."""

    neg, abs, sin, cos, tan, exp, log, sqrt = torch.neg, torch.abs, torch.sin, torch.cos, torch.tan, torch.exp, torch.log, torch.sqrt
    erf, tanh, sigmoid, relu = torch.erf, torch.tanh, torch.sigmoid, torch.relu
    gelu, silu = staticmethod(functional.gelu), staticmethod(functional.silu)
    add, sub, mul, div, min, max = torch.add, torch.sub, torch.mul, torch.div, torch.minimum, torch.maximum
    softplus = staticmethod(_softplus)
    concatenate = staticmethod(_concatenate)

    def __init__(self, dtype: torch.dtype, device: torch.device | str | None) -> None:
        self.dtype = dtype
        self.device = device

    def _tensor(self, array: np.ndarray) -> Tensor:
        return torch.as_tensor(np.array(array)).to(dtype=self.dtype, device=self.device)

    def constant(self, values: tuple[Fraction, ...]) -> Tensor:
        """The exact values, each rounded to the dtype."""
        return self._tensor(floats(values))

    def power(self, exponent: int) -> Callable[[Tensor], Tensor]:
        """x to a fixed whole power."""
        return lambda x: torch.pow(x, exponent)

    def clip(self, low: tuple[Fraction, ...], high: tuple[Fraction, ...]) -> Callable[[Tensor], Tensor]:
        """Clip to constants."""
        lower, upper = self.constant(low), self.constant(high)
        return lambda x: torch.clamp(x, lower, upper)

    def leaky_relu(self, slope: Fraction) -> Callable[[Tensor], Tensor]:
        """x where positive, slope x elsewhere."""
        return lambda x: functional.leaky_relu(x, float(slope))

    def select(self, indices: tuple[int, ...]) -> Callable[[Tensor], Tensor]:
        """Some coordinates."""
        if indices == tuple(range(indices[0], indices[0] + len(indices))):
            return lambda x: x[..., indices[0] : indices[0] + len(indices)]
        return lambda x: x[..., list(indices)]

    def affine(self, weight: np.ndarray, bias: np.ndarray | None) -> Callable[[Tensor], Tensor]:
        """weight x + bias."""
        matrix, shift = self._tensor(weight), None if bias is None else self._tensor(bias)
        return lambda x: functional.linear(x, matrix, shift)

    def group_sort(self, group_size: int) -> Callable[[Tensor], Tensor]:
        """Ascending inside consecutive groups; a leftover group is smaller."""
        return lambda x: _group_sort(x, group_size)

    def implicit(self, weight: np.ndarray, metric: np.ndarray, activation: str) -> Callable[[Tensor], Tensor]:
        """z = activation(weight z + x), with gradients by the implicit function theorem."""
        ImplicitSolver(weight, activation)  # raises here, not at the first call, what it has to say about the weight
        matrix = self._tensor(weight)
        return lambda x: implicit_layer(matrix, x, activation)

    def recentre(self, graph: Graph, point: tuple[Fraction, ...], offset: np.ndarray) -> Callable[[Tensor], Any]:
        """The inner graph minus the stored offset."""
        inner = compile_steps(graph, self)
        (name,), (output,) = graph.input_sizes, graph.outputs
        shift = self._tensor(offset)
        return lambda x: inner({name: x})[output] - shift
