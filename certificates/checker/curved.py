"""Slopes of a Graph on cells to first order: what their errors leave is of second order in the size of a cell.

Between two points x and y of a cell with middle c let d = (x + y) / 2 - c, which is in the cell's box, and in its ball, too. The
chord of a smooth function has the slope f'(m) + f''(m) (w - m) + r, where w is the mean of both values and r is of second
order; w - m is affine in d, up to second order; and a b - a' b' = mean(a) (b - b') + mean(b) (a - a'). So the matrix A with
f(x) - f(y) = A (x - y) is affine in d, the same d for all units. With the same coefficients a signal is a quadratic of x - c.

A is the product of the chords' slopes and, at products, of the means: one matrix, which all enclosures here hold.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import cast

import numpy as np

from lipctrl.certificates.checker import intervals as iv
from lipctrl.certificates.checker.derivatives import Higher, higher_derivatives, reciprocal
from lipctrl.certificates.checker.enclosure import ONE, Enclosed, Remembered, Scalar
from lipctrl.certificates.checker.graph import Graph
from lipctrl.certificates.checker.intervals import Array, Interval, up
from lipctrl.certificates.checker.local_slopes import Cells, Local, LocalAlgebra, LocalSlopes, entering, local_slopes, sized

_SMALL = 2.0**-900


@dataclass(frozen=True, slots=True)
class Model:
    """v(x) in ``centre`` + ``linear`` (x - c) + (x - c) ``bend`` (x - c) / 2 +- ``error``; A in ``linear`` + ``bend`` d +- ``play``.

    Shapes (B, n), (k, B, n), (k, k, B, n) or ``None`` for 0, (B, n), (k, B, n). ``swing`` (k, B, n) is the most that ``bend`` d can be,
    ``sag`` (B, n) the most that (x - c) ``bend`` (x - c) / 2 can; ``bend`` is symmetric.
    """

    centre: Interval
    linear: Interval
    bend: Interval | None
    error: Array
    play: Array
    swing: Array
    sag: Array


@dataclass(frozen=True, slots=True)
class Curved(Local):
    """A :class:`Local` that also has a model, unless it does not vary."""

    model: Model | None


def curved_slopes(graph: Graph, cells: Cells, remembered: Remembered | None = None) -> LocalSlopes:
    """As :func:`local_slopes`, where the ``output`` is :class:`Curved` and the model narrows its value and slope."""
    if not len(cells.free):
        return local_slopes(graph, cells, remembered)
    return CurvedAlgebra(cells, remembered).whole(graph)


class CurvedAlgebra(LocalAlgebra):
    """Evaluate graphs on :class:`Curved` values. Where an operand that varies has no model, neither has the result."""

    def __init__(self, cells: Cells, remembered: Remembered | None = None) -> None:
        super().__init__(cells, remembered)
        self._quotients: Scalar = lambda v: v

    def whole(self, graph: Graph) -> LocalSlopes:
        """What :func:`curved_slopes` returns."""
        return LocalSlopes(self.run(graph, self.entering(), ()), self.nodes, self.spread)

    def spread(self, size: Array) -> Array:
        """The most that a (x - c) can be in the cells, |a| = ``size`` (k, B, n)."""
        return self._spread(size)

    def entering(self) -> Local:
        """The inputs of a graph on the cells."""
        x = entering(self._cells)
        if x.linear is None:
            return x
        return self._with(x, self._model(x.centre, x.linear, None, x.error, np.zeros_like(x.linear.low)))

    # --- models --------------------------------------------------------------------------------------------------------

    def _model(self, centre: Interval, linear: Interval, bend: Interval | None, error: Array, play: Array) -> Model:
        size = centre.low.shape[1]  # a signal of length 1 may have been repeated
        linear, bend = sized(linear, size), bend and _without_subnormals(sized(bend, size))
        error, play = (np.broadcast_to(end, (*end.shape[:-1], size)) for end in (error, play))
        if bend is None:
            return Model(centre, linear, None, error, play, np.zeros_like(play), np.zeros_like(error))
        swing = np.stack([self._spread(row) for row in bend.magnitude])
        return Model(centre, linear, bend, error, play, swing, 0.5 * self._spread(swing))

    def _with(self, local: Local, model: Model | None) -> Curved:
        """A value with its model, each narrowed by the other."""
        value, slope = local.value, local.slope
        if model is not None and slope is not None:
            spread = _sum_up(self._spread(model.linear.magnitude), model.sag, model.error)
            value = _narrowed(value, model.centre, spread)
            slope = _narrowed(slope, model.linear, up(model.swing + model.play))
        return Curved(value, local.centre, slope, local.linear, local.error, model)

    def _gained(self, x: Model, gain: Interval, certain: Array, doubt: Array) -> Array:
        """The ``play`` of g A for a model of A and g in ``gain`` + l d +- ``doubt``, |l d| <= ``certain``.

        The errors that A had are multiplied; those that are made here are added.
        """
        made = up(up(doubt * up(x.linear.magnitude + x.swing)) + up(certain * x.swing))
        play: Array = up(up(_sum_up(gain.magnitude, certain, doubt) * x.play) + made)
        return play

    def _scalar(self, x: Enclosed, function: Scalar, quotients: Scalar) -> Local:
        self._quotients = quotients
        return super()._scalar(x, function, quotients)

    def _mapped(self, x: Local, function: Scalar, slopes: Interval, line: Callable[[], tuple[Array, Interval]]) -> Local:
        model = _model_of(x)
        if model is None:
            return super()._mapped(x, function, slopes, line)
        factor, rest = line()
        local = super()._mapped(x, function, slopes, lambda: (factor, rest))
        doubt = up(np.maximum(slopes.high - factor, factor - slopes.low))
        quotients, higher = self._quotients, higher_derivatives(self._node)
        if self._node.op == "div":
            quotients, higher = _reciprocal_slopes, reciprocal
        if higher is None:
            return self._with(local, self._composed(model, factor, rest, doubt))
        middle = np.clip(_middle(model.centre), x.value.low, x.value.high)
        curve, tangent, remainder, departure = _parabola(middle, x.value, function, quotients, higher)
        better = departure < 0.5 * doubt
        if not better.any():
            return self._with(local, self._composed(model, factor, rest, doubt))
        factor, doubt, curve = np.where(better, (tangent, departure, curve), (factor, doubt, np.zeros_like(doubt)))
        rest = Interval(np.where(better, remainder.low, rest.low), np.where(better, remainder.high, rest.high))
        return self._with(local, self._composed(model, factor, rest, doubt, middle, curve))

    def _composed(
        self, x: Model, factor: Array, rest: Interval, doubt: Array, middle: Array | None = None, curve: Array | None = None
    ) -> Model:
        """The model of f(v), where f(t) - factor t - curve (t - middle)^2 / 2 is in ``rest`` and its slopes are at most ``doubt``."""
        steady = iv.point(factor)
        shift, deviation = rest.centre_radius()
        error = up(up(np.abs(factor) * x.error) + deviation)
        certain, bend = np.zeros_like(doubt), None if x.bend is None else x.bend * steady
        if curve is not None and middle is not None:
            # (t - middle)^2 = (linear (x - c))^2 + w (2 linear (x - c) + w), |w| <= off
            straight, size = self._spread(x.linear.magnitude), np.abs(curve)
            off = _sum_up((x.centre - iv.point(middle)).magnitude, x.sag, x.error)
            error = up(error + up(up(0.5 * size * off) * up(2 * straight + off)))
            certain, doubt = np.where(size > 0, up(size * straight), 0.0), up(doubt + up(size * off))
            square = Interval(x.linear.low[:, None], x.linear.high[:, None]) * x.linear * iv.point(curve)
            bend = square if bend is None else bend + square
        play = self._gained(x, steady, certain, doubt)
        return self._model(steady * x.centre + iv.point(shift), x.linear * steady, bend, error, play)

    # --- operations ------------------------------------------------------------------------------------------------------

    def _shifted(self, x: Local, by: Interval) -> Local:
        model = _model_of(x)
        moved = super()._shifted(x, by)
        return moved if model is None else self._with(moved, self._recentred(model, by))

    def _recentred(self, x: Model, by: Interval) -> Model:
        return self._model(x.centre + by, x.linear, x.bend, x.error, x.play)

    def neg(self, x: Enclosed) -> Local:
        model, negative = _model_of(x), super().neg(x)
        if model is None:
            return negative
        bend = None if model.bend is None else -model.bend
        opposite = Model(-model.centre, -model.linear, bend, model.error, model.play, model.swing, model.sag)
        return self._with(negative, opposite)

    def add(self, x: Enclosed, y: Enclosed) -> Local:
        total, a, b = super().add(x, y), _model_of(x), _model_of(y)
        if a is None or b is None:
            known, other = (a, y) if b is None else (b, x)
            return self._with(total, None if known is None or other.slope is not None else self._recentred(known, other.value))
        bend = b.bend if a.bend is None else a.bend if b.bend is None else a.bend + b.bend
        parts = a.centre + b.centre, a.linear + b.linear, bend, up(a.error + b.error), up(a.play + b.play)
        return self._with(total, self._model(*parts))

    def mul(self, x: Enclosed, y: Enclosed) -> Local:
        product, a, b = super().mul(x, y), _model_of(x), _model_of(y)
        if a is None or b is None:
            known, other = (a, y) if b is None else (b, x)
            return self._with(product, None if known is None or other.slope is not None else self._scaled(known, other.value))
        spread_a, spread_b = self._spread(a.linear.magnitude), self._spread(b.linear.magnitude)
        off_a, off_b = up(a.sag + a.error), up(b.sag + b.error)
        size_a, size_b = a.centre.magnitude, b.centre.magnitude
        error = _sum_up(up(size_a * b.error), up(size_b * a.error), up(spread_a * off_b), up(off_a * spread_b), up(off_a * off_b))
        play = up(self._gained(b, a.centre, spread_a, off_a) + self._gained(a, b.centre, spread_b, off_b))
        cross = Interval(a.linear.low[:, None], a.linear.high[:, None]) * b.linear
        bend = cross + Interval(cross.low.swapaxes(0, 1), cross.high.swapaxes(0, 1))
        for model, factor in ((a, b.centre), (b, a.centre)):
            bend = bend if model.bend is None else bend + model.bend * factor
        linear = a.linear * b.centre + b.linear * a.centre
        return self._with(product, self._model(a.centre * b.centre, linear, bend, error, play))

    def _scaled(self, x: Model, factor: Interval) -> Model:
        size, bend = factor.magnitude, None if x.bend is None else x.bend * factor
        return self._model(x.centre * factor, x.linear * factor, bend, up(x.error * size), up(x.play * size))

    def affine(self, x: Enclosed, weight: Array, bias: Array | None) -> Local:
        model, local = _model_of(x), super().affine(x, weight, bias)
        if model is None:
            return local
        bend = None if model.bend is None else iv.affine(model.bend, weight, None)
        error, play = (iv.affine(Interval(-size, size), weight, None).high for size in (model.error, model.play))
        return self._with(
            local, self._model(iv.affine(model.centre, weight, bias), iv.affine(model.linear, weight, None), bend, error, play)
        )

    def select(self, x: Enclosed, indices: tuple[int, ...]) -> Local:
        model, local, at = _model_of(x), super().select(x, indices), list(indices)
        if model is None:
            return local
        bend = None if model.bend is None else model.bend.take(at)
        sizes = (size[..., at] for size in (model.error, model.play, model.swing, model.sag))
        return self._with(local, Model(model.centre.take(at), model.linear.take(at), bend, *sizes))

    def concatenate(self, *parts: Enclosed) -> Local:
        whole, known = super().concatenate(*parts), [_model_of(part) for part in parts]
        if whole.linear is None or any(m is None and p.slope is not None for m, p in zip(known, parts, strict=True)):
            return whole
        k, batch, _ = whole.linear.low.shape
        models = [_still(p.value, k) if m is None else m for m, p in zip(known, parts, strict=True)]
        sizes = [part.value.low.shape[1] for part in parts]

        def joined(arrays: Sequence[Array], *front: int) -> Array:
            return np.concatenate([np.broadcast_to(a, (*front, batch, n)) for a, n in zip(arrays, sizes, strict=True)], -1)

        def both(ends: Sequence[Interval], *front: int) -> Interval:
            return Interval(joined([end.low for end in ends], *front), joined([end.high for end in ends], *front))

        bends = [iv.point(np.zeros((k, k, 1, 1))) if m.bend is None else m.bend for m in models]
        model = self._model(
            both([m.centre for m in models]),
            both([m.linear for m in models], k),
            None if all(m.bend is None for m in models) else both(bends, k, k),
            joined([m.error for m in models]),
            joined([m.play for m in models], k),
        )
        return self._with(whole, model)


def _still(value: Interval, count: int) -> Model:
    """The model of what does not vary."""
    zero = np.zeros_like(value.low)
    play = np.zeros((count, *zero.shape))
    return Model(value, iv.point(play), None, zero, play, play, zero)


def _model_of(x: Enclosed) -> Model | None:
    return x.model if isinstance(x, Curved) else None


def _without_subnormals(x: Interval) -> Interval:
    """Ends near 0 moved outwards: arithmetic with subnormal numbers is slow."""
    low = np.where(np.abs(x.low) < _SMALL, np.where(x.low < 0, -_SMALL, 0.0), x.low)
    return Interval(low, np.where(np.abs(x.high) < _SMALL, np.where(x.high > 0, _SMALL, 0.0), x.high))


def _middle(x: Interval) -> Array:
    return cast(Array, 0.5 * x.low + 0.5 * x.high)


def _parabola(middle: Array, v: Interval, function: Scalar, quotients: Scalar, higher: Higher) -> tuple[Array, Array, Interval, Array]:
    """Floats b, s, the range of r(t) = f(t) - s t - b (t - middle)^2 / 2 for t in v, which holds ``middle``, and the most of |r'|."""
    at, reach = iv.point(middle), up(np.maximum(v.high - middle, middle - v.low))
    second, (_, third) = higher(at)[0], higher(v)
    curve = _middle(second)
    remainder = Interval(np.minimum(third.low, 0.0), np.maximum(third.high, 0.0)) * iv.point(up(0.5 * up(reach * reach)))
    derivative = quotients(at) + (second - iv.point(curve)) * Interval(-reach, reach) + remainder
    factor = _middle(derivative)
    doubt = (derivative - iv.point(factor)).magnitude
    away = up(doubt * reach)
    return curve, factor, function(at) - iv.point(factor) * at + Interval(-away, away), doubt


def _reciprocal_slopes(v: Interval) -> Interval:
    inverse = ONE / v
    return -(inverse * inverse)


def _narrowed(known: Interval, centre: Interval, radius: Array) -> Interval:
    """What is also within ``centre`` +- ``radius``, where that is a number: what is not known is no reason to forget."""
    low, high = iv.down(centre.low - radius), up(centre.high + radius)
    return Interval(np.where(low > known.low, low, known.low), np.where(high < known.high, high, known.high))


def _sum_up(*terms: Array) -> Array:
    """A sum of numbers that are not negative, rounded up."""
    total = terms[0]
    for term in terms[1:]:
        total = up(total + term)
    return total
