"""Slopes on the leaves of trees that split by units: the part of a cell where the values of some units lie on half-lines.

In a leaf each half-line says that a margin is not negative: threshold - v(x) or v(x) - threshold. With the affine form of v
that is an affine function of x which is not negative in the leaf. Any sum of such functions with factors that are not
negative may be added to the form of another unit's value: what that is at most, over the whole box, bounds the value in the
leaf. The factors come from the file. They may be anything: good ones are the dual solution of a linear program.

A leaf is judged in passes. Each encloses the graph once, the errors of uncertain units being symbols of their own; the values
that enter a coordinate-wise node are cut to its half-lines and to the ends that the factors prove, with the margins known so far:
those of this pass, and for nodes further on those of the pass before. Where nothing is left of a range the leaf holds no point of
the domain. A part of the domain without half-lines can be judged in the same way, for the sake of the symbols.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import cast

import numpy as np

from lipctrl.certificates.checker import intervals as iv
from lipctrl.certificates.checker.bundle import floats
from lipctrl.certificates.checker.domain import HalfLine, read_place
from lipctrl.certificates.checker.enclosure import Enclosed, Remembered, Scalar
from lipctrl.certificates.checker.graph import Graph
from lipctrl.certificates.checker.intervals import Array, Interval, up
from lipctrl.certificates.checker.local_slopes import Cells, Local, LocalSlopes, entering
from lipctrl.certificates.checker.network import Place
from lipctrl.certificates.checker.symbols import SymbolAlgebra
from lipctrl.certificates.checker.verdict import Rejected

MAX_PASSES = 4
MAX_SYMBOLS = 512  #: in each pass
AT_ONCE = 1 << 20  #: coordinates of the forms of ends that are judged together


@dataclass(frozen=True)
class Ends:
    """T ends of the ranges of one node's units ``index``: the ``upper`` ones and the others, ``factors`` (T, half-lines)."""

    index: Array
    upper: Array
    factors: Array

    def parts(self, count: int) -> list[Ends]:
        """The same, at most so many at a time."""
        starts = range(0, max(1, len(self.index)), count)
        return [Ends(*(rows[start : start + count] for rows in (self.index, self.upper, self.factors))) for start in starts]


Pass = dict[Place, Ends]


def read_passes(data: object, graph: Graph, count: int) -> list[Pass]:
    """The passes of a leaf with ``count`` half-lines, each a list of ``[place, index, "low" or "high", factors]``. Raises Rejected."""
    if not isinstance(data, list) or not 1 <= len(data) <= MAX_PASSES or not all(isinstance(entries, list) for entries in data):
        raise Rejected(f"ranges must be a list of 1 to {MAX_PASSES} lists")
    return [_read_pass(entries, graph, count) for entries in data]


def _read_pass(entries: list[object], graph: Graph, count: int) -> Pass:
    found: dict[Place, list[tuple[int, bool, Array]]] = {}
    for entry in entries:
        if not isinstance(entry, list) or len(entry) != 4 or entry[2] not in ("low", "high"):
            raise Rejected("a range must be [place, index, 'low' or 'high', factors]")
        place, size = read_place(entry[0], graph)
        if type(entry[1]) is not int or not 0 <= entry[1] < size:
            raise Rejected(f"a range of a unit of node {place} needs an index from 0 to {size - 1}")
        factors = floats(entry[3], count, "factors")
        if not bool(np.all(factors >= 0)):
            raise Rejected("a factor of a range is negative")
        found.setdefault(place, []).append((entry[1], entry[2] == "high", factors))
    columns = {place: zip(*rows, strict=True) for place, rows in found.items()}
    return {place: Ends(*(np.array(column) for column in rows)) for place, rows in columns.items()}


@dataclass
class Margins:
    """Functions ``constant`` + ``linear`` y that are not negative in a leaf, one for each half-line: (m,), (k + symbols, m).

    The coordinates y are x - c, then the symbols of a pass. Functions that are not known yet are 0, which is no lie.
    """

    constant: Array
    linear: Interval

    @staticmethod
    def unknown(count: int, inputs: int) -> Margins:
        """No margin is known."""
        return Margins(np.zeros(count), Interval(np.zeros((inputs, count)), np.zeros((inputs, count))))

    def without_symbols(self, inputs: int) -> Margins:
        """Functions of x alone that are no smaller: for another pass, which has other symbols."""
        low, high = self.linear.low, self.linear.high
        slack = 1 + 4 * (len(low) + 8) * iv.UNIT
        most = up(self.constant + np.maximum(-low[inputs:], high[inputs:]).sum(0) * slack)
        return Margins(most, Interval(low[:inputs].copy(), high[:inputs].copy()))


class NoPoint(Exception):  # noqa: N818 - a finding, not an error
    """Raised on the way where the range of a unit is empty: the leaf holds no point of the domain."""


