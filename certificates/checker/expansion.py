"""The gain of a graph on one cell to first order, with the errors of all units bounded together.

Let A hold between two points of the cell (see :mod:`lipctrl.certificates.checker.curved`), and let A_0 be its part that is affine
in d. Where a signal is multiplied by the slope of a unit, or by another signal, it gets an error: if its increments are P + d B, to
first order, and the multiplier is g + l d + e with |l d| and |e| bounded, then e P + (l d + e) d B is missing. All that comes later
multiplies an error by N, the derivatives of the output with the true multipliers: A - A_0 is the sum of all N (e P + (l d + e) d B),
exactly. With N as columns, P and B_k as rows, any positive numbers D, and e, l as diagonal matrices,

    |A - A_0| <= |N D| (|D^-1 e P| + sum_k |d_k| |D^-1 (l d + e) B_k|),

where the errors of many units do not add up as their absolute values would.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np

from lipctrl.certificates.checker import intervals as iv
from lipctrl.certificates.checker.curved import Curved, CurvedAlgebra, Model
from lipctrl.certificates.checker.enclosure import Enclosed, Remembered, Scalar
from lipctrl.certificates.checker.graph import Graph
from lipctrl.certificates.checker.intervals import Array, Interval, up
from lipctrl.certificates.checker.jacobian import Family, family_gains, family_row_sums, gain_of
from lipctrl.certificates.checker.local_slopes import Cells, Local, LocalSlopes

Back = Callable[[Interval], Interval]  #: from derivatives (m, n) with respect to a result to those with respect to an operand


@dataclass(frozen=True, slots=True)
class Link:
    """What a result takes from one operand. Of a multiplier: ``certain`` and ``doubt`` as :meth:`CurvedAlgebra._gained` has them."""

    operand: Model
    back: Back
    certain: Array | None = None
    doubt: Array | None = None


@dataclass(frozen=True)
class Errors:
    """J multiplications: N ``after`` (m, J), P ``before`` (J, k), B ``bend`` (J, k, k), |e| <= ``doubt``, |l d + e| <= ``whole`` (J,)."""

    after: Interval
    before: Interval
    bend: Interval
    doubt: Array
    whole: Array


class Recorder(CurvedAlgebra):
    """Evaluates a graph on one cell and keeps how each value was made from others."""

    def __init__(self, cells: Cells, remembered: Remembered | None = None) -> None:
        super().__init__(cells, remembered)
        self._steps: list[tuple[Model, list[Link]]] = []
        self._gains: list[Link] = []

    def errors(self, found: LocalSlopes) -> Errors | None:
        """The errors of all multiplications on the way to the output; ``None`` where some value has no model."""
        output = found.output.model if isinstance(found.output, Curved) else None
        if output is None:
            return None
        size = output.error.shape[1]
        derivatives = {id(output): iv.point(np.eye(size))}
        made: list[Errors] = []
        for result, links in reversed(self._steps):
            after = derivatives.pop(id(result), None)
            if after is None:
                continue
            for link in links:
                x = link.operand
                if link.doubt is not None and link.certain is not None:
                    made.append(_errors(after, x, link.certain, link.doubt))
                back, known = link.back(after), derivatives.get(id(x))
                derivatives[id(x)] = back if known is None else known + back
        k = len(output.play)
        made.append(Errors(_none(size, 0), _none(0, k), _none(0, k, k), np.zeros(0), np.zeros(0)))
        return Errors(
            _joined([e.after for e in made], 1),
            _joined([e.before for e in made], 0),
            _joined([e.bend for e in made], 0),
            np.concatenate([e.doubt for e in made]),
            np.concatenate([e.whole for e in made]),
        )

    def _noted(self, result: Local, *links: tuple[Enclosed, Back]) -> Local:
        """Keep how a result that is linear in its operands was made."""
        if isinstance(result, Curved) and result.model is not None:
            known = [(x.model, back) for x, back in links if isinstance(x, Curved) and x.model is not None]
            self._steps.append((result.model, [Link(model, _fitted(model, back)) for model, back in known]))
        return result

    def _gained(self, x: Model, gain: Interval, certain: Array, doubt: Array) -> Array:
        reach = up(certain + doubt)
        whole = Interval(iv.down(gain.low - reach), up(gain.high + reach))
        self._gains.append(Link(x, _fitted(x, lambda after: after * whole), certain, doubt))
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


def remainder(errors: Errors, scale_in: Interval, scale_out: Interval, spread: Callable[[Array], Array]) -> float:
    """A bound of |S_out (A - A_0) S_in^-1| in Euclidean norm; ``spread`` takes |a| (k, 1, 1) to the most of a d."""
    if not len(errors.doubt):
        return 0.0
    after = errors.after * Interval(scale_out.low[:, None], scale_out.high[:, None])
    before, bend = errors.before / scale_in, errors.bend / scale_in
    rows = errors.doubt * _norms(before.magnitude, 1)
    rows = rows + errors.whole * spread(_norms(bend.magnitude, 2).T[:, None, :])[0]
    balance = np.sqrt(rows / _norms(after.magnitude, 0))
    balance = np.where((balance > 2.0**-200) & (balance < 2.0**200), balance, 1.0)  # any positive numbers will do
    first = iv.point(errors.doubt) / iv.point(balance)
    other = iv.point(errors.whole) / iv.point(balance)
    bent = np.array([gain_of(_weighted(other, Interval(bend.low[:, k], bend.high[:, k]))) for k in range(bend.low.shape[1])])
    total = up(gain_of(_weighted(first, before)) + spread(bent[:, None, None])[0, 0])
    return float(up(gain_of(after * iv.point(balance)) * total))


def row_remainders(errors: Errors, scale_in: Interval, scale_out: Interval, spread: Callable[[Array], Array]) -> Array:
    """Bounds (m,) of the sums of absolute values in the rows of S_out (A - A_0) S_in^-1."""
    after = (errors.after * Interval(scale_out.low[:, None], scale_out.high[:, None])).magnitude
    bend = (errors.bend / scale_in).magnitude
    k = bend.shape[1]
    slack = 1 + 4 * (len(bend) + k + 8) * iv.UNIT
    bent = spread(bend.sum(2).T[:, None, :] * slack + 2.0**-1000)[0]
    rows = up(up(errors.doubt * ((errors.before / scale_in).magnitude.sum(1) * slack)) + up(errors.whole * bent))
    return np.asarray(after @ rows * slack + 2.0**-500)


def _norms(size: Array, axis: int) -> Array:
    return np.asarray(np.sqrt((size**2).sum(axis)))


def _weighted(factor: Interval, rows: Interval) -> Interval:
    return Interval(factor.low[:, None], factor.high[:, None]) * rows


def _joined(parts: list[Interval], axis: int) -> Interval:
    return Interval(*(np.concatenate([getattr(part, end) for part in parts], axis) for end in ("low", "high")))


def expanded_gain(family: Family, errors: Errors, scale_in: Interval, scale_out: Interval, euclidean: bool) -> float:
    """The bound of the family's part that is affine in d and of all errors together; NaN or infinite where there is none."""
    affine = replace(family, error=np.zeros_like(family.error))
    if euclidean:
        return float(up(family_gains(affine)[0] + remainder(errors, scale_in, scale_out, family.spread)))
    reach = 0.0 if family.parts is None else family.most(family.parts)
    hull = Interval(iv.down(family.centre.low - reach), up(family.centre.high + reach))
    rows = family_row_sums(affine, hull)[0] + row_remainders(errors, scale_in, scale_out, family.spread)
    return float(up(rows).max())


