"""Enclosures of Graphs over batches of boxes: values and slopes.

A box is ``centre + [-radius, radius]`` in ``k`` seed coordinates. Each node carries, for every box X, a value interval that
holds v(x) for all x in X, the value at the centre c, and a slope matrix S with v(x) - v(c) in S (x - c) for all x in X. Slopes
compose like derivatives, with each scalar function's difference quotients over the value interval in place of its derivative;
kinks contribute the interval of their one-sided slopes, so nothing needs to be differentiable. The value interval is the
intersection of the natural one and centre + S (x - c).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, TypeVar

import numpy as np
from flint import arb

from lipctrl.certificates.checker import intervals as iv
from lipctrl.certificates.checker.balls import evaluate_balls
from lipctrl.certificates.checker.graph import Graph, evaluate
from lipctrl.certificates.checker.implicit import ImplicitLayer
from lipctrl.certificates.checker.intervals import Array, Interval

HALF = iv.point(np.array(0.5))
ONE = iv.point(np.array(1.0))

Scalar = Callable[[Interval], Interval]  #: what a scalar function does to intervals


@dataclass(frozen=True, slots=True)
class Enclosed:
    """Value (B, n), value at the centre (B, n), slopes (k, B, n) or ``None`` for a constant."""

    value: Interval
    centre: Interval
    slope: Interval | None


def seeds(centre: Interval, value: Interval, first: int, total: int) -> Enclosed:
    """Independent coordinates number ``first``, ``first + 1``, ... of ``total``: the operands that everything is a function of."""
    batch, n = value.low.shape
    slope = np.zeros((total, batch, n))
    slope[np.arange(first, first + n), :, np.arange(n)] = 1.0
    return Enclosed(value, centre, iv.point(slope))


def value_at_point(graph: Graph, at: tuple[Fraction, ...]) -> Interval:
    """Tight float64 enclosure of a one-input one-output graph at a rational point."""
    (name,), (output,) = graph.input_sizes, graph.outputs
    balls = [arb(v.numerator) / arb(v.denominator) for v in at]
    return iv.from_balls(evaluate_balls(graph, {name: balls})[output])


T = TypeVar("T")


class Remembered:
    """What depends on the constants of graphs alone, computed once for all batches."""

    def __init__(self) -> None:
        self._results: dict[tuple[object, ...], tuple[object, Any]] = {}

    def __call__(self, function: Callable[..., T], *constants: object) -> T:
        """``function(*constants)``; the constants are kept, so that no other object can take over their ``id``."""
        key = (function, *map(id, constants))
        if key not in self._results:
            self._results[key] = constants, function(*constants)
        result: T = self._results[key][1]
        return result


class EnclosureAlgebra:
    """Evaluate a graph on :class:`Enclosed` values. ``radius`` (k, B, 1): half-widths of the seed coordinates."""

    def __init__(self, radius: Array, remembered: Remembered | None = None) -> None:
        self._radius = radius
        self._remembered = remembered or Remembered()

    def _tightened(self, value: Interval, centre: Interval, slope: Interval | None) -> Enclosed:
        if slope is None:
            return Enclosed(value, centre, None)
        # |S (x - c)| <= sum of |S_j| r_j, computed with at most k + 2 roundings on a path; underflow loses less than 2^-1000
        spread = (slope.magnitude * self._radius).sum(0) * (1 + 4 * (len(slope.low) + 4) * iv.UNIT) + 2.0**-1000
        shape = (*slope.low.shape[:2], value.low.shape[1])
        slope = Interval(np.broadcast_to(slope.low, shape), np.broadcast_to(slope.high, shape))
        total = Interval(iv.down(centre.low - spread), iv.up(centre.high + spread))
        return Enclosed(value.intersect(total), centre, slope)

    def _scalar(self, x: Enclosed, function: Scalar, quotients: Scalar) -> Enclosed:
        """A scalar function given by its range and the range of its difference quotients over an interval."""
        slope = None if x.slope is None else x.slope * quotients(x.value)
        return self._tightened(function(x.value), function(x.centre), slope)

    def constant(self, values: tuple[Fraction, ...]) -> Enclosed:
        value = self._remembered(iv.from_fractions, values)
        value = Interval(value.low[None], value.high[None])
        return Enclosed(value, value, None)

    def neg(self, x: Enclosed) -> Enclosed:
        return Enclosed(-x.value, -x.centre, None if x.slope is None else -x.slope)

    def add(self, x: Enclosed, y: Enclosed) -> Enclosed:
        return self._tightened(x.value + y.value, x.centre + y.centre, _sum(x.slope, y.slope))

    def sub(self, x: Enclosed, y: Enclosed) -> Enclosed:
        return self.add(x, self.neg(y))

    def mul(self, x: Enclosed, y: Enclosed) -> Enclosed:
        # xy - cd = x (y - d) + d (x - c)
        slope = _sum(_times(y.slope, x.value), _times(x.slope, y.centre))
        return self._tightened(x.value * y.value, x.centre * y.centre, slope)

    def div(self, x: Enclosed, y: Enclosed) -> Enclosed:
        # x/y - c/d = (x - c)/y - (c/d) (y - d)/y
        centre = x.centre / y.centre
        inverse = ONE / y.value
        slope = _sum(_times(x.slope, inverse), _times(y.slope, -(centre * inverse)))
        return self._tightened(x.value / y.value, centre, slope)

    def power(self, x: Enclosed, exponent: int) -> Enclosed:
        def quotients(v: Interval) -> Interval:
            if exponent == 0:
                return iv.point(np.zeros_like(v.low))
            return iv.point(np.array(float(exponent))) * iv.integer_power(v, exponent - 1)

        return self._scalar(x, lambda v: iv.integer_power(v, exponent), quotients)

    def sin(self, x: Enclosed) -> Enclosed:
        return self._scalar(x, iv.sin, iv.cos)

    def cos(self, x: Enclosed) -> Enclosed:
        return self._scalar(x, iv.cos, lambda v: -iv.sin(v))

    def tan(self, x: Enclosed) -> Enclosed:
        return self.div(self.sin(x), self.cos(x))

    def exp(self, x: Enclosed) -> Enclosed:
        return self._scalar(x, _exp, _exp)

    def log(self, x: Enclosed) -> Enclosed:
        return self._scalar(x, lambda v: iv.by_balls(arb.log, v), lambda v: ONE / v)

    def sqrt(self, x: Enclosed) -> Enclosed:
        return self._scalar(x, iv.sqrt, lambda v: HALF / iv.sqrt(v))

    def erf(self, x: Enclosed) -> Enclosed:
        return self._scalar(x, _erf, lambda v: iv.from_balls([2 / arb.pi().sqrt()]) * _exp(-iv.integer_power(v, 2)))

    def tanh(self, x: Enclosed) -> Enclosed:
        return self._scalar(x, *SCALARS["tanh"])

    def sigmoid(self, x: Enclosed) -> Enclosed:
        return self._scalar(x, *SCALARS["sigmoid"])

    def softplus(self, x: Enclosed) -> Enclosed:
        return self._scalar(x, *SCALARS["softplus"])

    def silu(self, x: Enclosed) -> Enclosed:
        def quotients(v: Interval) -> Interval:
            s = iv.sigmoid(v)
            return s * (ONE + v * (ONE - s))

        return self._scalar(x, lambda v: v * iv.sigmoid(v), quotients)

    def gelu(self, x: Enclosed) -> Enclosed:
        root, density = iv.from_balls([1 / arb(2).sqrt()]), iv.from_balls([1 / (2 * arb.pi()).sqrt()])

        def normal(v: Interval) -> Interval:
            return HALF * (ONE + _erf(v * root))

        def quotients(v: Interval) -> Interval:
            return normal(v) + v * density * _exp(-(HALF * iv.integer_power(v, 2)))

        return self._scalar(x, lambda v: v * normal(v), quotients)

    def abs(self, x: Enclosed) -> Enclosed:
        def function(v: Interval) -> Interval:
            return Interval(np.maximum(np.maximum(v.low, -v.high), 0.0), v.magnitude)

        return self._scalar(x, function, lambda v: _step(v, -1.0, 1.0))

    def relu(self, x: Enclosed) -> Enclosed:
        return self._scalar(x, *SCALARS["relu"])

    def leaky_relu(self, x: Enclosed, slope: Fraction) -> Enclosed:
        a = iv.from_fractions((slope,))

        def quotients(v: Interval) -> Interval:
            positive, negative = v.low >= 0, v.high <= 0
            low = np.where(positive, 1.0, np.where(negative, a.low, np.minimum(a.low, 1.0)))
            high = np.where(positive, 1.0, np.where(negative, a.high, np.maximum(a.high, 1.0)))
            return Interval(low, high)

        def function(v: Interval) -> Interval:
            above = Interval(np.maximum(v.low, 0), np.maximum(v.high, 0))
            return above + a * Interval(np.minimum(v.low, 0), np.minimum(v.high, 0))

        return self._scalar(x, function, quotients)

    def clip(self, x: Enclosed, low: tuple[Fraction, ...], high: tuple[Fraction, ...]) -> Enclosed:
        a, b = self._remembered(iv.from_fractions, low), self._remembered(iv.from_fractions, high)

        def quotients(v: Interval) -> Interval:
            inside = (v.low >= a.high) & (v.high <= b.low)
            outside = (v.high <= a.low) | (v.low >= b.high)
            return Interval(np.where(inside, 1.0, 0.0), np.where(outside, 0.0, 1.0))

        def function(v: Interval) -> Interval:
            return Interval(np.minimum(np.maximum(v.low, a.low), b.low), np.minimum(np.maximum(v.high, a.high), b.high))

        return self._scalar(x, function, quotients)

    def max(self, x: Enclosed, y: Enclosed) -> Enclosed:
        first, second = x.value.low >= y.value.high, y.value.low >= x.value.high
        slope = _chosen(x.slope, y.slope, first, second)
        return self._tightened(_maximum(x.value, y.value), _maximum(x.centre, y.centre), slope)

    def min(self, x: Enclosed, y: Enclosed) -> Enclosed:
        return self.neg(self.max(self.neg(x), self.neg(y)))

    def affine(self, x: Enclosed, weight: Array, bias: Array | None) -> Enclosed:
        slope = None if x.slope is None else iv.affine(x.slope, weight, None)
        return self._tightened(iv.affine(x.value, weight, bias), iv.affine(x.centre, weight, bias), slope)

    def group_sort(self, x: Enclosed, group_size: int) -> Enclosed:
        n = x.value.low.shape[1]
        parts = [self._sorted(_select(x, np.arange(i, min(i + group_size, n)))) for i in range(0, n, group_size)]
        return self.concatenate(*parts)

    def _sorted(self, x: Enclosed) -> Enclosed:
        """One group, ascending. Member j can have rank i only if at most i members surely lie below it, and so on."""
        low, high = x.value.low, x.value.high
        below = (high[..., None, :] < low[..., :, None]).sum(-1)
        above = (low[..., None, :] > high[..., :, None]).sum(-1)
        size = low.shape[1]
        slope = None
        if x.slope is not None:
            lows, highs = [], []
            for rank in range(size):
                possible = (below <= rank) & (size - 1 - above >= rank)
                lows.append(np.where(possible, x.slope.low, np.inf).min(-1))
                highs.append(np.where(possible, x.slope.high, -np.inf).max(-1))
            slope = Interval(np.stack(lows, -1), np.stack(highs, -1))
        return self._tightened(_ascending(x.value), _ascending(x.centre), slope)

    def select(self, x: Enclosed, indices: tuple[int, ...]) -> Enclosed:
        return _select(x, list(indices))

    def concatenate(self, *parts: Enclosed) -> Enclosed:
        batch = max(p.value.low.shape[0] for p in parts)
        total = next((p.slope.low.shape[0] for p in parts if p.slope is not None), 0)
        return Enclosed(
            _join([_batched(p.value, batch) for p in parts]),
            _join([_batched(p.centre, batch) for p in parts]),
            _join([_slope_or_zero(p, total, batch) for p in parts]) if total else None,
        )

    def implicit(self, x: Enclosed, weight: Array, metric: Array, activation: str) -> Enclosed:
        layer = self._remembered(ImplicitLayer, weight, metric, activation)
        scalars = SCALARS[activation]
        value, centre, slope = layer.enclose(x.value, *scalars), layer.enclose(x.centre, *scalars), None
        if x.slope is not None:
            slope = layer.enclose_slopes(x.slope, scalars[1](iv.affine(value, layer.weight, None) + x.value))
        return self._tightened(value, centre, slope)

    def recentre(self, x: Enclosed, graph: Graph, point: tuple[Fraction, ...], offset: Array) -> Enclosed:
        (name,), (output,) = graph.input_sizes, graph.outputs
        inner: Enclosed = evaluate(graph, {name: x}, self)[output]
        there = self._remembered(value_at_point, graph, point)
        return self._tightened(inner.value - there, inner.centre - there, inner.slope)


def _ascending(v: Interval) -> Interval:
    """Sort both ends; np.sort hides a NaN at the end, so one NaN spoils the whole group."""
    broken = (np.isnan(v.low) | np.isnan(v.high)).any(1, keepdims=True)
    return Interval(np.where(broken, np.nan, np.sort(v.low, 1)), np.where(broken, np.nan, np.sort(v.high, 1)))


def _exp(v: Interval) -> Interval:
    return iv.by_balls(arb.exp, v)


def _erf(v: Interval) -> Interval:
    return iv.by_balls(arb.erf, v)


def _clamped(v: Interval, low: float, high: float) -> Interval:
    return Interval(np.maximum(v.low, low), np.minimum(v.high, high))


def _step(v: Interval, left: float, right: float) -> Interval:
    """Difference quotients of a function with slope ``left`` < ``right`` on either side of 0."""
    return Interval(np.where(v.low >= 0, right, left), np.where(v.high <= 0, left, right))


def _relu(v: Interval) -> Interval:
    return Interval(np.maximum(v.low, 0), np.maximum(v.high, 0))


def _tanh_quotients(v: Interval) -> Interval:
    y = iv.tanh(v)
    ends = (ONE - y) * (ONE + y)
    return _clamped(ends, 0.0, 1.0)


def _sigmoid_quotients(v: Interval) -> Interval:
    y = iv.sigmoid(v)
    return _clamped(y * (ONE - y), 0.0, 0.25)


#: Ranges and difference quotients of the activations that implicit layers may have.
SCALARS: dict[str, tuple[Scalar, Scalar]] = {
    "relu": (_relu, lambda v: _step(v, 0.0, 1.0)),
    "sigmoid": (iv.sigmoid, _sigmoid_quotients),
    "softplus": (iv.softplus, iv.sigmoid),
    "tanh": (iv.tanh, _tanh_quotients),
}


def _maximum(x: Interval, y: Interval) -> Interval:
    return Interval(np.maximum(x.low, y.low), np.maximum(x.high, y.high))


def _times(slope: Interval | None, factor: Interval) -> Interval | None:
    return None if slope is None else slope * factor


def _sum(x: Interval | None, y: Interval | None) -> Interval | None:
    if x is None or y is None:
        return y if x is None else x
    return x + y


def _chosen(x: Interval | None, y: Interval | None, first: Array, second: Array) -> Interval | None:
    if x is None and y is None:
        return None
    zero = iv.point(np.zeros(1))
    a, b = x or zero, y or zero
    hull = a.hull(b)
    low = np.where(first, a.low, np.where(second, b.low, hull.low))
    return Interval(low, np.where(first, a.high, np.where(second, b.high, hull.high)))


def _select(x: Enclosed, indices: object) -> Enclosed:
    return Enclosed(x.value.take(indices), x.centre.take(indices), None if x.slope is None else x.slope.take(indices))


def _batched(v: Interval, batch: int) -> Interval:
    shape = (batch, v.low.shape[1])
    return Interval(np.broadcast_to(v.low, shape), np.broadcast_to(v.high, shape))


def _slope_or_zero(part: Enclosed, total: int, batch: int) -> Interval:
    shape = (total, batch, part.value.low.shape[1])
    if part.slope is None:
        return iv.point(np.zeros(shape))
    return Interval(np.broadcast_to(part.slope.low, shape), np.broadcast_to(part.slope.high, shape))


def _join(parts: list[Interval]) -> Interval:
    return Interval(np.concatenate([p.low for p in parts], -1), np.concatenate([p.high for p in parts], -1))
