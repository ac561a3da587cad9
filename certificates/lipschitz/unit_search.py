"""Branch and bound over the signs of units, for local Lipschitz bounds of networks with kinks. Nothing here is trusted.

A leaf is a part of the domain where some units stay on one side of a kink. On it the ranges of the others are narrowed by linear
programs, layer by layer; most of them then have one slope only, and multipliers for the rest bound the leaf well. The worst leaf
is split by the unit whose uncertain slope may add most to the gain.
"""

from __future__ import annotations

import heapq
import itertools
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, cast

import numpy as np
from scipy.optimize import linprog

from lipctrl.certificates.checker.domain import MAX_HALF_LINES, HalfLine, halves
from lipctrl.certificates.checker.enclosure import Enclosed
from lipctrl.certificates.checker.graph import Graph
from lipctrl.certificates.checker.intervals import Array, Interval
from lipctrl.certificates.checker.jacobian import quick_gains, row_gains
from lipctrl.certificates.checker.local_slopes import Local, LocalSlopes
from lipctrl.certificates.checker.network import Place
from lipctrl.certificates.checker.unit_splits import MAX_SYMBOLS, Ends, HalvedAlgebra, Margins, NoPoint, Pass
from lipctrl.certificates.checker.verdict import Rejected
from lipctrl.certificates.checker.verifiers.local_lipschitz import MAX_PROOFS, Problem, work_of_passes
from lipctrl.certificates.lipschitz.box_programs import ball_multipliers, multipliers
from lipctrl.certificates.lipschitz.local_multipliers import bound_cell
from lipctrl.certificates.lipschitz.local_search import CELL_TOLERANCE, FEW_INPUTS, MAX_ORDER, SLICE
from lipctrl.certificates.lipschitz.sensitivity import Sensitivities

KINKED = ("relu", "abs", "leaky_relu", "clip", "min", "max")
PASSES = 2
MAX_NUMBERS = 1_000_000  #: in the ranges of all leaves: what a certificate can hold
MAX_POINTS = 16  #: inside leaves, that are sought at once
WORTH = 1e-3  #: of the width of a range, that an end of it must move to be filed
ROUNDING = 1e-9  #: relative width of slopes that are a single number but for rounding
MANY = 32  #: units that are uncertain, if most are, beyond which splits of few inputs are better
ALSO = 0.2  #: weight of what a unit may add to any gain, beside what it may add in the worst direction
Split = tuple[Place, int, float] | int  #: by a unit at a threshold, or by the middle of an input


@dataclass(eq=False)
class Leaf:
    """A part of the domain. ``own`` is the best bound proved on it, ``effective`` also counts those of the parts around."""

    low: Array
    high: Array
    half_lines: tuple[HalfLine, ...]
    effective: float
    own: float = math.inf
    passes: list[Pass] = field(default_factory=list)
    found: LocalSlopes | None = None
    symbols: int = 0
    margins: Margins | None = None
    split: Split | None = None
    proof: dict[str, Any] | None = None
    products: float = 0.0
    work: float = 0.0
    thorough: bool = False
    children: tuple[Leaf, Leaf] | None = None

    @property
    def has_proof(self) -> bool:
        """Whether there is a proof of its own."""
        return self.proof is not None

    @property
    def parts(self) -> tuple[Leaf, Leaf] | None:
        """Both parts, where it was split."""
        return self.children

    @property
    def numbers(self) -> int:
        """How many numbers its ranges take in a file, about."""
        return sum(ends.factors.size + 4 * len(ends.index) for found in self.passes for ends in found.values())


