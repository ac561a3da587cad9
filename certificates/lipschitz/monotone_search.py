"""Branch and bound over the cells of a box for signs of increments, and pairs of points that contradict a sign. Nothing here is trusted."""

from __future__ import annotations

import time
from collections import deque
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, cast

import numpy as np
from flint import ctx

from lipctrl.certificates.checker.balls import PRECISION, ball, evaluate_balls
from lipctrl.certificates.checker.bundle import graph_cost
from lipctrl.certificates.checker.domain import Domain, halves
from lipctrl.certificates.checker.graph import Graph
from lipctrl.certificates.checker.intervals import Array
from lipctrl.certificates.checker.local_slopes import Cells
from lipctrl.certificates.checker.signs import Notes
from lipctrl.certificates.checker.verifiers.monotonicity import MAX_LEAVES, Monotone
from lipctrl.certificates.lipschitz.blame import Blaming, input_to_split
from lipctrl.core.numpy_evaluation import compile_numpy
from lipctrl.core.progress import Progress

MAX_DEPTH = 150  #: splits above a leaf
AT_ONCE = 128  #: cells that are split at once
MAX_ROWS, MAX_PRODUCTS = 60_000, 2e8  #: points at which the network is evaluated at once, and about how many multiplications they take
NOISE = 1e-13  #: of an output: smaller differences in floats say nothing
REACH = (1e-2, 1.0, 1e2)  #: sizes of inputs where there is no box
MAX_DOUBTS = 64  #: contradictions in floats that balls do not confirm, until none are believed
STEP = 2.0**-10  #: of short steps, relative to the box or to the size of the inputs

Vector = tuple[Fraction, ...]
Pair = tuple[Vector, Vector]


