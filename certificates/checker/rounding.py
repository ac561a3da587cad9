"""How far any IEEE binary32 evaluation of a graph may lie from its real value.

Covers every order of summation, fused or not, round to nearest, subnormals kept: u = 2^-24, each operation adds
u |result| + 2^-149. Weights must be float32; rational constants, the operand and the recentring offset are cast and pay for it.
Activations from a mathematical library have no proved accuracy: they are taken as off by ``ulp`` units in the last place, an
assumption that the caller must print.
"""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from typing import NoReturn

import numpy as np

from lipctrl.certificates.checker import intervals as iv
from lipctrl.certificates.checker.enclosure import Enclosed, EnclosureAlgebra, Remembered, value_at_point
from lipctrl.certificates.checker.graph import Graph, GraphError, evaluate
from lipctrl.certificates.checker.intervals import Array

U32 = 2.0**-24
ETA = 2.0**-149
_UP = 1 + 2.0**-36  #: exceeds the float64 rounding of one error formula (vectors up to 2^14 entries)
_LARGEST = 2.0**126


@dataclass(frozen=True, slots=True)
class Rounded:
    """A real value enclosed over a batch of boxes and a bound (B, n) on the distance of its float32 evaluation."""

    exact: Enclosed
    error: Array


def float32_error(graph: Graph, operand: Enclosed, radius: Array, ulp: int | None, remembered: Remembered | None = None) -> Array:
    """Bound |float32 value - real value| of a one-input one-output graph over boxes; the operand is real and cast first.

    Raises GraphError for an operation whose float32 accuracy is not known (or not assumed: ``ulp`` is ``None``).
    A value that may overflow gives NaN.
    """
    (name,), (output,) = graph.input_sizes, graph.outputs
    size = operand.value.magnitude
    start = Rounded(operand, _checked(size, (U32 * size + 2 * ETA) * _UP))
    result: Rounded = evaluate(graph, {name: start}, RoundingAlgebra(radius, ulp, remembered))[output]
    return result.error


def _checked(size: Array, error: Array) -> Array:
    return np.where(size + error < _LARGEST, error, np.nan)


def _cast_errors(values: tuple[Fraction, ...]) -> Array:
    return np.array([0.0 if Fraction(float(np.float32(float(v)))) == v else abs(float(v)) * 2 * U32 + ETA for v in values])


def _largest_ends(low: tuple[Fraction, ...], high: tuple[Fraction, ...]) -> Array:
    return np.array([max(abs(float(a)), abs(float(b))) for a, b in zip(low, high, strict=True)])