class Narrowing(HalvedAlgebra):
    """A pass that seeks good factors for the units with a kink in their range, as it comes to them; it notes what enters all units."""

    def __init__(self, problem: Problem, leaf: Leaf, margins: Margins) -> None:
        cells, empty = problem.domain.cells(leaf.low[None], leaf.high[None])
        if empty[0]:
            raise NoPoint
        super().__init__(cells, leaf.half_lines, {}, margins, problem.remembered, most_symbols(problem))
        self.linear: dict[Place, Array] = {}  # (k, n)
        self.kinks: dict[Place, Array] = {}  # (n,): inside the range, or NaN
        self.factors: dict[Place, tuple[Array, Array]] = {}

    @property
    def radius(self) -> Array:
        """Half-widths of the box in the inputs that vary, (k,)."""
        return np.asarray(self._radius[:, 0, 0])

    def _narrowed(self, x: Local) -> Local:
        x = super()._narrowed(x)
        if self._node.op in KINKED and x.linear is not None:
            uncertain = ~np.isnan(_kink_inside(x.value, self._kinks() or []))
            if self.half_lines and uncertain.any():
                self.ends[self._place] = self._sought(x, np.flatnonzero(uncertain))
                x = super()._narrowed(x)
            self.kinks[self._place] = _kink_inside(x.value, self._kinks() or [])
        n, k = x.value.low.shape[1], len(self._cells.free)
        if x.linear is not None:
            self.linear[self._place] = np.broadcast_to(_middle(x.linear)[:k, 0], (k, n))
        return x

    def _sought(self, x: Local, index: Array) -> Ends:
        """Ends for both sides of the ranges of these units, where they move far enough."""
        index, sign = np.concatenate([index, index]), np.repeat([1.0, -1.0], len(index))
        n, ones = x.value.low.shape[1], np.ones(self.symbols)
        radius = np.append(self.radius, ones)
        linear = _middle(self._full(cast(Interval, x.linear), n))[:, 0, index]
        margins = self._margins()
        normals, constants = -_middle(margins.linear).T, margins.constant
        known: Array = np.asarray(normals.any(1))
        factors = np.zeros((len(index), len(known)))
        objectives, normals = (sign * linear).T, normals[known]
        factors[:, known] = multipliers(objectives * radius, normals * radius, constants[known])
        ends = Ends(index, sign > 0, _shortened(factors))
        if self._cells.reach is not None and self._cells.scale is not None:
            stretch = np.append(self._cells.reach[0] / self._cells.scale, ones)
            factors[:, known] = ball_multipliers(objectives * stretch, normals * stretch, constants[known])
            other = Ends(index, ends.upper, _shortened(factors))
            nearer = self._most(x, n, other) < self._most(x, n, ends)
            ends = Ends(index, ends.upper, np.where(nearer[:, None], other.factors, ends.factors))
        before = np.where(sign > 0, x.value.high[0, index], -x.value.low[0, index])
        width = (x.value.high - x.value.low)[0, index]
        worth = np.flatnonzero(self._most(x, n, ends) < before - WORTH * width)
        return Ends(ends.index[worth], ends.upper[worth], ends.factors[worth])

    def mul(self, x: Enclosed, y: Enclosed) -> Local:
        """Also note both factors."""
        self.factors[self._place] = _middle(x.value)[0], _middle(y.value)[0]
        return super().mul(x, y)

    def div(self, x: Enclosed, y: Enclosed) -> Local:
        """Also note both operands."""
        result = super().div(x, y)
        self.factors[self._place] = _middle(x.value)[0], _middle(y.value)[0]
        return result