class Sampler:
    """What outputs do in floats when one input rises, at points of a domain; repeatable under ``seed``."""

    def __init__(self, graph: Graph, domain: Domain | None, seed: int) -> None:
        self.graph, self.domain, self.doubts = graph, domain, MAX_DOUBTS
        (self.size,) = graph.input_sizes.values()
        self.free = np.arange(self.size) if domain is None else domain.free
        self.random = np.random.default_rng(seed)
        self.name, self.output, self.run = next(iter(graph.input_sizes)), next(iter(graph.outputs)), compile_numpy(graph)
        self.rows = int(max(4, min(MAX_ROWS, MAX_PRODUCTS / sum(graph_cost(graph)))) / (2 * max(1, len(self.free))))

    def spread(self) -> tuple[Array, Array, Array]:
        """Random points (B, n) of the domain, and where each input that varies starts and ends when it rises, (B, k)."""
        count = min(2048, max(2, self.rows))
        if self.domain is None:
            scale = self.random.choice(REACH, (count, 1))
            points = scale * self.random.standard_normal((count, self.size))
            step = scale * np.where(self.random.random((count, 1)) < 0.5, 1.0, STEP)
            return points, points[:, self.free], points[:, self.free] + step
        low, high = self._inside()
        points = low + (high - low) * self.random.random((count, self.size))
        step = (high - low) * np.where(self.random.random((count, 1)) < 0.5, 1.0, STEP)
        start = np.where(step == high - low, low, points)[:, self.free]
        return points, start, np.minimum(start + step[:, self.free], high[self.free])

    def within(self, low: Array, high: Array) -> tuple[Array, Array, Array]:
        """The same for one random point of each box (B, n) of the domain, where inputs rise from one end of the box to the other."""
        inner = self._inside()
        low, high = np.clip(low, *inner), np.clip(high, *inner)
        points = low + (high - low) * self.random.random(low.shape)
        return points, low[:, self.free], high[:, self.free]

    def differences(self, points: Array, start: Array, stop: Array) -> Array:
        """What the outputs do on the way, (k, B, m); 0 where floats cannot tell."""
        parts = [slice(i, i + max(1, self.rows)) for i in range(0, len(points), max(1, self.rows))]
        return np.concatenate([self._differences(points[part], start[part], stop[part]) for part in parts], 1)

    def _differences(self, points: Array, start: Array, stop: Array) -> Array:
        k, values = len(self.free), []
        for end in (start, stop):
            moved = np.tile(points, (k, 1, 1))
            moved[np.arange(k), :, self.free] = end.T
            with np.errstate(all="ignore"):
                found = np.asarray(self.run(**{self.name: moved.reshape(-1, self.size)})[self.output], dtype=np.float64)
            values.append(found.reshape(k, len(points), -1))
        with np.errstate(all="ignore"):
            rise = values[1] - values[0]
            clear = np.isfinite(rise) & (np.abs(rise) > NOISE * (np.abs(values[0]) + np.abs(values[1])))
        return np.where(clear & (start < stop).T[:, :, None], rise, 0.0)

    def contradictions(self, asked: Array, points: Array, start: Array, stop: Array) -> list[tuple[int, int, Pair]]:
        """The asked signs (m, n) that these points contradict, as (output, input, pair of points), confirmed in ball arithmetic."""
        rises = self.differences(points, start, stop)
        wrong = rises * asked[:, self.free].T[:, None, :] < 0
        found = []
        for k, i in np.argwhere(wrong.any(1)).tolist():
            row = int(np.argmax(np.where(wrong[k, :, i], np.abs(rises[k, :, i]), -1.0)))
            pair = self._pair(points, start, stop, k, row)
            if self.doubts and self._confirmed(pair, i, int(asked[i, self.free[k]])):
                found.append((i, int(self.free[k]), pair))
        return found

    def _confirmed(self, pair: Pair, output: int, sign: int) -> bool:
        with ctx.workprec(PRECISION):
            before, after = (evaluate_balls(self.graph, {self.name: [ball(v) for v in x]})[self.output][output] for x in pair)
            confirmed = bool(sign * (after - before) < 0)
        self.doubts -= not confirmed
        return confirmed

    def _pair(self, points: Array, start: Array, stop: Array, k: int, row: int) -> Pair:
        """The exact two points in this row between which the k-th of the inputs that vary rises."""
        first = [Fraction(v) for v in points[row].tolist()] if self.domain is None else list(self.domain.low)
        for i in self.free.tolist():
            first[i] = Fraction(float(points[row, i]))
        second = list(first)
        first[self.free[k]], second[self.free[k]] = Fraction(float(start[row, k])), Fraction(float(stop[row, k]))
        return tuple(first), tuple(second)

    def _inside(self) -> tuple[Array, Array]:
        """Floats inside the ends of the domain where it varies."""
        domain = cast(Domain, self.domain)
        low, high = (np.array([float(v) for v in end]) for end in (domain.low, domain.high))
        for i in self.free.tolist():
            low[i] = low[i] if Fraction(float(low[i])) >= domain.low[i] else np.nextafter(low[i], np.inf)
            high[i] = high[i] if Fraction(float(high[i])) <= domain.high[i] else np.nextafter(high[i], -np.inf)
        return low, high


class _BlamingNotes(Blaming, Notes):
    """Notes on cells that also say which inputs make slopes uncertain."""


@dataclass(eq=False)
class Node:
    """A box of the search tree. ``holds`` (2, k, m): the outputs that never fall there, and that never rise, when an input rises."""

    low: Array
    high: Array
    axis: int
    holds: Array
    depth: int = 0
    children: tuple[Node, Node] | None = None


