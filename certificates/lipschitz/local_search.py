"""Branch and bound over the cells of a domain, for local Lipschitz bounds. Nothing here is trusted."""

from __future__ import annotations

import heapq
import itertools
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from lipctrl.certificates.checker.curved import CurvedAlgebra
from lipctrl.certificates.checker.domain import halves
from lipctrl.certificates.checker.intervals import Array, Interval
from lipctrl.certificates.checker.jacobian import quick_gains
from lipctrl.certificates.checker.local_slopes import LocalSlopes, entering
from lipctrl.certificates.checker.verdict import Rejected
from lipctrl.certificates.checker.verifiers.local_lipschitz import EXPANSION, MAX_PROOFS, Problem
from lipctrl.certificates.lipschitz.blame import Blaming, input_to_split
from lipctrl.certificates.lipschitz.local_multipliers import bound_cell

MAX_ORDER = 1500  #: variables beyond which no multipliers are sought on a cell
CELL_TOLERANCE = 5e-3  #: of multipliers on a cell, in the square of the bound
SMALL_ORDER, FEW_INPUTS = 64, 6  #: multipliers are sought to the end where there are few variables, or too many inputs to split
NEAR = 1.2  #: of the gain at the middle of a cell: expansions that are nearer need no multipliers
FAR = 50  #: of that gain: where slopes alone allow more, expansions are hopeless
SCATTERED = 512  #: cells before multipliers are sought again below the whole domain, where there are few inputs
SLICE = 0.1  #: seconds, as estimated, between two decisions what to do
SPLITS = 64  #: cells that are split at once


@dataclass(eq=False)
class Node:
    """A box of the search tree. ``own`` is the best bound proved on it, ``effective`` also counts those of the boxes around."""

    low: Array
    high: Array
    axis: int
    own: float
    effective: float
    depth: int = 0
    proof: dict[str, Any] | None = None
    products: float = 0.0  #: multiplications for the proof
    work: float = 0.0  #: on slopes, beside that on any box
    tried: int = 0  #: 1: multipliers near the best, 2: the best
    children: tuple[Node, Node] | None = None

    @property
    def has_proof(self) -> bool:
        """Whether there is a proof of its own."""
        return self.proof is not None

    @property
    def parts(self) -> tuple[Node, Node] | None:
        """Both halves, where it was split."""
        return self.children


class _BlamingSlopes(Blaming, CurvedAlgebra):
    """Slopes on cells, to first order if the problem is curved, that also say which inputs make them uncertain."""


