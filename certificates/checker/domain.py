"""Sets of inputs that a local claim speaks about, boxes and balls, and the parts that a split tree cuts them into.

All numbers of a domain are exact. Cells are float64 boxes that are rounded outwards, so the leaves of a tree cover the domain:
both halves of a split keep the threshold. Of a ball, a cell is the part in its box, and everything that is known about that
part is used: a smaller box around it, and how far it reaches from the middle of that box. Where a graph is known, a tree may
also split the domain by the value that enters a unit of it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Any

import numpy as np

from lipctrl.certificates.checker import intervals as iv
from lipctrl.certificates.checker.bundle import fields, floats, number, numbers
from lipctrl.certificates.checker.graph import Graph
from lipctrl.certificates.checker.intervals import Array, Interval
from lipctrl.certificates.checker.local_slopes import COORDINATE_WISE, Cells
from lipctrl.certificates.checker.network import Place
from lipctrl.certificates.checker.verdict import Rejected

Vector = tuple[Fraction, ...]

MAX_DEPTH = 200  #: splits above a leaf
MAX_HALF_LINES = 64  #: splits by units above a leaf


@dataclass(frozen=True)
class Domain:
    """The box ``low <= x <= high``, and where ``centre`` is given its part |scale (x - centre)| <= radius, in Euclidean norm."""

    low: Vector
    high: Vector
    centre: Vector | None = None
    radius: Fraction = Fraction(0)
    scale: Vector = ()

    @property
    def free(self) -> Array:
        """Indices of the inputs that vary; the increments of the others are zero."""
        return np.array([i for i, (low, high) in enumerate(zip(self.low, self.high, strict=True)) if low < high], dtype=np.int64)

    def box(self) -> tuple[Array, Array]:
        """Float ends of the box, rounded outwards. Raises Rejected where they are beyond float64."""
        try:
            with np.errstate(over="ignore"):
                low, high = iv.from_fractions(self.low).low, iv.from_fractions(self.high).high
            iv.from_fractions((self.radius**2,))
        except OverflowError as error:
            raise Rejected("the domain is too large for float64") from error
        if not bool(np.isfinite(low).all() and np.isfinite(high).all()):
            raise Rejected("the domain is too large for float64")
        return low, high

    def cells(self, low: Array, high: Array) -> tuple[Cells, Array]:
        """Boxes (B, n) as cells of the domain, and which of them surely hold no point of it (their cells mean nothing)."""
        free = self.free
        if self.centre is None:
            return Cells(low, high, free), np.zeros(len(low), dtype=bool)
        scale = iv.from_fractions(tuple(self.scale[i] for i in free))
        centre = iv.from_fractions(tuple(self.centre[i] for i in free))
        square = iv.from_fractions((self.radius**2,))
        box = Interval(low[:, free], high[:, free])
        with np.errstate(all="ignore"):
            gap = np.maximum(0.0, np.maximum((iv.point(box.low) - centre).low, (centre - iv.point(box.high)).low))
            far = _square(scale * iv.point(gap)).low
            others = np.maximum(0.0, iv.down(far.sum(-1, keepdims=True) * (1 - 4 * (len(free) + 2) * iv.UNIT)) - far)
            left = iv.up(square.high - others)  # what the other coordinates leave of the squared radius
            half = iv.sqrt(iv.point(np.maximum(left, 0.0))) / scale
            inside = Interval(np.maximum(box.low, (centre - half).low), np.minimum(box.high, (centre + half).high))
        empty = (inside.low > inside.high).any(-1) | (left < 0).any(-1)  # NaN is not empty: such cells are refused later
        inside = Interval(np.where(empty[:, None], box.low, inside.low), np.where(empty[:, None], box.high, inside.high))
        low, high = low.copy(), high.copy()
        low[:, free], high[:, free] = inside.low, inside.high
        with np.errstate(all="ignore"):
            reach = _reach(inside, centre, scale, square)
        return Cells(low, high, free, reach, scale.low), empty


def _square(x: Interval) -> Interval:
    return iv.integer_power(x, 2)


def _reach(inside: Interval, centre: Interval, scale: Interval, square: Interval) -> Array:
    """The most that |scale (x - m)| can be, m the middle of each box and |scale (x - centre)|^2 <= square.

    |s(x - m)|^2 = |s(x - c)|^2 + sum of s^2 ((c - m)^2 + 2 (x - c)(c - m)), and (x - c)(c - m) <= |c - m| r - (c - m)^2.
    """
    middle, radius = inside.centre_radius()
    off = (centre - iv.point(middle)).magnitude
    near = np.maximum(0.0, np.maximum((centre - iv.point(middle)).low, (iv.point(middle) - centre).low))
    weight = _square(scale).high
    shift = iv.up(iv.up(weight * iv.up(2 * iv.up(off * radius))) - iv.down(_square(scale).low * iv.down(near * near)))
    count = radius.shape[-1]
    slack = 4 * (count + 4) * iv.UNIT
    ball = square.high + shift.sum(-1) + slack * (square.high + np.abs(shift).sum(-1))
    corner = iv.up(weight * iv.up(radius * radius)).sum(-1) * (1 + slack)
    reach: Array = iv.up(np.sqrt(iv.up(np.minimum(np.maximum(ball, 0.0), corner)) + 2.0**-1000))
    return reach


def read_domain(data: object, size: int, norm: str, scale: Vector) -> Domain:
    """The domain of a claim: a table with ``low`` and ``high``, or ``centre`` and ``radius``. Raises Rejected.

    A ball is one of the claim's norm: |scale (x - centre)| <= radius.
    """
    if isinstance(data, dict) and "centre" in data:
        table = fields(data, ("centre", "radius"), "domain")
        centre, radius = numbers(table["centre"], size, "domain centre"), number(table["radius"], "domain radius")
        if not radius >= 0:
            raise Rejected("the radius of the domain is negative")
        low = tuple(c - radius / s for c, s in zip(centre, scale, strict=True))
        high = tuple(c + radius / s for c, s in zip(centre, scale, strict=True))
        return Domain(low, high) if norm == "linf" else Domain(low, high, centre, radius, scale)
    table = fields(data, ("low", "high"), "domain")
    low, high = numbers(table["low"], size, "domain low"), numbers(table["high"], size, "domain high")
    if not all(a <= b for a, b in zip(low, high, strict=True)):
        raise Rejected("the domain is empty: needs low <= high")
    return Domain(low, high)


@dataclass(frozen=True)
class HalfLine:
    """What enters coordinate ``index`` of the node at ``place`` is at least (``above``) or at most ``threshold``.

    At ``min`` and ``max`` of two signals that is the difference whose sign decides, as ``local_slopes`` forms it.
    """

    place: Place
    index: int
    threshold: float
    above: bool


@dataclass(frozen=True)
class Leaf:
    """A part of the domain, where x is in a box and the values of units on ``half_lines``, and what the tree says about it."""

    low: Array
    high: Array
    entry: Any
    half_lines: tuple[HalfLine, ...] = ()


def read_leaves(tree: object, domain: Domain, limit: int, graph: Graph | None = None) -> list[Leaf]:
    """The leaves of a split tree in preorder: splits, the lower part first; all that is not a list is a leaf's entry.

    A split is ``[input, threshold]``, or where a graph is given also ``[place, index, threshold]``: by what enters a coordinate
    of a coordinate-wise node, whose place is its index, or the path to it through ``recentre`` nodes. Both parts keep the threshold,
    so the leaves cover the domain. Raises Rejected where the tree is malformed, or has more than ``limit`` leaves.
    """
    if not isinstance(tree, list):
        raise Rejected("the split tree must be a list in preorder")
    stack, leaves = [Leaf(*domain.box(), 0)], []  # the entry of what is not a leaf yet is its depth
    free = set(domain.free.tolist())
    for entry in tree:
        if not stack:
            raise Rejected("the split tree has entries left over")
        part = stack.pop()
        if not isinstance(entry, list):
            leaves.append(replace(part, entry=entry))
            if len(leaves) > limit:
                raise Rejected(f"the split tree has more than {limit} leaves")
            continue
        if len(entry) == 3 and graph is not None:
            stack += reversed(_parts_by_unit(part, graph, entry))
            continue
        axis, threshold = _split(entry)
        if axis not in free or part.entry >= MAX_DEPTH:
            raise Rejected(f"the split tree splits input {axis}, which does not vary, or more than {MAX_DEPTH} times in a row")
        if not part.low[axis] < threshold < part.high[axis]:
            raise Rejected("the split tree has a threshold that is not strictly inside its box")
        boxes = halves(part.low, part.high, axis, threshold)
        stack += [replace(part, low=low, high=high, entry=part.entry + 1) for low, high in reversed(boxes)]
    if stack:
        raise Rejected("the split tree ends too early")
    return leaves


def halves(low: Array, high: Array, axis: int, threshold: float) -> Sequence[tuple[Array, Array]]:
    """Both parts of a box; they share the threshold."""
    left, right = high.copy(), low.copy()
    left[axis] = right[axis] = threshold
    return (low, left), (right, high)


def read_place(data: object, graph: Graph) -> tuple[Place, int]:
    """The place of a coordinate-wise node of a graph, and its size. Raises Rejected for all else."""
    path: list[Any] = data if isinstance(data, list) and len(data) > 1 else [data]
    for position, index in enumerate(path):
        if type(index) is not int or not 0 <= index < len(graph.nodes):
            break
        node, last = graph.nodes[index], position == len(path) - 1
        if last and node.op in COORDINATE_WISE:
            return tuple(path) if position else index, graph.sizes[index]
        if last or node.op != "recentre":
            break
        graph = node.attributes["graph"]
    raise Rejected(f"{str(data)[:60]} is not the place of a coordinate-wise node of the graph without sorts")


def _parts_by_unit(part: Leaf, graph: Graph, entry: list[Any]) -> list[Leaf]:
    place, size = read_place(entry[0], graph)
    if type(entry[1]) is not int or not 0 <= entry[1] < size:
        raise Rejected(f"a split by a unit of node {place} needs an index from 0 to {size - 1}")
    if len(part.half_lines) >= MAX_HALF_LINES or part.entry >= MAX_DEPTH:
        raise Rejected(f"the split tree splits more than {MAX_HALF_LINES} times by units, or more than {MAX_DEPTH} times in a row")
    threshold = float(floats([entry[2]], 1, "threshold")[0])
    sides = (HalfLine(place, entry[1], threshold, above) for above in (False, True))
    return [replace(part, entry=part.entry + 1, half_lines=(*part.half_lines, side)) for side in sides]


def _split(entry: list[Any]) -> tuple[int, float]:
    if len(entry) != 2 or type(entry[0]) is not int:
        raise Rejected("a split must be [input, threshold]")
    return entry[0], float(floats([entry[1]], 1, "threshold")[0])
