"""Affine pieces of piecewise linear graphs: what a graph is, and where, when every unit with a kink keeps to one side of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from itertools import pairwise
from typing import Any

import numpy as np

from lipctrl.certificates.checker.graph import Graph
from lipctrl.certificates.checker.intervals import Array
from lipctrl.certificates.checker.sorts import without_sorts
from lipctrl.certificates.checker.verdict import Rejected
from lipctrl.core.compilation import compile_steps
from lipctrl.core.numpy_evaluation import compile_numpy
from lipctrl.core.rationals import floats

MAX_ENTRIES = 20_000_000  #: slopes of all signals in the inputs, and of the outputs in them
Pull = Callable[[Array], Array]  #: what a change of an operand does to the outputs (m, n), from what one of the result does


@dataclass(frozen=True, slots=True)
class Piece:
    """A piece in k coordinates y: there the outputs have the slopes ``matrix`` (m, k), and it is where for all of the N units

    ``signs`` * (``rows`` y + ``offsets``) >= 0, with ``sides`` (N,) true for a sign of 1. Were unit i on its other side, ``matrix``
    would grow by the product of ``effects[:, i]`` and ``rows[i]``. On the common border both pieces agree.
    """

    matrix: Array
    sides: Array
    rows: Array
    offsets: Array
    effects: Array

    @property
    def signs(self) -> Array:
        """1 and -1 for the sides."""
        return np.where(self.sides, 1.0, -1.0)


class PiecewiseLinear:
    """A graph with one input and one output, of affine maps and kinks alone, in coordinates y: its input is ``middle + half y``.

    ``half`` (k,) are the lengths of the coordinates, the inputs ``free`` (k,). Raises Rejected for other graphs, and for huge ones.
    """

    def __init__(self, graph: Graph, middle: Array, free: Array, half: Array) -> None:
        ((self._name, size),) = graph.input_sizes.items()
        ((self._output, outputs),) = graph.output_sizes.items()
        if sum(graph.sizes) * (len(free) + outputs + 1) > MAX_ENTRIES:
            raise Rejected("the graph is too large for a search over its pieces")
        self._entering = np.zeros((size, len(free) + 1))
        self._entering[free, np.arange(len(free))] = half
        self._entering[:, -1] = middle
        self._tape = _Tape(len(free))
        try:
            self._run = compile_steps(without_sorts(graph), self._tape)
        except AttributeError as error:
            raise Rejected(f"the graph is not piecewise linear: {error}") from error
        self.at(np.zeros(len(free)))

    def at(self, y: Array) -> Piece:
        """The piece around a point (k,); on a border any of its neighbours."""
        return self._piece(None, np.append(y, 1.0))

    def choose(self, sides: Array) -> Piece:
        """The piece where the units are on these sides (N,). It may hold no point."""
        return self._piece(sides, None)

    def _piece(self, sides: Array | None, point: Array | None) -> Piece:
        tape = self._tape
        tape.start(sides, point)
        with np.errstate(all="ignore"):
            output = self._run({self._name: _Signal(self._entering, tape.note())})[self._output]
            effects = tape.pulled(output)
        rows = np.vstack([kink.rows for kink in tape.kinks]) if tape.kinks else np.zeros((0, self._entering.shape[1]))
        taken = np.concatenate([kink.sides for kink in tape.kinks]) if tape.kinks else np.zeros(0, dtype=bool)
        return Piece(output.rows[:, :-1], taken, rows[:, :-1], rows[:, -1], effects)


@dataclass(frozen=True, slots=True)
class _Signal:
    """``rows`` (n, k + 1): slopes, and the values at y = 0. ``place`` on the tape; None where it does not depend on the input."""

    rows: Array
    place: int | None


@dataclass(frozen=True, slots=True)
class _Kink:
    """Units with the slopes ``taken`` (n,) on their ``sides``, and ``other`` on the other ones."""

    place: int
    rows: Array
    sides: Array
    taken: Array
    other: Array


class _Tape:
    """Operations on signals, see ``core/compilation.py``, that note how the outputs depend on every kink."""

    def __init__(self, coordinates: int) -> None:
        self.coordinates = coordinates
        self.start(None, np.zeros(coordinates + 1))

    def start(self, sides: Array | None, point: Array | None) -> None:
        """Forget the last run. Kinks take these sides, or the ones of this point."""
        self.entries: list[list[tuple[int, Pull]]] = []
        self.kinks: list[_Kink] = []
        self._sides, self._point, self._next = sides, point, 0

    def note(self, *parents: tuple[_Signal, Pull]) -> int | None:
        """A place for a new signal; None if its parents do not depend on the input."""
        noted = [(parent.place, pull) for parent, pull in parents if parent.place is not None]
        if parents and not noted:
            return None
        self.entries.append(noted)
        return len(self.entries) - 1

    def pulled(self, output: _Signal) -> Array:
        """What one more of every kink's slope does to the outputs, for the change that its other side is."""
        pulls: list[Any] = [None] * len(self.entries)
        if output.place is not None:
            pulls[output.place] = np.eye(len(output.rows))
        for place in range(len(self.entries) - 1, -1, -1):
            if pulls[place] is not None:
                for parent, pull in self.entries[place]:
                    before = pulls[parent]
                    pulls[parent] = pull(pulls[place]) if before is None else before + pull(pulls[place])
        nothing = np.zeros((len(output.rows), 1))
        effects = [(nothing if pulls[k.place] is None else pulls[k.place]) * (k.other - k.taken) for k in self.kinks]
        return np.hstack(effects) if effects else np.zeros((len(output.rows), 0))

    def _kink(self, x: _Signal, left: float, right: float) -> _Signal:
        """A coordinate-wise map with these slopes left and right of zero."""
        n = len(x.rows)
        if x.place is None:
            values = x.rows[:, -1]
            return _Signal(x.rows * np.where(values > 0, right, left)[:, None], None)
        if self._sides is None:
            sides = x.rows @ self._point > 0
        else:
            sides = self._sides[self._next : self._next + n]
            self._next += n
        taken, other = np.where(sides, right, left), np.where(sides, left, right)
        place = self.note((x, lambda pull: pull * taken))
        if place is not None:
            self.kinks.append(_Kink(place, x.rows, sides, taken, other))
        return _Signal(x.rows * taken[:, None], place)

    def constant(self, values: tuple[Fraction, ...]) -> _Signal:
        rows = np.zeros((len(values), self.coordinates + 1))
        rows[:, -1] = floats(values)
        return _Signal(rows, None)

    def neg(self, x: _Signal) -> _Signal:
        return _Signal(-x.rows, self.note((x, np.negative)))

    def add(self, x: _Signal, y: _Signal) -> _Signal:
        rows = x.rows + y.rows
        return _Signal(rows, self.note((x, _repeating(x, rows)), (y, _repeating(y, rows))))

    def sub(self, x: _Signal, y: _Signal) -> _Signal:
        return self.add(x, self.neg(y))

    def mul(self, x: _Signal, y: _Signal) -> _Signal:
        if x.place is not None and y.place is not None:
            raise Rejected("the graph is not piecewise linear: it multiplies two signals")
        factor, z = (x.rows[:, -1], y) if x.place is None else (y.rows[:, -1], x)
        rows = factor[:, None] * z.rows
        repeated = _repeating(z, rows)
        return _Signal(rows, self.note((z, lambda pull: repeated(pull * factor))))

    def div(self, x: _Signal, y: _Signal) -> _Signal:
        if y.place is not None:
            raise Rejected("the graph is not piecewise linear: it divides by a signal")
        inverse = np.zeros_like(y.rows)
        inverse[:, -1] = 1 / y.rows[:, -1]
        return self.mul(x, _Signal(inverse, None))

    def relu(self, x: _Signal) -> _Signal:
        return self._kink(x, 0.0, 1.0)

    def abs(self, x: _Signal) -> _Signal:
        return self._kink(x, -1.0, 1.0)

    def leaky_relu(self, slope: Fraction) -> Callable[[_Signal], _Signal]:
        return lambda x: self._kink(x, float(slope), 1.0)

    def max(self, x: _Signal, y: _Signal) -> _Signal:
        return self.add(y, self.relu(self.sub(x, y)))

    def min(self, x: _Signal, y: _Signal) -> _Signal:
        return self.sub(y, self.relu(self.sub(y, x)))

    def clip(self, low: tuple[Fraction, ...], high: tuple[Fraction, ...]) -> Callable[[_Signal], _Signal]:
        below, above = self.constant(low), self.constant(high)
        return lambda x: self.sub(self.add(below, self.relu(self.sub(x, below))), self.relu(self.sub(x, above)))

    def affine(self, weight: Array, bias: Array | None) -> Callable[[_Signal], _Signal]:
        matrix = weight.astype(np.float64)
        shift = np.zeros(len(matrix)) if bias is None else bias.astype(np.float64)

        def apply(x: _Signal) -> _Signal:
            rows = matrix @ x.rows
            rows[:, -1] += shift
            return _Signal(rows, self.note((x, lambda pull: pull @ matrix)))

        return apply

    def select(self, indices: tuple[int, ...]) -> Callable[[_Signal], _Signal]:
        wanted = np.array(indices)

        def apply(x: _Signal) -> _Signal:
            def pull(change: Array) -> Array:
                result = np.zeros((len(change), len(x.rows)))
                np.add.at(result.T, wanted, change.T)
                return result

            return _Signal(x.rows[wanted], self.note((x, pull)))

        return apply

    def concatenate(self, *parts: _Signal) -> _Signal:
        ends = np.cumsum([0, *(len(part.rows) for part in parts)])
        pulls = [_columns(slice(start, end)) for start, end in pairwise(ends)]
        return _Signal(np.vstack([part.rows for part in parts]), self.note(*zip(parts, pulls, strict=True)))

    def recentre(self, graph: Graph, point: tuple[Fraction, ...], offset: Array) -> Callable[[_Signal], _Signal]:
        inner = compile_steps(graph, self)
        (name,), (output,) = graph.input_sizes, graph.outputs
        there = compile_numpy(Graph(graph.nodes, graph.outputs, graph.tensors))(**{name: floats(point)})[output]

        def apply(x: _Signal) -> _Signal:
            result = inner({name: x})[output]
            rows = result.rows.copy()
            rows[:, -1] -= there
            return _Signal(rows, result.place)

        return apply


def _columns(part: slice) -> Pull:
    return lambda pull: pull[:, part]


def _repeating(operand: _Signal, rows: Array) -> Pull:
    """What a change of an operand does that is repeated if it has size 1."""
    if len(operand.rows) == len(rows):
        return lambda pull: pull
    return lambda pull: pull.sum(axis=1, keepdims=True)
