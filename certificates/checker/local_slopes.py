"""Slopes of a Graph on boxes and balls: what every coordinate-wise operation, and the graph as a whole, may do to differences there.

A cell is a box of inputs, or the part of a ball in one. For each node and each cell an affine form holds its values:
v(x) in centre + linear (x - c) +- error for all x in the cell, c the middle of its box, with one term of error that gathers
what is not linear. From the values that enter an operation follow its slopes in the cell, as closed sets: a kink that a cell
touches from one side does not count, because no pair of points in the cell sees the other side. ``slope`` is the product of
all slopes on the way, an interval matrix that holds some A with f(x) - f(y) = A (x - y) for *any two* points of the cell.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import cast

import numpy as np

from lipctrl.certificates.checker import intervals as iv
from lipctrl.certificates.checker.enclosure import ONE, SCALARS, Enclosed, EnclosureAlgebra, Remembered, Scalar, value_at_point
from lipctrl.certificates.checker.graph import ELEMENTWISE, TENSOR_KEYS, Graph, GraphError, Node
from lipctrl.certificates.checker.implicit import ImplicitLayer
from lipctrl.certificates.checker.intervals import Array, Interval, down, up
from lipctrl.certificates.checker.network import Place

#: Smooth functions: where their derivative is not monotone (enclosures of its extrema), and a bound of their second derivative.
_SILU_EXTREMUM = (2.39935728, 2.39935729)  # v tanh(v/2) = 2
_ROOT_2 = (1.41421356, 1.41421357)
SMOOTH: dict[str, tuple[tuple[tuple[float, float], ...], float]] = {
    "tanh": (((0.0, 0.0),), 0.76981),
    "sigmoid": (((0.0, 0.0),), 0.09623),
    "softplus": ((), 0.25),
    "erf": (((0.0, 0.0),), 0.96789),
    "gelu": ((_ROOT_2, (-_ROOT_2[1], -_ROOT_2[0])), 0.79789),
    "silu": ((_SILU_EXTREMUM, (-_SILU_EXTREMUM[1], -_SILU_EXTREMUM[0])), 0.5),
}
COORDINATE_WISE = ({*ELEMENTWISE} - {"neg"}) | {"power", "clip", "leaky_relu", "min", "max"}  #: nodes whose slopes are noted
_ZERO = iv.point(np.zeros(1))


@dataclass(frozen=True)
class Cells:
    """B cells: ``low``, ``high`` (B, n) are the ends of their boxes, ``free`` the indices of the k inputs that vary.

    Where ``reach`` (B,) is given, |scale (x - middle)| <= reach as well (Euclidean norm over the free inputs, ``scale`` (k,)).
    """

    low: Array
    high: Array
    free: Array
    reach: Array | None = None
    scale: Array | None = None

    def batch(self, part: slice) -> Cells:
        """Some of the cells."""
        return Cells(self.low[part], self.high[part], self.free, None if self.reach is None else self.reach[part], self.scale)


@dataclass(frozen=True, slots=True)
class Local(Enclosed):
    """v(x) in ``centre`` + ``linear`` (x - c) +- ``error``: (B, n), (k, B, n), (B, n); ``slope`` (k, B, n) for any two points."""

    linear: Interval | None
    error: Array


@dataclass(frozen=True)
class LocalSlopes:
    """``output`` of the graph on each cell, and the slopes (B, n) of its coordinate-wise nodes by their place.

    ``spread`` takes |a| (k, B, n) to the most that a (x - c) can be in the cells, where it is known.
    """

    output: Local
    nodes: dict[Place, Interval]
    spread: Callable[[Array], Array] | None = None


def local_slopes(graph: Graph, cells: Cells, remembered: Remembered | None = None) -> LocalSlopes:
    """Enclose a graph with one input and one output on cells. What is not finite is NaN or infinite: callers refuse it.

    Places are indices of nodes, or paths through ``recentre`` nodes. At ``min`` or ``max`` of two signals the slopes are those
    in the first one. Raises GraphError for ``group_sort``: write sorts as absolute values first.
    """
    algebra = LocalAlgebra(cells, remembered)
    output = algebra.run(graph, entering(cells), ())
    return LocalSlopes(output, algebra.nodes)


def entering(cells: Cells) -> Local:
    """The inputs of a graph on cells; those that vary are the coordinates of the affine forms."""
    batch, n = cells.low.shape
    count = len(cells.free)
    centre, _ = Interval(cells.low, cells.high).centre_radius()
    middle = Interval(cells.low.copy(), cells.high.copy())
    middle.low[:, cells.free] = middle.high[:, cells.free] = centre[:, cells.free]
    unit = np.zeros((count, batch, n))
    unit[np.arange(count), :, cells.free] = 1.0
    seeds = iv.point(unit) if count else None
    return Local(Interval(cells.low, cells.high), middle, seeds, seeds, np.zeros((batch, n)))


class LocalAlgebra(EnclosureAlgebra):
    """Evaluate graphs on :class:`Local` values; ``nodes`` collects the slopes of coordinate-wise nodes."""

    def __init__(self, cells: Cells, remembered: Remembered | None = None) -> None:
        _, radius = Interval(cells.low, cells.high).centre_radius()
        super().__init__(radius[:, cells.free].T[:, :, None], remembered)
        self.nodes: dict[Place, Interval] = {}
        self._cells = cells
        self._place: Place = 0
        self._node = Node("input")

    def run(self, graph: Graph, entering: Local, path: tuple[int, ...]) -> Local:
        """The output of a graph whose one input is ``entering``; ``path`` leads to it from the outermost graph."""
        values: list[Local] = []
        (output,) = graph.outputs.values()
        for index, node in enumerate(graph.nodes[: output + 1]):
            self._node, self._place = node, (*path, index) if path else index
            operands = [values[i] for i in node.inputs]
            if node.op == "input":
                values.append(entering)
            elif node.op == "recentre":
                inner = self.run(node.attributes["graph"], operands[0], (*path, index))
                there = self._remembered(value_at_point, node.attributes["graph"], node.attributes["point"])
                values.append(self._shifted(inner, -there))
            elif node.op in ("min", "max") and graph.nodes[node.inputs[0]].op == "constant":
                values.append(getattr(self, node.op)(*operands[::-1]))
            else:
                attributes = {k: graph.tensors[v] if k in TENSOR_KEYS and v is not None else v for k, v in node.attributes.items()}
                values.append(getattr(self, node.op)(*operands, **attributes))
        return values[output]

    def _shifted(self, x: Local, by: Interval) -> Local:
        return Local(x.value + by, x.centre + by, x.slope, x.linear, x.error)

    # --- affine forms -------------------------------------------------------------------------------------------------

    def _formed(self, value: Interval, centre: Interval, slope: Interval | None, linear: Interval | None, error: Array) -> Local:
        if linear is None:
            return Local(value.intersect(Interval(down(centre.low - error), up(centre.high + error))), centre, slope, None, error)
        size = value.low.shape[1]  # a signal of length 1 may have been repeated
        slope, linear, error = slope and sized(slope, size), sized(linear, size), np.broadcast_to(error, (len(error), size))
        spread = up(self._spread(linear.magnitude) + error)
        return Local(value.intersect(Interval(down(centre.low - spread), up(centre.high + spread))), centre, slope, linear, error)

    def _spread(self, size: Array) -> Array:
        """The most that linear (x - c) can be, |linear| <= ``size`` (k, B, n)."""
        slack = 1 + 4 * (len(size) + 8) * iv.UNIT
        spread = (size * self._radius).sum(0) * slack + 2.0**-1000
        if self._cells.reach is None or self._cells.scale is None:
            return np.asarray(spread)
        # squares below float64's range lose at most sqrt(k) 2^-537
        norm = np.sqrt(((size / self._cells.scale[:, None, None]) ** 2).sum(0)) * slack + 2.0**-500
        return np.asarray(np.minimum(spread, up(norm * self._cells.reach[:, None]) * slack))

    def _scalar(self, x: Enclosed, function: Scalar, quotients: Scalar) -> Local:
        """A coordinate-wise node: note its slopes over the values that enter."""
        extrema, curvature = SMOOTH.get(self._node.op, ((), np.inf))
        exact = np.isfinite(curvature)
        slopes = _over_breakpoints(quotients, x.value, [Interval(*map(np.array, e)) for e in extrema]) if exact else quotients(x.value)
        if self._node.op in COORDINATE_WISE:
            self.nodes[self._place] = slopes
        return self._mapped(cast(Local, x), function, slopes, lambda: self._line(x.value, function, quotients, slopes, curvature))

    def _mapped(self, x: Local, function: Scalar, slopes: Interval, line: Callable[[], tuple[Array, Interval]]) -> Local:
        """A scalar function with these slopes, for which ``line()`` gives s and the range of f(t) - s t."""
        value = function(x.value)
        if x.linear is None:
            return _steady(value)
        factor, rest = line()
        steady = iv.point(factor)
        middle, deviation = rest.centre_radius()
        centre, error = steady * x.centre + iv.point(middle), up(np.abs(factor) * x.error)
        return self._deviating(Local(value, centre, _times(x.slope, slopes), _times(x.linear, steady), error), deviation)

    def _deviating(self, local: Local, deviation: Array) -> Local:
        """A value whose form is known up to this deviation (B, n), beside its error."""
        return self._formed(local.value, local.centre, local.slope, local.linear, up(local.error + deviation))

    def _line(self, v: Interval, function: Scalar, quotients: Scalar, slopes: Interval, curvature: float) -> tuple[Array, Interval]:
        """Floats s and intervals that hold f(t) - s t for all t in v."""
        middle, radius = v.centre_radius()
        factor = 0.5 * slopes.low + 0.5 * slopes.high
        kinks = self._kinks()
        if kinks is not None:  # piecewise linear: its extrema are at the ends and the kinks
            left, right = function(iv.point(v.low)), function(iv.point(v.high))
            chord = (right.low - left.low) / (v.high - v.low)
            factor = np.where(np.isfinite(chord), chord, factor)
            return factor, _over_breakpoints(lambda t: function(t) - iv.point(factor) * t, v, kinks)
        deviation = up(np.maximum(slopes.high - factor, factor - slopes.low))
        if np.isfinite(curvature):  # |f(t) - f(m) - f'(m) (t - m)| <= curvature (t - m)^2 / 2
            tangent = quotients(iv.point(middle))
            near, width = tangent.centre_radius()
            bent = up(width + up(0.5 * curvature * radius))
            factor, deviation = np.where(bent < deviation, near, factor), np.minimum(bent, deviation)
        remainder = up(deviation * radius)
        return factor, function(iv.point(middle)) - iv.point(factor) * iv.point(middle) + Interval(-remainder, remainder)

    def _kinks(self) -> list[Interval] | None:
        """Where the node in hand is not differentiable, if it is linear elsewhere."""
        if self._node.op == "clip":
            return [self._remembered(iv.from_fractions, self._node.attributes[end]) for end in ("low", "high")]
        return [_ZERO] if self._node.op in ("relu", "abs", "leaky_relu", "min", "max") else None

    # --- operations that are not coordinate-wise, or not of one signal --------------------------------------------------

    def constant(self, values: tuple[Fraction, ...]) -> Local:
        value = self._remembered(iv.from_fractions, values)
        return _steady(Interval(value.low[None], value.high[None]))

    def neg(self, x: Enclosed) -> Local:
        x = cast(Local, x)
        return Local(-x.value, -x.centre, _opposite(x.slope), _opposite(x.linear), x.error)

    def add(self, x: Enclosed, y: Enclosed) -> Local:
        x, y = cast(Local, x), cast(Local, y)
        return self._formed(x.value + y.value, x.centre + y.centre, _sum(x.slope, y.slope), _sum(x.linear, y.linear), up(x.error + y.error))

    def sub(self, x: Enclosed, y: Enclosed) -> Local:
        return self.add(x, self.neg(y))

    def mul(self, x: Enclosed, y: Enclosed) -> Local:
        x, y = cast(Local, x), cast(Local, y)
        slope = _sum(_times(y.slope, x.value), _times(x.slope, y.value))  # ab - cd = a (b - d) + d (a - c)
        linear = _sum(_times(y.linear, x.centre), _times(x.linear, y.centre))
        bent = up(up(x.centre.magnitude * y.error) + up(y.centre.magnitude * x.error))
        error = up(bent + up(self._departure(x) * self._departure(y)))
        return self._formed(x.value * y.value, x.centre * y.centre, slope, linear, error)

    def _departure(self, x: Local) -> Array:
        """How far values may be from the centre."""
        return x.error if x.linear is None else np.asarray(up(self._spread(x.linear.magnitude) + x.error))

    def div(self, x: Enclosed, y: Enclosed) -> Local:
        y = cast(Local, y)
        inverse = ONE / y.value
        slopes = -(inverse * inverse)

        def line() -> tuple[Array, Interval]:
            return self._line(y.value, lambda v: ONE / v, lambda v: slopes, slopes, np.inf)

        return self.mul(x, self._mapped(y, lambda v: ONE / v, slopes, line))

    def tan(self, x: Enclosed) -> Local:
        def function(v: Interval) -> Interval:
            return iv.sin(v) / iv.cos(v)

        return self._scalar(x, function, lambda v: ONE + iv.integer_power(function(v), 2))

    def max(self, x: Enclosed, y: Enclosed) -> Local:
        larger = self.add(y, self.relu(self.sub(x, y)))  # the slope of relu is the slope in x
        return replace(larger, value=larger.value.intersect(_maximum(x.value, y.value)))

    def min(self, x: Enclosed, y: Enclosed) -> Local:
        smaller = self.sub(y, self.relu(self.sub(y, x)))
        return replace(smaller, value=smaller.value.intersect(-_maximum(-x.value, -y.value)))

    def affine(self, x: Enclosed, weight: Array, bias: Array | None) -> Local:
        x = cast(Local, x)
        slope, linear = (None if s is None else iv.affine(s, weight, None) for s in (x.slope, x.linear))
        error = iv.affine(Interval(-x.error, x.error), weight, None).high
        return self._formed(iv.affine(x.value, weight, bias), iv.affine(x.centre, weight, bias), slope, linear, error)

    def group_sort(self, x: Enclosed, group_size: int) -> Local:
        raise GraphError("group_sort: write sorts as absolute values before their slopes are sought")

    def implicit(self, x: Enclosed, weight: Array, metric: Array, activation: str) -> Local:
        """Between solutions z for v and z' for v', z' - z = (I - S D)^-1 S (v' - v), with S in the slopes over all that enters.

        The centre of a form need not be one of its values: what it leads to counts as well. A second round knows the form of z.
        """
        x, layer, scalars = cast(Local, x), self._remembered(ImplicitLayer, weight, metric, activation), SCALARS[activation]
        wide, centre = x.value.hull(x.centre), layer.enclose(x.centre, *scalars)
        value = layer.enclose(wide, *scalars)
        w = iv.affine(value, layer.weight, None) + wide
        self.nodes[self._place] = scalars[1](w)
        z = _steady(value)
        if x.linear is None or x.slope is None:
            return z
        for _ in range(2):
            self.nodes[self._place] = slopes = scalars[1](w)
            middle, deviation = layer.enclose_slopes(x.linear, slopes).centre_radius()
            error = up(self._spread(deviation) + layer.enclose_slopes(Interval(-x.error, x.error), slopes).magnitude)
            z = self._formed(value, centre, layer.enclose_slopes(x.slope, slopes), iv.point(middle), error)
            there = iv.affine(centre, layer.weight, None) + x.centre
            w = w.intersect(self.add(self.affine(z, weight, None), x).value.hull(there))
        return z

    def select(self, x: Enclosed, indices: tuple[int, ...]) -> Local:
        x, at = cast(Local, x), list(indices)
        slope, linear = (None if s is None else s.take(at) for s in (x.slope, x.linear))
        return Local(x.value.take(at), x.centre.take(at), slope, linear, x.error[..., at])

    def concatenate(self, *parts: Enclosed) -> Local:
        whole = super().concatenate(*parts)
        batch = len(whole.value.low)
        if whole.slope is None:
            return _steady(whole.value)
        linear = super().concatenate(*(Enclosed(p.value, p.centre, cast(Local, p).linear) for p in parts)).slope
        error = np.concatenate([np.broadcast_to(cast(Local, p).error, (batch, p.value.low.shape[1])) for p in parts], 1)
        return Local(whole.value, whole.centre, whole.slope, linear, error)


def sized(x: Interval, size: int) -> Interval:
    """The same with so many coordinates."""
    if x.low.shape[-1] == size:
        return x
    return Interval(*(np.broadcast_to(end, (*end.shape[:-1], size)) for end in (x.low, x.high)))


def _steady(value: Interval) -> Local:
    """What does not depend on the inputs that vary."""
    return Local(value, value, None, None, np.zeros_like(value.low))


def _over_breakpoints(function: Scalar, v: Interval, points: Sequence[Interval]) -> Interval:
    """The range over v of a function that is monotone between its ends and these points."""
    result = function(iv.point(v.low)).hull(function(iv.point(v.high)))
    for p in points:
        inside = Interval(np.clip(p.low, v.low, v.high), np.clip(p.high, v.low, v.high))
        result = result.hull(function(inside))
    return result


def _opposite(x: Interval | None) -> Interval | None:
    return None if x is None else -x


def _times(x: Interval | None, factor: Interval) -> Interval | None:
    return None if x is None else x * factor


def _sum(x: Interval | None, y: Interval | None) -> Interval | None:
    if x is None or y is None:
        return y if x is None else x
    return x + y


def _maximum(x: Interval, y: Interval) -> Interval:
    return Interval(np.maximum(x.low, y.low), np.maximum(x.high, y.high))
