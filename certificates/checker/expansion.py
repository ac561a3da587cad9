"""The gain of a graph on one cell by Taylor polynomials, with the errors of all units bounded together.

Let A be the slopes at a point x of the cell and A_0 the derivative of the output's polynomial, see
:mod:`lipctrl.certificates.checker.curved`. Where a signal is multiplied by the slope of a unit, or by another signal, it gets an error:
of the product of P' = P'_1 + P'_2 + P'_3, parts of degree 0, 1 and 2 in x - c, with the multiplier g + w, g fixed, only what is below
the order is kept, so some E = e_1 P'_1 + e_2 P'_2 + e_3 P'_3 is missing, all e_j with known bounds, one for each unit. With
Z = A - A_0 for the operand, the result is wrong by E + w Z + g Z; so with N, the derivatives of the output with the multipliers g,
A - A_0 of the output is the sum of all N (E + w Z), exactly. With N as columns, P' as rows, any positive numbers D, and e_j as
diagonal matrices,

    |N E| <= |N D| (|D^-1 e_1 P'_1| + |D^-1 e_2 P'_2| + |D^-1 e_3 P'_3|),    |N w Z| <= |N w| |Z|,

where the errors of many units do not add up as their absolute values would. |Z| follows from step to step by the norms of
what is done to it; it is of higher order, so that it need not be known well.
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

MAX_ENTRIES = 1 << 23  #: of third derivatives, of all signals together
Back = Callable[[Interval], Interval]  #: from derivatives (m, n) with respect to a result to those with respect to an operand


@dataclass(frozen=True, slots=True)
class Link:
    """What a result takes from one operand, which it repeats with the norm ``copies`` and then stretches by ``gain`` at most.

    ``left_out`` is of multipliers, see :class:`CurvedAlgebra`.
    """

    operand: Model
    back: Back
    copies: float
    gain: float
    left_out: Sizes | None = None


@dataclass(frozen=True)
class Errors:
    """J multiplications: N ``after`` (m, J), P'_1 ``before`` (J, k), P'_2 = ``bend`` (J, k, k) (x - c), |P'_3| <= ``swing`` (J, k).

    ``play`` (J, k) bounds Z, and ``left_out`` (3, J) bounds e_1, e_2, and both e_3 and w.
    """

    after: Interval
    before: Interval
    bend: Interval
    swing: Array
    play: Array
    left_out: Array


@dataclass(frozen=True)
class Source:
    """An operand of a step, by a number, as in :class:`Link`; of a multiplication also its errors."""

    operand: int
    copies: float
    gain: float
    errors: Errors | None = None


@dataclass(frozen=True)
class Step:
    """How the signal with the number ``result`` was made."""

    result: int
    sources: list[Source]


class Recorder(CurvedAlgebra):
    """Evaluates a graph on one cell and keeps how each value was made from others."""

    def __init__(self, cells: Cells, remembered: Remembered | None = None) -> None:
        super().__init__(cells, remembered)
        self._steps: list[tuple[Model, list[Link]]] = []
        self._gains: list[Link] = []

    def steps(self, found: LocalSlopes) -> list[Step] | None:
        """All that was done on the way to the output, in that order; ``None`` where some value has no model."""
        output = found.output.model if isinstance(found.output, Curved) else None
        if output is None:
            return None
        derivatives = {id(output): iv.point(np.eye(output.error.shape[1]))}
        steps: list[Step] = []
        for result, links in reversed(self._steps):
            after = derivatives.pop(id(result), None)
            if after is None:
                continue
            steps.append(Step(id(result), []))
            for link in links:
                x = link.operand
                made = None if link.left_out is None else _errors(after, x, link.left_out)
                steps[-1].sources.append(Source(id(x), link.copies, link.gain, made))
                back, known = link.back(after), derivatives.get(id(x))
                derivatives[id(x)] = back if known is None else known + back
        return steps[::-1]

    def _noted(self, result: Local, *links: tuple[Enclosed, Back, float]) -> Local:
        """Keep how a result that is linear in its operands was made: with derivatives, and norms without repetition."""
        if isinstance(result, Curved) and result.model is not None:
            known = [(x.model, back, gain) for x, back, gain in links if isinstance(x, Curved) and x.model is not None]
            size = result.model.error.shape[1]
            self._steps.append((result.model, [Link(x, _fitted(x, back), _copies(x, size), gain) for x, back, gain in known]))
        return result

    def _gained(self, x: Model, gain: Interval, certain: Sizes, doubt: Array) -> Array:
        left_out = self._left_out(certain, doubt)
        most = up(gain.magnitude + left_out[-1])
        link = Link(x, _fitted(x, lambda after: after * gain), _copies(x, most.shape[1]), float(most.max()), left_out)
        self._gains.append(link)
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
        return self._noted(product, *((signal, lambda after: after * factor, float(factor.magnitude.max())) for signal in (x, y)))

    def add(self, x: Enclosed, y: Enclosed) -> Local:
        return self._noted(super().add(x, y), (x, _same, 1.0), (y, _same, 1.0))

    def neg(self, x: Enclosed) -> Local:
        return self._noted(super().neg(x), (x, lambda after: -after, 1.0))

    def _shifted(self, x: Local, by: Interval) -> Local:
        return self._noted(super()._shifted(x, by), (x, _same, 1.0))

    def affine(self, x: Enclosed, weight: Array, bias: Array | None) -> Local:
        gain = self._remembered(_gain_of_weight, weight)
        return self._noted(super().affine(x, weight, bias), (x, lambda after: iv.affine(after, weight.T, None), gain))

    def select(self, x: Enclosed, indices: tuple[int, ...]) -> Local:
        taken = np.zeros((x.value.low.shape[1], len(indices)))
        taken[list(indices), np.arange(len(indices))] = 1.0
        often = float(up(np.sqrt(taken.sum(1).max())))
        return self._noted(super().select(x, indices), (x, lambda after: iv.affine(after, taken, None), often))

    def concatenate(self, *parts: Enclosed) -> Local:
        ends = np.cumsum([0, *(part.value.low.shape[1] for part in parts)])
        slices = [slice(a, b) for a, b in pairwise(ends.tolist())]
        links = [(part, _part(at), 1.0) for part, at in zip(parts, slices, strict=True)]
        return self._noted(super().concatenate(*parts), *links)


def remainder(steps: Sequence[Step], scale_in: Interval, scale_out: Interval, spread: Callable[[Array], Array]) -> float:
    """A bound of |S_out (A - A_0) S_in^-1| in Euclidean norm; ``spread`` takes |a| (k, 1, 1) to the most of a d."""
    wrong: dict[int, float] = {}  # |Z S_in^-1| of signals
    total = 0.0
    for step in steps:
        result = 0.0
        for source in step.sources:
            before, errors = up(source.copies * wrong.get(source.operand, 0.0)), source.errors
            result = up(result + up(source.gain * before))
            if errors is None or not errors.swing.size:
                continue
            after = errors.after * Interval(scale_out.low[:, None], scale_out.high[:, None])
            balance, rows = _balanced(errors, after, scale_in, spread)
            total = up(total + up(gain_of(after * iv.point(balance)) * rows))
            total = up(total + up(gain_of(after * iv.point(errors.left_out[-1])) * before))
            result = up(result + up(balance.max() * rows))
        wrong[step.result] = result
    return float(total)


def _balanced(errors: Errors, after: Interval, scale_in: Interval, spread: Callable[[Array], Array]) -> tuple[Array, float]:
    """D (J,), and a bound of |D^-1 E S_in^-1|."""
    before, bend, swing = errors.before / scale_in, errors.bend / scale_in, up(errors.swing / scale_in.low)
    sizes = _norms(before.magnitude, 1), spread(_norms(bend.magnitude, 2).T[:, None, :])[0], _norms(swing, 1)
    balance = np.sqrt((errors.left_out * sizes).sum(0) / _norms(after.magnitude, 0))
    balance = np.where((balance > 2.0**-200) & (balance < 2.0**200), balance, 1.0)  # any positive numbers will do
    first, second, third = (iv.point(left_out) / iv.point(balance) for left_out in errors.left_out)
    bent = np.array([gain_of(_weighted(second, Interval(bend.low[:, k], bend.high[:, k]))) for k in range(bend.low.shape[1])])
    total = up(gain_of(_weighted(first, before)) + spread(bent[:, None, None])[0, 0])
    return balance, float(up(total + nonnegative_gains(_weighted(third, iv.point(swing)).high[None])[0]))


def row_remainders(steps: Sequence[Step], scale_in: Interval, scale_out: Interval, spread: Callable[[Array], Array]) -> Array:
    """Bounds (m,) of the sums of absolute values in the rows of S_out (A - A_0) S_in^-1."""
    total = np.full(len(scale_out.low), 2.0**-500)
    for errors in (source.errors for step in steps for source in step.sources if source.errors is not None):
        after = (errors.after * Interval(scale_out.low[:, None], scale_out.high[:, None])).magnitude
        before, bend = (errors.before / scale_in).magnitude, (errors.bend / scale_in).magnitude
        slack = 1 + 4 * (len(bend) + bend.shape[1] + 8) * iv.UNIT
        swing, play = (up(size / scale_in.low).sum(1) * slack for size in (errors.swing, errors.play))
        sums = before.sum(1) * slack, spread(bend.sum(2).T[:, None, :] * slack + 2.0**-1000)[0], up(swing + play)
        total = up(total + up(after @ up(errors.left_out * sums).sum(0) * slack + 2.0**-500))
    return total


def _norms(size: Array, axis: int) -> Array:
    return np.asarray(np.sqrt((size**2).sum(axis)))


def _weighted(factor: Interval, rows: Interval) -> Interval:
    return Interval(factor.low[:, None], factor.high[:, None]) * rows


def expanded_gain(family: Family, steps: Sequence[Step], scale_in: Interval, scale_out: Interval, euclidean: bool) -> float:
    """The bound of the polynomial part of a family and of all errors together; NaN or infinite where there is none."""
    polynomial = replace(family, error=np.zeros_like(family.error))
    if euclidean:
        return float(up(family_gains(polynomial)[0] + remainder(steps, scale_in, scale_out, family.spread)))
    reach = family.most()
    hull = Interval(iv.down(family.centre.low - reach), up(family.centre.high + reach))
    rows = family_row_sums(polynomial, hull)[0] + row_remainders(steps, scale_in, scale_out, family.spread)
    return float(up(rows).max())


def record(graph: Graph, cells: Cells, remembered: Remembered | None = None) -> tuple[LocalSlopes, list[Step] | None]:
    """Slopes by polynomials on one cell, and all that was done on the way."""
    algebra = Recorder(cells, remembered)
    algebra.order = order_of(graph, len(cells.free))
    found = algebra.whole(graph)
    return found, algebra.steps(found)


def order_of(graph: Graph, count: int) -> int:
    """The degree of polynomials in so many inputs that are affordable for a graph."""
    (outputs,) = graph.output_sizes.values()
    return 3 if math.comb(count + 2, 3) * _signals(graph) + count**3 * outputs <= MAX_ENTRIES else 2


def _signals(graph: Graph) -> int:
    """How many numbers all signals have together."""
    return sum([*graph.sizes, *(_signals(node.attributes["graph"]) for node in graph.nodes if node.op == "recentre")])


def _errors(after: Interval, x: Model, left_out: Sizes) -> Errors:
    """Those of one multiplication of a signal, which may be of length 1 and repeated."""
    count, k = after.low.shape[1], len(x.play)
    ends = (np.broadcast_to(end[:, 0], (k, count)).T for end in (x.linear.low, x.linear.high))
    bend = iv.point(np.zeros((k, k, 1, count))) if x.bend is None else x.bend
    bends = (np.broadcast_to(end[:, :, 0], (k, k, count)).transpose(2, 0, 1) for end in (bend.low, bend.high))
    swing, play = (np.broadcast_to(size[:, 0], (k, count)).T for size in ([*x.swings, np.zeros_like(x.play)][2], x.play))
    sizes = np.stack([np.broadcast_to(size[0], count) for size in (*left_out[:2], left_out[-1])])
    return Errors(after, Interval(*ends), Interval(*bends), swing, play, sizes)


def _gain_of_weight(weight: Array) -> float:
    return gain_of(iv.point(weight.astype(np.float64)))


def _fitted(x: Model, back: Back) -> Back:
    """``back``, with sums for a signal of length 1 that was repeated."""

    def fitted(after: Interval) -> Interval:
        result = back(after)
        if result.low.shape[1] == x.error.shape[1]:
            return result
        return iv.affine(result, np.ones((1, result.low.shape[1])), None)

    return fitted


def _copies(x: Model, size: int) -> float:
    """The norm of what repeats a signal of length 1 so often; others are not repeated."""
    return float(up(np.sqrt(size))) if x.error.shape[1] == 1 else 1.0


def _part(at: slice) -> Back:
    return lambda after: Interval(after.low[:, at], after.high[:, at])


def _same(after: Interval) -> Interval:
    return after