class Search:
    """Splits cells until the signs that are ``asked`` (m, n) are proved in all of them. What is contradicted or hopeless is dropped."""

    def __init__(self, problem: Monotone, domain: Domain, sampler: Sampler, asked: Array) -> None:
        self.problem, self.domain, self.sampler = problem, domain, sampler
        self.asked = asked.copy()
        self.against: list[Pair] = []  #: pairs of points that contradict what was asked
        self.cells = 0
        low, high = domain.box()
        (self.root,) = self._evaluated([(low, high, 0)])
        self.waiting: deque[Node] = deque([self.root])

    @property
    def proved(self) -> Array:
        """The asked signs (m, n) that hold in every cell so far."""
        missing = np.zeros_like(self.asked, dtype=bool)
        for node in self.waiting:
            missing |= self.missing(node)
        return np.where(missing, 0, self.asked)

    def missing(self, node: Node) -> Array:
        """The asked signs (m, n) that are not proved on a cell."""
        asked, found = self.asked[:, self.domain.free], np.zeros(self.asked.shape, dtype=bool)
        found[:, self.domain.free] = ((asked > 0) & ~node.holds[0].T) | ((asked < 0) & ~node.holds[1].T)
        return found

    def run(self, seconds: float, cells: int, stop_when_contradicted: bool, progress: Progress) -> None:
        """Until nothing is left to do or the budget is spent."""
        begun, at_once = time.monotonic(), max(1, min(AT_ONCE, self.problem.work(len(self.domain.free)).cells_at_once))
        while self.waiting and self.asked.any() and self.cells < min(cells, MAX_LEAVES):
            spent = (time.monotonic() - begun) / seconds
            if spent >= 1 or (stop_when_contradicted and self.against):
                break
            progress(
                0.9 * spent, f"{np.count_nonzero(self.asked)} signs in question on {self.cells} cells, {len(self.waiting)} to split", None
            )
            part = [self.waiting[i] for i in range(min(at_once, len(self.waiting)))]
            self._probe(part)
            self._split(part)

    def _probe(self, nodes: list[Node]) -> None:
        """Drop what a point in one of the cells contradicts."""
        self.learn(*self.sampler.within(np.stack([node.low for node in nodes]), np.stack([node.high for node in nodes])))

    def learn(self, points: Array, start: Array, stop: Array) -> None:
        """Drop what these points (B, n) contradict when inputs rise from ``start`` to ``stop`` (B, k)."""
        for output, input_, pair in self.sampler.contradictions(self.asked, points, start, stop):
            self.against.append(pair)
            self.asked[output, input_] = 0

    def _split(self, nodes: list[Node]) -> None:
        boxes, owners = [], []
        for node in nodes:
            missing = self.missing(node)
            if not missing.any():
                continue
            if node.axis < 0 or node.depth >= MAX_DEPTH:
                self.asked[missing] = 0  # hopeless
                continue
            threshold = 0.5 * float(node.low[node.axis]) + 0.5 * float(node.high[node.axis])
            owners.append(node)
            boxes += [(*half, node.depth + 1) for half in halves(node.low, node.high, node.axis, threshold)]
        fresh = self._evaluated(boxes) if boxes else []
        for owner, left, right in zip(owners, fresh[::2], fresh[1::2], strict=True):
            owner.children = left, right
        self.waiting = deque([*list(self.waiting)[len(nodes) :], *fresh])

    def _evaluated(self, boxes: list[tuple[Array, Array, int]]) -> list[Node]:
        low, high = (np.stack([box[end] for box in boxes]) for end in (0, 1))
        notes = _BlamingNotes(Cells(low, high, self.domain.free), self.problem.remembered)
        moves, finite = self.problem.on_cells(notes)
        holds = np.stack([~moves.down, ~moves.up]) & finite[None, None, :, None]
        blame = np.broadcast_to(notes.blame, (len(self.domain.free), len(boxes)))
        self.cells += len(boxes)
        return [
            Node(a, b, input_to_split(a, b, self.domain.free, blame[:, i]), holds[:, :, i], depth) for i, (a, b, depth) in enumerate(boxes)
        ]

    def tree(self) -> list[Any]:
        """The smallest split tree whose leaves prove what is asked, in preorder."""
        tree: list[Any] = []
        stack = [self.root]
        while stack:
            node = stack.pop()
            if node.children is None or not self.missing(node).any():
                tree.append(None)
            else:
                left, right = node.children
                tree.append([node.axis, float(left.high[node.axis]).hex()])
                stack += [right, left]
        return tree
