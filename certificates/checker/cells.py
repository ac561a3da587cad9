"""One step of a closed loop over a batch of boxes, and what it does to a quadratic Lyapunov function.

Coordinates are deviations y = x - x* from the equilibrium; V(y) = y^T P y. A cell is a box in y. Floating-point sums below
carry an error bound gamma(d) T, where T adds the absolute values of every term and d counts the roundings on a path.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from fractions import Fraction

import numpy as np

from lipctrl.certificates.checker import intervals as iv
from lipctrl.certificates.checker.bundle import PlantSubject
from lipctrl.certificates.checker.enclosure import Enclosed, EnclosureAlgebra, Remembered, seeds
from lipctrl.certificates.checker.graph import Graph, evaluate
from lipctrl.certificates.checker.intervals import Array, Interval
from lipctrl.certificates.checker.rounding import float32_error

TINY = 2.0**-820  #: exceeds what underflow can lose in one formula below whose other factors are at most 1


@dataclass(frozen=True)
class Loop:
    """Plant and policy as one map. ``arithmetic`` ``float32`` adds the policy's evaluation error as a disturbance of the action."""

    plant: PlantSubject
    policy: Graph
    arithmetic: str = "real"
    activation_ulp: int | None = None
    remembered: Remembered = field(default_factory=Remembered, repr=False, compare=False)

    @property
    def dimension(self) -> int:
        """Number of state coordinates."""
        return len(self.plant.state)

    def step(self, centre: Array, radius: Array, low: Array, high: Array) -> Step:
        """Enclose y -> y+ over cells [low, high] (B, n) contained in ``centre +- radius``."""
        plant, n, batch = self.plant, self.dimension, len(low)
        rest = iv.from_fractions(plant.equilibrium_state)
        half = radius.T[:, :, None]
        algebra = EnclosureAlgebra(half, self.remembered)
        state = seeds(rest + iv.point(centre), rest + Interval(low, high), 0, n)
        observation = evaluate(plant.observe, {"state": state}, algebra)["observation"]
        action: Enclosed = evaluate(self.policy, {"observation": observation}, algebra)["action"]
        if self.arithmetic == "float32":
            error = float32_error(self.policy, observation, half, self.activation_ulp, self.remembered)
            error = np.broadcast_to(error, (batch, len(plant.action)))
            half = np.concatenate([half, error.T[:, :, None]])
            algebra = EnclosureAlgebra(half, self.remembered)
            state, action = _widened(state, len(half)), _disturbed(action, error, n, len(half))
        after: Enclosed = evaluate(plant.dynamics, {"state": state, "action": action}, algebra)["next_state"]
        shape, slope = (batch, n), after.slope
        if slope is None:
            slope = iv.point(np.zeros((len(half), *shape)))
        slope_centre, slope_radius = slope.centre_radius()
        value, at_centre = (
            Interval(*(np.broadcast_to(end, shape) for end in (v.low, v.high))) for v in (after.value - rest, after.centre - rest)
        )
        centre_value, centre_radius = at_centre.centre_radius()
        return Step(
            centre, half[:, :, 0].T, value, centre_value, centre_radius, *(s.transpose(1, 2, 0) for s in (slope_centre, slope_radius))
        )


def _widened(x: Enclosed, total: int) -> Enclosed:
    if x.slope is None:
        return x
    extra = np.zeros((total - len(x.slope.low), *x.slope.low.shape[1:]))
    return Enclosed(x.value, x.centre, Interval(np.concatenate([x.slope.low, extra]), np.concatenate([x.slope.high, extra])))


def _disturbed(action: Enclosed, error: Array, first: int, total: int) -> Enclosed:
    """The action plus independent disturbances |w_i| <= error_i, seeds ``first``, ``first + 1``, ..."""
    value = action.value + Interval(-error, error)
    slope = np.zeros((total, *value.low.shape))
    slope[np.arange(first, total), :, np.arange(total - first)] = 1.0
    wide = _widened(action, total).slope
    return Enclosed(value, action.centre, iv.point(slope) if wide is None else wide + iv.point(slope))


def _dot(x: Array, y: Array) -> Array:
    """Scalar products of rows."""
    return np.asarray((x * y).sum(1))


def _times(matrices: Array, x: Array) -> Array:
    """One matrix times one row each."""
    return np.asarray((matrices @ x[:, :, None])[:, :, 0])