class HalvedAlgebra(SymbolAlgebra):
    """One pass over a graph on the part of one cell that half-lines leave; ``margins`` are in the end those of this pass."""

    def __init__(
        self, cells: Cells, half_lines: Sequence[HalfLine], ends: Pass, margins: Margins, remembered: Remembered, limit: int = 0
    ) -> None:
        super().__init__(cells, remembered, limit)
        self.margins = margins.without_symbols(len(cells.free))
        self.half_lines, self.ends = half_lines, ends
        self._missing = set(range(len(half_lines)))

    def whole(self, graph: Graph) -> LocalSlopes:
        """The pass. Raises NoPoint, or Rejected where a half-line is no finite statement about the leaf."""
        output = self.run(graph, entering(self._cells), ())
        if self._missing:
            raise Rejected(f"the split tree splits by node {self.half_lines[min(self._missing)].place}, which the output does not rest on")
        return LocalSlopes(output, self.nodes)

    def _scalar(self, x: Enclosed, function: Scalar, quotients: Scalar) -> Local:
        return super()._scalar(self._narrowed(cast(Local, x)), function, quotients)

    def _narrowed(self, x: Local) -> Local:
        """What enters the node in hand, in the leaf."""
        n = x.value.low.shape[1]
        low, high = x.value.low.copy(), x.value.high.copy()
        for number, half in enumerate(self.half_lines):
            if half.place != self._place:
                continue
            self._note(number, half, x)
            if half.above:
                low[0, half.index] = np.maximum(low[0, half.index], half.threshold)
            else:
                high[0, half.index] = np.minimum(high[0, half.index], half.threshold)
        if self._place in self.ends:
            ends = self.ends[self._place]
            most = np.concatenate([self._most(x, n, part) for part in ends.parts(max(1, AT_ONCE // self.coordinates))])
            np.minimum.at(high[0], ends.index[ends.upper], most[ends.upper])
            np.maximum.at(low[0], ends.index[~ends.upper], -most[~ends.upper])
        if bool((low > high).any()):
            raise NoPoint
        return replace(x, value=Interval(low, high))

    def _note(self, number: int, half: HalfLine, x: Local) -> None:
        """The margin of a half-line from the form of its value."""
        centre, linear, error = self._form(x, x.value.low.shape[1], [half.index])
        rest, linear = _signed(centre - iv.point(np.array(half.threshold)), half.above), _signed(linear, half.above)
        constant = up(rest.high + error)
        if not bool(np.isfinite([*constant, *rest.magnitude, *linear.magnitude.ravel()]).all()):
            raise Rejected(f"the value that enters unit {half.index} of node {half.place} is not finite where the tree splits by it")
        self._missing.discard(number)
        margins = self._margins()
        margins.constant[number] = constant[0]
        margins.linear.low[:, number], margins.linear.high[:, number] = linear.low[:, 0], linear.high[:, 0]

    def _margins(self) -> Margins:
        """The margins, with a row for every symbol so far."""
        ends = self.margins.linear.low[:, None], self.margins.linear.high[:, None]
        rows = self._full(Interval(*ends), len(self.half_lines))
        self.margins.linear = Interval(rows.low[:, 0], rows.high[:, 0])
        return self.margins

    def _most(self, x: Local, n: int, ends: Ends) -> Array:
        """The most that the value of each unit can be in the leaf, or where its lower end is in question its opposite: (T,)."""
        centre, linear, error = self._form(x, n, ends.index)
        margins = self._margins()
        added = iv.affine(iv.point(margins.constant), ends.factors, None).high
        constant = up(up(_signed(centre, ends.upper).high + error) + added)
        slope = _signed(linear, ends.upper) + iv.affine(margins.linear, ends.factors, None)
        most: Array = up(constant + self._spread(slope.magnitude[:, None])[0])
        return most

    def _form(self, x: Local, n: int, index: Sequence[int] | Array) -> tuple[Interval, Interval, Array]:
        """Centre (T,), linear part (k + symbols, T) and error (T,) of some of the n values."""
        linear = self._full(iv.point(np.zeros((0, 1, n))) if x.linear is None else x.linear, n)
        whole = [end[:, 0, index] for end in (linear.low, linear.high)]
        centre = [np.broadcast_to(end, (1, n))[0, index] for end in (x.centre.low, x.centre.high)]
        return Interval(*centre), Interval(*whole), np.broadcast_to(x.error, (1, n))[0, index]


def _signed(x: Interval, plus: Array | bool) -> Interval:
    """x where ``plus``, elsewhere -x."""
    return Interval(np.where(plus, x.low, -x.high), np.where(plus, x.high, -x.low))


def slopes_in_leaf(
    graph: Graph, cells: Cells, half_lines: Sequence[HalfLine], passes: Sequence[Pass], remembered: Remembered, limit: int
) -> LocalSlopes | None:
    """Slopes on the part of one cell that half-lines leave; ``None`` where that holds no point. Raises Rejected or GraphError.

    ``limit`` is how many symbols each pass may have.
    """
    margins, found = Margins.unknown(len(half_lines), len(cells.free)), None
    for ends in passes:
        algebra = HalvedAlgebra(cells, half_lines, ends, margins, remembered, limit)
        try:
            found = algebra.whole(graph)
        except NoPoint:
            return None
        margins = algebra.margins
    return found