def most_symbols(problem: Problem) -> int:
    """As many symbols as a pass may have, and as there is room for."""
    return next(count for count in (MAX_SYMBOLS, MAX_SYMBOLS // 8, 0) if not count or problem.work(count).cells_at_once)


def _middle(x: Interval) -> Array:
    return np.asarray(0.5 * x.low + 0.5 * x.high)


def _shortened(factors: Array) -> Array:
    """Rounded to 16 bits, so that their texts are short; what is negligible beside the greatest is left out."""
    factors = np.where(np.isfinite(factors), np.maximum(factors, 0.0), 0.0)
    factors = np.where(factors > 1e-6 * factors.max(1, keepdims=True, initial=0.0), factors, 0.0)
    mantissa, exponent = np.frexp(factors)
    shortened: Array = np.ldexp(np.round(mantissa * 65536) / 65536, exponent)
    return shortened


def _kink_inside(value: Interval, kinks: Sequence[Interval]) -> Array:
    """A kink inside the range of each unit, the one that is nearest to its middle, or NaN: (n,)."""
    low, high = value.low[0], value.high[0]
    best, distance = np.full(low.shape, np.nan), np.full(low.shape, np.inf)
    for kink in kinks:
        at = np.broadcast_to(0.5 * (kink.low + kink.high), low.shape)
        away = np.where((low < at) & (at < high), np.abs(at - 0.5 * (low + high)), np.inf)
        best, distance = np.where(away < distance, at, best), np.minimum(away, distance)
    return best


class UnitSearch:
    """Best-first splits by units, and by inputs where units have no kinks. The same face as :class:`.local_search.Search`."""

    def __init__(self, problem: Problem) -> None:
        self.problem = problem
        self.cells = self.proofs = 0
        self.seconds = 0.0
        self.exhausted = False
        self._numbers = 0
        self._counter = itertools.count()
        self._heap: list[tuple[float, float, int, Leaf]] = []
        self.root = Leaf(*problem.domain.box(), (), math.inf)
        self._judge(self.root)
        self._push(self.root)

    @property
    def upper(self) -> float:
        """The bound on the whole domain so far."""
        return -self._heap[0][0] if self._heap else 0.0

    @classmethod
    def where_it_helps(cls, problem: Problem) -> UnitSearch | None:
        """A search for this problem, or ``None`` where its graph has no kinks, or what is uncertain in it is mostly smooth.

        Also where few inputs leave most units uncertain: there halves of boxes say more than halves of units.
        """
        if not has_kinks(problem.graph):
            return None
        search = cls(problem)
        if len(problem.domain.free) <= FEW_INPUTS and search._most_are_uncertain():
            return None
        return search if math.isfinite(search.upper) and not isinstance(search.root.split, int) else None

    def _most_are_uncertain(self) -> bool:
        """Whether many units, and most of them, have an uncertain slope on the whole domain."""
        slopes = [] if self.root.found is None else [*self.root.found.nodes.values()]
        uncertain = sum(int(np.count_nonzero(s.low < s.high)) for s in slopes)
        return uncertain > MANY and uncertain > 0.5 * sum(s.low.size for s in slopes)

    def worst(self, count: int) -> Array:
        """Points well inside the leaves with the greatest bounds, (count, n), or fewer."""
        leaves = [entry[-1] for entry in heapq.nsmallest(min(count, MAX_POINTS), self._heap)]
        return np.array([_point_inside(leaf, self.problem.domain.free) for leaf in leaves])

    def step(self, enough: float, seconds: float) -> None:
        """One slice of work, with ``seconds`` left."""
        begun = time.monotonic()
        while time.monotonic() - begun < SLICE and self._heap and self.upper > enough and not self.exhausted:
            leaf = heapq.heappop(self._heap)[-1]
            if not leaf.thorough:
                leaf.thorough = True
                self._multiplied(leaf, 0.25 * seconds)
                self._push(leaf)
            elif leaf.split is None or self._numbers > MAX_NUMBERS:
                self._push(leaf)
                self.exhausted = True
            else:
                self._split(leaf)
        self.seconds += max(time.monotonic() - begun, 1e-3)

    def _push(self, leaf: Leaf) -> None:
        heapq.heappush(self._heap, (-leaf.effective, -leaf.own, next(self._counter), leaf))

    def _split(self, leaf: Leaf) -> None:
        if isinstance(leaf.split, tuple):
            sides = (HalfLine(*leaf.split, above) for above in (False, True))
            parts = [Leaf(leaf.low, leaf.high, (*leaf.half_lines, side), leaf.effective) for side in sides]
        else:
            axis = cast(int, leaf.split)
            middle = 0.5 * float(leaf.low[axis]) + 0.5 * float(leaf.high[axis])
            parts = [Leaf(*box, leaf.half_lines, leaf.effective) for box in halves(leaf.low, leaf.high, axis, middle)]
        leaf.children, leaf.found = (parts[0], parts[1]), None
        for part in parts:
            self._judge(part)
            self._push(part)
        self._numbers += parts[0].numbers + parts[1].numbers - leaf.numbers

    def _judge(self, leaf: Leaf) -> None:
        """Bound a new leaf, and say how it is best split."""
        self.cells += 1
        with np.errstate(all="ignore"):
            try:
                algebra, leaf.found = self._enclosed(leaf)
            except NoPoint:
                leaf.own = leaf.effective = 0.0
                return
            finally:
                leaf.work = work_of_passes(self.problem, len(leaf.half_lines), leaf.passes, leaf.symbols)
            leaf.margins = algebra.margins
            matrix = self.problem.matrices(leaf.found, 1)
            leaf.own = self._gain(matrix)
            leaf.effective = min(leaf.effective, leaf.own)
            if leaf.own > 0:
                leaf.split = _choice(self.problem, leaf, algebra, matrix)
        self._multiplied(leaf, 0.0)

    def _enclosed(self, leaf: Leaf) -> tuple[Narrowing, LocalSlopes]:
        """The last pass over a leaf, and the slopes that it found. Raises NoPoint where the leaf holds none."""
        margins = Margins.unknown(len(leaf.half_lines), len(self.problem.domain.free))
        while True:
            algebra = Narrowing(self.problem, leaf, margins)
            leaf.passes.append(algebra.ends)
            try:
                found = algebra.whole(self.problem.graph)
            finally:
                leaf.symbols = max(leaf.symbols, algebra.symbols)
            all_known = {half.place for half in leaf.half_lines} <= {*itertools.islice(algebra.kinks, 1)}  # at all units
            if all_known or len(leaf.passes) == PASSES:
                return algebra, found
            margins = algebra.margins

    def _gain(self, matrix: Interval) -> float:
        """What the checker will find for slopes alone, up to rounding."""
        gain = float((quick_gains if self.problem.norm == "l2" else row_gains)(matrix)[0])
        if self.problem.norm == "l2" and math.isfinite(gain):
            middle, radius = matrix.centre_radius()
            gain = min(gain, (float(np.linalg.norm(middle[0], 2)) + float(quick_gains(Interval(radius, radius))[0])) * (1 + 1e-12))
        return math.inf if math.isnan(gain) else gain

    def _multiplied(self, leaf: Leaf, seconds: float) -> None:
        """Seek multipliers for this long; 0 seconds: those that are near the best where slopes are narrow."""
        if leaf.found is None or self.proofs >= MAX_PROOFS:
            return
        try:
            network = self.problem.network(leaf.found, 0)
        except Rejected:
            return
        if sum(network.variables) > MAX_ORDER:
            return
        bound = bound_cell(self.problem, network, CELL_TOLERANCE, seconds)
        if bound is not None and bound[0].value < leaf.own:
            self.proofs += leaf.proof is None
            leaf.own, leaf.proof, leaf.products = bound[0].value, dict(bound[0].evidence), bound[1]
            leaf.effective = min(leaf.effective, leaf.own)

    def tree(self, upper: float) -> tuple[list[Any], list[dict[str, Any]]]:
        """The smallest split tree whose leaves all have bounds of at most ``upper``, in preorder, and its proofs."""
        tree: list[Any] = []
        proofs: list[dict[str, Any]] = []
        stack = [self.root]
        while stack:
            leaf = stack.pop()
            if leaf.own <= upper or leaf.children is None:
                tree.append(_entry(leaf, len(proofs)))
                proofs += [] if leaf.proof is None else [leaf.proof]
                continue
            if isinstance(leaf.split, tuple):
                place, index, threshold = leaf.split
                tree.append([_filed(place), index, threshold.hex()])
            else:
                tree.append([leaf.split, float(leaf.children[0].high[leaf.split]).hex()])
            stack += reversed(leaf.children)
        return tree, proofs


def _point_inside(leaf: Leaf, free: Array) -> Array:
    """A point of the leaf's box that is as far as possible from its border and from where a half-line ends, about."""
    point, radius = 0.5 * leaf.low + 0.5 * leaf.high, (0.5 * leaf.high - 0.5 * leaf.low)[free]
    if leaf.margins is None or not leaf.half_lines or not len(free):
        return point
    rows = -_middle(leaf.margins.without_symbols(len(free)).linear).T * radius
    normals = np.column_stack([rows, np.abs(rows).sum(1)])
    limits = [*[(-1.0, 1.0)] * len(free), (None, 1.0)]
    result = linprog(
        np.append(np.zeros(len(free)), -1.0), A_ub=normals, b_ub=leaf.margins.without_symbols(len(free)).constant, bounds=limits
    )
    if result.status == 0:
        point[free] += radius * result.x[:-1]
    return point


def has_kinks(graph: Graph) -> bool:
    """Whether a graph has units that are linear beside kinks."""
    return any(node.op in KINKED or (node.op == "recentre" and has_kinks(node.attributes["graph"])) for node in graph.nodes)


def _entry(leaf: Leaf, index: int) -> Any:
    proof = None if leaf.proof is None else index
    ranges = [
        [
            [_filed(place), int(j), "high" if upper else "low", [float(v).hex() if v else "0" for v in factors]]
            for place, ends in found.items()
            for j, upper, factors in zip(ends.index, ends.upper, ends.factors, strict=True)
        ]
        for found in leaf.passes
    ]
    return {"ranges": ranges, "symbols": leaf.symbols, "proof": proof}


def _filed(place: Place) -> Any:
    return list(place) if isinstance(place, tuple) else place


def _choice(problem: Problem, leaf: Leaf, algebra: Narrowing, matrix: Interval) -> Split | None:
    """The unit whose slope, where it is uncertain, may add most to the gain; an input where that is mostly units without kinks."""
    if leaf.found is None or not np.isfinite(matrix.magnitude).all():
        return None
    left, _, right = np.linalg.svd(_middle(matrix)[0])
    free = problem.domain.free
    scale_in, scale_out = (np.array([float(s) for s in scale]) for scale in (problem.scale_in, problem.scale_out))
    if problem.norm == "linf":
        row = int(np.argmax(matrix.magnitude[0].sum(1)))
        left, right = np.eye(len(scale_out))[:, [row]], np.sign(_middle(matrix)[0][row : row + 1])
    direction = right[0] / scale_in[free]
    slopes = {place: np.broadcast_to(_middle(s), (1, s.low.shape[-1]))[0] for place, s in leaf.found.nodes.items()}
    sensitivities = Sensitivities(slopes, algebra.factors)
    sensitivities.sweep(problem.graph, left.T * scale_out)
    best, unit, kinked, smooth = 0.0, None, 0.0, np.zeros(len(free))
    for place, rows in sensitivities.found.items():
        if place not in algebra.linear:
            continue
        found, linear = leaf.found.nodes[place], algebra.linear[place]
        half = np.where(found.high - found.low > ROUNDING * found.magnitude, 0.5 * (found.high - found.low), 0.0)
        half = np.broadcast_to(half, (1, linear.shape[1]))[0]
        worst = half * np.abs(direction @ linear) * np.abs(rows[0])
        score = worst + ALSO * half * np.linalg.norm(linear / scale_in[free][:, None], axis=0) * np.linalg.norm(rows, axis=0)
        kinks = algebra.kinks.get(place, np.full(linear.shape[1], np.nan))
        candidates = np.where(np.isnan(kinks), 0.0, score)
        kinked += float(candidates.sum())
        smooth += (half * np.linalg.norm(rows, axis=0) * np.abs(linear) * algebra.radius[:, None])[:, np.isnan(kinks)].sum(1)
        j = int(np.argmax(candidates))
        if candidates[j] > best:
            best, unit = float(candidates[j]), (place, j, float(kinks[j]))
    uncertain = float((smooth / np.maximum(algebra.radius, 1e-300) * np.abs(direction)).sum())
    if unit is not None and kinked >= uncertain and len(leaf.half_lines) < MAX_HALF_LINES:
        return unit
    radius = 0.5 * matrix.high - 0.5 * matrix.low
    if unit is None and not smooth.any() and float(np.abs(radius).sum()) <= ROUNDING * float(matrix.magnitude.sum()):
        return None  # linear on this leaf: nothing else is known to help
    middle = 0.5 * leaf.low[free] + 0.5 * leaf.high[free]
    can = (leaf.low[free] < middle) & (middle < leaf.high[free])
    blame = np.where(can, np.where(smooth > 0, smooth, 0.0) + 1e-12 * (leaf.high[free] - leaf.low[free]), -1.0)
    axis = int(np.argmax(blame))
    return int(free[axis]) if blame[axis] >= 0 else unit