class RoundingAlgebra:
    """The operations of a deployed policy on :class:`Rounded` values."""

    def __init__(self, radius: Array, ulp: int | None, remembered: Remembered | None = None) -> None:
        self._remembered = remembered or Remembered()
        self._real = EnclosureAlgebra(radius, self._remembered)
        self._ulp = ulp

    def __getattr__(self, operation: str) -> NoReturn:
        raise GraphError(f"the float32 accuracy of {operation!r} is not known to the checker")

    def _rounded(self, exact: Enclosed, error: Array) -> Rounded:
        """One more rounding of a value that already is off by ``error``."""
        size = exact.value.magnitude
        return Rounded(exact, _checked(size, (error + U32 * (size + error) + ETA) * _UP))

    def constant(self, values: tuple[Fraction, ...]) -> Rounded:
        exact = self._real.constant(values)
        cast = self._remembered(_cast_errors, values)[None]
        return Rounded(exact, _checked(exact.value.magnitude, cast))

    def neg(self, x: Rounded) -> Rounded:
        return Rounded(self._real.neg(x.exact), x.error)

    def add(self, x: Rounded, y: Rounded) -> Rounded:
        return self._rounded(self._real.add(x.exact, y.exact), x.error + y.error)

    def sub(self, x: Rounded, y: Rounded) -> Rounded:
        return self.add(x, self.neg(y))

    def mul(self, x: Rounded, y: Rounded) -> Rounded:
        a, b = x.exact.value.magnitude, y.exact.value.magnitude
        return self._rounded(self._real.mul(x.exact, y.exact), a * y.error + b * x.error + x.error * y.error)

    def div(self, x: Rounded, y: Rounded) -> Rounded:
        exact = self._real.div(x.exact, y.exact)
        smallest = np.maximum(y.exact.value.low, -y.exact.value.high) - y.error
        error = (x.error + exact.value.magnitude * y.error) / np.where(smallest > 0, smallest, np.nan)
        return self._rounded(exact, error)

    def relu(self, x: Rounded) -> Rounded:
        return Rounded(self._real.relu(x.exact), x.error)

    def abs(self, x: Rounded) -> Rounded:
        return Rounded(self._real.abs(x.exact), x.error)

    def min(self, x: Rounded, y: Rounded) -> Rounded:
        return Rounded(self._real.min(x.exact, y.exact), np.maximum(x.error, y.error))

    def max(self, x: Rounded, y: Rounded) -> Rounded:
        return Rounded(self._real.max(x.exact, y.exact), np.maximum(x.error, y.error))

    def leaky_relu(self, x: Rounded, slope: Fraction) -> Rounded:
        a = abs(float(slope))
        error = x.error * max(1.0, a) + (2 * U32 * a + ETA) * (x.exact.value.magnitude + x.error)  # the slope is cast too
        return self._rounded(self._real.leaky_relu(x.exact, slope), _checked(np.array(a), error))

    def clip(self, x: Rounded, low: tuple[Fraction, ...], high: tuple[Fraction, ...]) -> Rounded:
        ends = self._remembered(_largest_ends, low, high)
        return Rounded(self._real.clip(x.exact, low, high), _checked(ends, (np.maximum(x.error, 2 * U32 * ends + ETA)) * _UP))

    def group_sort(self, x: Rounded, group_size: int) -> Rounded:
        n = x.error.shape[1]
        groups = [x.error[:, i : i + group_size] for i in range(0, n, group_size)]
        error = np.concatenate([np.broadcast_to(g.max(1, keepdims=True), g.shape) for g in groups], 1)
        return Rounded(self._real.group_sort(x.exact, group_size), error)

    def tanh(self, x: Rounded) -> Rounded:
        return self._assumed(x, self._real.tanh(x.exact), 1.0)

    def sigmoid(self, x: Rounded) -> Rounded:
        return self._assumed(x, self._real.sigmoid(x.exact), 0.25)

    def _assumed(self, x: Rounded, exact: Enclosed, steepest: float) -> Rounded:
        if self._ulp is None:
            raise GraphError("tanh and sigmoid have no proved float32 accuracy: state an assumed one ('activation_ulp')")
        error = steepest * x.error
        return Rounded(exact, (error + self._ulp * (2 * U32 * (exact.value.magnitude + error) + ETA)) * _UP)

    def affine(self, x: Rounded, weight: Array, bias: Array | None) -> Rounded:
        if weight.dtype != np.float32 or (bias is not None and bias.dtype != np.float32):
            raise GraphError("a float32 claim needs float32 weights")
        exact = self._real.affine(x.exact, weight, bias)
        n = weight.shape[1]
        absolute = np.abs(weight.astype(np.float64)).T
        size = (x.exact.value.magnitude + x.error) @ absolute
        if bias is not None:
            size = size + np.abs(bias.astype(np.float64))
        unit = (n + 2) * U32 / (1 - (n + 2) * U32)
        error = x.error @ absolute + unit * size + 2 * (n + 1) * ETA
        return Rounded(exact, _checked(2 * size, error * _UP))

    def select(self, x: Rounded, indices: tuple[int, ...]) -> Rounded:
        return Rounded(self._real.select(x.exact, indices), x.error[:, list(indices)])

    def concatenate(self, *parts: Rounded) -> Rounded:
        exact = self._real.concatenate(*(p.exact for p in parts))
        batch = len(exact.value.low)
        error = np.concatenate([np.broadcast_to(p.error, (batch, p.exact.value.low.shape[1])) for p in parts], 1)
        return Rounded(exact, error)

    def recentre(self, x: Rounded, graph: Graph, point: tuple[Fraction, ...], offset: Array) -> Rounded:
        if offset.dtype != np.float32:
            raise GraphError("a float32 claim needs a float32 offset")
        (name,), (output,) = graph.input_sizes, graph.outputs
        inner: Rounded = evaluate(graph, {name: x}, self)[output]
        there = self._remembered(value_at_point, graph, point)
        miss = (iv.point(offset.astype(np.float64)) - there).magnitude
        return self._rounded(self._real.recentre(x.exact, graph, point, offset), inner.error + miss)
