"""The gain of a graph on one cell by Taylor polynomials, with the errors of all units bounded together.

Let A be the slopes at a point x of the cell and A_0 the derivative of the output's polynomial, see
:mod:`lipctrl.certificates.checker.curved`. Where a signal is multiplied by the slope of a unit, or by another signal, it gets an error:
of the product of P' = P'_1 + P'_2 + P'_3, parts of degree 0, 1 and 2 in x - c, with the multiplier only what is below the order
is kept, so some e_1 P'_1 + e_2 P'_2 + e_3 P'_3 is missing, where all e_j are numbers with known bounds, one for each unit. All that
comes later multiplies an error by N, the derivatives of the output with the true multipliers: A - A_0 is the sum of all
N (e_1 P'_1 + e_2 P'_2 + e_3 P'_3), exactly. With N as columns, P' as rows, any positive numbers D, and e_j as diagonal matrices,

    |A - A_0| <= |N D| (|D^-1 e_1 P'_1| + |D^-1 e_2 P'_2| + |D^-1 e_3 P'_3|),

where the errors of many units do not add up as their absolute values would.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np

from lipctrl.certificates.checker import intervals as iv
from lipctrl.certificates.checker.curved import Curved, CurvedAlgebra, Model, Sizes
from lipctrl.certificates.checker.enclosure import Enclosed, Remembered, Scalar
from lipctrl.certificates.checker.graph import Graph
from lipctrl.certificates.checker.intervals import Array, Interval, up
from lipctrl.certificates.checker.jacobian import Family, family_gains, family_row_sums, gain_of, nonnegative_gains
from lipctrl.certificates.checker.local_slopes import Cells, Local, LocalSlopes

MAX_ENTRIES = 1 << 22  #: of third derivatives of one signal
Back = Callable[[Interval], Interval]  #: from derivatives (m, n) with respect to a result to those with respect to an operand


@dataclass(frozen=True, slots=True)
class Link:
    """What a result takes from one operand; of a multiplier also what is ``left_out``, see :class:`CurvedAlgebra`."""

    operand: Model
    back: Back
    left_out: Sizes | None = None


@dataclass(frozen=True)
class Errors:
    """J multiplications: N ``after`` (m, J), P'_1 ``before`` (J, k), P'_2 = ``bend`` (J, k, k) (x - c), |P'_3| <= ``swing`` (J, k).

    ``left_out`` (3, J) bounds e_1, e_2 and e_3.
    """

    after: Interval
    before: Interval
    bend: Interval
    swing: Array
    left_out: Array


class Recorder(CurvedAlgebra):
    """Evaluates a graph on one cell and keeps how each value was made from others."""

    def __init__(self, cells: Cells, remembered: Remembered | None = None) -> None:
        super().__init__(cells, remembered)
        self._steps: list[tuple[Model, list[Link]]] = []
        self._gains: list[Link] = []

    def errors(self, found: LocalSlopes) -> list[Errors] | None:
        """The errors of all multiplications on the way to the output; ``None`` where some value has no model."""
        output = found.output.model if isinstance(found.output, Curved) else None
        if output is None:
            return None
        derivatives = {id(output): iv.point(np.eye(output.error.shape[1]))}
        made: list[Errors] = []
        for result, links in reversed(self._steps):
            after = derivatives.pop(id(result), None)
            if after is None:
                continue
            for link in links:
                x = link.operand
                if link.left_out is not None:
                    made.append(_errors(after, x, link.left_out))
                back, known = link.back(after), derivatives.get(id(x))
                derivatives[id(x)] = back if known is None else known + back
        return made

    def _noted(self, result: Local, *links: tuple[Enclosed, Back]) -> Local:
        """Keep how a result that is linear in its operands was made."""
        if isinstance(result, Curved) and result.model is not None:
            known = [(x.model, back) for x, back in links if isinstance(x, Curved) and x.model is not None]
            self._steps.append((result.model, [Link(model, _fitted(model, back)) for model, back in known]))
        return result

    def _gained(self, x: Model, gain: Interval, certain: Sizes, doubt: Array) -> Array:
        left_out = self._left_out(certain, doubt)
        whole = Interval(iv.down(gain.low - left_out[-1]), up(gain.high + left_out[-1]))
        self._gains.append(Link(x, _fitted(x, lambda after: after * whole), left_out))
        return super()._gained(x, gain, certain, doubt)

    def _multiplied(self, result: Local) -> Local:
        """Keep the multiplications that have just made a result."""
        links, self._gains = self._gains, []
        if isinstance(result, Curved) and result.model is not None and links:
            self._steps.append((result.model, links))
        return result

    def _mapped(self, x: Local, function: Scalar, slopes: Interval, line: Callable[[], tuple[Array, Interval]]) -> Local:
        return self._multiplied(super()._mapped(x, function, slopes, line))

    def mul(self, x: Enclosed, y: Enclosed) -> Local:
        product = super().mul(x, y)
        if self._gains:
            return self._multiplied(product)
        factor = x.value if x.slope is None else y.value  # one of them is constant
        return self._noted(product, *((signal, lambda after: after * factor) for signal in (x, y)))

    def add(self, x: Enclosed, y: Enclosed) -> Local:
        return self._noted(super().add(x, y), (x, _same), (y, _same))

    def neg(self, x: Enclosed) -> Local:
        return self._noted(super().neg(x), (x, lambda after: -after))

    def _shifted(self, x: Local, by: Interval) -> Local:
        return self._noted(super()._shifted(x, by), (x, _same))

    def affine(self, x: Enclosed, weight: Array, bias: Array | None) -> Local:
        return self._noted(super().affine(x, weight, bias), (x, lambda after: iv.affine(after, weight.T, None)))

    def select(self, x: Enclosed, indices: tuple[int, ...]) -> Local:
        taken = np.zeros((x.value.low.shape[1], len(indices)))
        taken[list(indices), np.arange(len(indices))] = 1.0
        return self._noted(super().select(x, indices), (x, lambda after: iv.affine(after, taken, None)))

    def concatenate(self, *parts: Enclosed) -> Local:
        ends = np.cumsum([0, *(part.value.low.shape[1] for part in parts)])
        slices = [slice(a, b) for a, b in pairwise(ends.tolist())]
        links = [(part, _part(at)) for part, at in zip(parts, slices, strict=True)]
        return self._noted(super().concatenate(*parts), *links)


def remainder(made: Sequence[Errors], scale_in: Interval, scale_out: Interval, spread: Callable[[Array], Array]) -> float:
    """A bound of |S_out (A - A_0) S_in^-1| in Euclidean norm; ``spread`` takes |a| (k, 1, 1) to the most of a d.

    All errors at once, or the sum over the multiplications, whose N are known the better the later they come.
    """
    made = [errors for errors in made if errors.swing.size]
    apart = 0.0
    for errors in made:
        apart = up(apart + _remainder(errors, scale_in, scale_out, spread))
    return float(np.minimum(apart, _remainder(_joined(made), scale_in, scale_out, spread)) if len(made) > 1 else apart)


def _remainder(errors: Errors, scale_in: Interval, scale_out: Interval, spread: Callable[[Array], Array]) -> float:
    after = errors.after * Interval(scale_out.low[:, None], scale_out.high[:, None])
    before, bend, swing = errors.before / scale_in, errors.bend / scale_in, up(errors.swing / scale_in.low)
    sizes = _norms(before.magnitude, 1), spread(_norms(bend.magnitude, 2).T[:, None, :])[0], _norms(swing, 1)
    balance = np.sqrt(sum(errors.left_out * sizes) / _norms(after.magnitude, 0))
    balance = np.where((balance > 2.0**-200) & (balance < 2.0**200), balance, 1.0)  # any positive numbers will do
    first, second, third = (iv.point(left_out) / iv.point(balance) for left_out in errors.left_out)
    bent = np.array([gain_of(_weighted(second, Interval(bend.low[:, k], bend.high[:, k]))) for k in range(bend.low.shape[1])])
    total = up(gain_of(_weighted(first, before)) + spread(bent[:, None, None])[0, 0])
    total = up(total + nonnegative_gains(_weighted(third, iv.point(swing)).high[None])[0])
    return float(up(gain_of(after * iv.point(balance)) * total))


def row_remainders(made: Sequence[Errors], scale_in: Interval, scale_out: Interval, spread: Callable[[Array], Array]) -> Array:
    """Bounds (m,) of the sums of absolute values in the rows of S_out (A - A_0) S_in^-1."""
    total = np.full(len(scale_out.low), 2.0**-500)
    for errors in made:
        after = (errors.after * Interval(scale_out.low[:, None], scale_out.high[:, None])).magnitude
        before, bend, swing = (errors.before / scale_in).magnitude, (errors.bend / scale_in).magnitude, up(errors.swing / scale_in.low)
        slack = 1 + 4 * (len(bend) + bend.shape[1] + 8) * iv.UNIT
        sums = before.sum(1) * slack, spread(bend.sum(2).T[:, None, :] * slack + 2.0**-1000)[0], swing.sum(1) * slack
        rows = up(errors.left_out * sums).sum(0)
        total = up(total + up(after @ rows * slack + 2.0**-500))
    return total


def _norms(size: Array, axis: int) -> Array:
    return np.asarray(np.sqrt((size**2).sum(axis)))


def _weighted(factor: Interval, rows: Interval) -> Interval:
    return Interval(factor.low[:, None], factor.high[:, None]) * rows


def _joined(made: Sequence[Errors]) -> Errors:
    """Several multiplications as one."""

    def both(parts: Sequence[Interval], axis: int = 0) -> Interval:
        return Interval(*(np.concatenate([getattr(part, end) for part in parts], axis) for end in ("low", "high")))

    inner = both([e.before for e in made]), both([e.bend for e in made]), np.concatenate([e.swing for e in made])
    return Errors(both([e.after for e in made], 1), *inner, np.concatenate([e.left_out for e in made], 1))


def expanded_gain(family: Family, made: Sequence[Errors], scale_in: Interval, scale_out: Interval, euclidean: bool) -> float:
    """The bound of the polynomial part of a family and of all errors together; NaN or infinite where there is none."""
    polynomial = replace(family, error=np.zeros_like(family.error))
    if euclidean:
        return float(up(family_gains(polynomial)[0] + remainder(made, scale_in, scale_out, family.spread)))
    reach = family.most()
    hull = Interval(iv.down(family.centre.low - reach), up(family.centre.high + reach))
    rows = family_row_sums(polynomial, hull)[0] + row_remainders(made, scale_in, scale_out, family.spread)
    return float(up(rows).max())


def record(graph: Graph, cells: Cells, remembered: Remembered | None = None) -> tuple[LocalSlopes, list[Errors] | None]:
    """Slopes by polynomials on one cell, and the errors of all multiplications on the way."""
    algebra = Recorder(cells, remembered)
    algebra.order = order_of(graph, len(cells.free))
    found = algebra.whole(graph)
    return found, algebra.errors(found)


def order_of(graph: Graph, count: int) -> int:
    """The degree of polynomials in so many inputs that are affordable for a graph."""
    return 3 if math.comb(count + 2, 3) * _widest(graph) <= MAX_ENTRIES else 2


def _widest(graph: Graph) -> int:
    return max([*graph.sizes, *(_widest(node.attributes["graph"]) for node in graph.nodes if node.op == "recentre")])


def _errors(after: Interval, x: Model, left_out: Sizes) -> Errors:
    """Those of one multiplication of a signal, which may be of length 1 and repeated."""
    count, k = after.low.shape[1], len(x.play)
    ends = (np.broadcast_to(end[:, 0], (k, count)).T for end in (x.linear.low, x.linear.high))
    bend = iv.point(np.zeros((k, k, 1, count))) if x.bend is None else x.bend
    bends = (np.broadcast_to(end[:, :, 0], (k, k, count)).transpose(2, 0, 1) for end in (bend.low, bend.high))
    third, zero = [*x.swings, np.zeros_like(x.play)][2], np.zeros_like(left_out[0])
    swing = np.broadcast_to(third[:, 0], (k, count)).T
    return Errors(after, Interval(*ends), Interval(*bends), swing, np.stack([np.broadcast_to(e[0], count) for e in (*left_out, zero)[:3]]))


def _fitted(x: Model, back: Back) -> Back:
    """``back``, with sums for a signal of length 1 that was repeated."""

    def fitted(after: Interval) -> Interval:
        result = back(after)
        if result.low.shape[1] == x.error.shape[1]:
            return result
        return iv.affine(result, np.ones((1, result.low.shape[1])), None)

    return fitted


def _part(at: slice) -> Back:
    return lambda after: Interval(after.low[:, at], after.high[:, at])


def _same(after: Interval) -> Interval:
    return after
