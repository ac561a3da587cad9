"""Lower bounds on a domain: a pair of its points, found by a float search and evaluated rigorously."""

from __future__ import annotations

import math
import time
from fractions import Fraction

import numpy as np

from lipctrl.certificates.checker.bundle import graph_cost
from lipctrl.certificates.checker.domain import Domain
from lipctrl.certificates.checker.graph import Graph
from lipctrl.certificates.checker.intervals import Array
from lipctrl.certificates.checker.verdict import Rejected
from lipctrl.certificates.lipschitz.flips import FlipSearch, steepest_direction
from lipctrl.certificates.lipschitz.local_gain import STEP, LocalGain
from lipctrl.certificates.lipschitz.records import LowerBound
from lipctrl.certificates.lipschitz.regions import PiecewiseLinear
from lipctrl.certificates.lipschitz.witness import slope_between

Vector = tuple[Fraction, ...]
Pair = tuple[Vector, Vector]

MAX_EVALUATIONS = 60_000  #: rows that the random part of a search evaluates
MAX_PRODUCTS = 3e9  #: and about how many multiplications these may take
LENGTHS = (1.0, 2.0**-4, 2.0**-8)  #: of the final pairs, relative to what fits
RANDOM = 0.3  #: of the time, at most, for that part
ROUNDS = 12
STARTS = 8  #: points from which a search goes on
RESTARTS, ATTEMPTS = 32, 400  #: from points near the best one or far from it, in pieces that are new; points drawn for that
CLIMBED = 3  #: of these whose coordinates are moved one by one first
EVALUATED = 4  #: pairs that are evaluated rigorously at most: the steepest in floats


