"""Graphs in NumPy: compiled once to a closure, then fast on single vectors and on batches.

In ``float32`` every constant is rounded once and every operation runs in float32, one after the other: this is the
reading of a policy as deployed, which ``float32`` certificates are about. ``recentre`` subtracts the stored offset.
"""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction
from typing import Any

import numpy as np

from lipctrl.certificates.checker.graph import Graph
from lipctrl.core.compilation import compile_steps
from lipctrl.core.errors import InputError
from lipctrl.core.implicit_solver import ImplicitSolver
from lipctrl.core.rationals import floats

Array = Any  #: a NumPy array of the chosen dtype


def compile_numpy(graph: Graph, dtype: Any = np.float64) -> Callable[..., dict[str, Array]]:
    """Compile a graph to ``function(**inputs) -> {output: array}`` in float64 or float32.

    Inputs are arrays of shape (..., n), by name, with equal leading shapes (or leading shapes that broadcast); they are
    converted to ``dtype``. Outputs have the common leading shape. The function raises InputError where an input is
    missing or its last dimension differs. Division by zero and the like follow IEEE and NumPy's error state.
    """
    dtype = np.dtype(dtype)
    if dtype not in (np.float32, np.float64):
        raise InputError(f"dtype is {dtype}, expected float32 or float64")
    sizes, output_sizes = graph.input_sizes, graph.output_sizes
    run = compile_steps(graph, NumpyOperations(dtype))

    def function(**inputs: Any) -> dict[str, Array]:
        if inputs.keys() != sizes.keys():
            raise InputError(f"got inputs {sorted(inputs)}, expected {sorted(sizes)}")
        arrays = {name: np.asarray(value, dtype) for name, value in inputs.items()}
        for name, array in arrays.items():
            if array.ndim == 0 or array.shape[-1] != sizes[name]:
                raise InputError(f"input {name!r} has shape {array.shape}, expected (..., {sizes[name]})")
        results = run(arrays)
        if all(array.ndim == 1 for array in arrays.values()):
            return results
        lead = np.broadcast_shapes(*(array.shape[:-1] for array in arrays.values()))
        return {name: _spread(value, (*lead, output_sizes[name])) for name, value in results.items()}

    return function


def _spread(value: Array, shape: tuple[int, ...]) -> Array:
    return value if value.shape == shape else np.broadcast_to(value, shape).copy()


def _concatenate(*parts: Array) -> Array:
    if any(part.ndim > 1 for part in parts):
        lead = np.broadcast_shapes(*(part.shape[:-1] for part in parts))
        parts = tuple(part if part.shape[:-1] == lead else np.broadcast_to(part, (*lead, part.shape[-1])) for part in parts)
    return np.concatenate(parts, axis=-1)


def _sigmoid(x: Array) -> Array:
    with np.errstate(over="ignore"):  # exp(-x) = inf gives the right answer, 0
        return 1 / (1 + np.exp(-x))


def _erf(x: Array) -> Array:
    from scipy.special import erf

    return erf(x)


def _power(x: Array, exponent: int) -> Array:
    """By squaring and multiplying, so that each operation rounds as IEEE says (libm's pow may be off by one)."""
    result: Array | None = None
    square = x
    while exponent:
        if exponent & 1:
            result = square if result is None else result * square
        exponent >>= 1
        if exponent:
            square = square * square
    return np.ones_like(x) if result is None else result


