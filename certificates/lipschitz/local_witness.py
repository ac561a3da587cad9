"""Lower bounds on a domain: a pair of its points, found by a float search and evaluated rigorously."""

from __future__ import annotations

import math
from collections.abc import Callable
from fractions import Fraction

import numpy as np
from flint import arb, ctx

from lipctrl.certificates.checker.balls import PRECISION, ball, evaluate_balls
from lipctrl.certificates.checker.domain import Domain
from lipctrl.certificates.checker.graph import Graph
from lipctrl.certificates.checker.intervals import Array, from_balls
from lipctrl.certificates.lipschitz.records import LowerBound
from lipctrl.core.numpy_evaluation import compile_numpy

Vector = tuple[Fraction, ...]

MAX_EVALUATIONS = 400_000  #: rows that one search evaluates in all
STEP = 2.0**-13  #: length of difference steps, relative to the half-widths of the domain
LENGTHS = (1.0, 2.0**-4, 2.0**-8)  #: of the final pairs, relative to what fits
ROUNDS = 60


def slope_of_pair(graph: Graph, norm: str, x: Vector, y: Vector, scale_in: Vector, scale_out: Vector) -> float:
    """|S_out (f(x) - f(y))| / |S_in (x - y)| in ball arithmetic, its lower end rounded down; 0 where nothing is known."""
    ((name, _),) = graph.input_sizes.items()
    (output,) = graph.outputs
    with ctx.workprec(PRECISION):
        values = [evaluate_balls(graph, {name: [ball(v) for v in point]})[output] for point in (x, y)]
        rise = [(a - b) * ball(s) for a, b, s in zip(*values, scale_out, strict=True)]
        run = [ball((a - b) * s) for a, b, s in zip(x, y, scale_in, strict=True)]
        low = float(from_balls([_size(rise, norm) / _size(run, norm)]).low[0])
    return max(low, 0.0) if math.isfinite(low) else 0.0


def _size(values: list[arb], norm: str) -> arb:
    if norm == "l2":
        return sum((v * v for v in values), arb(0)).sqrt()
    size = arb(0)
    for v in values:
        size = size.max(abs(v))
    return size