@dataclass
class Search:
    """Branch and bound on one problem.

    Where ``by_multipliers``, a cell is split only when its multipliers are known: few cells, each bounded well. Otherwise cells
    are split by what their slopes alone say, very many of them, and multipliers are sought where that pays.
    """

    problem: Problem
    by_multipliers: bool
    heap: list[tuple[float, float, int, Node]] = field(default_factory=list)
    root: Node = field(init=False)
    cells: int = 0
    proofs: int = 0
    counter: Any = field(default_factory=itertools.count)
    rates: dict[bool, float | None] = field(default_factory=lambda: {False: None, True: None})  #: log bound a second; True: multipliers
    slices: int = 0
    seconds: float = 0.0
    exhausted: bool = False  #: nothing is left to try on the worst cell

    def __post_init__(self) -> None:
        low, high = self.problem.domain.box()
        (self.root,) = self._evaluated([(low, high, 0, math.inf)])
        self._push(self.root)

    @property
    def upper(self) -> float:
        """The bound on the whole domain so far."""
        return -self.heap[0][0] if self.heap else 0.0

    def worst(self, count: int) -> Array:
        """Middles of the boxes with the greatest bounds, (count, n)."""
        nodes = [entry[-1] for entry in heapq.nsmallest(count, self.heap)]
        return np.array([0.5 * node.low + 0.5 * node.high for node in nodes])

    def _push(self, node: Node) -> None:
        heapq.heappush(self.heap, (-node.effective, -node.own, next(self.counter), node))

    def _analysed(self, low: Array, high: Array) -> tuple[LocalSlopes, Array, Array]:
        cells, empty = self.problem.domain.cells(low, high)
        with np.errstate(all="ignore"):
            algebra = _BlamingSlopes(cells, self.problem.remembered)
            first = algebra.entering() if self.problem.curved else entering(cells)
            output = algebra.run(self.problem.graph, first, ())
        return LocalSlopes(output, algebra.nodes, algebra.spread), empty, algebra.blame

    def _evaluated(self, boxes: Sequence[tuple[Array, Array, int, float]]) -> list[Node]:
        """New nodes for boxes (low, high, depth, bound of the box around)."""
        nodes: list[Node] = []
        at_once = max(1, self.problem.work().cells_at_once)
        free = self.problem.domain.free
        for start in range(0, len(boxes), at_once):
            part = boxes[start : start + at_once]
            found, empty, blame = self._analysed(np.stack([b[0] for b in part]), np.stack([b[1] for b in part]))
            with np.errstate(all="ignore"):
                gains = self._gains(found, len(part))
            gains = np.where(empty, 0.0, np.where(np.isnan(gains), np.inf, gains))
            for i, (low, high, depth, around) in enumerate(part):
                axis = input_to_split(low, high, free, np.broadcast_to(blame, (len(free), len(part)))[:, i])
                own = float(gains[i])
                nodes.append(Node(low, high, axis, own, min(own, around), depth))
        self.cells += len(boxes)
        return nodes

    def _gains(self, found: LocalSlopes, batch: int) -> Array:
        """What the checker will find, up to rounding."""
        quick = self.problem.gains(found, batch)
        if self.problem.norm != "l2" or min(len(self.problem.scale_out), len(self.problem.domain.free)) == 1:
            return quick
        matrices = self.problem.matrices(found, batch)
        if not np.isfinite(matrices.magnitude).all():
            return quick
        middle, radius = matrices.centre_radius()
        middles = np.linalg.norm(middle, 2, axis=(1, 2)) + quick_gains(Interval(radius, radius))
        gains: Array = np.minimum(quick, np.minimum(middles, np.linalg.norm(matrices.magnitude, 2, axis=(1, 2))) * (1 + 1e-12))
        return gains

    def split(self, nodes: list[Node]) -> None:
        """Replace nodes by their halves. Nodes that cannot be split stay."""
        boxes, owners = [], []
        for node in nodes:
            if node.axis < 0 or node.depth >= 150:
                self._push(node)
                continue
            threshold = 0.5 * float(node.low[node.axis]) + 0.5 * float(node.high[node.axis])
            owners.append(node)
            boxes += [(*half, node.depth + 1, node.effective) for half in halves(node.low, node.high, node.axis, threshold)]
        fresh = self._evaluated(boxes) if boxes else []
        for node, left, right in zip(owners, fresh[::2], fresh[1::2], strict=True):
            node.children = left, right
            self._push(left)
            self._push(right)

    def step(self, enough: float, seconds: float) -> None:
        """One slice of work, with ``seconds`` left."""
        careful = self.by_multipliers or self._multipliers_are_faster()
        begun, before, spent = time.monotonic(), self.upper, 0.0
        while spent < SLICE and self.heap and self.upper > enough and not self.exhausted:
            spent += self.careful(seconds) if careful else self.plain()
        passed = max(time.monotonic() - begun, 1e-3)
        self.seconds += passed
        rate, known = _log_ratio(before, self.upper) / passed, self.rates[careful]
        self.rates[careful] = rate if known is None else 0.7 * known + 0.3 * rate

    def tree(self, upper: float) -> tuple[list[Any], list[dict[str, Any]]]:
        """The smallest split tree whose leaves all have bounds of at most ``upper``, in preorder, and its proofs."""
        return tree_of(self.root, upper)

    def _multipliers_are_faster(self) -> bool:
        """At lowering the bound, from what was seen; now and then the slower way is tried again."""
        self.slices += 1
        by_splits, by_multipliers = self.rates[False], self.rates[True]
        if by_splits is None or by_multipliers is None:
            return by_splits is not None
        return (by_multipliers > by_splits) != (self.slices % 16 == 0)

    def plain(self) -> float:
        """Split the worst cells. Returns the seconds that this takes, as estimated."""
        work = self.problem.work()
        each = 3e-8 * 2 * work.cell
        nodes = [heapq.heappop(self.heap)[-1] for _ in range(min(SPLITS, len(self.heap), max(1, int(SLICE / each))))]
        self.split(nodes)
        return len(nodes) * each + 3e-8 * work.batch

    def careful(self, seconds: float) -> float:
        """Seek multipliers on the worst cell that has none, or split it where it has. Returns the estimated seconds."""
        node = heapq.heappop(self.heap)[-1]
        scattering = node.depth > 0 and self.cells < SCATTERED and len(self.problem.domain.free) <= FEW_INPUTS
        if node.tried == 2 or scattering:
            if node.axis < 0:
                self._push(node)
                self.exhausted = True
                return math.inf
            self.split([node])
            return SLICE / 10
        found, empty = self.problem.slopes(node.low[None], node.high[None])
        spent = 0.01
        if empty[0]:
            node.tried = 2
        else:
            spent += self._expanded(node, found)
            if node.tried < 2:
                spent += self._multiplied(node, found, seconds)
        self._push(node)
        return spent

    def _expanded(self, node: Node, found: LocalSlopes) -> float:
        """Bound a cell by its expansion. Where that is near the gain at the middle, multipliers will do no better."""
        middle, _ = self.problem.matrices(found, 1).centre_radius()
        gain = float(np.linalg.norm(middle[0], 2 if self.problem.norm == "l2" else np.inf)) if np.isfinite(middle).all() else 0.0
        if not self.problem.curved or node.tried or self.proofs >= MAX_PROOFS or not node.own < FAR * gain:
            return 0.0
        value = self.problem.expanded(node.low, node.high) * (1 + 1e-9)
        if value < node.own:
            node.own, node.proof, node.products = value, {"method": EXPANSION}, self.problem.expansion_products()
            node.effective = min(node.effective, node.own)
            self.proofs += 1
        if value < NEAR * gain:
            node.tried = 2
        return 1e-9 * self.problem.expansion_products()

    def _multiplied(self, node: Node, found: LocalSlopes, seconds: float) -> float:
        try:
            network = self.problem.network(found, 0)
        except Rejected:  # products of signals, for instance
            node.tried = 2
            return 0.0
        order = sum(network.variables)
        worth = not node.depth or len(self.problem.domain.free) > FEW_INPUTS
        thorough = order <= SMALL_ORDER or (node.tried == 1 and worth)
        node.tried = 2 if thorough or not worth or self.problem.norm == "linf" else 1
        if order > MAX_ORDER or self.proofs >= MAX_PROOFS:
            node.tried = 2
            return 0.0
        bound = bound_cell(self.problem, network, CELL_TOLERANCE, 0.25 * seconds if thorough else 0.0)
        if bound is not None and bound[0].value < node.own:
            node.own, node.proof, node.products = bound[0].value, dict(bound[0].evidence), bound[1]
            node.effective = min(node.effective, node.own)
            self.proofs += 1
        return 0.02 + (3e-7 if thorough else 1e-8) * order**3


def _log_ratio(before: float, after: float) -> float:
    """How much smaller a bound has become, as a logarithm."""
    if not 0 < after < math.inf:
        return 0.0 if after == math.inf else 1e3
    return math.log(before / after) if before < math.inf else 1e3


def tree_of(root: Node, upper: float) -> tuple[list[Any], list[dict[str, Any]]]:
    """The smallest split tree whose leaves all have bounds of at most ``upper``, in preorder, and its proofs."""
    tree: list[Any] = []
    proofs: list[dict[str, Any]] = []
    stack = [root]
    while stack:
        node = stack.pop()
        if node.own <= upper or node.children is None:
            tree.append(None if node.proof is None else len(proofs))
            proofs += [] if node.proof is None else [node.proof]
        else:
            left, right = node.children
            tree.append([node.axis, float(left.high[node.axis]).hex()])
            stack += [right, left]
    return tree, proofs