class NumpyOperations:
    """One attribute per operation, see ``compilation``; constants are arrays of the chosen dtype."""

    neg, abs, sin, cos, tan = np.negative, np.absolute, np.sin, np.cos, np.tan
    exp, log, sqrt, tanh = np.exp, np.log, np.sqrt, np.tanh
    add, sub, mul, div, min, max = np.add, np.subtract, np.multiply, np.divide, np.minimum, np.maximum
    concatenate = staticmethod(_concatenate)
    sigmoid = staticmethod(_sigmoid)
    erf = staticmethod(_erf)

    def __init__(self, dtype: Any) -> None:
        self.dtype = np.dtype(dtype)
        self._half, self._root = self.dtype.type(0.5), self.dtype.type(np.sqrt(0.5))
        self._zero = self.dtype.type(0)

    def constant(self, values: tuple[Fraction, ...]) -> Array:
        """The exact values, each rounded to the dtype."""
        return floats(values).astype(self.dtype)

    def relu(self, x: Array) -> Array:
        """max(x, 0)."""
        return np.maximum(x, self._zero)

    def softplus(self, x: Array) -> Array:
        """log(1 + exp(x)), without overflow."""
        return np.logaddexp(self._zero, x)

    def silu(self, x: Array) -> Array:
        """x sigmoid(x)."""
        return x * _sigmoid(x)

    def gelu(self, x: Array) -> Array:
        """x Phi(x), with the exact normal distribution function."""
        return self._half * x * (1 + _erf(x * self._root))

    def power(self, exponent: int) -> Callable[[Array], Array]:
        """x to a fixed whole power."""
        return lambda x: _power(x, exponent)

    def clip(self, low: tuple[Fraction, ...], high: tuple[Fraction, ...]) -> Callable[[Array], Array]:
        """Clip to constants."""
        lower, upper = self.constant(low), self.constant(high)
        return lambda x: np.minimum(np.maximum(x, lower), upper)

    def leaky_relu(self, slope: Fraction) -> Callable[[Array], Array]:
        """x where positive, slope x elsewhere."""
        factor = self.constant((slope,))
        return lambda x: np.where(x > 0, x, factor * x)

    def select(self, indices: tuple[int, ...]) -> Callable[[Array], Array]:
        """Some coordinates."""
        wanted = list(indices)
        step = wanted[1] - wanted[0] if len(wanted) > 1 else 1
        regular = step > 0 and wanted == list(range(wanted[0], wanted[-1] + 1, step))
        key: Any = (..., slice(wanted[0], wanted[-1] + 1, step) if regular else wanted)
        return lambda x: x[key]

    def affine(self, weight: Array, bias: Array | None) -> Callable[[Array], Array]:
        """weight x + bias, the products in any order."""
        transposed = np.ascontiguousarray(weight.astype(self.dtype).T)
        if bias is None:
            return lambda x: x @ transposed
        shift = bias.astype(self.dtype)

        def apply(x: Array) -> Array:
            y = x @ transposed
            y += shift  # in place: a batch is written once less
            return y

        return apply

    def group_sort(self, group_size: int) -> Callable[[Array], Array]:
        """Ascending inside consecutive groups; a leftover group is smaller."""
        return lambda x: _group_sort(x, group_size)

    def implicit(self, weight: Array, metric: Array, activation: str) -> Callable[[Array], Array]:
        """z = activation(weight z + x), solved in float64 from the given floats and then rounded to the dtype.

        The function raises LipctrlError where the iteration does not reach rounding errors; rows that are not finite give NaN.
        """
        solver = ImplicitSolver(weight, activation)
        return lambda x: solver(x).astype(self.dtype)

    def recentre(self, graph: Graph, point: tuple[Fraction, ...], offset: Array) -> Callable[[Array], Array]:
        """The inner graph minus the stored offset."""
        inner = compile_steps(graph, self)
        (name,), (output,) = graph.input_sizes, graph.outputs
        shift = offset.astype(self.dtype)
        return lambda x: inner({name: x})[output] - shift


def _group_sort(x: Array, group_size: int) -> Array:
    whole = x.shape[-1] // group_size * group_size
    result = np.empty_like(x)
    if group_size == 2:
        first, second = x[..., :whole:2], x[..., 1:whole:2]
        np.minimum(first, second, out=result[..., :whole:2])
        np.maximum(first, second, out=result[..., 1:whole:2])
    else:
        groups = x[..., :whole].reshape(*x.shape[:-1], -1, group_size)
        result[..., :whole] = np.sort(groups, axis=-1).reshape(*x.shape[:-1], whole)
    result[..., whole:] = np.sort(x[..., whole:], axis=-1)
    return result
