"""Signs of increments: what every signal of a graph may do when one input rises and the others stay as they are.

Signs follow from the graph exactly: through affine maps by the signs of stored weights, through coordinate-wise operations by those
of their slopes, through sums, selections and comparisons by rules. Nothing is rounded, so a weight or a slope that is 0 counts as 0.
Everywhere, these are the slopes that an operation has over the reals. On cells they are narrowed twice: by the slopes that each
operation has there, and by the enclosed slopes of each signal as a function of the inputs, which know how large things are.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from lipctrl.certificates.checker.curved import CurvedAlgebra
from lipctrl.certificates.checker.enclosure import Enclosed, Remembered, Scalar
from lipctrl.certificates.checker.graph import Graph, Node
from lipctrl.certificates.checker.intervals import Array, Interval
from lipctrl.certificates.checker.local_slopes import Cells, Local, entering
from lipctrl.certificates.checker.network import Place
from lipctrl.certificates.checker.verdict import Rejected

NEVER_FALLING = frozenset("relu tanh sigmoid softplus erf exp clip".split())  #: all of them have a value everywhere
EITHER_WAY = frozenset("abs sin cos gelu silu".split())
PARTIAL = frozenset("log sqrt tan".split())  #: their slopes are positive wherever they have a value
May = bool | Array


@dataclass(frozen=True)
class Moves:
    """What a signal may do, (k, B, n) booleans: whether it may rise (``up``) or fall (``down``) when input k rises in cell B."""

    up: Array
    down: Array

    def __neg__(self) -> Moves:
        return Moves(self.down, self.up)

    def __or__(self, other: Moves) -> Moves:
        """Of a sum."""
        return Moves(self.up | other.up, self.down | other.down)

    def __and__(self, other: Moves) -> Moves:
        """Both hold."""
        return Moves(self.up & other.up, self.down & other.down)

    def times(self, up: May, down: May) -> Moves:
        """Of the product with a factor that may be positive where ``up`` and negative where ``down``."""
        return Moves((self.up & up) | (self.down & down), (self.up & down) | (self.down & up))

    def affine(self, weight: Array) -> Moves:
        """Of weight (m, n) times the signal."""
        rising, falling = (weight > 0).T.astype(np.float32), (weight < 0).T.astype(np.float32)
        return Moves(_any(self.up, rising) | _any(self.down, falling), _any(self.up, falling) | _any(self.down, rising))

    def implicit(self, weight: Array) -> Moves:
        """Of z = phi(D z + v), well-posed, D = weight (n, n), v the signal, for any phi with slopes in [0, 1].

        When v moves, z moves by (I - S D)^-1 S times that, S in [0, 1]. Where D >= 0 an eigenvector u >= 0 has D u = r u for the spectral
        radius r, which is below 1 by <u, u - D u> > 0, so the inverse is the sum of (S D)^i and has no negative entry.
        """
        up, down = (np.repeat(end.any(-1, keepdims=True), len(weight), -1) for end in (self.up, self.down))
        return Moves(up | down, up | down) if bool((weight < 0).any()) else Moves(up, down)

    def spread(self, shape: tuple[int, int, int]) -> Moves:
        """The same for every input and every cell."""
        return Moves(np.broadcast_to(self.up, shape), np.broadcast_to(self.down, shape))

    def take(self, indices: Sequence[int]) -> Moves:
        """Some coordinates."""
        return Moves(self.up[..., list(indices)], self.down[..., list(indices)])


def _any(moves: Array, through: Array) -> Array:
    """Whether one of the coordinates that move goes through: sums of zeros and ones, which are positive or exactly 0."""
    found: Array = moves.reshape(-1, moves.shape[-1]).astype(np.float32) @ through > 0
    return found.reshape(*moves.shape[:-1], through.shape[-1])


def _joined(parts: Sequence[Moves]) -> Moves:
    shape = np.broadcast_shapes(*(part.up.shape[:2] for part in parts))
    ends = [[np.broadcast_to(end, (*shape, end.shape[2])) for end in ends] for ends in zip(*((p.up, p.down) for p in parts), strict=True)]
    return Moves(*(np.concatenate(end, 2) for end in ends))


def signs(interval: Interval) -> tuple[Array, Array]:
    """Whether members of intervals may be positive, and whether negative; NaN may be both."""
    return ~(interval.high <= 0), ~(interval.low >= 0)


def signs_everywhere(graph: Graph) -> Moves:
    """What the output may do, (n, 1, m), on all of R^n. Raises Rejected where an operation has no value somewhere.

    The graph has one input and one output and no ``group_sort``, see :func:`lipctrl.certificates.checker.sorts.with_comparators`.
    """
    (size,), (outputs,) = graph.input_sizes.values(), graph.output_sizes.values()
    return _Propagation(None).follow(graph, _rising(size, np.arange(size)), ()).spread((size, 1, outputs))


def signs_on_cells(graph: Graph, notes: Notes, curved: bool = False) -> tuple[Moves, Array]:
    """What the output may do, (k, B, m), and on which of the B cells it surely has finite values. Raises GraphError or Rejected.

    The graph is as for :func:`signs_everywhere`; ``notes`` are fresh ones for the cells. Where ``curved``, slopes are enclosed to
    first order, see :mod:`lipctrl.certificates.checker.curved`.
    """
    cells = notes.cells
    output = notes.run(graph, notes.entering() if curved else entering(cells), ())
    finite = np.isfinite(output.value.magnitude).all(-1)
    moves = _Propagation(notes).follow(graph, _rising(cells.low.shape[1], cells.free), ())
    return moves.spread((len(cells.free), len(cells.low), output.value.low.shape[-1])), np.broadcast_to(finite, len(cells.low))


def _rising(size: int, free: Array) -> Moves:
    """The inputs when one of ``free`` rises."""
    up = np.zeros((len(free), 1, size), dtype=bool)
    up[np.arange(len(free)), 0, free] = True
    return Moves(up, np.zeros_like(up))


class Notes(CurvedAlgebra):
    """Enclosures on cells that keep what signs may rest on, by place: ``moves`` as enclosed slopes tell them, ``factors``.

    ``factors`` are the values of a product's operands (of a quotient's first one and the other's inverse), or of a power's.
    """

    def __init__(self, cells: Cells, remembered: Remembered | None = None) -> None:
        super().__init__(cells, remembered)
        self.cells = cells
        self.moves: dict[Place, Moves] = {}
        self.factors: dict[Place, tuple[Interval, ...]] = {}

    def _noted(self, result: Local) -> Local:
        """Of a whole node, whose operation may have been put together from others that were noted at its place before."""
        self.moves.pop(self._place, None)
        if result.slope is not None:
            self.moves[self._place] = Moves(*signs(result.slope))
        return result

    def _added(self, result: Local, x: Interval | None, y: Interval | None) -> Local:
        """Of a sum: floats that are rounded to nearest, subnormal ones included, add up to 0 only where their sum is 0."""
        self._noted(result)
        if x is not None and y is not None:
            self.moves[self._place] &= Moves(*signs(Interval(x.low + y.low, x.high + y.high)))
        return result

    def _scalar(self, x: Enclosed, function: Scalar, quotients: Scalar) -> Local:
        if self._node.op == "power":
            self.factors[self._place] = (x.value,)
        result = super()._scalar(x, function, quotients)
        if x.slope is None or result.slope is None:
            return result
        slopes = self.nodes[self._place]
        exact = np.isin([slopes.low, slopes.high], (-1.0, 0.0, 1.0)).all(0)  # products with these are not rounded
        products = [a * b for a in (x.slope.low, x.slope.high) for b in (slopes.low, slopes.high)]
        low = np.where(exact, np.maximum(np.minimum.reduce(products), result.slope.low), result.slope.low)
        high = np.where(exact, np.minimum(np.maximum.reduce(products), result.slope.high), result.slope.high)
        return replace(result, slope=Interval(low, high))

    def mul(self, x: Enclosed, y: Enclosed) -> Local:
        self.factors[self._place] = x.value, y.value
        return self._noted(super().mul(x, y))

    def div(self, x: Enclosed, y: Enclosed) -> Local:
        return self._noted(super().div(x, y))

    def add(self, x: Enclosed, y: Enclosed) -> Local:
        return self._added(super().add(x, y), x.slope, y.slope)

    def sub(self, x: Enclosed, y: Enclosed) -> Local:
        return self._added(super().sub(x, y), x.slope, None if y.slope is None else -y.slope)

    def max(self, x: Enclosed, y: Enclosed) -> Local:
        return self._noted(super().max(x, y))

    def min(self, x: Enclosed, y: Enclosed) -> Local:
        return self._noted(super().min(x, y))

    def affine(self, x: Enclosed, weight: Array, bias: Array | None) -> Local:
        return self._noted(super().affine(x, weight, bias))

    def implicit(self, x: Enclosed, weight: Array, metric: Array, activation: str) -> Local:
        return self._noted(super().implicit(x, weight, metric, activation))


class _Propagation:
    """Signs from node to node, on the cells of ``notes`` or everywhere."""

    def __init__(self, notes: Notes | None) -> None:
        self.notes = notes

    def follow(self, graph: Graph, rising: Moves, path: tuple[int, ...]) -> Moves:
        """The output of a graph whose one input moves so; ``path`` leads to it from the outermost graph."""
        values: list[Moves] = []
        (output,) = graph.outputs.values()
        for index, node in enumerate(graph.nodes[: output + 1]):
            place: Place = (*path, index) if path else index
            operands = [values[i] for i in node.inputs]
            if node.op == "input":
                values.append(rising)
            elif node.op == "recentre":
                values.append(self.follow(node.attributes["graph"], operands[0], (*path, index)))
            else:
                moves = self._moves(graph, node, operands, place)
                known = None if self.notes is None else self.notes.moves.get(place)
                values.append(moves if known is None else moves & known)
        return values[output]

    def _moves(self, graph: Graph, node: Node, operands: list[Moves], place: Place) -> Moves:
        match node.op:
            case "constant":
                still = np.zeros((1, 1, len(node.attributes["values"])), dtype=bool)
                return Moves(still, still)
            case "neg":
                return -operands[0]
            case "add":
                return operands[0] | operands[1]
            case "sub":
                return operands[0] | -operands[1]
            case "mul" | "div":
                return self._product(graph, node, operands, place)
            case "min" | "max":
                return self._chosen(graph, node, operands, place)
            case "affine":
                return operands[0].affine(graph.tensors[node.attributes["weight"]])
            case "implicit":
                return operands[0].implicit(graph.tensors[node.attributes["weight"]])
            case "select":
                return operands[0].take(node.attributes["indices"])
            case "concatenate":
                return _joined(operands)
        return operands[0].times(*self._slopes(node, place))

    def _slopes(self, node: Node, place: Place) -> tuple[May, May]:
        """Whether slopes of a coordinate-wise operation may be positive, and whether negative."""
        up: May
        down: May
        up, down = _slopes_everywhere(node)
        slopes = None if self.notes is None else self.notes.nodes.get(place)
        if slopes is not None:
            rising, falling = signs(slopes)
            up, down = up & rising, down & falling
        elif node.op in PARTIAL:
            raise Rejected(f"operation {node.op!r} has no value everywhere")
        if self.notes is not None and node.op == "power" and node.attributes["exponent"] % 2 == 0:
            positive, negative = signs(self.notes.factors[place][0])
            up, down = up & positive, down & negative
        return up, down

    def _product(self, graph: Graph, node: Node, operands: list[Moves], place: Place) -> Moves:
        """x'y' - xy = x' (y' - y) + y (x' - x); a quotient is the product with an inverse, which falls when the divisor rises."""
        first, second = operands
        if node.op == "div":
            divisor, second = graph.nodes[node.inputs[1]], -second
            if self.notes is None and not (divisor.op == "constant" and all(divisor.attributes["values"])):
                raise Rejected("operation 'div' has no value everywhere")
        by_first, by_second = (self._factor(graph, node, place, which) for which in (0, 1))
        return second.times(*by_first) | first.times(*by_second)

    def _factor(self, graph: Graph, node: Node, place: Place, which: int) -> tuple[May, May]:
        """Whether a factor may be positive, and whether negative; an inverse has the sign of its divisor."""
        operand = graph.nodes[node.inputs[which]]
        if operand.op == "constant":
            values = operand.attributes["values"]
            return np.array([v > 0 for v in values]), np.array([v < 0 for v in values])
        return (True, True) if self.notes is None else signs(self.notes.factors[place][which])

    def _chosen(self, graph: Graph, node: Node, operands: list[Moves], place: Place) -> Moves:
        """Minima and maxima rise with both operands: by slopes s and 1 - s, s in [0, 1] as noted for the first that is no constant."""
        slopes = None if self.notes is None else self.notes.nodes.get(place)
        if slopes is None:
            return operands[0] | operands[1]
        first, second = operands[::-1] if graph.nodes[node.inputs[0]].op == "constant" else operands
        return first.times(~(slopes.high <= 0), False) | second.times(~(slopes.low >= 1), False)


def _slopes_everywhere(node: Node) -> tuple[bool, bool]:
    """Whether slopes of a coordinate-wise operation may be positive anywhere, and whether negative. Raises Rejected."""
    if node.op in NEVER_FALLING:
        return True, False
    if node.op in EITHER_WAY or node.op in PARTIAL:
        return True, True
    if node.op == "leaky_relu":
        return True, bool(node.attributes["slope"] < 0)
    if node.op == "power":
        exponent = node.attributes["exponent"]
        return exponent > 0, exponent > 0 and exponent % 2 == 0
    raise Rejected(f"nothing is known about the signs of operation {node.op!r}")
