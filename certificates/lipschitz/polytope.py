"""Polytopes in the unit box or the unit ball, in floats: where rays leave them, points well inside, and how far inside."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.optimize import linprog, nnls

from lipctrl.certificates.checker.intervals import Array

GAP = 1e-6  #: between the borders and the point of a ball that is sought


@dataclass(frozen=True)
class Polytope:
    """Points y (k,) with ``rows`` y + ``offsets`` >= 0 and |y_i| <= 1, where ``ball`` also |y| <= 1. Rows have length 1, or are 0."""

    rows: Array
    offsets: Array
    ball: bool

    @classmethod
    def of(cls, rows: Array, offsets: Array, ball: bool) -> Polytope:
        """From rows of any length."""
        sizes = np.linalg.norm(rows, axis=1)
        scale = np.where(sizes > 0, sizes, 1.0)
        return cls(rows / scale[:, None], offsets / scale, ball)

    def margin(self, point: Array) -> float:
        """The radius of the greatest ball around a point that lies in the polytope; negative outside of it."""
        ends = [1 - float(np.abs(point).max(initial=0.0)), float((self.rows @ point + self.offsets).min(initial=np.inf))]
        if self.ball:
            ends.append(1 - float(np.linalg.norm(point)))
        return min(ends) if np.isfinite(ends[1]) or not len(self.rows) else -1.0

    def chord(self, point: Array, direction: Array) -> tuple[float, float]:
        """Between which t ``point + t direction`` is in the polytope; the first is greater where it never is."""
        values = np.concatenate([self.rows @ point + self.offsets, 1 - point, 1 + point])
        rates = np.concatenate([self.rows @ direction, -direction, direction])
        with np.errstate(all="ignore"):
            times = -values / rates
        first, last = float(times[rates > 0].max(initial=-np.inf)), float(times[rates < 0].min(initial=np.inf))
        if self.ball:
            a, b, c = float(direction @ direction), float(point @ direction), float(point @ point) - 1
            root = np.sqrt(max(b * b - a * c, 0.0))
            first, last = max(first, (-b - root) / a), min(last, (root - b) / a)
        return first, last

    def centred(self, point: Array, directions: Array) -> tuple[Array, float]:
        """A point further inside, by halving the chords in these directions (D, k) one after the other, and its margin."""
        best, margin = point, self.margin(point)
        for direction in directions:
            first, last = self.chord(point, direction)
            if not first < last < np.inf:
                continue
            point = point + 0.5 * (first + last) * direction
            here = self.margin(point)
            if here > margin:
                best, margin = point, here
        return best, margin

    def hits(self, point: Array, rays: Array) -> tuple[Array, Array]:
        """For rays (R, k) from a point inside: which row each meets first, and after what time; -1 where it leaves the domain before."""
        with np.errstate(all="ignore"):
            times = -(self.rows @ point + self.offsets) / (rays @ self.rows.T)
            times = np.where(times > 0, times, np.inf)
            walls = np.maximum((1 - point) / rays, (-1 - point) / rays).min(axis=1)
            if self.ball:
                a, b = (rays**2).sum(axis=1), rays @ point
                walls = np.minimum(walls, (np.sqrt(np.maximum(b * b + a * (1 - point @ point), 0)) - b) / a)
        times = np.column_stack([times, np.full(len(rays), np.inf)])  # where there are no rows
        nearest = times.argmin(axis=1)
        soonest = times[np.arange(len(rays)), nearest]
        return np.where(soonest < walls, nearest, -1), soonest

    def inner(self) -> Array | None:
        """A point inside: in the box the furthest from all borders, in the ball the nearest to 0; None where it is thin or empty."""
        near = ~(self.offsets > np.abs(self.rows).sum(axis=1))  # the others hold on the whole box
        rows, offsets = self.rows[near], self.offsets[near]
        if not (np.isfinite(rows).all() and np.isfinite(offsets).all()):
            return None
        return _nearest(rows, GAP - offsets) if self.ball else _deepest(rows, offsets)


def _deepest(rows: Array, offsets: Array) -> Array | None:
    """The point of the unit box that is furthest from the borders of rows y + offsets >= 0."""
    k = rows.shape[1]
    left = np.column_stack([np.vstack([-rows, np.eye(k), -np.eye(k)]), np.append(np.linalg.norm(rows, axis=1), np.ones(2 * k))])
    right = np.append(offsets, np.ones(2 * k))
    found = linprog(np.append(np.zeros(k), -1.0), left, right, bounds=[(-1, 1)] * k + [(0, 1)], method="highs")
    return np.asarray(found.x[:-1]) if found.status == 0 else None


def _nearest(rows: Array, least: Array) -> Array | None:
    """The point of rows y >= least that is nearest to 0, as nonnegative least squares (Lawson and Hanson 1974, chapter 23)."""
    if not len(rows):  # SciPy's nnls aborts the process for matrices without columns
        return np.zeros(rows.shape[1])
    target = np.append(np.zeros(rows.shape[1]), 1.0)
    matrix = np.vstack([rows.T, least])
    try:
        weights, _ = nnls(matrix, target)
    except RuntimeError:  # too many iterations
        return None
    rest = matrix @ weights - target
    return np.asarray(rest[:-1] / -rest[-1]) if -rest[-1] > 1e-12 else None