class WitnessSearch:
    """Steep pairs of points in a domain; repeatable under ``seed`` where no deadline (of ``time.monotonic``) cuts it short.

    A random search over points comes first. Where the graph is piecewise linear its pieces are searched from the best points, see
    ``flips.py``; elsewhere the points go up along gradients.
    """

    def __init__(self, graph: Graph, domain: Domain, norm: str, scale_in: Vector, scale_out: Vector, seed: int) -> None:
        self.graph, self.domain, self.norm, self.scales = graph, domain, norm, (scale_in, scale_out)
        self.random = np.random.default_rng(seed)
        self.gain = LocalGain(graph, domain, norm, scale_in, scale_out)
        self.flips = self._flips()
        self.best: LowerBound | None = None

    @property
    def _empty(self) -> bool:
        return not len(self.gain.free) or not bool(np.all(self.gain.half > 0))

    def _flips(self) -> FlipSearch | None:
        """The search over pieces, in coordinates in which the domain has half-widths 1; None where the graph has no pieces."""
        gain = self.gain
        if self._empty:
            return None
        middle = np.array([float((a + b) / 2) for a, b in zip(self.domain.low, self.domain.high, strict=True)])
        try:
            function = PiecewiseLinear(self.graph, middle, gain.free, gain.half)
        except Rejected:
            return None
        left = np.array([float(s) for s in self.scales[1]])
        return FlipSearch(function, self.domain.centre is not None, self.norm, left, 1 / (gain.half * gain.scale_in), self.random)

    def search(self, deadline: float = math.inf) -> LowerBound | None:
        """The steepest pair so far, after a search from random points; ``None`` where no pair was found, as on a single point."""
        if not self._empty:
            now = time.monotonic()
            self._improve(self._population(now + RANDOM * (deadline - now)), deadline)
        return self.best

    def improve(self, starts: Array, deadline: float = math.inf) -> LowerBound | None:
        """The steepest pair so far, after a search from inputs (B, n)."""
        if len(starts) and not self._empty:
            self._improve(self.gain.inside(starts[:, self.gain.free]), deadline)
        return self.best

    def _improve(self, points: Array, deadline: float) -> None:
        slopes, _ = self.gain.steepest(points)
        points = points[np.argsort(-slopes)[:STARTS]]
        if self.flips is None:
            climbed = [self.gain.climbed(point) for point in points[:CLIMBED]]
            starts = (*climbed, *points[CLIMBED:], *self._drawn(STARTS // 2))
            points = np.vstack([points[:1], *(self.gain.ascended(point, deadline) for point in starts)])
        else:
            self.flips.climb((points - self.gain.middle) / self.gain.half, deadline)
            self._evaluate(found := self._searched(self.flips, deadline))
            if found and self.best is not None and self.best.value >= found[0][0] * (1 - 1e-6):
                return  # differences in floats, which are noisier, would add nothing
        slopes, directions = self.gain.steepest(points)
        steepest = int(slopes.argmax())
        self._evaluate(self._pairs(points[steepest], directions[steepest]))

    def _searched(self, flips: FlipSearch, deadline: float) -> list[tuple[float, Pair]]:
        """Search on near the best piece, and pairs of points in what is the best one then."""
        fresh = 0
        for _ in range(ATTEMPTS):
            if flips.best is None or fresh == RESTARTS or time.monotonic() >= deadline:
                break
            share = float(self.random.choice([0.1, 0.3, 0.6, 1.0]))
            near = self._mutated((self.gain.middle + self.gain.half * flips.best.centre)[None], share)
            fresh += flips.climb((near - self.gain.middle) / self.gain.half, deadline)
        if flips.best is None:
            return []
        _, direction = steepest_direction(flips.scaled(flips.best.piece), self.norm)
        step = direction * flips.right
        step *= flips.best.margin / np.linalg.norm(step)
        return [(flips.best.gain, self._exact_pair(flips.best.centre, length * step)) for length in (0.9, 0.01)]

    def _evaluate(self, found: list[tuple[float, Pair]]) -> None:
        """Keep the steepest pair, rigorously; with each comes its slope in floats. What promises no more than is known is left out."""
        for slope, (x, y) in sorted(found, key=lambda entry: -entry[0])[:EVALUATED]:
            if self.best is not None and not slope > self.best.value * (1 + 1e-9):
                break
            if x != y and contains(self.domain, x) and contains(self.domain, y):
                bound = LowerBound(slope_between(self.graph, x, y, *self.scales, self.norm), x, y)
                self.best = bound if self.best is None or bound.value > self.best.value else self.best

    def _exact_pair(self, centre: Array, step: Array) -> Pair:
        """Points around a centre, in coordinates that are -1 and 1 at the ends of the domain: no rounding, however thin that is."""
        first, second = list(self.domain.low), list(self.domain.low)
        for index, y, move in zip(self.gain.free.tolist(), centre.tolist(), step.tolist(), strict=True):
            low, high = self.domain.low[index], self.domain.high[index]
            first[index] = (low + high) / 2 + (high - low) / 2 * (Fraction(y) - Fraction(move) / 2)
            second[index] = first[index] + (high - low) / 2 * Fraction(move)
        return tuple(first), tuple(second)

    def _population(self, deadline: float) -> Array:
        """Points of a random search that keeps the steep ones and draws some of their coordinates again."""
        k = len(self.gain.free)
        rows = min(MAX_EVALUATIONS // (1 if self.flips is None else 4), MAX_PRODUCTS / sum(graph_cost(self.graph)))
        count = int(np.clip(rows // ((k + 1) * ROUNDS), 4, 128))
        points = self._drawn(count)
        points[: count // 4] = self._corners(count // 4)
        points[0] = self.gain.middle
        slopes, _ = self.gain.steepest(points)
        for round_ in range(ROUNDS):
            if time.monotonic() >= deadline:
                break
            leaders = np.argsort(-slopes)[: max(2, len(points) // 4)]
            chosen = leaders[self.random.integers(0, len(leaders), len(points))]
            trial = self._mutated(points[chosen], 0.5 * 0.8**round_)
            found, _ = self.gain.steepest(trial)
            keep = np.flatnonzero(found > slopes[chosen])
            worst = np.argsort(slopes)[: len(keep)]
            points[worst], slopes[worst] = trial[keep], found[keep]
        return points

    def _drawn(self, count: int) -> Array:
        return self.gain.inside(self.gain.low + (self.gain.high - self.gain.low) * self.random.random((count, len(self.gain.free))))

    def _corners(self, count: int) -> Array:
        return self.gain.inside(np.where(self.random.random((count, len(self.gain.free))) < 0.5, self.gain.low, self.gain.high))

    def _mutated(self, points: Array, share: float) -> Array:
        """Some coordinates drawn again, half of them at an end of the domain."""
        low, high = self.gain.low, self.gain.high
        fresh = low + (high - low) * self.random.random(points.shape)
        ends = np.where(self.random.random(points.shape) < 0.5, low, high)
        fresh = np.where(self.random.random(points.shape) < 0.5, ends, fresh)
        return self.gain.inside(np.where(self.random.random(points.shape) < share, fresh, points))

    def _pairs(self, point: Array, direction: Array) -> list[tuple[float, Pair]]:
        """Exact pairs of points of the domain along a direction, of several lengths, near the point and inside by their length."""
        gain, pairs = self.gain, []
        for length in LENGTHS:
            share = length * STEP * 8
            reach = direction / max(float((np.abs(direction) / gain.half).max()), 1e-300) * share
            near = gain.middle + (gain.inside(point[None])[0] - gain.middle) * (1 - 4 * share)
            for first, second in ((near - 0.5 * reach, near + 0.5 * reach), (near, near + reach), (near, near - reach)):
                ends = np.clip(np.stack([first, second]), gain.low, gain.high)
                pairs.append((gain.slope(*ends), (self._exact(ends[0]), self._exact(ends[1]))))
        return pairs

    def _exact(self, free: Array) -> Vector:
        values = list(self.domain.low)
        for index, value in zip(self.gain.free.tolist(), free.tolist(), strict=True):
            values[index] = Fraction(value)
        return tuple(values)


def contains(domain: Domain, x: Vector) -> bool:
    """Whether a point lies in a domain, exactly."""
    if not all(low <= v <= high for low, v, high in zip(domain.low, x, domain.high, strict=True)):
        return False
    if domain.centre is None:
        return True
    return sum(((v - c) * s) ** 2 for v, c, s in zip(x, domain.centre, domain.scale, strict=True)) <= domain.radius**2