class WitnessSearch:
    """Steep pairs of points in a domain; repeatable under ``seed``."""

    def __init__(self, graph: Graph, domain: Domain, norm: str, scale_in: Vector, scale_out: Vector, seed: int) -> None:
        self.graph, self.domain, self.norm, self.scales = graph, domain, norm, (scale_in, scale_out)
        self.free = domain.free
        self.random = np.random.default_rng(seed)
        self.low, self.high = _inner_box(domain)
        self.base = np.array([float(v) for v in domain.low])
        self.weights = [np.array([float(s) for s in scale]) for scale in (scale_in, scale_out)]
        self.half = 0.5 * (self.high - self.low)
        self.run = self._function()

    def _function(self) -> Callable[[Array], Array]:
        ((name, _),) = self.graph.input_sizes.items()
        (output,) = self.graph.outputs
        run = compile_numpy(self.graph)

        def function(free: Array) -> Array:
            points = np.tile(self.base, (len(free), 1))
            points[:, self.free] = free
            with np.errstate(all="ignore"):
                values: Array = np.asarray(run(**{name: points})[output], dtype=np.float64) * self.weights[1]
            return values

        return function

    def search(self, starts: Array | None = None) -> LowerBound | None:
        """The steepest pair that a local search finds, from random points and ``starts`` (B, n), or ``None`` on a single point."""
        k = len(self.free)
        if not k or not bool(np.all(self.half > 0)):
            return None
        count = int(np.clip(MAX_EVALUATIONS // ((k + 1) * ROUNDS), 4, 96))
        points = self._inside(self.low + (self.high - self.low) * self.random.random((count, k)))
        points[: count // 4] = self._corners(count // 4)
        points[0] = 0.5 * self.low + 0.5 * self.high
        if starts is not None:
            points = np.vstack([points[: count // 2], self._inside(starts[: count // 2, self.free])])
        slopes, directions = self._steepest(points)
        for round_ in range(ROUNDS):
            leaders = np.argsort(-slopes)[: max(2, len(points) // 4)]
            chosen = leaders[self.random.integers(0, len(leaders), len(points))]
            trial = self._inside(self._mutated(points[chosen], 0.5 * 0.97**round_))
            found = self._steepest(trial)
            better = found[0] > slopes[chosen]
            worst = np.argsort(slopes)[: int(better.sum())]
            keep = np.flatnonzero(better)
            points[worst], slopes[worst], directions[worst] = trial[keep], found[0][keep], found[1][keep]
        order = np.argsort(-slopes)[:3]
        pairs = [pair for i in order for pair in self._pairs(points[i], directions[i])]
        bounds = [LowerBound(slope_of_pair(self.graph, self.norm, x, y, *self.scales), x, y) for x, y in pairs]
        return max(bounds, key=lambda bound: bound.value, default=None)

    def _corners(self, count: int) -> Array:
        return self._inside(np.where(self.random.random((count, len(self.free))) < 0.5, self.low, self.high))

    def _mutated(self, points: Array, share: float) -> Array:
        """Some coordinates drawn again, half of them at an end of the domain."""
        fresh = self.low + (self.high - self.low) * self.random.random(points.shape)
        ends = np.where(self.random.random(points.shape) < 0.5, self.low, self.high)
        fresh = np.where(self.random.random(points.shape) < 0.5, ends, fresh)
        return np.where(self.random.random(points.shape) < share, fresh, points)

    def _inside(self, points: Array) -> Array:
        points = np.clip(points, self.low, self.high)
        if self.domain.centre is None:
            return points
        centre = np.array([float(self.domain.centre[i]) for i in self.free])
        off = points - centre
        size = np.linalg.norm(off * self.weights[0][self.free], axis=1, keepdims=True)
        shrink = np.minimum(1.0, float(self.domain.radius) * (1 - 1e-12) / np.maximum(size, 1e-300))
        return np.clip(centre + off * shrink, self.low, self.high)

    def _steepest(self, points: Array) -> tuple[Array, Array]:
        """The gain at each point by difference steps towards the inside, and the direction (in x) of the gain."""
        count, k = points.shape
        middle = 0.5 * self.low + 0.5 * self.high
        step = np.where(points > middle, -1.0, 1.0) * STEP * self.half
        shifted = points[:, None, :] + step[:, None, :] * np.eye(k)
        moved = np.einsum("bkk->bk", shifted) - points
        here = self.run(points)
        with np.errstate(all="ignore"):
            jacobian = (self.run(shifted.reshape(count * k, k)).reshape(count, k, -1) - here[:, None, :]) / moved[:, :, None]
            jacobian = jacobian / self.weights[0][self.free][:, None]  # transposed: (count, inputs, outputs)
        jacobian[~np.isfinite(jacobian).all(axis=(1, 2))] = 0
        if self.norm == "l2":
            left, size, _ = np.linalg.svd(jacobian, full_matrices=False)
            return size[:, 0], left[:, :, 0] / self.weights[0][self.free]
        sums = np.abs(jacobian).sum(1)
        rows = np.argmax(sums, 1)
        signs = np.sign(np.take_along_axis(jacobian, rows[:, None, None], 2)[:, :, 0])
        return sums[np.arange(count), rows], np.where(signs == 0, 1.0, signs) / self.weights[0][self.free]

    def _pairs(self, point: Array, direction: Array) -> list[tuple[Vector, Vector]]:
        """Exact pairs of points of the domain along a direction, of several lengths."""
        pairs = []
        for length in LENGTHS:
            for sign in (1.0, -1.0):
                reach = sign * direction * (length * STEP * float(self.half.min()) * 4 / max(float(np.abs(direction).max()), 1e-300))
                first = self._inside((point - 0.5 * reach)[None])[0]
                second = self._inside((first + reach)[None])[0]
                x, y = self._exact(first), self._exact(second)
                if x != y and self._holds(x) and self._holds(y):
                    pairs.append((x, y))
        return pairs

    def _exact(self, free: Array) -> Vector:
        values = list(self.domain.low)
        for index, value in zip(self.free.tolist(), free.tolist(), strict=True):
            values[index] = Fraction(value)
        return tuple(values)

    def _holds(self, x: Vector) -> bool:
        return contains(self.domain, x)


def contains(domain: Domain, x: Vector) -> bool:
    """Whether a point lies in a domain, exactly."""
    if not all(low <= v <= high for low, v, high in zip(domain.low, x, domain.high, strict=True)):
        return False
    if domain.centre is None:
        return True
    return sum(((v - c) * s) ** 2 for v, c, s in zip(x, domain.centre, domain.scale, strict=True)) <= domain.radius**2


def _inner_box(domain: Domain) -> tuple[Array, Array]:
    """Floats inside the ends of the inputs that vary."""
    low, high = [], []
    for index in domain.free.tolist():
        a, b = float(domain.low[index]), float(domain.high[index])
        low.append(a if Fraction(a) >= domain.low[index] else math.nextafter(a, math.inf))
        high.append(b if Fraction(b) <= domain.high[index] else math.nextafter(b, -math.inf))
    return np.array(low), np.array(high)
