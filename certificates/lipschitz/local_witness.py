"""Lower bounds on a domain: a pair of its points, found by a float search and evaluated rigorously."""

from __future__ import annotations

import math
from collections.abc import Callable
from fractions import Fraction

import numpy as np

from lipctrl.certificates.checker.bundle import graph_cost
from lipctrl.certificates.checker.domain import Domain
from lipctrl.certificates.checker.graph import Graph
from lipctrl.certificates.checker.intervals import Array
from lipctrl.certificates.lipschitz.records import LowerBound
from lipctrl.certificates.lipschitz.witness import slope_between
from lipctrl.core.numpy_evaluation import compile_numpy

Vector = tuple[Fraction, ...]

MAX_EVALUATIONS = 60_000  #: rows that the random part of a search evaluates
MAX_PRODUCTS = 3e9  #: and about how many multiplications these may take
STEP = 2.0**-13  #: length of difference steps, relative to the half-widths of the domain
LENGTHS = (1.0, 2.0**-4, 2.0**-8)  #: of the final pairs, relative to what fits
ROUNDS = 12
SWEEPS = 12


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
        rows = min(MAX_EVALUATIONS, MAX_PRODUCTS / sum(graph_cost(self.graph)))
        count = int(np.clip(rows // ((k + 1) * ROUNDS), 4, 128))
        points = self._inside(self.low + (self.high - self.low) * self.random.random((count, k)))
        points[: count // 4] = self._corners(count // 4)
        points[0] = 0.5 * self.low + 0.5 * self.high
        if starts is not None:
            points = np.vstack([points[: count // 2], self._inside(starts[: count // 2, self.free])])
        slopes, directions = self._steepest(points)
        for round_ in range(ROUNDS):
            leaders = np.argsort(-slopes)[: max(2, len(points) // 4)]
            chosen = leaders[self.random.integers(0, len(leaders), len(points))]
            trial = self._inside(self._mutated(points[chosen], 0.5 * 0.8**round_))
            found = self._steepest(trial)
            keep = np.flatnonzero(found[0] > slopes[chosen])
            worst = np.argsort(slopes)[: len(keep)]
            points[worst], slopes[worst], directions[worst] = trial[keep], found[0][keep], found[1][keep]
        best = [self._climbed(points[i], float(slopes[i]), directions[i]) for i in np.argsort(-slopes)[:3]]
        pairs = [pair for point, direction in best for pair in self._pairs(point, direction)]
        bounds = [LowerBound(slope_between(self.graph, x, y, *self.scales, self.norm), x, y) for x, y in pairs]
        return max(bounds, key=lambda bound: bound.value, default=None)

    def _climbed(self, point: Array, slope: float, direction: Array) -> tuple[Array, Array]:
        """Move coordinates to the ends of the domain, or half way there, as long as that is steeper: many at once, or the best one."""
        k = len(point)
        for _ in range(SWEEPS):
            targets = np.concatenate([np.full((k, k), t * end + (1 - t) * point) for end in (self.low, self.high) for t in (1.0, 0.5)])
            single = np.tile(np.eye(k, dtype=bool), (4, 1))
            trial = np.where(single, targets, point)
            gains = self._steepest(self._inside(trial))[0].reshape(4, k)
            choice = gains.argmax(0)
            together = np.where(gains.max(0) > slope, targets.reshape(4, k, k)[choice, np.arange(k), np.arange(k)], point)
            ends = self._inside(
                np.vstack([together, 0.5 * together + 0.5 * point, trial[int(gains.argmax() // k) * k + int(gains.argmax() % k)]])
            )
            slopes, directions = self._steepest(ends)
            index = int(slopes.argmax())
            if not slopes[index] > slope * (1 + 1e-6):
                break
            point, slope, direction = ends[index], float(slopes[index]), directions[index]
        return point, direction

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
        inside: Array = np.clip(centre + off * shrink, self.low, self.high)
        return inside

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
        """Exact pairs of points of the domain along a direction, of several lengths, near the point and inside by their length."""
        pairs = []
        middle = 0.5 * self.low + 0.5 * self.high
        for length in LENGTHS:
            size = np.abs(direction) / max(float((np.abs(direction) / self.half).max()), 1e-300)
            share = length * STEP * 8
            reach = np.sign(direction) * size * share
            near = middle + (self._inside(point[None])[0] - middle) * (1 - 4 * share)
            for first, second in ((near - 0.5 * reach, near + 0.5 * reach), (near, near + reach), (near, near - reach)):
                x, y = (self._exact(np.clip(end, self.low, self.high)) for end in (first, second))
                if x != y and contains(self.domain, x) and contains(self.domain, y):
                    pairs.append((x, y))
        return pairs

    def _exact(self, free: Array) -> Vector:
        values = list(self.domain.low)
        for index, value in zip(self.free.tolist(), free.tolist(), strict=True):
            values[index] = Fraction(value)
        return tuple(values)


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
