"""The gain of a graph at points of a domain, by differences in floats, and ways up to where it is greater."""

from __future__ import annotations

import math
import time
from fractions import Fraction

import numpy as np

from lipctrl.certificates.checker.domain import Domain
from lipctrl.certificates.checker.graph import Graph
from lipctrl.certificates.checker.intervals import Array
from lipctrl.core.numpy_evaluation import compile_numpy
from lipctrl.core.rationals import floats

Vector = tuple[Fraction, ...]

STEP = 2.0**-13  #: length of difference steps, relative to the half-widths of the domain
BEND = 2.0**-9  #: of those whose differences are differenced again
SWEEPS = 12  #: of the coordinates
MAX_ROWS = 100_000  #: that are evaluated for one sweep
ASCENT = 60  #: steps along gradients
_SHARES = 2.0 ** -np.arange(-1.0, 9.0)  #: of the half-widths, tried at every step along a gradient


class LocalGain:
    """Gains |S_out J S_in^-1| at points (B, k) in the inputs of ``domain`` that vary; ``norm`` is ``"l2"`` or ``"linf"``."""

    def __init__(self, graph: Graph, domain: Domain, norm: str, scale_in: Vector, scale_out: Vector) -> None:
        self.domain, self.norm, self.free = domain, norm, domain.free
        self.low, self.high = _inner_box(domain)
        self.middle, self.half = 0.5 * self.low + 0.5 * self.high, 0.5 * (self.high - self.low)
        self.scale_in, self._scale_out = floats(scale_in)[self.free], floats(scale_out)
        self._base = floats(domain.low)
        ((self._name, _),) = graph.input_sizes.items()
        (self._output,) = graph.outputs
        self._compiled = compile_numpy(graph)

    def run(self, free: Array) -> Array:
        """The outputs (B, m) of the graph at points, times S_out."""
        points = np.tile(self._base, (len(free), 1))
        points[:, self.free] = free
        with np.errstate(all="ignore"):
            values: Array = np.asarray(self._compiled(**{self._name: points})[self._output], dtype=np.float64) * self._scale_out
        return values

    def inside(self, points: Array) -> Array:
        """The points moved into the domain."""
        points = np.clip(points, self.low, self.high)
        if self.domain.centre is None:
            return points
        centre = floats(tuple(self.domain.centre[i] for i in self.free))
        off = points - centre
        size = np.linalg.norm(off * self.scale_in, axis=1, keepdims=True)
        shrink = np.minimum(1.0, float(self.domain.radius) * (1 - 1e-12) / np.maximum(size, 1e-300))
        inside: Array = np.clip(centre + off * shrink, self.low, self.high)
        return inside

    def steepest(self, points: Array) -> tuple[Array, Array]:
        """The gain at each point by difference steps towards the inside, and the direction (in x) of the gain."""
        count, k = points.shape
        step = np.where(points > self.middle, -1.0, 1.0) * STEP * self.half
        shifted = points[:, None, :] + step[:, None, :] * np.eye(k)
        moved = np.einsum("bkk->bk", shifted) - points
        here = self.run(points)
        with np.errstate(all="ignore"):
            jacobian = (self.run(shifted.reshape(count * k, k)).reshape(count, k, -1) - here[:, None, :]) / moved[:, :, None]
            jacobian = jacobian / self.scale_in[:, None]  # transposed: (count, inputs, outputs)
        jacobian[~np.isfinite(jacobian).all(axis=(1, 2))] = 0
        if self.norm == "l2":
            left, size, _ = np.linalg.svd(jacobian, full_matrices=False)
            return size[:, 0], left[:, :, 0] / self.scale_in
        sums = np.abs(jacobian).sum(1)
        rows = np.argmax(sums, 1)
        signs = np.sign(np.take_along_axis(jacobian, rows[:, None, None], 2)[:, :, 0])
        return sums[np.arange(count), rows], np.where(signs == 0, 1.0, signs) / self.scale_in

    def slope(self, first: Array, second: Array) -> float:
        """|S_out (f(x) - f(y))| / |S_in (x - y)| in floats for two points (k,); 0 where it means nothing."""
        order = 2 if self.norm == "l2" else np.inf
        left, right = self.run(np.stack([first, second]))
        with np.errstate(all="ignore"):
            slope = float(np.linalg.norm(left - right, order) / np.linalg.norm((first - second) * self.scale_in, order))
        return slope if math.isfinite(slope) else 0.0

    def climbed(self, point: Array) -> Array:
        """Coordinates moved to the ends of the domain, or half way there, as long as that is steeper: many at once, or the best one."""
        k, slope = len(point), float(self.steepest(point[None])[0][0])
        for _ in range(SWEEPS if 4 * k * (k + 1) <= MAX_ROWS else 0):
            targets = np.concatenate([np.full((k, k), t * end + (1 - t) * point) for end in (self.low, self.high) for t in (1.0, 0.5)])
            single = np.tile(np.eye(k, dtype=bool), (4, 1))
            trial = np.where(single, targets, point)
            gains = self.steepest(self.inside(trial))[0].reshape(4, k)
            choice = gains.argmax(0)
            together = np.where(gains.max(0) > slope, targets.reshape(4, k, k)[choice, np.arange(k), np.arange(k)], point)
            ends = self.inside(
                np.vstack([together, 0.5 * together + 0.5 * point, trial[int(gains.argmax() // k) * k + int(gains.argmax() % k)]])
            )
            slopes = self.steepest(ends)[0]
            index = int(slopes.argmax())
            if not slopes[index] > slope * (1 + 1e-6):
                break
            point, slope = ends[index], float(slopes[index])
        return point

    def ascended(self, point: Array, deadline: float) -> Array:
        """Steps along the gradient of the gain, as long as that is steeper and there is time (of ``time.monotonic``)."""
        slopes, directions = self.steepest(point[None])
        slope, direction = float(slopes[0]), directions[0]
        for _ in range(ASCENT):
            if not slope > 0 or time.monotonic() >= deadline:
                break
            way = self._gradient(point, direction)
            size = float(np.abs(way).max())
            if not 0 < size < math.inf:
                break
            steps = np.concatenate([np.outer(_SHARES, way / size), np.outer(_SHARES, np.sign(way))])
            trial = self.inside(point + self.half * steps)
            chosen = trial[int(self._along(trial, direction).argmax())]
            slopes, directions = self.steepest(chosen[None])
            if not slopes[0] > slope * (1 + 1e-7):
                break
            point, slope, direction = chosen, float(slopes[0]), directions[0]
        return point

    def _along(self, points: Array, direction: Array) -> Array:
        """Slopes in one direction, which are at most the gains."""
        reach = STEP * direction / max(float(np.abs(direction / self.half).max()), 1e-300)
        rise = self.run(points + reach) - self.run(points - reach)
        sizes = np.linalg.norm(rise, 2 if self.norm == "l2" else np.inf, axis=1)
        return np.where(np.isfinite(sizes), sizes, -1.0)

    def _gradient(self, point: Array, direction: Array) -> Array:
        """How the slope in this direction changes with each coordinate, in half-widths, up to a factor: differences of differences."""
        reach = BEND * direction / max(float(np.abs(direction / self.half).max()), 1e-300)
        rise = (self.run((point + reach)[None]) - self.run((point - reach)[None]))[0]
        dual = rise if self.norm == "l2" else np.where(np.abs(rise) == np.abs(rise).max(), np.sign(rise), 0.0)
        shifts = BEND * np.diag(self.half)
        with np.errstate(all="ignore"):
            ahead = self.run(point + shifts + reach) - self.run(point + shifts - reach)
            behind = self.run(point - shifts + reach) - self.run(point - shifts - reach)
            way: Array = (ahead - behind) @ (dual / np.abs(dual).max())
        return way


def _inner_box(domain: Domain) -> tuple[Array, Array]:
    """Floats inside the ends of the inputs that vary."""
    low, high = [], []
    for index in domain.free.tolist():
        a, b = float(domain.low[index]), float(domain.high[index])
        low.append(a if Fraction(a) >= domain.low[index] else math.nextafter(a, math.inf))
        high.append(b if Fraction(b) <= domain.high[index] else math.nextafter(b, -math.inf))
    return np.array(low), np.array(high)