def record(graph: Graph, cells: Cells, remembered: Remembered | None = None) -> tuple[LocalSlopes, Errors | None]:
    """Slopes to first order on one cell, and the errors on the way."""
    algebra = Recorder(cells, remembered)
    found = algebra.whole(graph)
    return found, algebra.errors(found)


def _errors(after: Interval, x: Model, certain: Array, doubt: Array) -> Errors:
    """Those of one multiplication of a signal, which may be of length 1 and repeated."""
    count, k = after.low.shape[1], len(x.play)
    ends = (np.broadcast_to(end[:, 0], (k, count)).T for end in (x.linear.low, x.linear.high))
    bend = iv.point(np.zeros((k, k, 1, count))) if x.bend is None else x.bend
    bends = (np.broadcast_to(end[:, :, 0], (k, k, count)).transpose(2, 0, 1) for end in (bend.low, bend.high))
    certain, doubt = (np.broadcast_to(end, (1, count))[0] for end in (certain, doubt))
    return Errors(after, Interval(*ends), Interval(*bends), doubt, up(certain + doubt))


def _fitted(x: Model, back: Back) -> Back:
    """``back``, with sums for a signal of length 1 that was repeated."""

    def fitted(after: Interval) -> Interval:
        result = back(after)
        if result.low.shape[1] == x.error.shape[1]:
            return result
        return iv.affine(result, np.ones((1, result.low.shape[1])), None)

    return fitted


def _none(*shape: int) -> Interval:
    return iv.point(np.zeros(shape))


def _part(at: slice) -> Back:
    return lambda after: Interval(after.low[:, at], after.high[:, at])


def _same(after: Interval) -> Interval:
    return after
