"""Slopes of a Graph on cells by Taylor polynomials: what their errors leave is of second or third order in the size of a cell.

Let c be the middle of a cell. With the same coefficients a signal v is a polynomial P in x - c, of degree 2 or 3, and its slopes
at x are those of P, both up to errors of the next order: f(v) = f(m) + f'(m) (v - m) + ..., and the slope f'(v) is a polynomial, too,
of one degree less; (a b)' = a b' + b a'. The slopes A at x are the limits of the A with f(y) - f(z) = A (y - z) for y and z of the cell
that approach x, A the product of the slopes that the units have between y and z. So f(y) - f(z) is a mean of A (y - z) over
the points of the segment, which is in the cell: no two points are further apart than the greatest of these A allows.

Where polynomials are of degree 2, errors are counted such that slopes between points y and z that are far from each other are
enclosed as well, by P' at (y + z) / 2.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache, reduce
from itertools import combinations_with_replacement, permutations
from typing import cast

import numpy as np

from lipctrl.certificates.checker import intervals as iv
from lipctrl.certificates.checker.derivatives import Higher, higher_derivatives, reciprocal
from lipctrl.certificates.checker.enclosure import ONE, Enclosed, Remembered, Scalar
from lipctrl.certificates.checker.graph import Graph
from lipctrl.certificates.checker.intervals import Array, Interval, up
from lipctrl.certificates.checker.local_slopes import Cells, Local, LocalAlgebra, LocalSlopes, entering, local_slopes, sized

Ball = tuple[Array, Array]  #: a centre and a radius
Sizes = tuple[Array, ...]  #: of what belongs to the degrees 1, 2, ... of a polynomial, up to the order of an algebra

_SMALL = 2.0**-900


@dataclass(frozen=True, slots=True)
class Model:
    """v(x) in P(x - c) +- ``error`` and A(x) in P'(x - c) +- ``play``.

    P(d) = ``centre`` + ``linear`` d + d ``bend`` d / 2 + ``twist`` d d d / 6, of shapes (B, n), (k, B, n), (k, k, B, n), (K, B, n),
    where ``bend`` is symmetric and ``twist`` has the K entries of a symmetric array at h <= i <= j, see :func:`triples`. Either may
    be ``None`` for 0. The errors are (B, n) and (k, B, n). By degree: ``sizes`` (B, n) are the most that parts of P can be on the
    cells, and ``swings`` (k, B, n) that those of P' can be.
    """

    centre: Interval
    linear: Interval
    bend: Interval | None
    twist: Interval | None
    error: Array
    play: Array
    sizes: Sizes
    swings: Sizes


@dataclass(frozen=True, slots=True)
class Taylor:
    """f(t) = ``factor`` t + ``curve`` (t - m)^2 / 2 + ``third`` (t - m)^3 / 6 + r(t), m = ``middle``, r in ``rest`` and |r'| <= ``doubt``.

    ``third`` or all that is above the first degree may be ``None`` for 0.
    """

    factor: Array
    rest: Interval
    doubt: Array
    middle: Array | None = None
    curve: Array | None = None
    third: Array | None = None


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

    order = 2  #: of the polynomials: 2 or 3

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

    def _model(
        self, centre: Interval, linear: Interval, bend: Interval | None, error: Array, play: Array, twist: Interval | None = None
    ) -> Model:
        size = centre.low.shape[1]  # a signal of length 1 may have been repeated
        linear = sized(linear, size)
        bend, twist = (x and _without_subnormals(sized(x, size)) for x in (bend, twist))
        error, play = (np.broadcast_to(end, (*end.shape[:-1], size)) for end in (error, play))
        swings, sizes = [linear.magnitude], [self._spread(linear.magnitude)]
        swings.append(np.zeros_like(play) if bend is None else self._across(bend.magnitude))
        sizes.append(np.zeros_like(error) if bend is None else 0.5 * self._spread(swings[1]))
        if self.order == 3:
            swings.append(np.zeros_like(play) if twist is None else self._bent(twist))
            sizes.append(np.zeros_like(error) if twist is None else up(self._spread(swings[2]) / 3))
        return Model(centre, linear, bend, twist, error, play, tuple(sizes), tuple(swings))

    def _across(self, size: Array) -> Array:
        """The most (k, B, n) that sums of d_j a_ij can be, |a| = ``size`` (k, k, B, n)."""
        return np.stack([self._spread(row) for row in size])

    def _bent(self, twist: Interval) -> Array:
        """The most (k, B, n) that halves of sums of d_j d_l t_ijl can be."""
        size, (_, at) = twist.magnitude, triples(len(self._radius))
        return 0.5 * np.stack([self._spread(self._across(size[rows])) for rows in at])

    def _with(self, local: Local, model: Model | None) -> Curved:
        """A value with its model, each narrowed by the other."""
        value, slope = local.value, local.slope
        if model is not None and slope is not None:
            value = _narrowed(value, model.centre, _sum_up(*model.sizes, model.error))
            slope = _narrowed(slope, model.linear, _sum_up(*model.swings[1:], model.play))
        return Curved(value, local.centre, slope, local.linear, local.error, model)

    def _left_out(self, certain: Sizes, doubt: Array) -> Sizes:
        """By degrees j of a polynomial: the parts of a factor, with parts of these sizes +- ``doubt``, whose products with it are errors.

        The derivative of the part of degree j is of degree j - 1, and that of the product is kept below the order.
        """
        return tuple(_sum_up(doubt, *certain[max(0, self.order - degree) :]) for degree in range(1, self.order + 1))

    def _gained(self, x: Model, gain: Interval, certain: Sizes, doubt: Array) -> Array:
        """The ``play`` of g A for a model of A and g in ``gain`` + parts of the sizes ``certain`` +- ``doubt``.

        The errors that A had are multiplied; those that are made here are added.
        """
        made = [up(left_out * swing) for left_out, swing in zip(self._left_out(certain, doubt), x.swings, strict=True)]
        return _sum_up(up(_sum_up(gain.magnitude, *certain, doubt) * x.play), *made)

    def _dropped(self, a: Sizes, a_error: Array, b: Sizes, b_error: Array) -> Array:
        """The error of a product of signals, whose parts of degree 0, 1, ... have these sizes."""
        high = [up(x * y) for i, x in enumerate(a) for j, y in enumerate(b) if i + j > self.order]
        return _sum_up(up(a_error * b_error), up(_sum_up(*a) * b_error), up(_sum_up(*b) * a_error), *high)

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
        line_only = Taylor(factor, rest, doubt)
        if higher is None:
            return self._with(local, self._composed(model, line_only))
        middle = np.clip(_middle(model.centre), x.value.low, x.value.high)
        taylor = (_parabola if self.order == 2 else _cubic)(middle, x.value, function, quotients, higher)
        better = taylor.doubt < 0.5 * doubt
        return self._with(local, self._composed(model, _chosen(better, taylor, line_only) if better.any() else line_only))

    def _composed(self, x: Model, f: Taylor) -> Model:
        """The model of f(v)."""
        steady = iv.point(f.factor)
        shift, deviation = f.rest.centre_radius()
        error, doubt = up(up(np.abs(f.factor) * x.error) + deviation), f.doubt
        certain: Sizes = (np.zeros_like(doubt),) * self.order
        bend, twist = x.bend and x.bend * steady, _products(_pairs(x.twist, steady))
        if f.curve is not None and f.middle is not None:
            away, size = up((x.centre - iv.point(f.middle)).magnitude + x.error), np.abs(f.curve)  # v - m is P - centre, up to this
            parts = (np.zeros_like(away), *x.sizes)
            error = up(error + up(0.5 * up(size * self._dropped(parts, away, parts, away))))
            first, second = (np.where(size > 0, up(size * part), 0.0) for part in x.sizes[:2])
            off = _sum_up(away, *x.sizes[2:])
            doubt = up(doubt + up(size * off))
            square = Interval(x.linear.low[:, None], x.linear.high[:, None]) * x.linear
            bend = _plus(bend, square * iv.point(f.curve))
            if f.third is not None:
                straight, off, size = x.sizes[0], up(off + x.sizes[1]), np.abs(f.third)
                error = up(error + up(0.5 * up(size * up(off * up(up(straight + off) ** 2)))))
                doubt = up(doubt + up(0.5 * up(size * up(off * up(2 * straight + off)))))
                second = up(second + np.where(size > 0, up(0.5 * up(size * up(straight**2))), 0.0))
                mixed = _plus(square * (iv.point(f.third) / iv.point(np.array(3.0))), x.bend and x.bend * iv.point(f.curve))
                twist = _products([*_threefold(x.linear, mixed), *_pairs(x.twist, steady)])
            certain = (first, second)
        play = self._gained(x, steady, certain, doubt)
        return self._model(steady * x.centre + iv.point(shift), x.linear * steady, bend, error, play, twist)

    # --- operations ------------------------------------------------------------------------------------------------------

    def _shifted(self, x: Local, by: Interval) -> Local:
        model = _model_of(x)
        moved = super()._shifted(x, by)
        return moved if model is None else self._with(moved, self._recentred(model, by))

    def _recentred(self, x: Model, by: Interval) -> Model:
        return self._model(x.centre + by, x.linear, x.bend, x.error, x.play, x.twist)

    def neg(self, x: Enclosed) -> Local:
        model, negative = _model_of(x), super().neg(x)
        if model is None:
            return negative
        bend, twist = model.bend and -model.bend, model.twist and -model.twist
        return self._with(negative, replace(model, centre=-model.centre, linear=-model.linear, bend=bend, twist=twist))

    def add(self, x: Enclosed, y: Enclosed) -> Local:
        total, a, b = super().add(x, y), _model_of(x), _model_of(y)
        if a is None or b is None:
            known, other = (a, y) if b is None else (b, x)
            return self._with(total, None if known is None or other.slope is not None else self._recentred(known, other.value))
        sums = a.centre + b.centre, a.linear + b.linear, _plus(a.bend, b.bend), up(a.error + b.error), up(a.play + b.play)
        return self._with(total, self._model(*sums, _plus(a.twist, b.twist)))

    def mul(self, x: Enclosed, y: Enclosed) -> Local:
        product, a, b = super().mul(x, y), _model_of(x), _model_of(y)
        if a is None or b is None:
            known, other = (a, y) if b is None else (b, x)
            return self._with(product, None if known is None or other.slope is not None else self._scaled(known, other.value))
        error = self._dropped((a.centre.magnitude, *a.sizes), a.error, (b.centre.magnitude, *b.sizes), b.error)
        play = up(self._gained(b, a.centre, a.sizes, a.error) + self._gained(a, b.centre, b.sizes, b.error))
        cross = Interval(a.linear.low[:, None], a.linear.high[:, None]) * b.linear
        cross = cross + Interval(cross.low.swapaxes(0, 1), cross.high.swapaxes(0, 1))
        bend, twist = _plus(cross, a.bend and a.bend * b.centre, b.bend and b.bend * a.centre), None
        if self.order == 3:
            pairs = [*_threefold(a.linear, b.bend), *_threefold(b.linear, a.bend)]
            twist = _products([*pairs, *_pairs(a.twist, b.centre), *_pairs(b.twist, a.centre)])
        linear = a.linear * b.centre + b.linear * a.centre
        return self._with(product, self._model(a.centre * b.centre, linear, bend, error, play, twist))

    def _scaled(self, x: Model, factor: Interval) -> Model:
        size, bend, twist = factor.magnitude, x.bend and x.bend * factor, x.twist and x.twist * factor
        return self._model(x.centre * factor, x.linear * factor, bend, up(x.error * size), up(x.play * size), twist)

    def affine(self, x: Enclosed, weight: Array, bias: Array | None) -> Local:
        model, local = _model_of(x), super().affine(x, weight, bias)
        if model is None:
            return local
        centre, linear = iv.affine(model.centre, weight, bias), iv.affine(model.linear, weight, None)
        bend, twist = (part and iv.affine(part, weight, None) for part in (model.bend, model.twist))
        error, play = (iv.affine(Interval(-size, size), weight, None).high for size in (model.error, model.play))
        return self._with(local, self._model(centre, linear, bend, error, play, twist))

    def select(self, x: Enclosed, indices: tuple[int, ...]) -> Local:
        model, local, at = _model_of(x), super().select(x, indices), list(indices)
        if model is None:
            return local
        bend, twist = (part and part.take(at) for part in (model.bend, model.twist))
        error, play, *others = (size[..., at] for size in (model.error, model.play, *model.sizes, *model.swings))
        sizes, swings = tuple(others[: self.order]), tuple(others[self.order :])
        return self._with(local, Model(model.centre.take(at), model.linear.take(at), bend, twist, error, play, sizes, swings))

    def concatenate(self, *parts: Enclosed) -> Local:
        whole, known = super().concatenate(*parts), [_model_of(part) for part in parts]
        if whole.linear is None or any(m is None and p.slope is not None for m, p in zip(known, parts, strict=True)):
            return whole
        k, batch, _ = whole.linear.low.shape
        models = [_still(p.value, k) if m is None else m for m, p in zip(known, parts, strict=True)]
        lengths = [part.value.low.shape[1] for part in parts]

        def joined(arrays: Sequence[Array], *front: int) -> Array:
            return np.concatenate([np.broadcast_to(a, (*front, batch, n)) for a, n in zip(arrays, lengths, strict=True)], -1)

        def both(ends: Sequence[Interval], *front: int) -> Interval:
            return Interval(joined([end.low for end in ends], *front), joined([end.high for end in ends], *front))

        def curved(ends: Sequence[Interval | None], *front: int) -> Interval | None:
            if all(end is None for end in ends):
                return None
            zero = iv.point(np.zeros((*front, 1, 1)))
            return both([zero if end is None else end for end in ends], *front)

        model = self._model(
            both([m.centre for m in models]),
            both([m.linear for m in models], k),
            curved([m.bend for m in models], k, k),
            joined([m.error for m in models]),
            joined([m.play for m in models], k),
            curved([m.twist for m in models], math.comb(k + 2, 3)),
        )
        return self._with(whole, model)


def _still(value: Interval, count: int) -> Model:
    """The model of what does not vary, for which no sizes are needed."""
    zero = np.zeros_like(value.low)
    play = np.zeros((count, *zero.shape))
    return Model(value, iv.point(play), None, None, zero, play, (), ())


@lru_cache(maxsize=8)
def triples(count: int) -> tuple[Array, Array]:
    """The indices h <= i <= j below ``count``, (K, 3), and the place among them of any three, (count, count, count)."""
    ordered = np.array(list(combinations_with_replacement(range(count), 3)))
    place = np.zeros((count,) * 3, dtype=int)
    for axes in permutations(range(3)):
        place[tuple(ordered[:, axes].T)] = np.arange(len(ordered))
    return ordered, place


def all_entries(twist: Interval, count: int) -> Interval:
    """All entries (count, count, count, ...) of a symmetric array, of which those at :func:`triples` are given."""
    place = triples(count)[1]
    return Interval(twist.low[place], twist.high[place])


def _threefold(x: Interval, y: Interval | None) -> list[tuple[Ball, Ball]]:
    """x_h y_ij, x_i y_hj and x_j y_hi at h <= i <= j, of x (k, B, n) and a symmetric y (k, k, B, n): factors of :func:`_products`."""
    if y is None:
        return []
    (a, p), (b, q) = x.centre_radius(), y.centre_radius()
    h, i, j = triples(len(a))[0].T
    return [((a[one], p[one]), (b[others], q[others])) for one, others in ((h, (i, j)), (i, (h, j)), (j, (h, i)))]


def _pairs(x: Interval | None, factor: Interval) -> list[tuple[Ball, Ball]]:
    return [] if x is None else [(x.centre_radius(), factor.centre_radius())]


def _products(factors: Sequence[tuple[Ball, Ball]]) -> Interval | None:
    """The sum of at most 8 products, or ``None`` for none: with p in a +- r, and q in b +- s, p q is in a b +- (|a| s + r (|b| + s)).

    The sum of the a b errs by gamma(n) of the sum of their sizes, that of the radii by as much of itself, see :func:`intervals.affine`.
    """
    if not factors:
        return None
    shape = np.broadcast_shapes(*(a.shape for pair in factors for a, _ in pair))
    centre, size, radius = np.zeros(shape), np.zeros(shape), np.zeros(shape)
    for (a, r), (b, s) in factors:
        product = a * b
        centre += product
        size += np.abs(product)
        radius += np.abs(a) * s + r * (np.abs(b) + s)
    n = len(factors)
    return iv.around(centre, (radius + iv.gamma(2 * n + 16) * size + (n + 2) * 2.0**-1070) * (1 + 16 * iv.UNIT))


def _plus(*terms: Interval | None) -> Interval | None:
    """The sum of those that are not 0."""
    known = [term for term in terms if term is not None]
    return reduce(operator.add, known) if known else None


def _model_of(x: Enclosed) -> Model | None:
    return x.model if isinstance(x, Curved) else None


def _without_subnormals(x: Interval) -> Interval:
    """Ends near 0 moved outwards: arithmetic with subnormal numbers is slow."""
    low = np.where(np.abs(x.low) < _SMALL, np.where(x.low < 0, -_SMALL, 0.0), x.low)
    return Interval(low, np.where(np.abs(x.high) < _SMALL, np.where(x.high > 0, _SMALL, 0.0), x.high))


def _middle(x: Interval) -> Array:
    return cast(Array, 0.5 * x.low + 0.5 * x.high)


def _parabola(middle: Array, v: Interval, function: Scalar, quotients: Scalar, higher: Higher) -> Taylor:
    """Of the second degree at ``middle``, which is in v, for t in v."""
    at, reach = iv.point(middle), up(np.maximum(v.high - middle, middle - v.low))
    second, third = higher(at)[0], higher(v)[1]
    curve = _middle(second)
    remainder = Interval(np.minimum(third.low, 0.0), np.maximum(third.high, 0.0)) * iv.point(up(0.5 * up(reach * reach)))
    derivative = quotients(at) + (second - iv.point(curve)) * Interval(-reach, reach) + remainder
    factor = _middle(derivative)
    doubt = (derivative - iv.point(factor)).magnitude
    away = up(doubt * reach)
    return Taylor(factor, function(at) - iv.point(factor) * at + Interval(-away, away), doubt, middle, curve)


def _cubic(middle: Array, v: Interval, function: Scalar, quotients: Scalar, higher: Higher) -> Taylor:
    """Of the third degree. The fourth derivative times (t - m)^3 / 6 is left of slopes, and times (t - m)^4 / 24 of values."""
    at, reach = iv.point(middle), up(np.maximum(v.high - middle, middle - v.low))
    derivatives, half = (quotients(at), *higher(at)[:2]), up(0.5 * up(reach * reach))
    floats = [_middle(derivative) for derivative in derivatives]
    apart = [(derivative - iv.point(x)).magnitude for derivative, x in zip(derivatives, floats, strict=True)]
    rounded = _sum_up(apart[0], up(apart[1] * reach), up(apart[2] * half))
    bent = up(higher(v)[2].magnitude * up(up(half * reach) / 3))
    away = up(reach * up(rounded + up(0.25 * bent)))
    factor, curve, third = floats
    rest = function(at) - iv.point(factor) * at + Interval(-away, away)
    return Taylor(factor, rest, up(rounded + bent), middle, curve, third)


def _chosen(better: Array, first: Taylor, other: Taylor) -> Taylor:
    """The first where it is better, the other one elsewhere, which is of the first degree."""
    factor, doubt = np.where(better, (first.factor, first.doubt), (other.factor, other.doubt))
    rest = Interval(np.where(better, first.rest.low, other.rest.low), np.where(better, first.rest.high, other.rest.high))
    curve, third = (None if x is None else np.where(better, x, 0.0) for x in (first.curve, first.third))
    return Taylor(factor, rest, doubt, first.middle, curve, third)


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