@dataclass(frozen=True)
class Step:
    """y+ in ``centre_value +- centre_radius + (slope +- slope_radius) h`` for all |h| <= radius, and inside ``value``.

    ``h`` are the seed coordinates: the cell's y - centre, then the disturbances. Shapes: centre (B, n), radius (B, k),
    value, centre_value, centre_radius (B, n), slope and slope_radius (B, n, k).
    """

    centre: Array
    radius: Array
    value: Interval
    centre_value: Array
    centre_radius: Array
    slope: Array
    slope_radius: Array

    def inside(self, low: Array, high: Array) -> Array:
        """True where y+ surely lies in the box [low, high]."""
        return np.asarray(((self.value.low >= low) & (self.value.high <= high)).all(1))

    def _lost(self, size: Array) -> Array:
        """What rounding can take from a formula whose terms add up to ``size``: gamma(d) T, and products below float64's range.

        At most two radii and one of the sizes in T are still multiplied to such a product.
        """
        n, k = self.slope.shape[1:]
        return np.asarray(1.1 * iv.gamma(8 * n + 6 * k + 100) * size + TINY * (1 + self.radius.sum(1)) ** 2)

    def _parts(self, P: Array) -> tuple[Array, Array, Array, Array]:
        """S^T P a, P a, P S and the radius e of a + S h that S h + a does not explain."""
        error = _times(self.slope_radius, self.radius) + self.centre_radius
        toward = self.centre_value @ P
        return _times(self.slope.transpose(0, 2, 1), toward), toward, P @ self.slope, error

    def _spread(self, P: Array, toward: Array, sensitivity: Array, error: Array) -> Array:
        """2 e^T (|P a| + |P S| r) + e^T |P| e."""
        reach = np.abs(toward) + _times(np.abs(sensitivity), self.radius)
        return np.asarray(2 * _dot(error, reach) + _dot(error, error @ np.abs(P)))

    def _size(self, P: Array, error: Array) -> Array:
        """(|a| + |S| r + e)^T |P| (|a| + |S| r + e): bounds every term of V(y+)."""
        reach = np.abs(self.centre_value) + _times(np.abs(self.slope), self.radius) + error
        return _dot(reach, reach @ np.abs(P))

    def decrease(self, P: Array, keep: Interval) -> Array:
        """A lower bound of keep V(y) - V(y+) over each cell; NaN where the step is not finite.

        With y = c + E h and y+ = a + S h + e: the constant term minus |linear|^T r, minus what the quadratic form
        k E^T P E - S^T P S can lose, minus the terms with e.
        """
        n, k = self.slope.shape[1:]
        linear, toward, sensitivity, error = self._parts(P)
        factor = float(keep.low)
        home = self.centre @ P
        constant = factor * _dot(self.centre, home) - _dot(self.centre_value, toward)
        linear = -linear
        linear[:, :n] += factor * home
        form = -(self.slope.transpose(0, 2, 1) @ sensitivity)
        form[:, :n, :n] += factor * P
        diagonal = form[:, np.arange(k), np.arange(k)]
        absolute = np.abs(form)
        absolute[:, np.arange(k), np.arange(k)] = np.maximum(-diagonal, 0.0)
        loss = 2 * _dot(np.abs(linear), self.radius) + _dot(self.radius, _times(absolute, self.radius))
        own = np.abs(self.centre) + self.radius[:, :n]
        size = _dot(own, own @ np.abs(P)) + self._size(P, error)
        return np.asarray(constant - loss - self._spread(P, toward, sensitivity, error) - self._lost(size))

    def highest(self, P: Array) -> Array:
        """An upper bound of V(y+) over each cell."""
        linear, toward, sensitivity, error = self._parts(P)
        form = np.abs(self.slope.transpose(0, 2, 1) @ sensitivity)
        value = _dot(self.centre_value, toward) + 2 * _dot(np.abs(linear), self.radius) + _dot(self.radius, _times(form, self.radius))
        return np.asarray(value + self._spread(P, toward, sensitivity, error) + self._lost(self._size(P, error)))


def level_range(P: Array, centre: Array, radius: Array) -> tuple[Array, Array]:
    """Lower and upper bounds of V over cells ``centre +- radius``; P is positive semidefinite."""
    home, own = centre @ P, np.abs(centre) + radius
    slack = 1.1 * iv.gamma(8 * len(P) + 100) * _dot(own, own @ np.abs(P)) + TINY
    value, spread = _dot(centre, home), 2 * _dot(np.abs(home), radius)
    return value - spread - slack, value + spread + _dot(radius, radius @ np.abs(P)) + slack


def centre_radius(low: Array, high: Array) -> tuple[Array, Array]:
    """Floats with [low, high] inside centre +- radius."""
    return Interval(low, high).centre_radius()


def keep_factor(rate: Fraction) -> Interval:
    """1 - rate as a float64 interval."""
    value = iv.from_fractions((1 - rate,))
    return Interval(value.low[0], value.high[0])
